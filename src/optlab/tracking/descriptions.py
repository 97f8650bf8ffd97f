"""What MLflow's pages say of each experiment, in Markdown: the first line is what they show folded."""

TAG = "mlflow.note.content"

TRAININGS = """\
One run for each optimizer and seed; the verdict is in `{report}`.

**Metrics**; losses are mean cross entropies in nats, accuracies are fractions:

- `step/…`, by the number of steps: `loss` of each batch; `validation_loss`, `validation_accuracy` of each validation.
- `epoch/…`, by the number of epochs: `train_loss`, the mean over the images as they were trained on; `running_loss`, \
the tutorial's sum over the batches; `validation_loss` and `validation_accuracy` after the epoch.
- `test/…` and `test_class_accuracy/…`: once, of the final weights on the test split.
- `training/…`: gradients and images per second of each epoch, and the learning rate where it changes. Earlier runs \
have these under `epoch/…`.

**Parameters**: `optimizer`, its name in params.yaml; `optimizer.…`, its hyperparameters, defaults included; `seed`; \
`data.…`, `training.…` and `schedule.…` as in params.yaml.

**Tags**: `comparison` is `current` for the runs of the present comparison, which the table shows, `earlier` for those \
of former ones; `status` is running, completed, diverged, failed or interrupted; `weights.sha256`, `git.commit` \
and `conditions.…` say which weights came out, of which revision, on which machine.

MLflow has four digits of each figure; `runs/*/train.json` and `test.json` have all.
"""

SUMMARIES = """\
The means over the seeds of `{trainings}`; their bands are in `{report}`.

One run for each optimizer. `…/mean`, by the number of steps, with the ends of its 95 % confidence interval, `…/lower` \
and `…/upper`. MLflow cannot fill the area between two lines: the report shows the intervals as bands.
"""

TRIALS = """\
The trials of the tunings of `{trainings}`: the charts' parallel coordinates compare their values.

One run for each trial. `validation/…` by the number of steps. The tags `study` and `trial` number it; `chosen` \
is `yes` for the trial whose values the trainings have.
"""
