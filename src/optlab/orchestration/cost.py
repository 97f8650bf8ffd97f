"""Cost of a pipeline's searches and runs: what is still to be trained, and how fast this machine is.

    python -m optlab.orchestration.cost FOLDER OPTIMIZER

The program, a job of the fork server, counts the trials that are not on record, and measures some steps of a training.
"""

import contextlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from optlab.analysis import pair_tests
from optlab.analysis.mean_ci import ALPHA
from optlab.config import loader
from optlab.orchestration import executor, tuning_session
from optlab.orchestration.executor import LocalExecutor
from optlab.orchestration.fork_server import ForkServer
from optlab.records import Choice, TuningFiles
from optlab.schema.parameters import PARAMS_FILE, Config, format_count, format_run_id
from optlab.system import processes, repository, source_code
from optlab.system.errors import RecordError, StepError
from optlab.tuning import search, selection
from optlab.tuning.search import Trial
from optlab.tuning.session import TuningSession, index_by_key, load_recorded

_MEASURED_S = 1.0


class OptimizerCost(NamedTuple):
    """Remaining work of one optimizer, and the speed of one training.

    Attributes:
        trials: number of trials without any result.
        steps: remaining steps of new and continued trials, if none diverges.
        stale_seeds: of the runs whose choice is not known yet, or was made with other modules.
        steps_per_second: None where a training fails.
    """

    trials: int
    steps: int
    stale_seeds: list[int]
    steps_per_second: float | None


def describe(
    config: Config, folder: Path, stale_stages: Collection[str], jobs: int, fork_server: ForkServer, is_versus: bool
) -> str | None:
    """Return what a pipeline's searches and runs cost, and what the runs can show; None if nothing is to be trained.

    Also None if a measurement fails, for the training will say why.

    Args:
        stale_stages: names of the stages that DVC finds stale.
        jobs: number of trials or runs at a time.
        is_versus: whether the pipeline compares with a study, whose other optimizers count in what can be shown.
    """
    costs: dict[str, OptimizerCost] = {}
    runs: dict[str, int] = {}
    for name in config.optimizers:
        stale = {seed for seed in config.seeds if f"train@{format_run_id(name, seed)}" in stale_stages}
        if stale or any(TuningFiles(folder, name, seed).stage in stale_stages for seed in config.seeds):
            cost = _run_measurement(folder, name, jobs, fork_server)
            if cost is None:
                return None
            costs[name], runs[name] = cost, len(stale.union(cost.stale_seeds))
    n_trials, n_runs = sum(each.trials for each in costs.values()), sum(runs.values())
    if not n_runs and not any(each.steps for each in costs.values()):
        return None
    counts = ((n_trials, "trial"), (n_runs, "run"))
    parts = [" and ".join(format_count(count, noun) for count, noun in counts if count)]
    speeds = [each.steps_per_second for each in costs.values()]
    if all(speeds):
        seconds = _estimate_seconds(config, costs, runs, jobs)
        parts.append(_format_duration(seconds, [each for each in speeds if each]))
    return f"{', '.join(parts)}{'' if is_versus else _describe_power(config)}"


def _estimate_seconds(config: Config, costs: dict[str, OptimizerCost], runs: dict[str, int], jobs: int) -> float:
    """Return the time of all searches side by side, and of the runs after them, in rounds of `jobs`."""
    speeds = {name: each.steps_per_second or math.inf for name, each in costs.items()}
    n_trials, n_runs = sum(each.trials for each in costs.values()), sum(runs.values())
    search_s = sum(each.steps / speeds[name] for name, each in costs.items())
    run_s = sum(runs[name] * config.total_steps / speeds[name] for name in costs)
    return search_s / min(jobs, max(1, n_trials)) + math.ceil(n_runs / jobs) * run_s / max(1, n_runs)


def _format_duration(seconds: float, speeds: list[float]) -> str:
    minutes = seconds / 60
    duration = f"about {format_count(round(minutes), 'minute')}" if minutes >= 1 else "less than a minute"
    ends = dict.fromkeys(f"{speed:.{0 if speed >= 10 else 1}f}" for speed in (min(speeds), max(speeds)))
    return f"{duration} on this machine (measured: {' to '.join(ends)} steps a second)"


def _describe_power(config: Config) -> str:
    """Return the difference that the last look so far detects with probability `POWER`; nothing before the first look.

    Its unit is the standard deviation of one optimizer's seeds, which is not known before the runs.
    """
    pairs, looks = math.comb(len(config.optimizers), 2), config.verdict.looks
    n = max((look for look in looks if look <= len(config.seeds)), default=0)
    if not n or not pairs:
        return ""
    detectable = pair_tests.compute_detectable_effect(n, ALPHA / (pairs * len(looks)))
    return (
        f"; with {n} seeds, a difference of {detectable:.1f} standard deviations between seeds is found with "
        f"{100 * pair_tests.POWER:.0f} % probability"
    )


def _run_measurement(folder: Path, name: str, jobs: int, fork_server: ForkServer) -> OptimizerCost | None:
    """Run the program on the cores of one training; None if it fails, for the tuning will say why."""
    with tempfile.TemporaryDirectory(prefix="optlab-") as temporary:
        argv, cores = [__name__, str(folder), name], sorted(executor.split_cores(jobs)[0])
        job = fork_server.start("cost", argv, Path(), cores, {}, executor.keep_line, Path(temporary) / "error")
        failed = executor.wait_or_stop(job) != 0
        with contextlib.suppress(ValueError, TypeError, IndexError):  # an optimizer that prints
            return None if failed else OptimizerCost(*json.loads(job.lines[-1]))
        return None


def main() -> None:
    """Print an `OptimizerCost` as JSON."""
    processes.exit_with_caller()
    folder, name = Path(sys.argv[1]), sys.argv[2]
    config = loader.load(folder / PARAMS_FILE)
    cost = OptimizerCost(*count_missing_trials(config, folder, name), measure_speed(config, name))
    print(f"\n{json.dumps(cost)}")  # a line of its own, whatever an optimizer has printed


def count_missing_trials(config: Config, folder: Path, name: str) -> tuple[int, int, list[int]]:
    """Return the first three fields of an `OptimizerCost`: trials and steps that the searches still take, and seeds."""
    class_paths, has_search = config.list_class_paths(name), bool(config.get_optimizer(name).ranges)
    modules, code = selection.hash_modules(class_paths), source_code.hash_code(folder, "tune", class_paths)
    missing: dict[int, tuple[int, int]] = {}  # number of the search → its trials and steps
    stale_seeds = list[int]()
    for seed in config.seeds:
        number = config.get_search_number(seed)
        if number not in missing:  # a search for all seeds trains once
            missing[number] = _count_missing_in_search(config, folder, name, seed, code) if has_search else (0, 0)
        if missing[number][1] or _read_modules(TuningFiles(folder, name, seed)) != modules:
            stale_seeds.append(seed)
    trials, steps = map(sum, zip(*missing.values(), strict=True))
    return trials, steps, stale_seeds


def _count_missing_in_search(
    config: Config, folder: Path, name: str, seed: int, code: dict[str, str]
) -> tuple[int, int]:
    """Return the number of a search's trials without a result, and of their remaining steps.

    Args:
        code: as `source_code.hash_code` returns it.
    """
    spec, tuning, total_steps = config.get_optimizer(name), config.tuning, config.total_steps
    record, number, trials = load_recorded(config, folder, name, seed), config.get_search_number(seed), list[Trial]()
    n_trials = n_steps = 0
    with LocalExecutor.from_config(config) as executor_of_trials:
        trainer = tuning_session.ExecutorTrainer(executor_of_trials, prints_rounds=False)
        session = TuningSession(config, name, number, spec, code, index_by_key(record), trainer)
        reached = _find_reached_steps(session, search.run_search(number, spec.ranges, tuning, total_steps, trials))
    if reached is not None:
        n_trials += tuning.trials + 1 - len(reached)
        n_steps += search.compute_cost(tuning, total_steps) - sum(reached.values())
    grid = tuning.sensitivity
    if grid and not record.sensitivity and search.find_learning_rate_key(spec.ranges):
        n_trials, n_steps = n_trials + grid.points * grid.seeds, n_steps + grid.points * grid.seeds * total_steps
    return n_trials, n_steps


def _read_modules(tuning_files: TuningFiles) -> dict[str, str] | None:
    """Return the modules with which the recorded choice was made; None without a choice."""
    with contextlib.suppress(RecordError):
        return Choice.read(tuning_files.choice).modules
    return None


def _find_reached_steps(session: TuningSession, requests: search.Search) -> dict[int, int] | None:
    """Return trial → last recorded step, up to the first batch with a missing result; None if nothing is missing."""
    reached: dict[int, int] = {}
    batch = next(requests, None)
    while batch is not None:
        results = [session.find_result(*each) for each in batch]
        reached |= {trial.index: end for (trial, end), result in zip(batch, results, strict=True) if result}
        found = [each for each in results if each is not None]
        if len(found) < len(results):
            return reached
        try:
            batch = requests.send(found)
        except StopIteration:
            break
    return None


def measure_speed(config: Config, name: str) -> float | None:
    """Return the steps per second of a training of about a second, with the entry's defaults; None if it fails.

    The first step, which allocates memory, does not count.
    """
    from optlab.data import cifar10
    from optlab.training import determinism, loop

    times = list[float]()

    class StepTimer(loop.Callback):
        """Notes the time after each step, and ends the training."""

        def on_step(self, epoch: int, step: int, loss: float, images: int) -> None:
            times.append(time.monotonic())
            if len(times) > 1 and times[-1] - times[0] > _MEASURED_S:
                raise _MeasuredError

    entry = config.get_optimizer(name).replace_ranges({})
    config = config.model_copy(update={"optimizers": {name: entry}})
    device = determinism.configure_torch(config.training)
    splits = cifar10.load(repository.DATA, config.data, seed=0)
    with contextlib.suppress(_MeasuredError, StepError):
        loop.train(config, name, 0, splits, device, [StepTimer()])
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else None


class _MeasuredError(Exception):
    """Ends a training whose speed is known."""
