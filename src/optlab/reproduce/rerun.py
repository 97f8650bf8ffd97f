"""A past run, trained again from its git revision.

Nothing is restored from a cache but the data: the stages' own commands run in a checkout of their own, with the
revision's own code and under the recorded conditions, and their outputs are compared with the digests in its dvc.lock.
"""

import os
import subprocess
import sys
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

from optlab.config import reading
from optlab.record.contents import Choice, Conditions, Trained, Trials
from optlab.record.runs import RunFiles, TuningFiles
from optlab.reproduce.judgement import Output, Result, judge, md5
from optlab.system import processes, repository
from optlab.system.errors import RecordError, RevisionError
from optlab.system.revision import Revision, checkout, restore
from optlab.tracking import link
from optlab.training.conditions import ONEDNN_ISAS, PACKAGES, VARIABLES, installed_version, onednn_isa
from optlab.training.numerics import PORTABLE
from optlab.tuning.choice import conditions_of

_PROVIDED = (repository.DATA, Path(".dvc") / "config.local")  # what is put into a checkout for the stages
_ATEN = ("DEFAULT", "AVX2", "AVX512")  # what ATen calls the capabilities it has code for
_ONEDNN_OF = {"DEFAULT": "SSE41", "AVX2": "AVX2"}  # for records that do not name oneDNN's


def runs_of(revision: Revision, names: list[str]) -> list[str]:
    """The ids of the runs to reproduce: those named, or all of the revision's params.yaml that its dvc.lock has.

    Raises:
        RevisionError: the revision has no such run.
    """
    locked = [name.removeprefix("train@") for name in revision.lock() if name.startswith("train@")]
    wanted = reading.runs_at(revision, revision.folder, locked)
    recorded = [run for run in locked if run in wanted]
    if not recorded:
        raise RevisionError(f"{revision.name}: its dvc.lock has no run")
    for name in names:
        if name not in recorded:
            raise RevisionError(f"{revision.name}: has no run {name}: it has {', '.join(recorded)}")
    return names or recorded


def package_differences(revision: Revision, runs: list[str]) -> dict[str, tuple[Any, Any]]:
    """Package → (recorded, installed here) where the versions differ."""
    recorded: dict[str, Any] = {}
    for run in runs:
        recorded |= _conditions(revision, run).packages
    pairs = {name: (there, installed_version(name)) for name, there in recorded.items()}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def reproduce(revision: Revision, runs: list[str], here: bool = False, fresh: bool = False, quiet: bool = False,
              tuning: bool = False) -> Generator[Result]:  # fmt: skip
    """Train and evaluate each run again, with the recorded values of tuned hyperparameters, and yield its verdict.

    Args:
        here: under this machine's own conditions, instead of the recorded ones.
        fresh: in a virtual environment built from the revision's own constraints.txt.
        quiet: show nothing of the stages' output.
        tuning: do the tunings of their optimizers again, too, after them.

    Raises:
        RevisionError: the revision cannot be checked out, its outputs may lie outside of the checkout, or its
            environment or its data cannot be had.
    """
    stages = revision.lock()
    with processes.terminable(), checkout(revision) as tree:
        tunings = _tuned(revision, runs) if tuning else {}
        for path in (*_PROVIDED, *(path for run in runs for path in _replaced(revision, stages, run)),
                     *(Path(each["path"]) for name in tunings for each in revision.outs(name))):  # fmt: skip
            _check_inside(revision, tree, path)
        programs = Path(sys.executable).parent
        if fresh:
            programs = _fresh_environment(revision, tree, besides(revision, runs), quiet)
        _provide_data(tree, replace(revision, folder=Path()).lock(), _environment(tree, programs), quiet)
        for run in runs:
            recorded = _conditions(revision, run)
            environment = _environment(tree, programs, {} if here else replay_variables(recorded))
            for path in _replaced(revision, stages, run):
                (tree / path).unlink(missing_ok=True)  # git has checked out the recorded ones
            place = tree / revision.folder
            problems = (_run(stages[name]["cmd"], place, environment, quiet) for name in _stages_of(stages, run))
            problem = next(filter(None, problems), None)
            outs = _outs(revision, stages, run)
            yield Result(run, "not run", [], reason=problem) if problem else _judged(revision, tree, run, outs)
        for name, run in tunings.items():
            own = Conditions.at(revision, conditions_of(revision.folder, name.removeprefix("tune@")))
            variables = {} if here else replay_variables(own or _conditions(revision, run))
            yield _tuned_again(revision, tree, name, _environment(tree, programs, variables), quiet)


def _tuned(revision: Revision, runs: list[str]) -> dict[str, str]:
    """Stage → one of its runs, of the tunings that the runs' values are from."""
    first = {RunFiles.of(revision.folder, run).optimizer: run for run in reversed(runs)}
    choices = {name: Choice.at(revision, TuningFiles(revision.folder, name).choice) for name in first}
    return {f"tune@{name}": first[name] for name, found in choices.items() if found and found.is_tuned}


def _tuned_again(revision: Revision, tree: Path, stage: str, environment: dict[str, str], quiet: bool) -> Result:
    """Every trial again, and the choice: the same bytes, or others."""
    outs = revision.outs(stage)
    for each in outs:
        (tree / each["path"]).unlink(missing_ok=True)
    problem = _run(revision.lock()[stage]["cmd"], tree / revision.folder, environment, quiet)
    if problem:
        return Result(stage, "not run", [], reason=problem)
    outputs = [Output(each["path"], each["md5"], md5(tree / each["path"])) for each in outs]
    if all(each.identical for each in outputs):
        return Result(stage, "identical", outputs, reason="every trial and the choice are the recorded ones")
    return Result(stage, "different", outputs, reason=_differing(revision, tree, stage))


def _differing(revision: Revision, tree: Path, stage: str) -> str:
    """Which trials are not the recorded ones."""
    path = TuningFiles(revision.folder, stage.removeprefix("tune@")).trials
    recorded, again = Trials.at(revision, path), Trials.read(tree / path)
    before = {(each.study, each.index): each for each in recorded.trials} if recorded else {}
    names = [
        f"{'default' if each.index is None else each.index}{f' of study {each.study + 1}' if each.study else ''}"
        for each in again.trials
        if before.get((each.study, each.index)) != each
    ]
    return f"{len(names)} of {len(again.trials)} trials differ: {', '.join(names[:10])}" if names else "other trials"


def _stages_of(stages: dict[str, Any], run: str) -> list[str]:
    return [name for name in (f"train@{run}", f"evaluate@{run}") if name in stages]


def _outs(revision: Revision, stages: dict[str, Any], run: str) -> list[dict[str, Any]]:
    return [each for name in _stages_of(stages, run) for each in revision.outs(name)]


def _replaced(revision: Revision, stages: dict[str, Any], run: str) -> list[Path]:
    """The files that a run's stages write, and that are deleted before."""
    return [*(Path(each["path"]) for each in _outs(revision, stages, run)), _files(revision, run).conditions]


def _check_inside(revision: Revision, tree: Path, path: Path) -> None:
    """Refuse a path of the revision's by which a file of the user's could be replaced.

    Raises:
        RevisionError: it is absolute, goes up, or leads out of the checkout by a symbolic link.
    """
    inside = Path(os.path.realpath(tree / path)).is_relative_to(os.path.realpath(tree))
    if path.is_absolute() or ".." in path.parts or not inside:
        raise RevisionError(f"{revision.name}: {path} may lead outside of the checkout: nothing was deleted or run")


def _judged(revision: Revision, tree: Path, run: str, outs: list[dict[str, Any]]) -> Result:
    try:
        return judge(revision, tree, _files(revision, run), outs)
    except (RecordError, KeyError, TypeError, ValueError) as error:  # a record that another version wrote, or nobody
        return Result(run, "not run", [], reason=f"its record cannot be compared: {type(error).__name__}: {error}")


def recorded_weights(revision: Revision, run: str) -> str | None:
    """The SHA-256 of the run's weights as recorded there; None of what is no run."""
    if run.startswith("tune@"):
        return None
    trained = Trained.at(revision, _files(revision, run).training)
    return trained.weights_sha256 if trained else None


def _conditions(revision: Revision, run: str) -> Conditions:
    """Those that are recorded; unknown ones where none are."""
    return Conditions.at(revision, _files(revision, run).conditions) or Conditions()


def _files(revision: Revision, run: str) -> RunFiles:
    return RunFiles.of(revision.folder, run)


def _environment(tree: Path, programs: Path, replayed: dict[str, str] | None = None) -> dict[str, str]:
    """The caller's environment, with the revision's code and the recorded conditions; nothing goes to its MLflow."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "DVC_"))}
    own["PATH"] = f"{programs}{os.pathsep}{own.get('PATH', '')}"
    own["PYTHONPATH"] = str(tree / "src")
    own[processes.CALLER_VARIABLE] = str(os.getpid())  # no DVC runs the stages here
    own[link.FOLLOWED_VARIABLE] = link.NOBODY  # the verdict is logged; the checkout will be deleted
    if replayed is not None:
        own = {key: value for key, value in own.items() if key not in VARIABLES} | replayed
    return own


def replay_variables(recorded: Conditions, isa: str | None = None) -> dict[str, str]:
    """The variables that bring the libraries to the recorded instruction sets, on a machine that has more.

    Those that were set when it was recorded are set as they were. Where none was and the CPU had less than this one,
    ATen, oneDNN and MKL are held to what it had; on a machine of the same kind nothing is set.

    Args:
        recorded: the conditions of a run.
        isa: the richest instruction set here, by oneDNN's name; default: this CPU's.
    """
    variables = {name: value for name, value in recorded.variables.items() if value is not None}
    if set(PORTABLE) & set(variables):
        return variables  # what is recorded is the variables' effect, and tells nothing of the CPU
    capability, isa = recorded.cpu_capability, isa or onednn_isa()
    mine = "AVX512" if (isa or "").startswith("AVX512") else "AVX2" if (isa or "").startswith("AVX2") else "DEFAULT"
    if capability in _ATEN and _ATEN.index(capability) < _ATEN.index(mine):
        variables["ATEN_CPU_CAPABILITY"] = capability.lower()
        if capability == "AVX2":
            variables.setdefault("MKL_ENABLE_INSTRUCTIONS", capability)
    richest_first = list(ONEDNN_ISAS)
    then = recorded.onednn_isa or _ONEDNN_OF.get(capability)
    if isa and then in richest_first and richest_first.index(then) > richest_first.index(isa):
        variables["ONEDNN_MAX_CPU_ISA"] = then
    return variables


def besides(revision: Revision, runs: list[str]) -> list[str]:
    """What pip is to install besides the revision's own package, for runs with classes of others: `name==version`.

    Raises:
        RevisionError: runs have different versions of one.
    """
    recorded: dict[str, str | None] = {}
    for run in runs:
        for name, there in _conditions(revision, run).packages.items():
            if recorded.setdefault(name, there) != there and name not in PACKAGES:
                raise RevisionError(
                    f"{revision.name}: {run} was made with {name} {there}, others with {recorded[name]}: name the runs "
                    f"that are to be reproduced together"
                )
    return [f"{name}=={there}" for name, there in sorted(recorded.items()) if there and name not in PACKAGES]


def _fresh_environment(revision: Revision, tree: Path, others: list[str], quiet: bool) -> Path:
    """A virtual environment with the revision's pinned packages and others; returns the folder of its programs."""
    if not (tree / "constraints.txt").exists():
        raise RevisionError(f"{revision.name}: has no constraints.txt to build an environment from")
    folder = tree.parent / "environment"
    if not quiet:
        print(f"installing the packages of {revision.name}: this takes minutes", file=sys.stderr, flush=True)
    pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
    for command in ([sys.executable, "-m", "venv", str(folder)], [*pip, "-c", "constraints.txt", "-e", ".", *others]):
        with (tree.parent / "install.log").open("w+", encoding="utf-8", errors="replace") as log:
            status = processes.run(command, cwd=tree, stdout=log, stderr=log)
            log.seek(0)
            if status:
                lines = [line for line in log.read().splitlines() if line.startswith("ERROR")] or ["no reason given"]
                raise RevisionError(f"{revision.name}: its packages cannot be installed: {lines[0]}")
    return folder / "bin"


def _provide_data(tree: Path, stages: dict[str, Any], environment: dict[str, str], quiet: bool) -> None:
    """From DVC's cache, the remote, or the download stage; the training checks every file against its digest."""
    restore(tree, "download")
    if (tree / repository.DATA).is_dir():
        return
    problem = _run(stages["download"]["cmd"], tree, environment, quiet)
    if problem:
        raise RevisionError(f"the data could not be had: {problem}")


def _run(command: str, folder: Path, environment: dict[str, str], quiet: bool) -> str | None:
    """Run a stage's command in a folder of the checkout; returns why it failed, or None."""
    output = subprocess.DEVNULL if quiet else None
    status = processes.run(command, cwd=folder, env=environment, stdout=output, stderr=output)
    return f"`{command}` ended with exit status {status}" if status else None
