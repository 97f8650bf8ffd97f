"""Training of the trials of one optimizer's tuning on an executor, side by side, and their progress."""

import contextlib
import shutil
import sys
import time
from pathlib import Path

from tqdm import tqdm

from optlab.orchestration.executor import Executor, JobSpec, LocalExecutor, wait_first
from optlab.orchestration.fork_server import Job
from optlab.records import Choice, ValidationMetrics
from optlab.schema.optimizer import OptimizerSpec
from optlab.schema.parameters import Config, format_run_id
from optlab.system import files, locks, processes
from optlab.system.errors import BusyError, RunsFailedError, StorageError, print_stderr
from optlab.system.text import get_terminal_width, wrap_text
from optlab.tuning import search, session
from optlab.tuning.search import Trial, TrialBatch, TrialOutcomes
from optlab.tuning.session import TuningSession
from optlab.tuning.trial import ENVIRONMENT_FILE, TRIALS_FOLDER, get_lock_name

TRIAL_MODULE = "optlab.tuning.trial"
_CLOCK_S = 1.0  # between two updates of a progress bar


def tune(config: Config, folder: Path, name: str, seed: int, job_executor: Executor | None = None) -> None:
    """Search for values within an optimizer's ranges, and write the ones selected for a run.

    Args:
        seed: of the run.
        job_executor: trains the trials of several searches, each of which prints its choice, and without a terminal,
            which shows their bars, its rounds; default: one on the cores of this machine, for this search, which
            always prints its rounds.

    Raises:
        RunsFailedError: a trial was killed, or failed for a reason other than the optimizer.
        StorageError: a result cannot be written.
    """
    is_alone = job_executor is None
    with contextlib.nullcontext(job_executor) if job_executor else LocalExecutor.from_config(config) as job_executor:
        if is_alone:
            _print(_describe_budget(config, name, seed))
        trainer = ExecutorTrainer(job_executor, prints_rounds=is_alone or not sys.stderr.isatty())
        trials = session.tune(config, folder, name, seed, trainer)
    for each in trials:
        remove_checkpoints(each.key)


def _print(text: str) -> None:
    """Print above the progress bars of all searches; another one that ends may have left the cursor in the line."""
    start = "\r" if sys.stdout.isatty() else ""
    tqdm.write(start + wrap_text(text, get_terminal_width()))
    sys.stdout.flush()


def remove_checkpoints(key: str) -> None:
    """Remove the checkpoints and the lock of a trial, but not its results; nothing while another pipeline trains it."""
    name = get_lock_name(key)
    with contextlib.suppress(BusyError, StorageError), locks.hold_lock(name):
        for left in TRIALS_FOLDER.glob(f"*/{key}/*/"):
            shutil.rmtree(left, ignore_errors=True)
        locks.delete_lock(name)


def _describe_budget(config: Config, name: str, seed: int) -> str:
    tuning, steps = config.tuning, config.total_steps
    total = _compute_max_steps(config)
    parts = ", ".join(f"{end:,}" for end in search.compute_rungs(steps, tuning.halving))
    return (
        f"{_format_search(name, seed, config)}: {tuning.trials + 1} trials to step {parts}: at most "
        f"{total * config.training.batch_size:,} images, as many as {total / steps:.1f} whole runs"
    )


def _compute_max_steps(config: Config) -> int:
    """Return the largest number of steps that a search can take."""
    tuning, grid = config.tuning, config.tuning.sensitivity
    grid_steps = grid.points * grid.seeds * config.total_steps if grid else 0
    return search.compute_cost(tuning, config.total_steps) + grid_steps


def _get_search_name(session: TuningSession) -> str:
    return _format_search(session.name, session.number, session.config)


def _format_search(name: str, seed: int, config: Config) -> str:
    return format_run_id(name, seed) if config.tuning.per_seed else name


def _format_choice(choice: Choice) -> str:
    if choice.validation_accuracy is None:
        return "every trial diverged, the default as well"
    best = "the default" if choice.trial is None else f"trial {choice.trial}"
    spec = OptimizerSpec.model_validate(choice.entry)
    values = ", ".join(f"{key} {value}" for key, value in spec.hyperparameters.items())
    return (
        f"{best} is the best, validation accuracy {choice.validation_accuracy:.2%}: {values or 'nothing but defaults'}"
    )


class ExecutorTrainer:
    """Trainer of trials on an executor; prints the choice, and with `prints_rounds` each round before."""

    def __init__(self, executor: Executor, prints_rounds: bool) -> None:
        self._executor, self._prints_rounds = executor, prints_rounds
        self._steps_reached: dict[tuple[int, int], int] = {}  # index, seed → steps
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
        _run_jobs([_make_job_spec(session, *each) for each in batch], self._executor, _get_search_name(session))
        self._training_seconds += time.monotonic() - start
        for trial, max_step in batch:
            result = session.load_result(trial, max_step)
            if result and result.reason:
                print_stderr(f"{_get_search_name(session)}: {_format_trial_name(trial)} failed: {result.reason}")

    def on_round(self, session: TuningSession, batch: TrialBatch, missing: TrialBatch, results: TrialOutcomes) -> None:
        """Print the best accuracy of a round, and an estimate of the remaining time, if that is wanted."""
        for request, result in zip(batch, results, strict=True):
            trial, max_step = request
            trial_id = trial.index, trial.seed
            reached = result.step if isinstance(result, ValidationMetrics) else max_step
            self._steps_trained += reached - self._steps_reached.get(trial_id, 0) if request in missing else 0
            self._steps_reached[trial_id] = reached
        if self._prints_rounds:
            progress = f"{_format_round(results, len(missing))}{self._format_eta(session.config)}"
            _print(f"{_get_search_name(session)}: {progress}")

    def on_choice(self, session: TuningSession, choice: Choice) -> None:
        """Print the values that the search has chosen."""
        known = "" if self._steps_trained else " (every trial was known already)"
        _print(f"{_get_search_name(session)}: {_format_choice(choice)}{known}")

    def _format_eta(self, config: Config) -> str:
        rest = max(0, _compute_max_steps(config) - sum(self._steps_reached.values()))
        seconds = rest * self._training_seconds / self._steps_trained if self._steps_trained else 0.0
        return f"; at most {seconds / 60:.0f} min left" if seconds >= 30 else ""


def _format_round(results: TrialOutcomes, n_trained: int) -> str:
    reached = [(each.step, each.accuracy) for each in results if isinstance(each, ValidationMetrics)]
    accuracies = [(step, accuracy) for step, accuracy in reached if accuracy is not None]
    first_step = min((step for step, _ in accuracies), default=0)  # the default trial is not halved
    highest = max((accuracy for step, accuracy in accuracies if step == first_step), default=None)
    best = "all diverged" if highest is None else f"best validation accuracy at step {first_step:,}: {highest:.2%}"
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
                bar.set_postfix_str(f"{len(running)} in training")  # the first ends after minutes: its clock ticks
                done = wait_first(running, _CLOCK_S)
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
