"""Stage claims: what the tutorial says about its optimizers, held against the recorded running losses."""

import math
from dataclasses import dataclass
from pathlib import Path

from optlab import records
from optlab.records import TrainRecord
from optlab.system import errors, files, processes, repository

RISE = 1.1  # times the lowest, at least, is what counts as unstable: the last epochs of any training go up and down
UNSTABLE_EPOCH = 16  # where the tutorial saw Adam at 0.01 begin to rise
NEAR = 2  # epochs either way that still count as near it


@dataclass(frozen=True)
class Finding:
    """One claim, whether the numbers bear it out, and the numbers."""

    claim: str
    verdict: str
    numbers: str


def main() -> None:
    processes.exit_with_caller()
    folder = repository.enter_root()
    losses = {name: running_losses(folder, name) for name in ("sgd", "adam", "adam_fast", "adamw")}
    text = report(losses)
    files.write_atomic(folder / records.REPORTS_FOLDER / "claims.md", text.encode())
    print(text)


def running_losses(folder: Path, optimizer: str) -> list[float]:
    """The running loss of each epoch; infinity where it was not finite."""
    history = TrainRecord.read(records.RunFiles(folder, optimizer, 0).training).history
    return [math.inf if epoch.running_loss is None else epoch.running_loss for epoch in history]


def findings(losses: dict[str, list[float]]) -> list[Finding]:
    """The tutorial's three checkable claims."""
    sgd, adam, fast, adamw = losses["sgd"], losses["adam"], losses["adam_fast"], losses["adamw"]
    ahead = sum(a < s for a, s in zip(adam, sgd, strict=False))
    lowest = min(range(len(fast)), key=fast.__getitem__) + 1
    rises = max(fast[lowest:], default=0.0) >= RISE * fast[lowest - 1]
    near = abs(lowest - UNSTABLE_EPOCH) <= NEAR
    after = ", ".join(f"{value:.4g}" for value in fast[lowest:]) or "nothing: it is the last epoch"
    return [
        Finding(
            "Adam may converge slowly",
            "does not hold" if ahead == len(sgd) else f"holds in {len(sgd) - ahead} of {len(sgd)} epochs",
            f"below SGD in {ahead} of {len(sgd)} epochs; after the last epoch {adam[-1]:.1f} against {sgd[-1]:.1f}",
        ),
        Finding(
            f"Adam at 0.01 becomes unstable near epoch {UNSTABLE_EPOCH}",
            "holds" if rises and near else "unstable, but not there" if rises else "does not hold",
            f"lowest, {fast[lowest - 1]:.1f}, in epoch {lowest}; then {after}",
        ),
        Finding(
            "AdamW is better than Adam at preventing overfitting",
            "cannot be told",
            f"no image is left that was not trained on; running loss after the last epoch {adamw[-1]:.1f} "
            f"(AdamW) against {adam[-1]:.1f} (Adam)",
        ),
    ]


def report(losses: dict[str, list[float]]) -> str:
    """Markdown: the claims, then every epoch's running loss."""
    lines = [
        "# The tutorial's claims",
        "",
        "The runs train on the 10,000 test images, in file order, not shuffled, with no validation split, as the "
        "tutorial does. The running loss is the sum of the losses of an epoch's batches.",
        "",
        "| claim | verdict | numbers |",
        "| --- | --- | --- |",
        *(f"| {finding.claim} | {finding.verdict} | {finding.numbers} |" for finding in findings(losses)),
        "",
        "| epoch | SGD 0.01 | Adam 0.001 | Adam 0.01 | AdamW 0.001 |",
        "| --- | --- | --- | --- | --- |",
    ]
    columns = [losses[name] for name in ("sgd", "adam", "adam_fast", "adamw")]
    for epoch in range(max(map(len, columns))):
        cells = [f"{column[epoch]:.4g}" if epoch < len(column) else "–" for column in columns]
        lines.append(f"| {epoch + 1} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    errors.run_main(main)
