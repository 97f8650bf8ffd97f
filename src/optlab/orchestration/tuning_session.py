"""Tuning of one optimizer: runs the trials that its search requests on an executor, and records the results."""

import contextlib
import functools
import math
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from optlab import records
from optlab.analysis import paired_tests
from optlab.orchestration.executor import Executor, JobSpec, LocalExecutor, wait_first
from optlab.orchestration.fork_server import Job
from optlab.records import StudyResult, TrialsRecord, TrialStatus, TuningFiles
from optlab.schema.optimizer import OptimizerSpec
from optlab.schema.parameters import Config
from optlab.system import files, locks, processes, source_code
from optlab.system.errors import BusyError, RecordError, RunsFailedError, StorageError, print_stderr
from optlab.system.text import get_terminal_width, wrap_text
from optlab.tuning import search, selection
from optlab.tuning.defaults import find_default_values
from optlab.tuning.search import Trial, TrialBatch, TrialOutcomes
from optlab.tuning.trial import ENVIRONMENT_FILE, TRIALS_FOLDER, TrialRequest, TrialResult, get_lock_name

TRIAL_MODULE = "optlab.tuning.trial"


def tune(config: Config, folder: Path, name: str, job_executor: Executor | None = None) -> None:
    """Search for values within an optimizer's ranges, and write the selected ones.

    Trials of an interrupted call, or of an earlier one with fewer trials, are not trained again.

    Args:
        job_executor: trains the trials; default: one on the cores of this machine.

    Raises:
        RunsFailedError: a trial was killed, or failed for a reason other than the optimizer.
        StorageError: a result cannot be written.
    """
    spec, tuning_files = config.get_optimizer(name), TuningFiles(folder, name)
    class_paths = config.list_class_paths(name)
    modules, code = selection.hash_modules(class_paths), source_code.hash_code(folder, "tune", class_paths)
    trials, studies = [], []
    with contextlib.nullcontext(job_executor) if job_executor else LocalExecutor.from_config(config) as job_executor:
        session = TuningSession(config, name, spec, code, _load_recorded(tuning_files.trials), job_executor)
        print(wrap_text(_describe_budget(config, name), get_terminal_width()), flush=True)
        for number in range(config.tuning.studies):
            study_trials: list[Trial] = []
            session.run_search(
                search.run_study(number, spec.ranges, config.tuning, config.total_steps, config.seeds, study_trials)
            )
            studies.append(selection.select_values(spec, study_trials, config.total_steps))
            trials += study_trials
            print(_format_study(name, number, studies[-1], config), flush=True)
        grid = _run_sensitivity(
            session, search.find_best([each for each in trials if each.study == 0], config.total_steps)
        )
    recorded, sensitivity_records = [[session.make_record(each) for each in part] for part in (trials, grid)]
    selection.write(tuning_files, studies, modules, recorded, sensitivity_records)
    if session.conditions:
        files.write_atomic(selection.get_environment_path(folder, name), session.conditions)
    for each in (*recorded, *sensitivity_records):
        remove_checkpoints(each.key)


def remove_checkpoints(key: str) -> None:
    """Remove the checkpoints and the lock of a trial, but not its results; nothing while another pipeline trains it."""
    name = get_lock_name(key)
    with contextlib.suppress(BusyError, StorageError), locks.hold_lock(name):
        for left in TRIALS_FOLDER.glob(f"*/{key}/*/"):
            shutil.rmtree(left, ignore_errors=True)
        locks.delete_lock(name)


def _run_sensitivity(session: "TuningSession", chosen: Trial | None) -> list[Trial]:
    """Train the grid of learning rates about the first study's selection, if the configuration has one."""
    config, key, grid_trials = session.config, search.find_learning_rate_key(session.spec.ranges), list[Trial]()
    grid = config.tuning.sensitivity
    if grid and key and chosen and key in chosen.values:
        session.run_search(
            search.run_sensitivity_grid(key, chosen, grid, config.tuning, config.total_steps, config.seeds, grid_trials)
        )
    return grid_trials


def _load_recorded(path: Path) -> dict[str, records.TrialRecord]:
    """Return key → trial of an earlier record."""
    try:
        record = TrialsRecord.read(path)
        return {each.key: each for each in (*record.trials, *record.sensitivity)}
    except RecordError:
        return {}


def _describe_budget(config: Config, name: str) -> str:
    tuning, steps = config.tuning, config.total_steps
    total = _compute_max_steps(config)
    parts = ", ".join(f"{end:,}" for end in search.compute_rungs(steps, tuning.halving))
    return (
        f"{name}: {tuning.studies * (tuning.trials + 1)} trials to step {parts}: at most "
        f"{total * config.training.batch_size:,} images, as many as {total / steps:.1f} whole runs; "
        f"{_describe_power(config)}"
    )


def _compute_max_steps(config: Config) -> int:
    """Return the largest number of steps that a tuning can take."""
    tuning, grid = config.tuning, config.tuning.sensitivity
    grid_steps = grid.points * grid.seeds * config.total_steps if grid else 0
    return tuning.studies * search.compute_cost(tuning, config.total_steps) + grid_steps


def _describe_power(config: Config) -> str:
    n, pairs = config.n_replicates, math.comb(len(config.optimizers), 2)
    confirmation = f"{len(config.seeds)} run{'s' if len(config.seeds) > 1 else ''} with other seeds confirm the choice"
    if n < 2 or not pairs:
        return confirmation
    detectable = paired_tests.compute_detectable_effect(n, pairs)
    return f"{confirmation}, and show differences of {detectable:.1f} standard deviations between paired runs, or more"


def _format_study(name: str, number: int, chosen: StudyResult, config: Config) -> str:
    study = f", study {number + 1} of {config.tuning.studies}" if config.tuning.studies > 1 else ""
    if chosen.validation_accuracy is None:
        return f"{name}{study}: every trial diverged, the default as well"
    best = "the default" if chosen.trial is None else f"trial {chosen.trial}"
    spec = OptimizerSpec.model_validate(chosen.entry)
    values = ", ".join(f"{key} {value}" for key, value in spec.hyperparameters.items())
    return f"{name}{study}: {best} is the best, validation accuracy {chosen.validation_accuracy:.2%}: {values}"


@dataclass
class TuningSession:
    """One optimizer's tuning: trains the trials that a search requests, unless their results are known.

    Attributes:
        code: name → SHA-256 of what decides a trial.
        recorded: key → trial of an earlier tuning.
        executor: trains the trials.
        conditions: environment file of the last trained trial; empty before.
    """

    config: Config
    name: str
    spec: OptimizerSpec
    code: dict[str, str]
    recorded: dict[str, records.TrialRecord]
    executor: Executor
    conditions: bytes = b""
    _steps_reached: dict[tuple[int, int, int], int] = field(default_factory=dict)  # study, index, seed → steps
    _steps_trained: int = 0
    _training_seconds: float = 0.0

    @functools.cached_property
    def _machine_digest(self) -> str:
        return self.executor.get_machine_digest()

    def run_search(self, requests_and_results: search.Search) -> None:
        """Train what the search requests, until it is complete."""
        requests = next(requests_and_results, None)
        while requests is not None:
            missing = [each for each in requests if self._find_result(*each) is None]
            if missing:
                self._train_missing(missing)
            self._update_progress(requests, missing)
            results = [self._get_result(*each) for each in requests]
            print(self._format_round(results, len(missing)), flush=True)
            try:
                requests = requests_and_results.send(results)
            except StopIteration:
                return

    def _train_missing(self, requests: TrialBatch) -> None:
        start = time.monotonic()
        _run_jobs([self._make_job_spec(*each) for each in requests], self.executor, self.name)
        self._training_seconds += time.monotonic() - start
        for trial, max_step in requests:
            result = self._load_result(trial, max_step)
            if result and result.reason:
                print_stderr(f"{self.name}: {_format_trial_name(trial)} failed: {result.reason}")
        trial, max_step = requests[-1]
        with contextlib.suppress(OSError):  # it failed before it wrote them
            self.conditions = (
                self._get_result_path(self._compute_key(trial), max_step).with_name(ENVIRONMENT_FILE).read_bytes()
            )

    def _get_result(self, trial: Trial, max_step: int) -> "records.ValidationMetrics | search.TrialFailure":
        result = self._find_result(trial, max_step)
        assert result is not None  # it was just trained
        return result

    def _update_progress(self, requests: TrialBatch, missing: TrialBatch) -> None:
        for request in requests:
            trial, max_step = request
            trial_id = trial.study, trial.index, trial.seed
            self._steps_trained += max_step - self._steps_reached.get(trial_id, 0) if request in missing else 0
            self._steps_reached[trial_id] = max_step

    def _format_eta(self) -> str:
        rest = max(0, _compute_max_steps(self.config) - sum(self._steps_reached.values()))
        seconds = rest * self._training_seconds / self._steps_trained if self._steps_trained else 0.0
        return f"; at most {seconds / 60:.0f} min left" if seconds >= 30 else ""

    def _format_round(self, results: TrialOutcomes, n_trained: int) -> str:
        validations = [each for each in results if isinstance(each, records.ValidationMetrics)]
        first_step = min((each.step for each in validations), default=0)  # the default trial is not halved
        accuracies = [each.accuracy for each in validations if each.step == first_step and each.accuracy is not None]
        best = (
            f"best validation accuracy at step {first_step:,}: {max(accuracies):.2%}" if accuracies else "all diverged"
        )
        cached = f" ({len(results) - n_trained} known already)" if n_trained < len(results) else ""
        return f"{self.name}: {len(results)} trial{'s' if len(results) > 1 else ''}{cached}: {best}{self._format_eta()}"

    def _make_request(self, trial: Trial, max_step: int) -> TrialRequest:
        entry = self.spec.replace_ranges(trial.values)
        trial_config = self.config.model_copy(update={"optimizers": {self.name: entry}})
        return TrialRequest.from_config(trial_config, self.name, trial.seed, max_step, self.code)

    def _compute_key(self, trial: Trial) -> str:
        return self._make_request(trial, 0).compute_key()

    def _make_job_spec(self, trial: Trial, max_step: int) -> JobSpec:
        key = self._compute_key(trial)
        result_path = self._get_result_path(key, max_step)
        request_path = result_path.with_name(f"{max_step}.task.json")
        files.write_atomic(request_path, self._make_request(trial, max_step).model_dump_json().encode())
        return JobSpec(
            f"{_format_trial_name(trial)} with seed {trial.seed}",
            [TRIAL_MODULE, str(request_path), str(result_path)],
            Path(),
            f"trial-{key}",
            (request_path,),
            (result_path, result_path.with_name(ENVIRONMENT_FILE)),
        )

    def _get_result_path(self, key: str, max_step: int) -> Path:
        """Return the file for the result of a trial at a step, on these machines with these packages."""
        return TRIALS_FOLDER / self._machine_digest / key / f"{max_step}.json"

    def _find_result(self, trial: Trial, max_step: int) -> "records.ValidationMetrics | search.TrialFailure | None":
        """Return the result of a trial at a step from this or an interrupted call, or from the record; else None."""
        result = self._load_result(trial, max_step)
        if result:
            return result.look or result.ending
        recorded_trial = self.recorded.get(self._compute_key(trial))
        if recorded_trial is None:
            return None
        validation = next((look for look in recorded_trial.looks if look.step == max_step), None)
        if validation is None and recorded_trial.sought is not None and max_step >= recorded_trial.sought:
            return "diverged" if recorded_trial.status == "diverged" else "failed"
        return validation

    def _load_result(self, trial: Trial, max_step: int) -> TrialResult | None:
        return TrialResult.load_if_present(self._get_result_path(self._compute_key(trial), max_step))

    def make_record(self, trial: Trial) -> records.TrialRecord:
        """Return a trial as trials.json has it."""
        is_default = trial.index == search.DEFAULT_INDEX
        return records.TrialRecord(
            study=trial.study,
            index=None if is_default else trial.index,
            seed=trial.seed,
            values=find_default_values(self.spec) if is_default else trial.values,
            beyond=trial.extended_ranges,
            status=self._get_status(trial),
            looks=trial.validations,
            sought=trial.target_step,
            key=self._compute_key(trial),
        )

    def _get_status(self, trial: Trial) -> TrialStatus:
        if trial.failure:
            return trial.failure
        return "completed" if trial.validations[-1].step == self.config.total_steps else "stopped"


def _format_trial_name(trial: Trial) -> str:
    return "the default" if trial.index == search.DEFAULT_INDEX else f"trial {trial.index}"


def _run_jobs(job_specs: list[JobSpec], executor: Executor, name: str) -> None:
    """Run all jobs.

    Raises:
        RunsFailedError: jobs failed; the others were completed first.
    """
    waiting, running, failed = list(job_specs), set[Job](), list[str]()
    with (
        processes.interrupt_on_sigterm(),
        tqdm(total=len(job_specs), desc=f"{name}: trials", disable=None, leave=False) as bar,
    ):
        try:
            while waiting or running:
                while waiting and len(running) < executor.max_workers:
                    running.add(executor.submit(waiting.pop(0)))
                done = wait_first(running)
                running.difference_update(done)
                bar.update(len(done))
                failed += [f"{job.name}: {job.describe_failure()}" for job in done if job.status]
        except BaseException:
            executor.stop()
            raise
    if failed:
        raise RunsFailedError(
            f"{name}: {len(failed)} of {len(job_specs)} trials failed ({failed[0]}): mend it, then repeat the command: "
            f"those that ended well are kept"
        )
