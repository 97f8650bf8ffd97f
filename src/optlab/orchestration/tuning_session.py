"""Training of the trials of one optimizer's tuning on an executor, side by side, and their progress."""

import contextlib
import math
import shutil
import time
from pathlib import Path

from tqdm import tqdm

from optlab.analysis import paired_tests
from optlab.orchestration.executor import Executor, JobSpec, LocalExecutor, wait_first
from optlab.orchestration.fork_server import Job
from optlab.records import StudyResult, ValidationMetrics
from optlab.schema.optimizer import OptimizerSpec
from optlab.schema.parameters import Config
from optlab.system import files, locks, processes
from optlab.system.errors import BusyError, RunsFailedError, StorageError, print_stderr
from optlab.system.text import get_terminal_width, wrap_text
from optlab.tuning import search, session
from optlab.tuning.search import Trial, TrialBatch, TrialOutcomes
from optlab.tuning.session import TuningSession
from optlab.tuning.trial import ENVIRONMENT_FILE, TRIALS_FOLDER, get_lock_name

TRIAL_MODULE = "optlab.tuning.trial"


def tune(config: Config, folder: Path, name: str, job_executor: Executor | None = None) -> None:
    """Search for values within an optimizer's ranges, and write the selected ones.

    Args:
        job_executor: trains the trials; default: one on the cores of this machine.

    Raises:
        RunsFailedError: a trial was killed, or failed for a reason other than the optimizer.
        StorageError: a result cannot be written.
    """
    with contextlib.nullcontext(job_executor) if job_executor else LocalExecutor.from_config(config) as job_executor:
        print(wrap_text(_describe_budget(config, name), get_terminal_width()), flush=True)
        trials = session.tune(config, folder, name, ExecutorTrainer(job_executor))
    for each in trials:
        remove_checkpoints(each.key)


def remove_checkpoints(key: str) -> None:
    """Remove the checkpoints and the lock of a trial, but not its results; nothing while another pipeline trains it."""
    name = get_lock_name(key)
    with contextlib.suppress(BusyError, StorageError), locks.hold_lock(name):
        for left in TRIALS_FOLDER.glob(f"*/{key}/*/"):
            shutil.rmtree(left, ignore_errors=True)
        locks.delete_lock(name)


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


class ExecutorTrainer:
    """Trainer of trials on an executor; prints the progress of the tuning."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._steps_reached: dict[tuple[int, int, int], int] = {}  # study, index, seed → steps
        self._steps_trained = 0
        self._training_seconds = 0.0

    def get_machine_digest(self) -> str:
        """Return a digest of the machines that train the trials."""
        return self._executor.get_machine_digest()

    def train(self, session: TuningSession, batch: TrialBatch) -> None:
        """Train trials, and print how they failed, if any did.

        Raises:
            RunsFailedError: a trial has left no result; the others are trained first.
        """
        start = time.monotonic()
        _run_jobs([_make_job_spec(session, *each) for each in batch], self._executor, session.name)
        self._training_seconds += time.monotonic() - start
        for trial, max_step in batch:
            result = session.load_result(trial, max_step)
            if result and result.reason:
                print_stderr(f"{session.name}: {_format_trial_name(trial)} failed: {result.reason}")

    def on_round(self, session: TuningSession, batch: TrialBatch, missing: TrialBatch, results: TrialOutcomes) -> None:
        """Print the best accuracy of a round, and an estimate of the remaining time."""
        for request in batch:
            trial, max_step = request
            trial_id = trial.study, trial.index, trial.seed
            self._steps_trained += max_step - self._steps_reached.get(trial_id, 0) if request in missing else 0
            self._steps_reached[trial_id] = max_step
        print(f"{session.name}: {_format_round(results, len(missing))}{self._format_eta(session.config)}", flush=True)

    def on_study(self, session: TuningSession, number: int, chosen: StudyResult) -> None:
        """Print the values that a study has chosen."""
        print(_format_study(session.name, number, chosen, session.config), flush=True)

    def _format_eta(self, config: Config) -> str:
        rest = max(0, _compute_max_steps(config) - sum(self._steps_reached.values()))
        seconds = rest * self._training_seconds / self._steps_trained if self._steps_trained else 0.0
        return f"; at most {seconds / 60:.0f} min left" if seconds >= 30 else ""


def _format_round(results: TrialOutcomes, n_trained: int) -> str:
    validations = [each for each in results if isinstance(each, ValidationMetrics)]
    first_step = min((each.step for each in validations), default=0)  # the default trial is not halved
    accuracies = [each.accuracy for each in validations if each.step == first_step and each.accuracy is not None]
    best = f"best validation accuracy at step {first_step:,}: {max(accuracies):.2%}" if accuracies else "all diverged"
    cached = f" ({len(results) - n_trained} known already)" if n_trained < len(results) else ""
    return f"{len(results)} trial{'s' if len(results) > 1 else ''}{cached}: {best}"


def _make_job_spec(session: TuningSession, trial: Trial, max_step: int) -> JobSpec:
    result_path = session.get_result_path(trial, max_step)
    request_path = result_path.with_name(f"{max_step}.task.json")
    files.write_atomic(request_path, session.make_request(trial, max_step).model_dump_json().encode())
    return JobSpec(
        f"{_format_trial_name(trial)} with seed {trial.seed}",
        [TRIAL_MODULE, str(request_path), str(result_path)],
        Path(),
        f"trial-{session.compute_key(trial)}",
        (request_path,),
        (result_path, result_path.with_name(ENVIRONMENT_FILE)),
    )


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
