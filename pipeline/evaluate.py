"""Stage evaluate: one run's weights → its metrics on the test split, in the record and in the run's MLflow run.

Usage: python pipeline/evaluate.py OPTIMIZER SEED
"""

from optlab.config import parameters, reading
from optlab.system import errors, locks, processes, repository
from optlab.tracking.link import Link
from optlab.training import numerics


def main() -> None:
    processes.follow_caller()
    name, number = processes.arguments("OPTIMIZER", "SEED")
    seed = int(number)
    folder = repository.enter()
    settings = reading.load(folder / parameters.PARAMS)
    numerics.prepare(settings.training)  # before anything imports torch
    sender = Link()
    from optlab.data import dataset
    from optlab.record import runs
    from optlab.record.contents import Trained
    from optlab.results import evaluation
    from optlab.tracking import facts, journal
    from optlab.training import conditions, loop, weights

    conditions.apply(settings.training)
    test = dataset.load_test(repository.DATA, settings.data)
    files = runs.RunFiles(folder, name, seed)
    trained = Trained.read(files.training)
    model, digest = weights.read(files.weights, settings.model, trained.weights_sha256)
    logits = loop.predict(model, test)
    measured = evaluation.metrics(trained.status, logits, test.labels, digest)
    evaluation.write_predictions(files.predictions, logits, test.labels)
    measured.write(files.test)
    if measured.test_accuracy is not None:
        print(f"{files.id}  test loss {measured.test_loss:.4f}, test accuracy {measured.test_accuracy:.2%}")
    else:
        print(f"{files.id}  {measured.status}: its outputs are not finite, so there are no test metrics")

    with locks.holding(facts.lock_name(folder, files.id), locks.PATIENCE_S):
        log = journal.find(files.id, digest) or facts.restored(settings, files, files.weights, trained)
        facts.evaluation(log, files.id, files.weights, trained, measured, settings.model)
        log.publish()
    sender.close()


if __name__ == "__main__":
    errors.run(main)
