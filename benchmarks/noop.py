"""What DVC's commands and `optlab repro` cost with nothing to do, in multiples of one `import torch`.

    python benchmarks/noop.py [--revision REV] [--parts today studies runs]   # writes rows of benchmarks/NOOP.md

Three projects: this repository as it is; with twenty more studies; and with a thousand runs. Nothing is trained: the
files of the committed runs are copied, missing weights are random, and DVC records them. Each command is run before it
is measured. An earlier revision is measured in the same rounds, in projects of the same files.
"""

import argparse
import io
import os
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import needs
import safetensors.torch
import torch
from needs import TOP

from optlab.config import loader
from optlab.environment import capture_environment
from optlab.schema.parameters import PARAMS_FILE
from optlab.system import errors, repository
from optlab.training import models

RESULTS = TOP / "benchmarks" / "NOOP.md"
PARTS = {"today": "this repository", "studies": "twenty more studies", "runs": "1,000 runs"}
COMMANDS = ("dvc repro", "dvc status", "dvc exp show", "optlab repro")
MORE_STUDIES, SEEDS = 20, 500
OPTIMIZERS = ("sgd", "adam")  # of the many runs
STORE = (".optlab", "mlflow.db", "mlruns")
TIMEOUT_S = 3600  # `optlab repro` fills MLflow with 1,000 runs first


# As `dvc commit --force`, which takes minutes for a pipeline with a thousand runs.
_RECORD = """
import sys
from pathlib import Path
from optlab.orchestration.dvc_pipeline import DvcPipeline

pipeline = DvcPipeline(Path("dvc.yaml"), [])
for name in sys.argv[1:]:
    with pipeline._hold_dvc_lock(name):
        pipeline._commit_outputs(name)
"""


class Project:
    """A project of one revision's files.

    Args:
        revision: a git revision; None for the working tree.
    """

    def __init__(self, folder: Path, revision: str | None) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        if revision:
            content = subprocess.run(["git", "archive", revision], cwd=TOP, capture_output=True, check=True).stdout
            with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                archive.extractall(folder, filter="fully_trusted")
        else:
            _copy_working_tree(folder)
        own = {name: value for name, value in needs.environment().items() if not name.startswith(("MLFLOW", "DVC"))}
        inherited = [path for path in own.get("PYTHONPATH", "").split(os.pathsep) if path and Path(path) != TOP / "src"]
        self._environment = own | {"PYTHONPATH": os.pathsep.join([str(folder / "src"), *inherited])}
        shutil.copytree(TOP / repository.DATA, folder / repository.DATA, dirs_exist_ok=True)

    def run(self, *command: str) -> str:
        """Run a command to its end, and return its output; exit if it fails."""
        result = subprocess.run(command, cwd=self.folder, env=self._environment, capture_output=True, text=True,
                                timeout=TIMEOUT_S)  # fmt: skip
        if result.returncode:
            sys.exit(f"{' '.join(command)} failed in {self.folder}:\n{result.stdout}{result.stderr}")
        return result.stdout + result.stderr

    def measure(self, command: str) -> float:
        """Return the seconds of a command, which must find nothing to do."""
        began = time.perf_counter()
        printed = self.run(*command.split())
        seconds = time.perf_counter() - began
        # Where studies are part of the project, `dvc status` names them: they belong to other revisions of the code.
        expected = {"repro": "up to date|Nothing has changed", "status": "up to date|studies/", "show": "workspace"}
        if not re.search(expected[command.split()[-1]], printed):
            sys.exit(f"{command} found something to do in {self.folder}:\n{printed}")
        return seconds

    def record(self) -> None:
        """Make what git does not have of the runs, and record all files with DVC."""
        for folder in sorted((self.folder / "runs").iterdir()):
            _provide(f"models/{folder.name}.safetensors", self.folder)
            _provide(f"runs/{folder.name}/predictions.csv", self.folder)
        self.run("git", "init", "--quiet")
        self.commit()
        self.run("dvc", "commit", "--force", "--quiet", "dvc.yaml")

    def commit(self) -> None:
        """Commit all files with git."""
        self.run("git", "add", "--all")
        self.run("git", "-c", "user.name=b", "-c", "user.email=b@example.org", "commit", "--quiet", "-m", "files")

    def add_studies(self) -> None:
        """Add copies of the largest study."""
        for number in range(MORE_STUDIES):
            shutil.copytree(self.folder / "studies/optimizers", self.folder / f"studies/more{number}", symlinks=True)

    def add_runs(self) -> None:
        """Replace the runs by a thousand: copies of files and of entries in dvc.lock; stages of a seed differ by it."""
        params = self.folder / PARAMS_FILE
        text = re.sub(r"(?m)^seeds: .*", f"seeds: {list(range(SEEDS))}", params.read_text("utf-8"))
        params.write_text(re.sub(r"(?m)^  adamw: .*\n", "", text), "utf-8")
        lock = self.folder / "dvc.lock"
        entries = dict(re.findall(r"(?m)^  (\S+):\n((?:    .*\n)+)", lock.read_text("utf-8")))
        seeds = len([each for each in entries if each.startswith("train@sgd-")])
        for path in [*self.folder.glob("runs/adamw-*"), *self.folder.glob("tuning/adamw*")]:
            shutil.rmtree(path)
        # Earlier versions have one tuning for all seeds, which depends on their list.
        kept = ["download", *(f"tune@{name}" for name in OPTIMIZERS if f"tune@{name}" in entries)]
        text = "schema: '2.0'\nstages:\n" + "".join(f"  {each}:\n{entries[each]}" for each in kept)
        for name in OPTIMIZERS:
            for seed in range(SEEDS):
                old, new = f"{name}-{seed % seeds}", f"{name}-{seed}"
                if seed >= seeds:
                    for each in ("runs", "tuning") if len(kept) == 1 else ("runs",):
                        shutil.copytree(self.folder / each / old, self.folder / each / new, copy_function=os.link)
                    os.link(self.folder / f"models/{old}.safetensors", self.folder / f"models/{new}.safetensors")
                for stage in ("tune", "train", "evaluate") if len(kept) == 1 else ("train", "evaluate"):
                    entry = entries[f"{stage}@{old}"].replace(old, new)
                    text += f"  {stage}@{new}:\n{entry.replace(f' {name} {seed % seeds}', f' {name} {seed}')}"
        lock.write_text(text, "utf-8")
        self.commit()
        self.run(sys.executable, "-c", _RECORD, *kept[1:], "compare")

    def share_store(self, other: "Project") -> None:
        """Take over what another project has in MLflow: to fill it takes minutes for a thousand runs."""
        for name in STORE:
            source, target = other.folder / name, self.folder / name
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.sock", "checked"))
            else:
                shutil.copy(source, target)


def _copy_working_tree(folder: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=TOP,
                            capture_output=True, text=True, check=True).stdout  # fmt: skip
    for name in filter(os.path.lexists, (TOP / each for each in listed.split("\0")[:-1])):
        target = folder / name.relative_to(TOP)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, target, follow_symlinks=False)


def _provide(name: str, folder: Path) -> None:
    """Put a file of a run in its place: this repository's, or one of the same size."""
    (folder / name).parent.mkdir(exist_ok=True)
    if (TOP / name).is_file():
        shutil.copy(TOP / name, folder / name)
    elif name.endswith(".csv"):
        (folder / name).write_text("image,actual,predicted,confidence\n" * 7500, "utf-8")
    else:
        safetensors.torch.save_file(models.build(loader.load(TOP / PARAMS_FILE).model, 0).state_dict(), folder / name)


def make_projects(part: str, folder: Path, revision: str | None) -> dict[str, Project]:
    """Return the projects of a part: that of the earlier revision, if there is one, and that of the working tree."""
    projects: dict[str, Project] = {}
    for which in ["now", *(["before"] if revision else [])]:
        project = projects[which] = Project(folder / f"{part}-{which}", revision if which == "before" else None)
        project.record()
        if part == "studies":
            project.add_studies()
        if part == "runs":
            project.add_runs()
        if which == "before":
            project.share_store(projects["now"])
        for command in [*COMMANDS, COMMANDS[-1]]:  # the first `optlab repro` fills MLflow
            print(f"{part}, {which}, {command}, for the first time: {project.measure(command):.1f} s", flush=True)
    return projects


def import_torch() -> float:
    """Return the seconds of one, in a process of its own."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - began


def report(results: dict[tuple[str, str, str], list[float]], imports: dict[str, list[float]], revision: str) -> str:
    """Return the page in Markdown."""
    facts, spread = capture_environment(torch.device("cpu")), [each for part in imports.values() for each in part]
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "not known"
    previous = RESULTS.read_text("utf-8") if RESULTS.exists() else ""
    known = (re.findall(r"Before: (.+)\.", previous) or ["not measured"])[0]
    lines = [
        "# With nothing to do",
        "",
        "`python benchmarks/noop.py`: medians of n rounds, each with an `import torch`; the columns without a unit are "
        f"multiples of it. Projects may be measured by calls on different machines. The last call: {facts.cpu}, "
        f"{len(os.sched_getaffinity(0))} cores, load {load} at the end; torch {facts.packages['torch']}, DVC "
        f"{facts.packages['dvc']}; an `import torch` takes {statistics.median(spread):.2f} s ({min(spread):.2f} – "
        f"{max(spread):.2f}). Before: {revision or known}.",
        "",
        "| project | command | n | before, s | now, s | before, × | now, × |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for part, title in PARTS.items():
        if part not in imports:  # measured by another call
            lines += [line for line in previous.splitlines() if line.startswith(f"| {title} |")]
        for command in COMMANDS:
            now, before = (results.get((part, which, command)) for which in ("now", "before"))
            if now:
                unit = statistics.median(imports[part])
                medians = [statistics.median(each) if each else None for each in (before, now)]
                cells = [f"{each:.2f}" if each else "–" for each in medians]
                cells += [f"{each / unit:.2f}" if each else "–" for each in medians]
                lines.append(f"| {title} | `{command}` | {len(now)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--revision", metavar="REV", default="", help="the earlier revision; default: none")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    needs.check(("dvc",), ("git", "dvc", "optlab"))
    results: dict[tuple[str, str, str], list[float]] = {}
    imports: dict[str, list[float]] = {}
    for part in arguments.parts:
        with tempfile.TemporaryDirectory() as folder:
            projects = make_projects(part, Path(folder), arguments.revision)
            for _ in range(arguments.rounds):
                imports.setdefault(part, []).append(import_torch())
                for command in COMMANDS:
                    for which, project in projects.items():
                        seconds = project.measure(command)
                        results.setdefault((part, which, command), []).append(seconds)
                        print(f"{part}, {which}, {command}: {seconds:.2f} s", flush=True)
                RESULTS.write_text(report(results, imports, arguments.revision), "utf-8")
    print(RESULTS.read_text("utf-8"))


if __name__ == "__main__":
    errors.run_main(main)
