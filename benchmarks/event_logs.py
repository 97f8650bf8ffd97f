"""What a stage does with old event logs, with 5 of them and with 500: does it cost more with every run that was made?

    python benchmarks/event_logs.py [--before REV]          # writes benchmarks/EVENT_LOGS.md

Every event log is of 200 kB, has ended, and is in MLflow's database. A pass is what the stages do with all of them:
look for what is to be sent (`push_all`), end those that a kill has left open (`end_abandoned`), and look for one by its
weights (`find`), here for weights that none has; all are of the same run. Passes with 5 and with 500 take turns in one
process, which does not import MLflow; the first round is not counted. With REV, the same is done with the code of that
revision.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
RESULTS = TOP / "benchmarks" / "EVENT_LOGS.md"
COUNTS = (5, 500)
SIZE = 200_000  # bytes of events.jsonl
PARTS = ("push_all", "end_abandoned", "find")


def write_one(top: Path) -> Path:
    """Create a repository with one event log that MLflow has; return its folder. The working directory is `top`."""
    from optlab.tracking import uploader
    from optlab.tracking.event_log import EventLog

    (top / ".dvc").mkdir()
    (top / ".dvc" / "config").touch()
    log = EventLog.create("adam-0", "0" * 16)
    tags = {"optlab.run": "adam-0", "optimizer": "adam"}
    log.append("start", time=1, name="adam", experiment="optlab", params={"lr": "0.001"}, tags=tags, dataset=None)
    step = 0
    while log.path.stat().st_size < SIZE - 200:
        log.log_metrics([("step/loss", 2.302585 / (1 + number), 1_700_000_000_000 + number, number)
                         for number in range(step, step + 500)])  # fmt: skip
        step += 500
    log.append("tags", tags={"weights.sha256": "0" * 64})
    log.append("end", status="completed", time=1_800_000_000_000)
    assert list(uploader.push_all()) == [log.folder.name]
    return top / log.folder


def repositories(folder: Path) -> list[Path]:
    """One for each of COUNTS."""
    first = folder / "first"
    first.mkdir()
    os.chdir(first)
    kept = write_one(first)
    tops = []
    for count in COUNTS:
        top = folder / str(count)
        shutil.copytree(first, top, ignore=shutil.ignore_patterns("event_logs"))
        for number in range(count):
            name = f"20250101-{number:06d}-adam-0-{number:016x}"
            shutil.copytree(kept, top / ".optlab" / "event_logs" / name)
        tops.append(top)
    return tops


def measure(tops: list[Path], rounds: int) -> None:
    """Print, for every round and repository, the seconds of each part; the first round is not counted."""
    from optlab.tracking import event_log, uploader

    found = []
    for _ in range(rounds + 1):
        for top in tops:
            os.chdir(top)
            times = [time.perf_counter()]
            assert list(uploader.push_all()) == []
            times.append(time.perf_counter())
            event_log.end_abandoned("optlab-adam-0", event_log.EventLog(Path("none")))
            times.append(time.perf_counter())
            assert event_log.find_by_weights("adam-0", "f" * 64) is None
            times.append(time.perf_counter())
            found.append([later - earlier for earlier, later in itertools.pairwise(times)])
    assert "mlflow" not in sys.modules
    print(json.dumps([found[start : start + len(tops)] for start in range(len(tops), len(found), len(tops))]))


def measured(source: Path, tops: list[Path], rounds: int) -> list[list[list[float]]]:
    """The same, by the code in `source`: round → repository → part → seconds."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")}
    command = [sys.executable, __file__, "--rounds", str(rounds), "--measure", *map(str, tops)]
    result = subprocess.run(
        command, env=own | {"PYTHONPATH": str(source / "src")}, capture_output=True, text=True, check=True
    )
    return json.loads(result.stdout)


def rows(name: str, rounds: list[list[list[float]]]) -> list[str]:
    """A line for each part, and one for the pass."""
    lines = []
    for part, title in [*enumerate(PARTS), (None, "a pass")]:
        pairs = [[1000 * (sum(each) if part is None else each[part]) for each in one] for one in rounds]
        few, many = zip(*pairs, strict=True)
        ratios = [second / first for first, second in pairs]
        lines.append(f"| {name} | {title} | {spread(few)} | {spread(many)} | {spread(ratios, '.1f')} |")
    return lines


def spread(values: tuple[float, ...] | list[float], form: str = ".2f") -> str:
    """median (least – most)."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} – {max(values):{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--before", metavar="REV", help="measure this revision's code, too")
    parser.add_argument("--measure", nargs="+", type=Path, metavar="TOP", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.rounds)
        return
    with tempfile.TemporaryDirectory() as folder:
        tops, sources = repositories(Path(folder)), {"now": TOP}
        if arguments.before:
            before = Path(folder) / "before"
            before.mkdir()
            sources = {arguments.before: before} | sources
            for command in (["clone", "--quiet", "--no-checkout", TOP, "."], ["checkout", "--quiet", arguments.before]):
                subprocess.run(["git", *command], cwd=before, check=True)
        table = [
            line for name, source in sources.items() for line in rows(name, measured(source, tops, arguments.rounds))
        ]
        size = next(tops[0].glob(".optlab/event_logs/*/events.jsonl")).stat().st_size
    lines = [
        "# Old event logs",
        "",
        f"{os.cpu_count()} cores; Python {sys.version.split()[0]}. What a stage does with event logs that have ended "
        f"and that MLflow has, {size:,} bytes each; n = {arguments.rounds} rounds, median (least – most); "
        f"load average {os.getloadavg()[0]:.1f}.",
        "",
        f"| code | part | {COUNTS[0]} event logs, ms | {COUNTS[1]} event logs, ms | ratio |",
        "| --- | --- | --- | --- | --- |",
        *table,
    ]
    RESULTS.write_text("\n".join(lines) + "\n")
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
