"""`dvc repro` with the runs side by side, here or on a cluster, and without a start-up for each stage.

DVC has no such option (treeverse/dvc#755). Here its own code, in this process, says what is stale and records what came
out (`pipeline`), and the stages are children of a process that has imported what they need (`warm`). This process has
threads, the display, and DVC: it never forks.
"""

import functools
import os
import sys
import tempfile
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from optlab.orchestration import executor, executor_factory, preflight_cache
from optlab.orchestration.display import Display, show_status
from optlab.orchestration.executor import ClusterOptions, Executor, JobSpec
from optlab.orchestration.jobs import ForkServer, Job
from optlab.records import RunFiles
from optlab.schema.parameters import PARAMS_FILE, Config, format_count
from optlab.system import locks, processes, repository
from optlab.system.errors import (
    ERROR_FILE_VARIABLE,
    ClusterError,
    ConfigError,
    OptlabError,
    RunsFailedError,
    summarize_error,
)
from optlab.tracking import uploader_client
from optlab.training import numerics

if TYPE_CHECKING:
    from optlab.orchestration.dvc_pipeline import DvcPipeline

_RUN_STAGES = ("train", "evaluate")
_MAX_SHOWN_LINES = 20  # lines of a child's output


def run_pipeline(config: Config, folder: Path, jobs: int | None, cluster_options: ClusterOptions | None = None,
          forced: Collection[str] = (), allow_missing: bool = False) -> None:  # fmt: skip
    """What `dvc repro` of the pipeline in `folder` does, several runs at a time; the working directory is the top.

    A failed run does not stop the others. dvc.lock ends as plain `dvc repro` leaves it.

    Args:
        jobs: how many runs, or trials, at once on this machine; default: as many as the cores have room for.
        cluster_options: to a cluster, which does the trainings, evaluations and trials then.
        forced: optimizers of which no run that DVC has kept is brought back.
        allow_missing: as for `Ledger`.

    Raises:
        ConfigError: params.yaml cannot be used.
        ClusterError: the cluster cannot be used.
        RunsFailedError: runs failed, or a stage before or after them.
        BusyError: another process does it in this working tree.
    """
    repository.set_pipeline(folder)
    numerics.prepare(config.training)  # the stages' process reads these variables as it starts
    runs = [RunFiles(folder, name, seed) for name, seed in config.list_runs()]
    if jobs:
        os.environ[executor_factory.JOBS_VARIABLE] = str(jobs)
    jobs = min(jobs or executor.count_slots(config), len(runs))
    print(_describe_plan(config, folder, None if cluster_options else jobs), flush=True)
    targets = [f"{stage}@{run_files.id}" for run_files in runs for stage in _RUN_STAGES]
    tunings = [f"tune@{name}" for name in config.optimizers]
    own_pid = str(os.getpid())
    os.environ |= {uploader_client.UPLOADER_PARENT_VARIABLE: own_pid, processes.PARENT_PID_VARIABLE: own_pid}
    with (
        locks.hold_lock("repro"),
        processes.interrupt_on_sigterm(),
        ForkServer(busy_wait=executor.can_busy_wait(config, jobs)) as fork_server,
    ):
        uploader_client.start_daemon(own_pid)
        with show_status("reading what DVC has recorded, and checking params.yaml"):
            from optlab.orchestration.dvc_pipeline import DvcPipeline  # DVC, while the others load what they need

            forced_stages = [f"{stage}@{each.id}" for each in runs if each.optimizer in forced for stage in _RUN_STAGES]
            pipeline = DvcPipeline(folder / "dvc.yaml", [*tunings, *targets], forced_stages, allow_missing)
            if preflight_cache.load_cached(config) is None:
                _run_check(fork_server, ["optlab", "check"], folder)
        root_pipeline = pipeline if folder == Path() else DvcPipeline(Path("dvc.yaml"), [], (), allow_missing, pipeline)
        _run_stage(root_pipeline, fork_server, "download", "the data could not be had")
        _run_check(fork_server, ["optlab.data.cifar10", config.data.dataset])
        with executor_factory.make_executor(config, folder, jobs, fork_server, cluster_options) as job_executor:
            tuned_on_cluster = [name for name, spec in config.optimizers.items() if cluster_options and spec.ranges]
            for name in config.optimizers:
                if name not in tuned_on_cluster:
                    _run_stage(pipeline, fork_server, f"tune@{name}", "a tuning failed")
            _run_tunings(pipeline, config, folder, tuned_on_cluster, job_executor)
            with pipeline.lock_stages(targets), Display(runs) as display:
                failures = RunScheduler(pipeline, folder, job_executor, display).run([each.id for each in runs])
            if failures:
                for run, reason in failures.items():
                    print(f"{run}: {reason}", file=sys.stderr)
                raise RunsFailedError(
                    f"{len(failures)} of {len(runs)} runs failed: {', '.join(failures)}: mend it, then repeat the "
                    f"command: it runs these again, and nothing else"
                )
        _run_final_stages(pipeline, fork_server, folder, {*tunings, *targets}, allow_missing)


def _describe_plan(config: Config, folder: Path, jobs: int | None) -> str:
    """Return what is about to be done, in a line."""
    parts = format_count(len(config.optimizers), "optimizer"), format_count(len(config.seeds), "seed")
    where = "on a cluster" if jobs is None else f"{jobs} at a time"
    return f"{folder / PARAMS_FILE}: {' × '.join(parts)} = {format_count(len(config.list_runs()), 'run')}, {where}"


def _run_final_stages(
    pipeline: "DvcPipeline", fork_server: ForkServer, folder: Path, done: Collection[str], allow_missing: bool
) -> None:
    """Compare the runs, run the stages that a user has added, and show the comparison if it was up to date.

    Args:
        done: the names of the stages that are complete.

    Raises:
        RunsFailedError: a stage failed.
    """
    problem = "the runs are complete, but a stage after them failed"
    has_compared = _run_stage(pipeline, fork_server, "compare", problem)
    others = [name for name in pipeline.names if name not in done]
    if any(pipeline.is_stale(name) for name in others):
        options = ["--allow-missing"] if allow_missing else []
        command = [*repository.DVC_COMMAND, "--wait-for-lock", "repro", "--quiet", *options, pipeline.path.as_posix()]
        if processes.run(command):
            raise RunsFailedError(f"{problem}: see above")
    if not has_compared:
        print("Nothing has changed since the last comparison.", flush=True)
        if fork_server.start("show", ["optlab", "show"], folder, executor.list_cores(), {}).wait():
            raise RunsFailedError("the record is complete, but cannot be shown: see above")


def _run_check(fork_server: ForkServer, argv: list[str], folder: Path = Path()) -> None:
    """Run a check in a process of its own, and pass its warnings on.

    Args:
        argv: its command line.
        folder: where it is run.

    Raises:
        ConfigError: it found an error.
    """
    with tempfile.TemporaryDirectory(prefix="optlab-") as temporary:
        error_file = Path(temporary) / "reason"
        job = fork_server.start(argv[0], argv, folder, [], {ERROR_FILE_VARIABLE: str(error_file)}, lambda line: False)
        if job.wait():
            job.error_message = error_file.read_text("utf-8") if error_file.exists() else ""
            raise ConfigError(job.describe_failure())
    for line in job.lines:
        if line.startswith(("warning:", "note:")):
            print(line, end="", file=sys.stderr)


def _run_stage(pipeline: "DvcPipeline", fork_server: ForkServer, name: str, problem: str) -> bool:
    """Run a stage by itself, if the pipeline has it and it is stale; its output is this process's.

    Returns:
        Whether its command was run.

    Raises:
        RunsFailedError: it failed; what it printed says why.
    """
    if name not in pipeline.names or not pipeline.is_stale(name):
        return False
    with pipeline.lock_stages([name]):
        if not pipeline.prepare(name):
            return False
        command, folder = pipeline.get_command(name)
        job = fork_server.start(name, command, folder, executor.list_cores(), {})
        try:
            if job.wait():
                raise RunsFailedError(f"{problem}: {job.reason or 'see above'}")
        except KeyboardInterrupt:
            processes.stop([job])
            raise
        pipeline.commit(name)
        return True


def _run_tunings(
    pipeline: "DvcPipeline", config: Config, folder: Path, names: list[str], job_executor: Executor
) -> None:
    """Tune optimizers on a cluster, all at once: it has room, where a machine's cores are taken by one.

    Raises:
        RunsFailedError: one failed; the others were let to their end.
    """
    stages = {f"tune@{name}": name for name in names}
    stale = [stage for stage in stages if pipeline.is_stale(stage)]
    if not stale:
        return
    from optlab.orchestration import tuning_session

    job_executor.wait_ready()
    with pipeline.lock_stages(stale), ThreadPoolExecutor(len(stale)) as threads:
        prepared = [stage for stage in stale if pipeline.prepare(stage)]
        futures = {
            stage: threads.submit(tuning_session.tune, config, folder, stages[stage], job_executor.create_child())
            for stage in prepared
        }
        try:
            exceptions = {stage: each.exception() for stage, each in futures.items()}
        except BaseException:
            job_executor.stop()
            raise
        for stage, reason in exceptions.items():
            if reason is None:
                pipeline.commit(stage)
    failed = {stage: reason for stage, reason in exceptions.items() if reason}
    if failed:
        for stage, reason in failed.items():
            print(f"{stage}: {summarize_error(reason)}", file=sys.stderr)
        raise RunsFailedError(f"a tuning failed: {', '.join(failed)}: see above")


@dataclass
class RunScheduler:
    """The runs of one pipeline, each stage ordered as it is due.

    Attributes:
        folder: of the pipeline.
    """

    pipeline: "DvcPipeline"
    folder: Path
    job_executor: Executor
    display: Display
    _running: dict[str, str] = field(default_factory=dict)  # run → stage
    _failures: dict[str, str] = field(default_factory=dict)

    def run(self, runs: list[str]) -> dict[str, str]:
        """Do every run; returns why those failed that did. An interruption stops everything first."""
        waiting = list(runs)
        try:
            while waiting or self._running:
                while waiting and self.job_executor.has_room():
                    self._submit_next_stage(waiting.pop(0), _RUN_STAGES)
                if self._running:
                    job = self.job_executor.wait_any()
                    stage = self._running.pop(job.name)
                    if not self._has_failed(job, stage):
                        self._submit_next_stage(job.name, _RUN_STAGES[_RUN_STAGES.index(stage) + 1 :])
        except BaseException:
            self.job_executor.stop()
            self.display.print_line("stopped: what is complete is kept, and the next call does the rest")
            raise
        return {run: self._failures[run] for run in runs if run in self._failures}

    def _submit_next_stage(self, run: str, stages: Iterable[str]) -> None:
        """Order the first of these stages that is stale; if there is none, the run has ended."""
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
            self.job_executor.submit(self._make_job_spec(run, stage))
            self._running[run] = stage
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

    def _has_failed(self, job: Job, stage: str) -> bool:
        """Record what a stage that has ended brought, if it ended well."""
        if job.status:
            if not job.error_message:  # nothing of ours could say why: show what there is
                self.display.print_line("".join(job.lines[-_MAX_SHOWN_LINES:]).rstrip())
            self._fail(job.name, job.describe_failure())
            return True
        try:
            self.pipeline.commit(f"{stage}@{job.name}")
        except (OptlabError, OSError) as error:
            self._fail(job.name, summarize_error(error))
            return True
        return False

    def _fail(self, run: str, reason: str) -> None:
        self._failures[run] = reason
        self.display.end(run, reason)
