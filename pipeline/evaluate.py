"""Stage evaluate: one run's weights → its metrics on the test split, in the record and in the run's MLflow run.

Usage: python pipeline/evaluate.py OPTIMIZER SEED
"""

from optlab.config import loader
from optlab.schema import parameters
from optlab.system import errors, locks, processes, repository
from optlab.tracking.uploader_client import UploaderClient
from optlab.training import numerics


def main() -> None:
    processes.exit_with_caller()
    name, number = processes.parse_arguments("OPTIMIZER", "SEED")
    seed = int(number)
    folder = repository.enter_root()
    settings = loader.load(folder / parameters.PARAMS_FILE)
    numerics.prepare(settings.training)  # before anything imports torch
    uploader = UploaderClient()
    from optlab import records
    from optlab.analysis import metrics
    from optlab.data import cifar10
    from optlab.records import TrainRecord
    from optlab.tracking import event_log, run_metadata
    from optlab.training import determinism, loop, weights

    determinism.configure_torch(settings.training)
    test = cifar10.load_test_split(repository.DATA, settings.data)
    files = records.RunFiles(folder, name, seed)
    train_record = TrainRecord.read(files.training)
    model, digest = weights.load_model(files.weights, settings.model, train_record.weights_sha256)
    logits = loop.predict(model, test)
    mirrored_logits = loop.predict(model, test.mirror()) if settings.data.mirror_test else None
    eval_record = metrics.compute_metrics(train_record.status, logits, test.labels, digest, mirrored_logits)
    metrics.write_predictions(files.predictions, logits, test.labels)
    eval_record.write(files.test)
    if eval_record.test_accuracy is not None:
        print(f"{files.id}  test loss {eval_record.test_loss:.4f}, test accuracy {eval_record.test_accuracy:.2%}")
    else:
        print(f"{files.id}  {eval_record.status}: its outputs are not finite, so there are no test metrics")

    with locks.hold_lock(run_metadata.get_lock_name(folder, files.id), locks.LOCK_TIMEOUT_S):
        log = event_log.find_by_weights(files.id, digest) or run_metadata.create_log_from_record(
            settings, files, files.weights, train_record
        )
        run_metadata.log_evaluation(log, files.id, files.weights, train_record, eval_record, settings.model)
        log.commit_draft()
    uploader.close()


if __name__ == "__main__":
    errors.run_main(main)
