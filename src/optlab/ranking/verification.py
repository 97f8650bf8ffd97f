"""`optlab verify`: checks a record of a ranking, and trains one of its replicates again.

The files are checked first, which takes seconds: seeds, parameters, code, digests, searches. A record that was changed
consistently in all of its files passes these checks. So a replicate is drawn at random, and its search and its run are
repeated in a checkout of the commit: every output has to be identical. Of n replicates of which k were forged, one draw
finds a forged one with probability k / n.
"""

import contextlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optlab.config import loader
from optlab.orchestration.dvc_lock import DvcLock
from optlab.orchestration.dvc_pipeline import DvcPipeline
from optlab.preflight import checks
from optlab.ranking import module_scan, run_checks, submission, table
from optlab.ranking.protocol import PROTOCOL_FILE, Ranking
from optlab.records import Choice, Environment, RunFiles, TrialsRecord, TuningFiles
from optlab.reproduce import rerun
from optlab.reproduce.output_diff import Reproduction
from optlab.schema.parameters import PARAMS_FILE, Config, format_run_id
from optlab.system import git, repository, source_code
from optlab.system.errors import (
    BusyError,
    ConfigError,
    OptlabError,
    RecordError,
    RevisionError,
    StorageError,
    summarize_error,
)
from optlab.system.git import Revision
from optlab.system.text import parse_yaml
from optlab.tuning import search, selection
from optlab.tuning.search import Trial, TrialBatch, TrialOutcomes
from optlab.tuning.session import TuningSession, index_by_key
from optlab.tuning.trial import TrialRequest

_MAX_NAMED = 3  # of several findings of one kind


@dataclass(frozen=True)
class CheckResult:
    """One check: what it is about, and what is wrong; None if nothing is."""

    title: str
    problem: str | None


@dataclass(frozen=True)
class RankingRecord:
    """One record of a ranking, and its configuration."""

    ranking: Ranking
    folder: Path
    config: Config
    modules: dict[str, str]

    @classmethod
    def load(cls, folder: Path) -> "RankingRecord":
        """Load the record in a folder of a ranking, which is its parent.

        Raises:
            ConfigError: it is no such folder, or a file cannot be used.
        """
        if not ((folder.parent / PROTOCOL_FILE).is_file() and (folder / PARAMS_FILE).is_file()):
            raise ConfigError(f"{folder}: no record of a ranking: name the folder of one, such as ranking/radam")
        ranking = Ranking.load(folder.parent)
        config = loader.load(folder / PARAMS_FILE)
        if list(config.optimizers) != [folder.name]:
            raise ConfigError(f"{folder / PARAMS_FILE}: has to have one optimizer, {folder.name}, named as the folder")
        return cls(ranking, folder, config, selection.hash_modules(config.list_class_paths(folder.name)))

    @property
    def name(self) -> str:
        return self.folder.name


def check_files(record: RankingRecord, base: str | None = None) -> Iterator[CheckResult]:
    """Check what can be checked without training, and yield the results up to the first check that refuses the record.

    The modules are scanned before a check imports them.

    Args:
        base: revision of trusted code and protocol: the commits since then may change the record alone.

    Raises:
        BusyError, ConfigError, StorageError: it cannot be checked here; a package has another version, for example.
    """
    checks_in_order: list[tuple[str, Callable[[], None]]] = [
        ("all files are committed", lambda: _check_committed(record)),
        ("no other files", lambda: _check_tracked_files(record)),
        *([(f"changes nothing else since {base}", lambda: _check_scope(record, base))] if base else []),
        ("optimizer's modules: nothing but arithmetic", lambda: _check_modules(record)),
        ("parameters and seeds of the protocol", lambda: _check_params(record)),
        ("packages of the record are installed", lambda: _check_packages(record)),
        ("stages and code of the protocol", lambda: _check_code(record)),
        ("digests of data, code, parameters and outputs", lambda: _check_digests(record)),
        ("searches: every trial, and the choice", lambda: _check_searches(record)),
        ("runs: weights, steps and metrics", lambda: _check_runs(record)),
        ("table and report of the ranking", lambda: _check_table(record)),
    ]
    for title, check in checks_in_order:
        try:
            check()
        except (BusyError, StorageError, _OtherPackageError):  # nothing that the record is to blame for
            raise
        except Exception as error:  # whatever the content of a stranger's file raises
            is_ours = isinstance(error, OptlabError)
            yield CheckResult(title, str(error) if is_ours else f"cannot be checked: {summarize_error(error)}")
            return
        yield CheckResult(title, None)


class _OtherPackageError(ConfigError):
    """A package is missing here, or has another version than the record's runs."""


def _check_packages(record: RankingRecord) -> None:
    config = record.config
    deciding = TrialRequest.from_config(config, record.name, config.seeds[0], config.total_steps, {}).packages
    runs = [format_run_id(record.name, seed) for seed in config.seeds]
    differences = rerun.find_package_differences(Revision.parse("HEAD", record.folder), runs)
    for package, (recorded, installed) in differences.items():
        if package in deciding:
            raise _OtherPackageError(
                f"{record.folder}: recorded with {package} {recorded}, and {installed or 'none'} is installed: "
                f"install {package} {recorded} to verify it"
            )


def _check_committed(record: RankingRecord) -> None:
    paths = [record.ranking.folder, *map(Path, record.modules), source_code.PACKAGE, repository.STAGES]
    changed = _ask_git("status", "--porcelain", "--", *map(str, paths))
    if changed:
        files = [line[3:] for line in changed.splitlines()]
        raise RevisionError(f"{_name_some(files)}: not as in the last commit: commit it, for a commit is verified")


def _ask_git(*arguments: str) -> str:
    """Return the output of a git command.

    Raises:
        RevisionError: it fails.
    """
    output = git.get_output(*arguments)
    if output is None:
        git.check_repository()
        raise RevisionError(f"git {arguments[0]} fails: try it")
    return output


def _check_scope(record: RankingRecord, base: str) -> None:
    commit = Revision.parse(base).commit
    if git.get_output("merge-base", commit, "HEAD") is None:
        raise RevisionError(f"{base}: has no history in common with HEAD here: fetch it")
    names = _ask_git("diff", "--name-only", "--no-renames", f"{commit}...HEAD").splitlines()
    folder = record.ranking.folder
    generated = {folder / table.RANKING_FILE, folder / table.REPORT_FILE}
    own = _list_own_modules(record, commit)
    foreign = [
        name for name in names
        if not Path(name).is_relative_to(record.folder) and Path(name) not in generated and name not in own
    ]  # fmt: skip
    if foreign:
        raise RevisionError(f"{_name_some(foreign)}: changed since {base}, and not part of the record")


def _list_own_modules(record: RankingRecord, commit: str) -> set[str]:
    """Return the record's modules that are new since a commit, or were its own there, and are no other record's."""
    others = (each for each in record.ranking.list_records() if each != record.folder)
    shared = {module for each in others for module in RankingRecord.load(each).modules}
    stages = git.get_output("show", f"{commit}:{record.folder}/dvc.yaml") or ""
    return {
        module for module in record.modules
        if module not in shared and (module in stages or not _ask_git("ls-tree", commit, "--", module))
    }  # fmt: skip


def _check_modules(record: RankingRecord) -> None:
    refused = module_scan.find_problems(record.config.list_class_paths(record.name))
    if refused:
        raise ConfigError(_name_some(refused))


def _check_params(record: RankingRecord) -> None:
    ranking, path = record.ranking, record.folder / PARAMS_FILE
    if record.name in ranking.check_study().optimizers:
        raise ConfigError(f"{record.name}: is one of the optimizers of {ranking.study}")
    entry = submission.read_entry(record.folder)
    wanted, found = ranking.make_params(record.name, entry), parse_yaml(path.read_text("utf-8"))
    difference = _find_difference(found, wanted)
    if difference:
        key, ours, theirs = difference
        raise ConfigError(f"{path}: {key} is {ours}, where the protocol has {theirs}")
    if submission.render_params(ranking, record.name, entry) != path.read_text("utf-8"):
        raise ConfigError(f"{path}: not as `optlab submit` writes it")


def _find_difference(found: Any, wanted: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """Return the first key that differs, such as `tuning.seed`, and both values; None if nothing differs."""
    if not (isinstance(found, dict) and isinstance(wanted, dict)):
        return None if found == wanted else (key, found, wanted)
    keys = dict.fromkeys([*wanted, *found])
    parts = (_find_difference(found.get(each), wanted.get(each), f"{key}.{each}".lstrip(".")) for each in keys)
    return next((each for each in parts if each), None)


def _check_code(record: RankingRecord) -> None:
    path = record.folder / "dvc.yaml"
    if path.read_text("utf-8") != submission.render_dvc_yaml(record.ranking, record.name, list(record.modules)):
        raise ConfigError(f"{path}: not as `optlab submit` writes it")
    settings, links = repository.list_project_files(record.folder)
    for link, target in links.items():
        if not link.is_symlink() or link.readlink() != target:
            raise ConfigError(f"{link}: no link to {target}, which `optlab submit` makes")
    for file, content in settings.items():
        if file.read_bytes() != content:
            raise ConfigError(f"{file}: not as `optlab submit` writes it")
    submission.check_code(record.ranking, record.folder)


def _check_digests(record: RankingRecord) -> None:
    pipeline = DvcPipeline(record.folder / "dvc.yaml", [], allow_missing=True)
    changes = pipeline.find_changes()
    if changes:
        found = _name_some([f"{path} ({state})" for path, state in changes.items()])
        raise RecordError(f"{record.folder / 'dvc.lock'}: {found}: not what the record was made with: "
                          f"{_advise(record, list(changes))}")  # fmt: skip
    own, root = (_read_data_digest(folder) for folder in (record.folder, Path()))
    if own != root:
        raise RecordError(f"{record.folder / 'dvc.lock'}: the data set is {own}, and here {root}")
    path = record.folder / "dvc.lock"
    entries = DvcLock(path, []).read_entries()
    if foreign := sorted(set(entries) - set(pipeline.names)):
        raise RecordError(f"{path}: has {_name_some(foreign)}, of other seeds or names: remove it")
    for name, text in entries.items():
        entry, (deps, outs) = parse_yaml(text)[name], pipeline.list_declared_paths(name)
        for paths, values in ((deps, entry.get("deps", [])), (outs, entry["outs"])):
            if sorted(each["path"] for each in values) != sorted(paths) or not all(each["md5"] for each in values):
                raise RecordError(f"{path}: {name}: has not the dependencies and outputs of dvc.yaml")


def _advise(record: RankingRecord, changed: Sequence[str]) -> str:
    """Return what to do about files that are not those of dvc.lock."""
    again = f"`optlab submit {record.name}` makes it again"
    commit, head = _ask_git("log", "-1", "--format=%H", "--", str(record.folder)), _ask_git("rev-parse", "HEAD")
    is_code = any(f"{each}/" in path for path in changed for each in (source_code.PACKAGE, repository.STAGES))
    return f"verify it after `git checkout {commit[:12]}`, or {again}" if is_code and commit != head else again


def _read_data_digest(folder: Path) -> str:
    entry = DvcLock(folder / "dvc.lock", []).read_entries().get("download", "")
    try:
        (values,) = parse_yaml(entry).values()
        return str(values["outs"][0]["md5"])
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        raise RecordError(f"{folder / 'dvc.lock'}: has no digest of the data set") from None


def _check_tracked_files(record: RankingRecord) -> None:
    """Refuse what a checkout would use in place of a training, and files of no replicate, such as runs of other seeds.

    Runs in use could have been picked from those.
    """
    compiled = [":(glob)**/*.pyc", ":(glob)**/*.so"]
    outside = ["src", f":!{source_code.PACKAGE}"]  # an exclusion holds for all paths of a call
    state = _ask_git("ls-files", "--", ".optlab", *compiled) or _ask_git("ls-files", "--", *outside)
    if state:
        raise RevisionError(f"{_name_some(state.splitlines())}: in git, where a checkout would use it: remove it")
    stages = [Path(name) for name in _ask_git("ls-files", "--", str(repository.STAGES)).splitlines()]
    if shadowing := [str(path) for path in stages if module_scan.is_name_of_package(path.parts[1].removesuffix(".py"))]:
        raise RevisionError(f"{_name_some(shadowing)}: a stage would import it in place of the package: remove it")
    settings, links = repository.list_project_files(record.folder)
    wanted = {record.folder / name for name in (PARAMS_FILE, "dvc.yaml", "dvc.lock")} | {*settings, *links}
    for seed in record.config.seeds:
        run, tuning = RunFiles(record.folder, record.name, seed), TuningFiles(record.folder, record.name, seed)
        wanted |= {run.training, run.test, run.environment, tuning.choice, tuning.trials, tuning.environment}
    paths = [str(record.folder), *record.modules]
    lines = [line.partition("\t") for line in _ask_git("ls-files", "-s", "-z", "--", *paths).split("\0") if line]
    modes = {Path(name): mode.split()[0] for mode, _, name in lines}
    foreign = [str(path) for path in modes if path not in wanted and str(path) not in record.modules]
    foreign = [each for each in foreign if Path(each).name != ".gitignore"]
    if foreign:
        raise RecordError(f"{_name_some(foreign)}: not part of a record: remove it")
    if linked := [str(path) for path, mode in modes.items() if mode == "120000" and path not in links]:
        raise RecordError(f"{_name_some(linked)}: a link in place of a file")


def _check_table(record: RankingRecord) -> None:
    """Compare the table of the ranking with what the records give."""
    folder = record.ranking.folder
    for path, content in table.render_files(record.ranking).items():
        if (path.read_bytes() if path.is_file() else None) != content:
            raise RecordError(f"{path}: not what the records give: `optlab rank {folder}` writes it")


class _NoTrainer:
    """Trainer of a search whose trials are all on record."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get_machine_digest(self) -> str:
        return "none"  # no results but those on record

    def train(self, session: TuningSession, batch: TrialBatch) -> None:
        trial, until = batch[0]
        name = "the default's" if trial.index == search.DEFAULT_INDEX else f"trial {trial.index}"
        raise RecordError(
            f"{self._path}: lacks {name} result at step {until}, or has it with other parameters, code or packages"
        )

    def on_round(self, session: TuningSession, batch: TrialBatch, missing: TrialBatch, results: TrialOutcomes) -> None:
        """Report nothing."""

    def on_choice(self, session: TuningSession, choice: Choice) -> None:
        """Report nothing."""


def _check_searches(record: RankingRecord) -> None:
    for seed in record.config.seeds:
        _check_search(record, TuningFiles(record.folder, record.name, seed))


def _check_search(record: RankingRecord, files: TuningFiles) -> None:
    """Repeat a search with the recorded results of its trials, and compare trials and choice."""
    config, spec, steps = record.config, record.config.get_optimizer(record.name), record.config.total_steps
    choice = run_checks.read_canonical(Choice, files.choice)
    recorded = run_checks.read_canonical(TrialsRecord, files.trials)
    if recorded.sensitivity:
        raise RecordError(f"{files.trials}: has trials of a grid, which the protocol has not")
    if not spec.ranges:
        untuned = Choice(is_tuned=False, entry=selection.dump_entry(spec), modules=record.modules)
        if recorded.trials or choice != untuned:
            raise RecordError(f"{files.choice}: not the entry, which has no range to search")
        return
    if files.environment.is_file():  # a search whose trials were all on record here writes none
        run_checks.read_canonical(Environment, files.environment)
    number = config.get_search_number(files.seed)
    code = source_code.hash_code(record.folder, "tune", config.list_class_paths(record.name))
    session = TuningSession(config, record.name, number, spec, code, index_by_key(recorded), _NoTrainer(files.trials))
    trials: list[Trial] = []
    session.run_search(search.run_search(number, spec.ranges, config.tuning, steps, trials))
    wanted = [session.make_record(each) for each in trials]
    if recorded.trials != wanted:
        differing = [each for each in recorded.trials if each not in wanted]
        names = ["the default" if each.index is None else str(each.index) for each in differing]
        which = f"trial {_name_some(names)}" if names else "the order of the trials, or one that is listed twice,"
        raise RecordError(f"{files.trials}: {which} is not what the search asks for")
    if choice != selection.select_values(spec, trials, steps, record.modules):
        raise RecordError(f"{files.choice}: not what the search's trials choose")


def _check_runs(record: RankingRecord) -> None:
    for seed in record.config.seeds:
        choice = Choice.read(TuningFiles(record.folder, record.name, seed).choice)
        run_checks.check_run(record.config, RunFiles(record.folder, record.name, seed), choice)


def draw_seeds(config: Config, replicate: int | None, everything: bool) -> list[int]:
    """Return the seeds to train again: one drawn at random, that of a replicate (from 1), or all.

    Raises:
        ConfigError: there is no such replicate.
    """
    if everything:
        return config.seeds
    count = len(config.seeds)
    if replicate is None:
        replicate = 1 + secrets.randbelow(count)
    if not 1 <= replicate <= count:
        raise ConfigError(f"--replicate {replicate}: there are replicates 1 to {count}")
    return [config.seeds[replicate - 1]]


def describe_draw(config: Config, seeds: Sequence[int]) -> str:
    """Return which replicates are trained again, and what that finds."""
    count, numbers = len(config.seeds), [config.seeds.index(seed) + 1 for seed in seeds]
    if len(seeds) == count:
        return f"training all {count} replicates again"
    return (
        f"drawn: replicate {numbers[0]} of {count}, seed {seeds[0]} (`--replicate {numbers[0]}` repeats the draw); if "
        f"k replicates are forged, a draw finds it with probability k/{count}"
    )


def repeat(record: RankingRecord, seeds: Sequence[int], quiet: bool = False) -> Iterator[Reproduction]:
    """Train runs and searches again, from HEAD, and yield their verdicts.

    Raises:
        RevisionError: as for `rerun.reproduce`.
    """
    revision = Revision.parse("HEAD", record.folder)
    runs = [format_run_id(record.name, seed) for seed in seeds]
    with contextlib.closing(rerun.reproduce(revision, runs, quiet=quiet, tuning=True)) as results:
        yield from results


def list_notes(record: RankingRecord) -> list[str]:
    """Return what a reader of the verdict has to know."""
    if not checks.list_portability_warnings(record.config):
        return []
    return [
        f"{record.name}: the bits of its class were not compared on several makes of CPU: `different` on another make "
        f"than the record's is no proof of forgery"
    ]


def _name_some(items: Sequence[str]) -> str:
    named = ", ".join(items[:_MAX_NAMED])
    return named if len(items) <= _MAX_NAMED else f"{named} and {len(items) - _MAX_NAMED} more"
