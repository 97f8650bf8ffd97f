"""Where trainings are done: on this machine's cores, or on a cluster."""

import os
from pathlib import Path

from optlab.orchestration import executor
from optlab.orchestration.executor import ClusterOptions, Executor
from optlab.orchestration.jobs import ForkServer
from optlab.schema.parameters import Config

JOBS_VARIABLE = "OPTLAB_JOBS"  # says it to a stage that has trials of its own


def make_executor(config: Config, folder: Path, jobs: int | None = None, fork_server: ForkServer | None = None,
         cluster_options: ClusterOptions | None = None) -> Executor:  # fmt: skip
    """Who trains the runs and trials of a pipeline.

    Args:
        jobs: how many at once on this machine; default: what the environment says, or what the cores have room for.
        fork_server: as for `Cores`.
        cluster_options: to a cluster, which does it then.
    """
    if cluster_options:
        from optlab.orchestration.ray_executor import RayExecutor

        return RayExecutor(config, folder, cluster_options)
    jobs_from_environment = os.environ.get(JOBS_VARIABLE, "")
    jobs = (
        jobs or (int(jobs_from_environment) if jobs_from_environment.isdecimal() else 0) or executor.count_slots(config)
    )
    return executor.LocalExecutor(jobs, executor.can_busy_wait(config, jobs), fork_server)
