"""What a run costs besides its training: this revision and an earlier one, side by side in one call.

    python benchmarks/startup.py [--against REV]          # writes benchmarks/STARTUP.md

Three optimizers on the sample data set, trainings of a tenth of a second, one thread. The earlier revision is measured
in a checkout of its own, by the same commands with the same packages; all ratios are to one `import torch`, measured
between the commands.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import needs
import torch
from needs import TOP

from optlab.environment import capture_environment
from optlab.system import errors

sys.path.insert(0, str(TOP / "tests"))

import projects

RESULTS = TOP / "benchmarks" / "STARTUP.md"
PARAMS = """\
model: zilliax
seeds: {seeds}
data: {{dataset: cifar10_sample, train_size: 400, validation_size: 100}}
training: {{epochs: 1, batch_size: 64, threads: 1}}
optimizers:
{optimizers}"""
OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}
# What is measured: the command, and the runs of it.
MEASURED = {
    "dvc repro": (["dvc", "repro"], 9),
    "optlab repro --jobs 2": (["optlab", "repro", "--jobs", "2"], 10),
    "optlab repro --jobs 2, many": (["optlab", "repro", "--jobs", "2"], 100),
    "optlab check": (["optlab", "check"], 3),
    "optlab check, again": (["optlab", "check"], 3),
}


def project(code: Path, folder: Path, runs: int) -> projects.Project:
    """A new project of the revision in the folder `code`, with so many runs, its data at hand."""
    for name in ("benchmarks", "custom", "pipeline", "src", ".dvc/plots"):
        shutil.copytree(code / name, folder / name)
    for name in (".dvc/config", ".dvcignore", ".gitignore", "dvc.yaml"):
        shutil.copy(code / name, folder / name)
    count = 2 if runs % 3 else 3
    lines = [f"  {name}: {{class: {cls}, lr: 0.001}}\n" for name, cls in list(OPTIMIZERS.items())[:count]]
    text = PARAMS.format(seeds=list(range(runs // count)), optimizers="".join(lines))
    if (code / "src" / "optlab" / "tuning").is_dir():  # its dvc.yaml asks for it
        text += "tuning: {trials: 4}\n"
    (folder / "params.yaml").write_text(text)
    made = projects.Project(folder)
    for command in (["git", "init", "-q"], ["git", "add", "-A"],
                    ["git", "-c", "user.name=b", "-c", "user.email=b@example.org", "commit", "-qm", "start"],
                    ["dvc", "repro", "--quiet", "download"]):  # fmt: skip
        result = made.run(*command)
        if result.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{result.stderr}")
    return made


def seconds(made: projects.Project, command: list[str]) -> float:
    """The wall time of a command."""
    began = time.perf_counter()
    result = subprocess.run(command, cwd=made.top, env=made.environment, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{result.stdout}{result.stderr}")
    return time.perf_counter() - began


def import_torch() -> float:
    """The wall time of one, in a process of its own."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - began


def measure(name: str, code: Path, imports: list[float]) -> float:
    """The seconds of one of `MEASURED`, for the revision in that folder."""
    command, runs = MEASURED[name]
    with tempfile.TemporaryDirectory() as folder:
        made = project(code, Path(folder) / "project", runs)
        imports.append(import_torch())
        if name.endswith("again"):
            seconds(made, command)
        return seconds(made, command)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="REV", help="the earlier revision; default: none")
    parser.add_argument("--rounds", type=int, default=3, help="of all but the many runs, which are done once")
    parser.add_argument("--many-before", action="store_true", help="the many runs of the earlier revision, too")
    arguments = parser.parse_args()
    needs.check(("dvc",), ("git", "optlab"))
    with tempfile.TemporaryDirectory() as folder:
        codes = {"now": TOP}
        if arguments.against:
            codes = {"before": Path(folder) / "before"} | codes
            git("clone", "--quiet", str(TOP), str(codes["before"]))
            git("-C", str(codes["before"]), "checkout", "--quiet", arguments.against)
        results: dict[str, dict[str, list[float]]] = {}
        imports: list[float] = []
        for round_ in range(arguments.rounds):
            for name in MEASURED:
                many = name.endswith("many")
                for which, code in codes.items():
                    if many and (round_ or (which == "before" and not arguments.many_before)):
                        continue
                    took = measure(name, code, imports)
                    results.setdefault(name, {}).setdefault(which, []).append(took)
                    print(f"{name}, {which}: {took:.1f} s", flush=True)
                    RESULTS.write_text(report(results, imports, arguments.against))
    print(RESULTS.read_text())


def git(*words: str) -> None:
    subprocess.run(["git", *words], check=True)


def report(results: dict[str, dict[str, list[float]]], imports: list[float], against: str | None) -> str:
    """The table in markdown; medians, and beside them how often an `import torch` would fit in, for each run."""
    facts = capture_environment(torch.device("cpu"))
    unit = statistics.median(imports)
    lines = [
        "# Start-up",
        "",
        f"{facts.cpu}, {len(os.sched_getaffinity(0))} cores, {facts.onednn_isa}; torch {facts.packages['torch']}. "
        "Two or three optimizers on the sample data set, one epoch of 400 images, one thread. "
        f"One `import torch` takes {unit:.2f} s "
        f"({min(imports):.2f} – {max(imports):.2f}, n = {len(imports)}). Medians, n in brackets; the earlier revision "
        f"is {against or 'none'}.",
        "",
        "| what | before, s | now, s | before ÷ now | a run, in units of `import torch`: before | now |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in results.items():
        runs = MEASURED[name][1]
        before, now = (found.get(which) for which in ("before", "now"))
        cells = [f"{statistics.median(each):.1f} [{len(each)}]" if each else "–" for each in (before, now)]
        ratio = f"{statistics.median(before) / statistics.median(now):.1f}" if before and now else "–"
        units = [f"{statistics.median(each) / runs / unit:.1f}" if each else "–" for each in (before, now)]
        title = f"`{name.split(',')[0]}`, {runs} runs" if "repro" in name else name
        lines.append("| " + " | ".join([title, *cells, ratio, *(units if "repro" in name else ("–", "–"))]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    errors.run_main(main)
