"""Stage train: one optimizer, one seed → weights and the record of every epoch and step.

Usage: python pipeline/train.py OPTIMIZER SEED
"""

from typing import TYPE_CHECKING

from optlab.config import loader
from optlab.schema import parameters
from optlab.system import errors, locks, processes, repository, source_code
from optlab.tracking.uploader_client import UploaderClient
from optlab.training import numerics

if TYPE_CHECKING:
    from optlab.records import Environment, RunFiles
    from optlab.tracking.event_log import EventLog
    from optlab.training.loop import TrainResult


def main() -> None:
    processes.exit_with_caller()
    name, number = processes.parse_arguments("OPTIMIZER", "SEED")
    seed = int(number)
    folder = repository.enter_root()
    settings = loader.load(folder / parameters.PARAMS_FILE)
    numerics.prepare(settings.training)  # before anything imports torch
    uploader = UploaderClient()  # it loads MLflow meanwhile
    from optlab import records
    from optlab.data import cifar10
    from optlab.environment import capture_environment, has_native_bf16
    from optlab.orchestration import preflight_cache
    from optlab.tracking import callbacks, run_metadata
    from optlab.tracking.event_log import EventLog, end_abandoned, find_resumable
    from optlab.training import checkpoint, determinism, loop

    cifar10.forbid_test_split("a training must not see it")
    found = preflight_cache.load_or_run(settings)
    device = determinism.configure_torch(settings.training)
    if settings.training.precision == "bf16" and not has_native_bf16(device):
        print("warning: this CPU has no bf16 instructions: bf16 is emulated, about ten times slower than fp32")
    for sentence in found.warnings:
        print(sentence)
    settings, choice = records.load_chosen_config(settings, folder, name, seed)
    splits = cifar10.load(repository.DATA, settings.data, seed)

    files = records.RunFiles(folder, name, seed)
    environment = capture_environment(device, settings.list_class_paths(name))
    code = source_code.hash_code(folder, "train", settings.list_class_paths(name))
    key = checkpoint.compute_fingerprint(settings, name, seed, environment, code)
    lock_name = run_metadata.get_lock_name(folder, files.id)
    with locks.hold_lock(lock_name, locks.LOCK_TIMEOUT_S):
        event_log = find_resumable(files.id, key) or EventLog.create(files.id, key)
        end_abandoned(lock_name, event_log)
        checkpointer = checkpoint.FileCheckpointer(
            checkpoint.CHECKPOINTS_DIR / lock_name / key / event_log.folder.name, event_log.flush
        )
        try:
            with run_metadata.close_on_error(event_log):
                tags = run_metadata.build_trial_tags(settings, choice, seed)
                metadata = run_metadata.build_run_metadata(settings, folder, name, seed, environment, extra_tags=tags)
                training_callbacks = [
                    callbacks.create_progress_callback(settings.training.epochs, len(splits.train)),
                    callbacks.EventLogWriter(event_log, metadata),
                ]
                result = loop.train(settings, name, seed, splits, device, training_callbacks, checkpointer)
                save_result(result, settings.model, files, environment, event_log)
        finally:
            uploader.close()
        checkpoint.delete(lock_name)  # last: a kill before this line costs the steps since the last checkpoint only


def save_result(
    result: "TrainResult", model: str, files: "RunFiles", environment: "Environment", event_log: "EventLog"
) -> None:
    """Put the result on the disk, and name it in the event log."""
    from optlab import records
    from optlab.records import TrainRecord
    from optlab.training import weights

    digest = weights.save_model(files.weights, result.model, model)
    TrainRecord.from_training(
        result.status, result.epochs, result.validations, result.step_losses, result.hyperparameters, digest
    ).write(files.training)
    records.keep_environment(files)
    environment.model_copy(update={"weights_sha256": digest}).write(files.environment)
    event_log.log_weights(files.weights, digest)
    event_log.end(result.status)
    event_log.flush()


if __name__ == "__main__":
    errors.run_main(main)
