"""Stage train: one optimizer, one seed → weights and the record of every epoch and step.

Usage: python pipeline/train.py OPTIMIZER SEED
"""

from typing import TYPE_CHECKING

from optlab.config import parameters, reading
from optlab.system import errors, locks, processes, repository
from optlab.tracking.link import Link
from optlab.training import numerics

if TYPE_CHECKING:
    from optlab.record.contents import Conditions
    from optlab.record.runs import RunFiles
    from optlab.tracking.journal import Journal
    from optlab.training.loop import Outcome


def main() -> None:
    processes.follow_caller()
    name, number = processes.arguments("OPTIMIZER", "SEED")
    seed = int(number)
    folder = repository.enter()
    settings = reading.load(folder / parameters.PARAMS)
    numerics.prepare(settings.training)  # before anything imports torch
    sender = Link()  # it loads MLflow meanwhile
    from optlab.data import dataset
    from optlab.execution import checked
    from optlab.record import runs
    from optlab.tracking import facts, observers
    from optlab.tracking.journal import Journal, end_abandoned, resumable
    from optlab.training import checkpoint, conditions, loop
    from optlab.tuning import settling

    dataset.forbid_test("a training must not see it")
    found = checked.ensure(settings)
    device = conditions.apply(settings.training)
    if settings.training.precision == "bf16" and not conditions.bf16_is_native(device):
        print("warning: this CPU has no bf16 instructions: bf16 is emulated, about ten times slower than fp32")
    for sentence in found.warnings:
        print(sentence)
    settings, tuned = settling.settled(settings, folder, name, seed)
    splits = dataset.load(repository.DATA, settings.data, seed)

    files = runs.RunFiles(folder, name, seed)
    in_force = conditions.current(device, settings.paths(name))
    key = checkpoint.key(settings, name, seed, in_force)
    own = facts.lock_name(folder, files.id)
    with locks.holding(own, locks.PATIENCE_S):
        journal = resumable(files.id, key) or Journal.create(files.id, key)
        end_abandoned(own, journal)
        saver = checkpoint.Checkpoint(checkpoint.CHECKPOINTS / own / key / journal.folder.name, journal.to_disk)
        try:
            with facts.ending(journal):
                opening = facts.facts(settings, folder, name, seed, in_force, more=tuned)
                watching = [
                    observers.progress(settings.training.epochs, len(splits.train)),
                    observers.JournalWriter(journal, opening, lambda: sender.wake(journal.folder.name)),
                ]
                outcome = loop.train(settings, name, seed, splits, device, watching, saver)
                write(outcome, settings.model, files, in_force, journal)
        finally:
            sender.close()
        checkpoint.remove(own)  # last: a kill before this line costs the steps since the last checkpoint only


def write(outcome: "Outcome", model: str, files: "RunFiles", conditions: "Conditions", journal: "Journal") -> None:
    """Put the result on the disk, and name it in the journal."""
    from optlab.record import kept
    from optlab.record.contents import Trained
    from optlab.training import weights

    digest = weights.write(files.weights, outcome.model, model)
    Trained.of(
        outcome.status, outcome.epochs, outcome.validations, outcome.step_losses, outcome.hyperparameters, digest
    ).write(files.training)
    kept.keep(files)
    conditions.model_copy(update={"weights_sha256": digest}).write(files.conditions)
    journal.weights(files.weights, digest)
    journal.end(outcome.status)
    journal.to_disk()


if __name__ == "__main__":
    errors.run(main)
