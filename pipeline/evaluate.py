"""Stage evaluate: one run's weights → its metrics on the test split, in the record and in the run's MLflow run.

Usage: python pipeline/evaluate.py OPTIMIZER SEED
"""

import sys

from optlab import config, errors, locks, numerics, processes, project


def main() -> None:
    processes.follow_caller()
    name, seed = sys.argv[1], int(sys.argv[2])
    folder = project.enter()
    settings = config.load(folder / config.PARAMS)
    numerics.prepare(settings.training)  # before anything imports torch
    from optlab import conditions, data, evaluation, journal, record, runlog, tracking, training, weights

    conditions.apply(settings.training)
    test = data.load_test(project.DATA, settings.data)
    files = record.RunFiles(folder, name, seed)
    trained = record.read_json(files.training)
    model, digest = weights.read(files.weights, settings.model, trained["weights_sha256"])
    logits = training.predict(model, test)
    measured = evaluation.metrics(logits, test.labels)
    evaluation.write_predictions(files.predictions, logits, test.labels)
    record.write_json(files.test, {"status": trained["status"]} | measured)
    if measured["test_accuracy"] is not None:
        print(f"{files.id}  test loss {measured['test_loss']:.4f}, test accuracy {measured['test_accuracy']:.2%}")
    else:
        print(f"{files.id}  {trained['status']}: its outputs are not finite, so there are no test metrics")

    with locks.holding(runlog.lock_name(folder, files.id), locks.PATIENCE_S):
        log = journal.find(files.id, digest) or runlog.restored(settings, files, files.weights, trained, {})
        runlog.evaluation(log, files.id, files.weights, trained, measured, settings.model)
        log.publish()
    tracking.push_pending()


if __name__ == "__main__":
    errors.run(main)
