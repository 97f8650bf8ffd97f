"""Tuning of one optimizer: which trials the search needs, which results are known already, and the record of them."""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from optlab.records import Choice, TrialRecord, TrialsRecord, TrialStatus, TuningFiles
from optlab.schema.optimizer import OptimizerSpec
from optlab.schema.parameters import Config
from optlab.schema.search_space import NumericRange
from optlab.system import files, source_code
from optlab.system.errors import ConfigError, RecordError
from optlab.training.optimizer_factory import get_arguments, resolve_optimizer
from optlab.tuning import search, selection
from optlab.tuning.search import Trial, TrialBatch, TrialOutcome, TrialOutcomes
from optlab.tuning.trial import ENVIRONMENT_FILE, TRIALS_FOLDER, TrialRequest, TrialResult


class TrialTrainer(Protocol):
    """Trainer of the trials of a session, which also reports the session's progress."""

    def get_machine_digest(self) -> str:
        """Return a digest of the machine and the packages that the trials are trained with."""

    def train(self, session: "TuningSession", batch: TrialBatch) -> None:
        """Train trials; each leaves its result and its environment at `TuningSession.get_result_path`."""

    def on_round(
        self, session: "TuningSession", batch: TrialBatch, missing: TrialBatch, results: TrialOutcomes
    ) -> None:
        """Report a round of the search, of which `missing` were trained now."""

    def on_choice(self, session: "TuningSession", choice: Choice) -> None:
        """Report the end of the search."""


def tune(config: Config, folder: Path, name: str, seed: int, trainer: TrialTrainer) -> list[TrialRecord]:
    """Search for the values that one run of an optimizer confirms, and write the trials and the chosen values.

    Trials of an interrupted call, or of an earlier one with fewer trials, are not trained again.

    Args:
        seed: of the run.

    Returns:
        every trial.

    Raises:
        RunsFailedError: a trial was killed, or failed for a reason other than its optimizer.
        StorageError: a result cannot be written.
    """
    spec, tuning_files = config.get_optimizer(name), TuningFiles(folder, name, seed)
    class_paths = config.list_class_paths(name)
    modules, code = selection.hash_modules(class_paths), source_code.hash_code(folder, "tune", class_paths)
    number, steps = config.get_search_number(seed), config.total_steps
    known = index_by_key(load_recorded(config, folder, name, seed))
    session = TuningSession(config, name, number, spec, code, known, trainer)
    trials: list[Trial] = []
    session.run_search(search.run_search(number, spec.ranges, config.tuning, steps, trials))
    choice = selection.select_values(spec, trials, steps, modules)
    trainer.on_choice(session, choice)
    grid = _run_sensitivity(session, search.find_best(trials, steps))
    recorded, sensitivity_records = [[session.make_record(each) for each in part] for part in (trials, grid)]
    selection.write(tuning_files, choice, recorded, sensitivity_records)
    if session.conditions:
        files.write_atomic(tuning_files.environment, session.conditions)
    return [*recorded, *sensitivity_records]


def _run_sensitivity(session: "TuningSession", chosen: Trial | None) -> list[Trial]:
    """Run the grid over the learning rate around the choice, if it is configured; a default has none."""
    config, key, grid_trials = session.config, search.find_learning_rate_key(session.spec.ranges), list[Trial]()
    grid = config.tuning.sensitivity
    if grid and key and chosen and key in chosen.values:
        session.run_search(
            search.run_sensitivity_grid(
                session.number, key, chosen, grid, config.tuning, config.total_steps, grid_trials
            )
        )
    return grid_trials


def load_recorded(config: Config, folder: Path, name: str, seed: int) -> TrialsRecord:
    """Return the recorded trials of a run's search; with one search for all seeds, those in the files of all runs.

    Files that are missing or damaged count as empty.
    """
    trials, sensitivity = list[TrialRecord](), list[TrialRecord]()
    for each in [seed] if config.tuning.per_seed else config.seeds:
        with contextlib.suppress(RecordError):
            record = TrialsRecord.read(TuningFiles(folder, name, each).trials)
            trials, sensitivity = [*trials, *record.trials], [*sensitivity, *record.sensitivity]
    return TrialsRecord(trials=trials, sensitivity=sensitivity)


def index_by_key(record: TrialsRecord) -> dict[str, TrialRecord]:
    """Return key → trial."""
    return {each.key: each for each in (*record.trials, *record.sensitivity)}


@dataclass
class TuningSession:
    """One search of one optimizer.

    Attributes:
        number: of the search, as in `Config.get_search`.
        code: name → SHA-256 of the code that decides a trial.
        recorded: key → trial of an earlier tuning.
        conditions: content of the environment file of the trial that was trained last; empty while none was.
    """

    config: Config
    name: str
    number: int
    spec: OptimizerSpec
    code: dict[str, str]
    recorded: dict[str, TrialRecord]
    trainer: TrialTrainer
    conditions: bytes = b""
    _machine_digest: str = field(default="", init=False)

    def run_search(self, requests_and_results: search.Search) -> None:
        """Train what a search requests, unless its result is known, until it ends."""
        batch = next(requests_and_results, None)
        while batch is not None:
            missing = [each for each in batch if self.find_result(*each) is None]
            if missing:
                self.trainer.train(self, missing)
                trial, max_step = missing[-1]
                with contextlib.suppress(OSError):  # its process ended before it wrote the file
                    self.conditions = self.get_result_path(trial, max_step).with_name(ENVIRONMENT_FILE).read_bytes()
            results = [self._get_result(*each) for each in batch]
            self.trainer.on_round(self, batch, missing, results)
            try:
                batch = requests_and_results.send(results)
            except StopIteration:
                return

    def _get_result(self, trial: Trial, max_step: int) -> TrialOutcome:
        result = self.find_result(trial, max_step)
        assert result is not None  # it was just trained
        return result

    def make_request(self, trial: Trial, max_step: int) -> TrialRequest:
        """Return the request to train a trial up to a step."""
        entry = self.spec.replace_ranges(trial.values)
        trial_config = self.config.model_copy(update={"optimizers": {self.name: entry}})
        return TrialRequest.from_config(trial_config, self.name, trial.seed, max_step, self.code)

    def compute_key(self, trial: Trial) -> str:
        """Return the digest by which a trial is known again."""
        return self.make_request(trial, 0).compute_key()

    def get_result_path(self, trial: Trial, max_step: int) -> Path:
        """Return the path of a trial's result at a step, for this kind of machine and these packages."""
        self._machine_digest = self._machine_digest or self.trainer.get_machine_digest()
        return TRIALS_FOLDER / self._machine_digest / self.compute_key(trial) / f"{max_step}.json"

    def load_result(self, trial: Trial, max_step: int) -> TrialResult | None:
        """Return the result that a trial's process has written, if there is one."""
        return TrialResult.load_if_present(self.get_result_path(trial, max_step))

    def find_result(self, trial: Trial, max_step: int) -> TrialOutcome | None:
        """Return a trial's result at a step: written now, before an interruption, or recorded; None without one."""
        result = self.load_result(trial, max_step)
        if result:
            return result.look or result.ending
        recorded_trial = self.recorded.get(self.compute_key(trial))
        if recorded_trial is None:
            return None
        validation = next((look for look in recorded_trial.looks if look.step == max_step), None)
        if validation is None and recorded_trial.sought is not None and max_step >= recorded_trial.sought:
            end = recorded_trial.looks[-1] if recorded_trial.looks else None
            if recorded_trial.status == "diverged" and end and end.accuracy is None:
                return end
            return "diverged" if recorded_trial.status == "diverged" else "failed"
        return validation

    def make_record(self, trial: Trial) -> TrialRecord:
        """Return a trial as trials.json has it."""
        is_default = trial.index == search.DEFAULT_INDEX
        return TrialRecord(
            search=trial.search,
            index=None if is_default else trial.index,
            seed=trial.seed,
            values=find_default_values(self.spec) if is_default else trial.values,
            beyond=trial.extended_ranges,
            status=self._get_status(trial),
            looks=[*trial.validations, *([trial.end] if trial.end else [])],
            sought=trial.target_step,
            key=self.compute_key(trial),
        )

    def _get_status(self, trial: Trial) -> TrialStatus:
        if trial.failure:
            return trial.failure
        return "completed" if trial.validations[-1].step == self.config.total_steps else "stopped"


def find_default_values(spec: OptimizerSpec) -> dict[str, float]:
    """Return range → value, of the ranges between two numbers whose value is known."""
    values = {key: _find_default_value(spec, key) for key, own in spec.ranges.items() if isinstance(own, NumericRange)}
    return {key: float(value) for key, value in values.items() if isinstance(value, int | float)}


def _find_default_value(spec: OptimizerSpec, key: str) -> object:
    """Return the entry's default for a range such as `lr` or `base.lr`, or else the class's; None if not known."""
    where, _, name = key.rpartition(".")
    part = {"": spec, "base": spec.base, "fallback": spec.fallback}.get(where)
    if part is None or name in part.default:
        return spec.get_default(key)
    try:
        cls = resolve_optimizer("", part.replace_ranges({})).cls
    except ConfigError:  # its package is not installed here
        return None
    return get_arguments(cls)[name].default if name in get_arguments(cls) else None
