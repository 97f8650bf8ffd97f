"""`dvc repro` with several runs at a time, on this machine or on a cluster, and no start-up for each stage.

DVC has no such option (treeverse/dvc#755). `dvc_pipeline` says in this process what is stale and records the outputs;
stages are children of the fork server. This process has threads, the display, and DVC: it never forks.
"""

import functools
import os
import sys
import tempfile
from collections.abc import Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from optlab.orchestration import executor, preflight_cache
from optlab.orchestration.display import Display, show_status
from optlab.orchestration.executor import ClusterOptions, Executor, JobSpec, LocalExecutor
from optlab.orchestration.fork_server import ForkServer, Job
from optlab.orchestration.verified_state import VerifiedState
from optlab.records import RunFiles, TuningFiles
from optlab.schema.parameters import PARAMS_FILE, Config, format_count
from optlab.system import locks, processes, repository, source_code
from optlab.system.errors import ClusterError, ConfigError, OptlabError, RunsFailedError, summarize_error
from optlab.system.text import get_terminal_width, wrap_text
from optlab.tracking import uploader_client
from optlab.training import numerics

if TYPE_CHECKING:
    from optlab.orchestration.dvc_pipeline import DvcPipeline

_RUN_STAGES = ("train", "evaluate")
_UNCHANGED = "Nothing has changed since the last comparison."
_MAX_SHOWN_LINES = 20  # lines of a child's output


def run_pipeline(config: Config, folder: Path, jobs: int | None, cluster_options: ClusterOptions | None = None,
          forced: Collection[str] = (), allow_missing: bool = False) -> None:  # fmt: skip
    """Reproduce the pipeline in `folder` as `dvc repro` does; the working directory is the top of the repository.

    A failed run does not stop the others. dvc.lock ends with the entries that plain `dvc repro` leaves.

    Args:
        jobs: number of runs or trials at a time on this machine; default: as many as the cores have room for.
        cluster_options: of a cluster, which runs trainings, evaluations and trials then.
        forced: optimizers whose runs are trained even if DVC's run cache has them.
        allow_missing: as for `DvcPipeline`.

    Raises:
        ConfigError: params.yaml cannot be used.
        ClusterError: the cluster cannot be used.
        RunsFailedError: runs failed, or a stage before or after them.
        BusyError: another process reproduces a pipeline in this working tree.
    """
    repository.set_pipeline(folder)
    numerics.prepare(config.training)  # sets variables that the fork server reads as it starts
    if jobs:
        os.environ[executor.JOBS_VARIABLE] = str(jobs)
    jobs = executor.count_jobs(config, jobs)
    if not any(spec.ranges for spec in config.optimizers.values()):
        jobs = min(jobs, len(config.list_runs()))
    print(_describe_plan(config, folder, None if cluster_options else jobs), flush=True)
    own_pid = str(os.getpid())
    os.environ |= {uploader_client.UPLOADER_PARENT_VARIABLE: own_pid, processes.PARENT_PID_VARIABLE: own_pid}
    verified = VerifiedState(config, folder, allow_missing)
    with locks.hold_lock("repro"), processes.interrupt_on_sigterm():
        if not forced and verified.is_current() and _show_unchanged(verified):
            return
        with ForkServer(busy_wait=executor.can_busy_wait(config, jobs)) as fork_server:
            uploader_client.ensure_daemon(own_pid)
            _run_stale_stages(verified, jobs, fork_server, cluster_options, forced)


def _show_unchanged(verified: VerifiedState) -> bool:
    """Print a comparison that is up to date, in this process; returns False if MLflow may lack something of it."""
    from optlab.analysis import tables
    from optlab.orchestration import versus
    from optlab.tracking.comparison_view import LOCAL_UI_HINT

    compared = versus.collect_comparison(verified.config, verified.folder)
    if not verified.is_in_mlflow(compared):
        return False
    print(_UNCHANGED)
    print(tables.describe(compared, verified.folder))
    if not compared.challenger:
        print(f"MLflow has been sent all runs: {LOCAL_UI_HINT} opens its pages")
    return True


def _run_stale_stages(verified: VerifiedState, jobs: int, fork_server: ForkServer,
                      cluster_options: ClusterOptions | None, forced: Collection[str]) -> None:  # fmt: skip
    """Run what DVC finds stale, and remember that it was nothing."""
    from optlab.orchestration import versus

    config, folder, allow_missing = verified.config, verified.folder, verified.allow_missing
    runs = [RunFiles(folder, name, seed) for name, seed in config.list_runs()]
    targets = [f"{stage}@{run_files.id}" for run_files in runs for stage in _RUN_STAGES]
    tunings = [TuningFiles(folder, name, seed).stage for name, seed in config.list_runs()]
    with show_status("reading what DVC has recorded, and checking params.yaml"):
        from optlab.orchestration.dvc_pipeline import DvcPipeline  # meanwhile, the server and the daemon import

        forced_stages = [f"{stage}@{each.id}" for each in runs if each.optimizer in forced for stage in _RUN_STAGES]
        if not (folder / ".dvc" / "config").is_file() and source_code.read_stage(folder, "download"):
            repository.make_dvc_project(folder)  # a new study; those of earlier versions have no stage `download`
        pipeline = DvcPipeline(folder / "dvc.yaml", [*tunings, *targets], forced_stages, allow_missing)
        watched = pipeline.list_watched_paths()
        digest = verified.compute_digest(watched)
        warnings: list[str] = []
        if preflight_cache.load_cached(config) is None:
            warnings = _run_check(fork_server, ["optlab", "check", "--quiet"], folder)
        _warn_of_other_conditions(pipeline, config, folder)
    _provide_data(pipeline, fork_server, allow_missing)
    _run_check(fork_server, ["optlab.data.cifar10", config.data.dataset])
    command = pipeline.get_command("compare")[0] if "compare" in pipeline.names else ""
    reference = versus.parse_compare_command(command, folder)
    if not cluster_options and (reference or any(spec.ranges for spec in config.optimizers.values())):
        _print_cost(pipeline, config, folder, jobs, fork_server, is_versus=bool(reference))
    with _make_executor(config, folder, jobs, fork_server, cluster_options) as job_executor:
        at_a_time = None if cluster_options else job_executor.max_workers
        _run_searches(pipeline, config, folder, job_executor, at_a_time)
        for stage in tunings:
            _run_stage(pipeline, fork_server, stage, "a tuning failed")
        if reference:
            versus.begin_attempt(config, folder, reference)  # before the display shows its accuracies
        with pipeline.lock_stages(targets), Display(runs, warnings) as display:
            failures = RunScheduler(pipeline, folder, job_executor, display).run([each.id for each in runs])
        if failures:
            for run, reason in failures.items():
                print(f"{run}: {reason}", file=sys.stderr)
            raise RunsFailedError(
                f"{len(failures)} of {len(runs)} runs failed: {', '.join(failures)}: mend it, then repeat the "
                f"command: it runs these again, and nothing else"
            )
    if _run_final_stages(pipeline, fork_server, folder, {*tunings, *targets}, allow_missing):
        return
    if not pipeline.has_run and (folder == Path() or "download" in pipeline.names):
        verified.write(watched, digest)


def _make_executor(config: Config, folder: Path, jobs: int, fork_server: ForkServer,
                   cluster_options: ClusterOptions | None) -> Executor:  # fmt: skip
    if cluster_options is None:
        return LocalExecutor.from_config(config, jobs, fork_server)
    from optlab.orchestration.ray_executor import RayExecutor

    return RayExecutor(config, folder, cluster_options)


def _describe_plan(config: Config, folder: Path, jobs: int | None) -> str:
    parts = format_count(len(config.optimizers), "optimizer"), format_count(len(config.seeds), "seed")
    where = "on a cluster" if jobs is None else f"{min(jobs, len(config.list_runs()))} at a time"
    return f"{folder / PARAMS_FILE}: {' × '.join(parts)} = {format_count(len(config.list_runs()), 'run')}, {where}"


def _run_final_stages(
    pipeline: "DvcPipeline", fork_server: ForkServer, folder: Path, done: Collection[str], allow_missing: bool
) -> bool:
    """Compare the runs, run the stages that a user has added, and show a comparison that was up to date.

    Args:
        done: names of the complete stages.

    Returns:
        Whether a stage was stale.

    Raises:
        RunsFailedError: a stage failed.
    """
    problem = "the runs are complete, but a stage after them failed"
    has_compared = _run_stage(pipeline, fork_server, "compare", problem)
    others = [name for name in pipeline.names if name not in done]
    has_others = any(pipeline.is_stale(name) for name in others)
    if has_others:
        options = ["--allow-missing"] if allow_missing else []
        command = [*repository.DVC_COMMAND, "--wait-for-lock", "repro", "--quiet", *options]
        if processes.run(command, cwd=folder):
            raise RunsFailedError(f"{problem}: see above")
    if not has_compared and "compare" in pipeline.names:
        print(_UNCHANGED, flush=True)
        if executor.wait_or_stop(fork_server.start("show", ["optlab", "show"], folder, executor.list_cores(), {})):
            raise RunsFailedError("the record is complete, but cannot be shown: see above")
    return has_compared or has_others


def _provide_data(pipeline: "DvcPipeline", fork_server: ForkServer, allow_missing: bool) -> None:
    """Run the stage `download` of the root, which all pipelines share, and the pipeline's own, which records the files.

    A study that is no DVC project of its own, as in earlier versions, has none.
    """
    from optlab.orchestration.dvc_pipeline import DvcPipeline

    problem = "the data could not be had"
    if pipeline.path.parent != Path():
        is_project = "download" in pipeline.names
        if is_project and not pipeline.is_stale("download"):
            return
        options = (False, None) if is_project else (allow_missing, pipeline)
        _run_stage(DvcPipeline(Path("dvc.yaml"), [], (), *options), fork_server, "download", problem)
    _run_stage(pipeline, fork_server, "download", problem)


def _print_cost(pipeline: "DvcPipeline", config: Config, folder: Path, jobs: int, fork_server: ForkServer,
                is_versus: bool) -> None:  # fmt: skip
    """Print what the searches and the runs of a pipeline cost, unless they are on record."""
    from optlab.orchestration import cost

    trainings = [name for name in pipeline.names if name.startswith(("tune@", "train@"))]
    stale_stages = [name for name in trainings if pipeline.is_stale(name)]
    with show_status("measuring the speed of a training"):
        sentence = cost.describe(config, folder, stale_stages, jobs, fork_server, is_versus)
    if sentence:
        print(wrap_text(f"{'versus' if is_versus else 'repro'}: {sentence}", get_terminal_width()), flush=True)


def _run_check(fork_server: ForkServer, argv: list[str], folder: Path = Path()) -> list[str]:
    """Run a check in a process of its own, and print its warnings; returns them.

    Raises:
        ConfigError: the check found an error.
    """
    with tempfile.TemporaryDirectory(prefix="optlab-") as temporary:
        job = fork_server.start(argv[0], argv, folder, [], {}, executor.keep_line, Path(temporary) / "error")
        if executor.wait_or_stop(job):
            raise ConfigError(job.describe_failure())
    warnings = [line.strip() for line in job.lines if line.startswith("warning:")]
    for line in warnings:
        print(line, file=sys.stderr)
    return warnings


def _warn_of_other_conditions(pipeline: "DvcPipeline", config: Config, folder: Path) -> None:
    """Print notes on the recorded runs that are kept, and were made under other conditions than those here."""
    from optlab.analysis import environment_diff

    checked = preflight_cache.load_cached(config)
    runs = [RunFiles(folder, name, seed).id for name, seed in config.list_runs()]
    kept = [
        run for run in runs
        if not any(stage in pipeline.names and pipeline.is_stale(stage) for stage in (f"tune@{run}", f"train@{run}"))
    ]  # fmt: skip
    if checked:
        for sentence in environment_diff.describe_stale_runs(config, folder, checked.environment, kept):
            print(f"note: {sentence}", file=sys.stderr)


def _run_stage(pipeline: "DvcPipeline", fork_server: ForkServer, name: str, problem: str) -> bool:
    """Run a stage alone, if the pipeline has it and it is stale; its output is this process's.

    Returns:
        Whether its command ran.

    Raises:
        RunsFailedError: it failed; its output says why.
    """
    if name not in pipeline.names or not pipeline.is_stale(name):
        return False
    with pipeline.lock_stages([name]):
        if not pipeline.prepare(name):
            return False
        command, folder = pipeline.get_command(name)
        job = fork_server.start(name, command, folder, executor.list_cores(), {})
        if executor.wait_or_stop(job):
            raise RunsFailedError(f"{problem}: {job.reason or 'see above'}")
        pipeline.commit(name)
        return True


def _run_searches(
    pipeline: "DvcPipeline", config: Config, folder: Path, job_executor: Executor, at_a_time: int | None
) -> None:
    """Run the searches of optimizers with ranges side by side, so that no core waits for the last trial of one.

    With one search for all seeds, only the first seed's stage trains; those of the other seeds reuse its trials.

    Args:
        at_a_time: number of searches; None for all of them.

    Raises:
        RunsFailedError: a search failed; the others were completed first.
    """
    tuned = [name for name, spec in config.optimizers.items() if spec.ranges]
    seeds = config.seeds if config.tuning.per_seed else config.seeds[:1]
    stages = {TuningFiles(folder, name, seed).stage: (name, seed) for seed in seeds for name in tuned}
    stale = [stage for stage in stages if stage in pipeline.names and pipeline.is_stale(stage)]
    if not stale:
        return
    from optlab.orchestration import tuning_session

    job_executor.wait_ready()
    failed: dict[str, BaseException] = {}
    futures: dict[Future[None], str] = {}
    with pipeline.lock_stages(stale), ThreadPoolExecutor(at_a_time or len(stale)) as threads:
        try:
            for stage in stale:
                try:
                    if not pipeline.prepare(stage):
                        continue
                except (OptlabError, OSError) as problem:
                    failed[stage] = problem
                    continue
                future = threads.submit(tuning_session.tune, config, folder, *stages[stage], job_executor)
                futures[future] = stage
            for future in as_completed(futures):
                try:
                    future.result()
                    pipeline.commit(futures[future])
                except Exception as problem:  # of one search
                    failed[futures[future]] = problem
        except BaseException:
            for future in futures:
                future.cancel()
            job_executor.stop()
            raise
    names = [stage for stage in stale if stage in failed]
    for stage in names:
        print(f"{stage}: {summarize_error(failed[stage])}", file=sys.stderr)
    if failed:
        raise RunsFailedError(f"a tuning failed: {', '.join(names)}: see above")


@dataclass
class RunScheduler:
    """Runs of one pipeline, each stage of which is submitted when it is due."""

    pipeline: "DvcPipeline"
    folder: Path
    job_executor: Executor
    display: Display
    _running: dict[Job, str] = field(default_factory=dict)  # → stage
    _failures: dict[str, str] = field(default_factory=dict)

    def run(self, runs: list[str]) -> dict[str, str]:
        """Complete every run, and return the reasons of those that failed; an interruption stops all jobs first.

        Recorded runs are counted first, so that the rest of the bar is what has to be trained.
        """
        waiting = []
        for run in runs:
            if self._is_stale(run):
                waiting.append(run)
            else:
                self.display.end(run, None)
        try:
            while waiting or self._running:
                while waiting and len(self._running) < self.job_executor.max_workers:
                    self._submit_next_stage(waiting.pop(0), _RUN_STAGES)
                for job in executor.wait_first(self._running):
                    has_succeeded = self._record_end(job, self._running[job])
                    stage = self._running.pop(job)
                    if has_succeeded:
                        self._submit_next_stage(job.name, _RUN_STAGES[_RUN_STAGES.index(stage) + 1 :])
        except BaseException:
            self.job_executor.stop()
            for job, stage in self._running.items():
                if job.done() and not job.cancelled() and job.status == 0:  # it ended before the interruption
                    self._record_end(job, stage)
            self.display.print_line("stopped: what is complete is kept, and the next call does the rest")
            raise
        return {run: self._failures[run] for run in runs if run in self._failures}

    def _is_stale(self, run: str) -> bool:
        try:
            return any(self.pipeline.is_stale(f"{stage}@{run}") for stage in _RUN_STAGES)
        except (OptlabError, OSError):  # reported when its turn comes
            return True

    def _submit_next_stage(self, run: str, stages: Iterable[str]) -> None:
        """Submit the first of these stages that is stale; if none is, the run has ended."""
        for stage in stages:
            name = f"{stage}@{run}"
            try:
                if not self.pipeline.is_stale(name):
                    continue
                self.job_executor.wait_ready()
                if not self.pipeline.prepare(name):
                    self.display.print_line(f"{run}  {stage}: as an equal one that DVC has kept")
                    continue
            except ClusterError:
                raise
            except (OptlabError, OSError) as error:
                self._fail(run, summarize_error(error))
                return
            self._running[self.job_executor.submit(self._make_job_spec(run, stage))] = stage
            return
        self.display.end(run, None)

    def _make_job_spec(self, run: str, stage: str) -> JobSpec:
        name = f"{stage}@{run}"
        command, folder = self.pipeline.get_command(name)
        inputs, outputs = self.pipeline.list_files(name)
        if stage == "train":
            outputs = [*outputs, RunFiles.from_id(self.folder, run).environment]  # beside the record, no part of it
        return JobSpec(
            run,
            command,
            folder,
            f"{stage}-{run}-{self.pipeline.compute_digest(name)}",
            tuple(inputs),
            tuple(outputs),
            run,
            {processes.PROGRESS_VARIABLE: "lines"},
            functools.partial(self.display.handle_line, run),
        )

    def _record_end(self, job: Job, stage: str) -> bool:
        """Commit the outputs of a stage that has ended; returns whether it succeeded."""
        if job.status:
            if not job.error_message:  # its program could not report it
                self.display.print_line("".join(job.lines[-_MAX_SHOWN_LINES:]).rstrip())
            self._fail(job.name, job.describe_failure())
            return False
        try:
            self.pipeline.commit(f"{stage}@{job.name}")
        except (OptlabError, OSError) as error:
            self._fail(job.name, summarize_error(error))
            return False
        return True

    def _fail(self, run: str, reason: str) -> None:
        self._failures[run] = reason
        self.display.end(run, reason)
