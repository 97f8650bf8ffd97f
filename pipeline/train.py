"""Stage train: one optimizer, one seed → weights and the record of every epoch and step.

Usage: python pipeline/train.py OPTIMIZER SEED
"""

import sys

from optlab import config, errors, locks, numerics, processes, project


def main() -> None:
    processes.follow_caller()
    name, seed = sys.argv[1], int(sys.argv[2])
    folder = project.enter()
    settings = config.load(folder / config.PARAMS)
    numerics.prepare(settings.training)  # before anything imports torch
    from optlab import checkpoint, conditions, data, observers, optimizers, record, runlog, training, weights
    from optlab.journal import Journal, end_abandoned, resumable
    from optlab.tracking import Live

    device = conditions.apply(settings.training)
    optimizers.check(settings)
    if settings.training.precision == "bf16" and not conditions.bf16_is_native(device):
        print("warning: this CPU has no bf16 instructions: bf16 is emulated, about ten times slower than fp32")
    for sentence in numerics.limits(settings):
        print(sentence)
    splits = data.load(project.DATA, settings.data)

    files = record.RunFiles(folder, name, seed)
    in_force = conditions.current(device)
    key = checkpoint.key(settings, name, seed, in_force)
    own = runlog.lock_name(folder, files.id)
    with locks.holding(own, locks.PATIENCE_S):
        journal = resumable(files.id, key) or Journal.create(files.id, key)
        end_abandoned(own, journal)
        saver = checkpoint.Checkpoint(checkpoint.CHECKPOINTS / own / key / journal.folder.name, journal.to_disk)
        live = Live(journal)
        try:
            with runlog.ending(journal):
                opening = runlog.facts(settings, folder, name, seed, in_force)
                watching = [
                    observers.progress(settings.training.epochs, len(splits.train)),
                    observers.JournalWriter(journal, opening, live.wake),
                ]
                outcome = training.train(settings, name, seed, splits, device, watching, saver)
                digest = weights.write(files.weights, outcome.model, settings.model)
                record.write_json(files.training, record.training_record(outcome, digest))
                record.write_json(files.conditions, in_force | {"weights_sha256": digest})
                journal.artifact(files.weights, "weights")
                journal.append("tags", tags={"weights.sha256": digest})
                journal.end(outcome.status)
                journal.to_disk()
        finally:
            live.finish()
        checkpoint.remove(own)  # last: a kill before this line costs the steps since the last checkpoint only


if __name__ == "__main__":
    errors.run(main)
