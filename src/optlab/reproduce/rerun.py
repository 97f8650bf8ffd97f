"""Reproduction of a past run from its git revision.

Nothing is restored from a cache but the data: the stages' commands run in a checkout, with the revision's code and
under the recorded conditions, and their outputs are compared with the digests in its dvc.lock.
"""

import os
import subprocess
import sys
from collections.abc import Collection, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

from optlab.config import loader
from optlab.environment import (
    ENVIRONMENT_VARIABLES,
    ONEDNN_ISAS,
    PACKAGES,
    detect_onednn_isa,
    get_installed_version,
)
from optlab.records import Choice, Environment, RunFiles, TrainRecord, TuningFiles
from optlab.reproduce.output_diff import Reproduction, compare_outputs, compare_tuning, read_environment
from optlab.system import processes, repository
from optlab.system.errors import RecordError, RevisionError
from optlab.system.git import Revision, checkout, restore_outputs
from optlab.system.text import extract_error, join_commands
from optlab.tracking import uploader_client
from optlab.training.numerics import PORTABLE_VARIABLES

_PROVIDED_PATHS = (repository.DATA, Path(".dvc") / "config.local")  # put into a checkout for the stages
_ATEN_CAPABILITIES = ("DEFAULT", "AVX2", "AVX512")  # ATen's names, the least first
_ONEDNN_BY_CAPABILITY = {"DEFAULT": "SSE41", "AVX2": "AVX2"}  # for records that lack oneDNN's instruction set
# Variables that older revisions read instead: the PID to end with, and no upload to the user's MLflow.
_FORMER_PARENT_PID_VARIABLE, _FORMER_UPLOADER_PARENT_VARIABLE = "OPTLAB_PID", "OPTLAB_SENDER"


def select_runs(revision: Revision, names: list[str]) -> list[str]:
    """Return the ids of the runs to reproduce: `names`, or all runs of its params.yaml that its dvc.lock has.

    Raises:
        RevisionError: the revision has no such run.
    """
    locked = [name.removeprefix("train@") for name in revision.read_lock() if name.startswith("train@")]
    wanted = loader.list_run_ids(revision, revision.folder, locked)
    recorded = [run for run in locked if run in wanted]
    if not recorded:
        raise RevisionError(f"{revision.name}: its dvc.lock has no run")
    for name in names:
        if name not in recorded:
            raise RevisionError(f"{revision.name}: has no run {name}: it has {', '.join(recorded)}")
    return names or recorded


def find_package_differences(revision: Revision, runs: list[str]) -> dict[str, tuple[Any, Any]]:
    """Return package → (recorded version, installed version) where they differ, for any of the runs."""
    differing: dict[str, tuple[Any, Any]] = {}
    for run in runs:
        for name, recorded in _read_environment(revision, run).packages.items():
            if recorded != (installed := get_installed_version(name)):
                differing.setdefault(name, (recorded, installed))
    return differing


def reproduce(revision: Revision, runs: list[str], here: bool = False, fresh: bool = False, quiet: bool = False,
              tuning: bool = False) -> Generator[Reproduction]:  # fmt: skip
    """Train and evaluate each run again, with the recorded values of tuned hyperparameters, and yield its verdict.

    Args:
        here: under this machine's conditions, instead of the recorded ones.
        fresh: in a virtual environment built from the revision's constraints.txt.
        quiet: hide the output of the stages.
        tuning: repeat the tunings of their optimizers, too, after the runs.

    Raises:
        RevisionError: the revision cannot be checked out, its outputs may lie outside of the checkout, or its
            environment or its data are not available.
    """
    stages = revision.read_lock()
    with processes.interrupt_on_sigterm(), checkout(revision) as tree:
        tunings = _find_tunings(revision, runs) if tuning else {}
        search_files = _list_search_files(revision, {each.optimizer for each in tunings})
        for path in (*_PROVIDED_PATHS, *(path for run in runs for path in _list_replaced_files(revision, stages, run)),
                     *search_files):  # fmt: skip
            _check_inside(revision, tree, path)
        programs = Path(sys.executable).parent
        if fresh:
            programs = _create_virtual_environment(revision, tree, list_extra_requirements(revision, runs), quiet)
        _restore_data(tree, replace(revision, folder=Path()).read_lock(), _build_process_env(tree, programs), quiet)
        for run in runs:
            yield _reproduce_run(revision, tree, run, programs, here, quiet)
        for path in search_files:
            (tree / path).unlink(missing_ok=True)  # a search for all seeds would reuse the trials that it finds there
        for tuning_files, run in tunings.items():
            recorded = Environment.read_at_revision(revision, tuning_files.environment)
            variables = {} if here else derive_isa_variables(recorded or _read_environment(revision, run))
            yield _reproduce_tuning(revision, tree, tuning_files, _build_process_env(tree, programs, variables), quiet)


def _reproduce_run(revision: Revision, tree: Path, run: str, programs: Path, here: bool, quiet: bool) -> Reproduction:
    stages = revision.read_lock()
    variables = {} if here else derive_isa_variables(_read_environment(revision, run))
    for path in _list_replaced_files(revision, stages, run):
        (tree / path).unlink(missing_ok=True)  # git has checked out the recorded ones
    environment = _build_process_env(tree, programs, variables)
    for name in _list_stages(stages, run):
        if error := _run_stage(stages[name]["cmd"], tree / revision.folder, environment, quiet):
            return Reproduction(run, "not run", [], reason=error)
    try:
        return compare_outputs(revision, tree, _get_run_files(revision, run), _list_outs(revision, stages, run))
    except (RecordError, KeyError, TypeError, ValueError) as error:  # a damaged record, or one of another version
        reason = f"its record cannot be compared: {type(error).__name__}: {error}"
        return Reproduction(run, "not run", [], reason=reason)


def _find_tunings(revision: Revision, runs: list[str]) -> dict[TuningFiles, str]:
    """Return the files of the searches that chose the runs' values → one of the runs."""
    found: dict[str, tuple[TuningFiles, str]] = {}
    for run in reversed(runs):
        run_files = RunFiles.from_id(revision.folder, run)
        tuning_files = TuningFiles.find(revision.folder, run_files.optimizer, run_files.seed, revision)
        choice = Choice.read_at_revision(revision, tuning_files.choice)
        if choice and choice.is_tuned:
            found[tuning_files.stage] = tuning_files, run
    return dict(found.values())


def _list_search_files(revision: Revision, optimizers: Collection[str]) -> list[Path]:
    """List the outputs of the optimizers' searches, for all seeds."""
    stages = [name for name in revision.read_lock() if name.startswith("tune@")]
    wanted = [name for name in stages if {(run := name.removeprefix("tune@")), run.rpartition("-")[0]} & {*optimizers}]
    return [Path(out["path"]) for name in wanted for out in revision.list_outs(name)]


def _reproduce_tuning(
    revision: Revision, tree: Path, tuning_files: TuningFiles, environment: dict[str, str], quiet: bool
) -> Reproduction:
    stage, outs = tuning_files.stage, revision.list_outs(tuning_files.stage)
    error = _run_stage(revision.read_lock()[stage]["cmd"], tree / revision.folder, environment, quiet)
    if error:
        return Reproduction(stage, "not run", [], reason=error)
    return compare_tuning(revision, tree, tuning_files, outs)


def _list_stages(stages: dict[str, Any], run: str) -> list[str]:
    return [name for name in (f"train@{run}", f"evaluate@{run}") if name in stages]


def _list_outs(revision: Revision, stages: dict[str, Any], run: str) -> list[dict[str, Any]]:
    return [each for name in _list_stages(stages, run) for each in revision.list_outs(name)]


def _list_replaced_files(revision: Revision, stages: dict[str, Any], run: str) -> list[Path]:
    """List the files that a run's stages write, and that are deleted before."""
    return [
        *(Path(each["path"]) for each in _list_outs(revision, stages, run)),
        _get_run_files(revision, run).environment,
    ]


def _check_inside(revision: Revision, tree: Path, path: Path) -> None:
    """Refuse a path of the revision by which a file of the user's could be replaced.

    Raises:
        RevisionError: it is absolute, has `..`, or leads out of the checkout by a symbolic link.
    """
    inside = Path(os.path.realpath(tree / path)).is_relative_to(os.path.realpath(tree))
    if path.is_absolute() or ".." in path.parts or not inside:
        raise RevisionError(f"{revision.name}: {path} may lead outside of the checkout: nothing was deleted or run")


def read_weights_sha256(revision: Revision, run: str) -> str | None:
    """Return the recorded SHA-256 of a run's weights; None for a tuning."""
    if run.startswith("tune@"):
        return None
    trained = TrainRecord.read_at_revision(revision, _get_run_files(revision, run).training)
    return trained.weights_sha256 if trained else None


def _read_environment(revision: Revision, run: str) -> Environment:
    """Return the recorded environment of a run, or an unknown one."""
    return read_environment(revision, _get_run_files(revision, run)) or Environment()


def _get_run_files(revision: Revision, run: str) -> RunFiles:
    return RunFiles.from_id(revision.folder, run)


def _build_process_env(tree: Path, programs: Path, replayed: dict[str, str] | None = None) -> dict[str, str]:
    """Return the caller's variables with the revision's code and the recorded conditions, and without its MLflow.

    Args:
        programs: the folder of the Python to run.
        replayed: values for the variables that decide bits; None leaves the caller's.
    """
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "DVC_"))}
    variables["PATH"] = f"{programs}{os.pathsep}{variables.get('PATH', '')}"
    variables["PYTHONPATH"] = str(tree / "src")
    for name in (processes.PARENT_PID_VARIABLE, _FORMER_PARENT_PID_VARIABLE):
        variables[name] = str(os.getpid())  # no DVC runs the stages here: they end with this process
    for name in (uploader_client.UPLOADER_PARENT_VARIABLE, _FORMER_UPLOADER_PARENT_VARIABLE):
        variables[name] = uploader_client.NO_UPLOAD  # the verdict is logged; the checkout will be deleted
    if replayed is not None:
        variables = {key: value for key, value in variables.items() if key not in ENVIRONMENT_VARIABLES} | replayed
    return variables


def derive_isa_variables(recorded: Environment, isa: str | None = None) -> dict[str, str]:
    """Return the variables that hold the libraries to the recorded instruction sets.

    Variables that were set at the recording are set again. If none was, and the CPU had fewer instructions than this
    one, ATen, oneDNN and MKL are held to that CPU's; on a machine of the same kind nothing is set.

    Args:
        recorded: the environment of a run.
        isa: the richest instruction set here, by oneDNN's name; default: this CPU's.
    """
    recorded_variables = recorded.variables.items()
    variables = {
        name: value for name, value in recorded_variables if value is not None and name in ENVIRONMENT_VARIABLES
    }
    if set(PORTABLE_VARIABLES) & set(variables):
        return variables  # the recorded capability is their effect, and tells nothing of the CPU
    capability, isa = recorded.cpu_capability, isa or detect_onednn_isa()
    mine = "AVX512" if (isa or "").startswith("AVX512") else "AVX2" if (isa or "").startswith("AVX2") else "DEFAULT"
    if capability in _ATEN_CAPABILITIES and _ATEN_CAPABILITIES.index(capability) < _ATEN_CAPABILITIES.index(mine):
        variables["ATEN_CPU_CAPABILITY"] = capability.lower()
        if capability == "AVX2":
            variables.setdefault("MKL_ENABLE_INSTRUCTIONS", capability)
    richest_first = list(ONEDNN_ISAS)
    then = recorded.onednn_isa or _ONEDNN_BY_CAPABILITY.get(capability)
    if isa and then in richest_first and richest_first.index(then) > richest_first.index(isa):
        variables["ONEDNN_MAX_CPU_ISA"] = then
    return variables


def list_extra_requirements(revision: Revision, runs: list[str]) -> list[str]:
    """Return what pip must install besides the revision's package, for classes of other packages: `name==version`.

    Raises:
        RevisionError: runs have different versions of a package.
    """
    recorded: dict[str, str | None] = {}
    for run in runs:
        for name, there in _read_environment(revision, run).packages.items():
            if recorded.setdefault(name, there) != there and name not in PACKAGES:
                raise RevisionError(
                    f"{revision.name}: {run} was made with {name} {there}, others with {recorded[name]}: name the runs "
                    f"that are to be reproduced together"
                )
    return [f"{name}=={there}" for name, there in sorted(recorded.items()) if there and name not in PACKAGES]


def _create_virtual_environment(revision: Revision, tree: Path, others: list[str], quiet: bool) -> Path:
    """Create a virtual environment with the revision's pinned packages and `others`; returns its bin folder."""
    if not (tree / "constraints.txt").exists():
        raise RevisionError(f"{revision.name}: has no constraints.txt to build an environment from")
    folder = tree.parent / "venv"
    if not quiet:
        print(f"installing the packages of {revision.name}: this takes minutes", file=sys.stderr, flush=True)
    pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
    for command in ([sys.executable, "-m", "venv", str(folder)], [*pip, "-c", "constraints.txt", "-e", ".", *others]):
        with (tree.parent / "install.log").open("w+", encoding="utf-8", errors="replace") as log:
            if processes.run(command, cwd=tree, stdout=log, stderr=log):
                log.seek(0)
                raise RevisionError(f"{revision.name}: its packages cannot be installed: {extract_error(log.read())}")
    return folder / "bin"


def _restore_data(tree: Path, stages: dict[str, Any], environment: dict[str, str], quiet: bool) -> None:
    """Provide the data from DVC's cache, the remote, or the download stage; trainings check every file's digest."""
    restore_outputs(tree, "download")
    if (tree / repository.DATA).is_dir():
        return
    error = _run_stage(stages["download"]["cmd"], tree, environment, quiet)
    if error:
        raise RevisionError(f"the data could not be had: {error}")


def _run_stage(command: str | list[str], folder: Path, environment: dict[str, str], quiet: bool) -> str | None:
    """Run a stage's command in a folder of the checkout; returns why it failed, or None."""
    output, lines = subprocess.DEVNULL if quiet else None, join_commands(command)
    status = processes.run(lines, cwd=folder, env=environment, stdout=output, stderr=output)
    shown = command if isinstance(command, str) else "; ".join(command)
    return f"`{shown}` ended with exit status {status}" if status else None
