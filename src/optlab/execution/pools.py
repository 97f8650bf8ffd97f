"""Where trainings are done: on this machine's cores, or on a cluster."""

import os
from pathlib import Path

from optlab.config.parameters import Config
from optlab.execution import cores
from optlab.execution.jobs import Warm
from optlab.execution.orders import Access, Pool

JOBS_VARIABLE = "OPTLAB_JOBS"  # says it to a stage that has trials of its own


def pool(config: Config, folder: Path, jobs: int | None = None, warm: Warm | None = None,
         access: Access | None = None) -> Pool:  # fmt: skip
    """Who trains the runs and trials of a pipeline.

    Args:
        jobs: how many at once on this machine; default: what the environment says, or what the cores have room for.
        warm: as for `Cores`.
        access: to a cluster, which does it then.
    """
    if access:
        from optlab.execution.cluster import Cluster

        return Cluster(config, folder, access)
    said = os.environ.get(JOBS_VARIABLE, "")
    jobs = jobs or (int(said) if said.isdecimal() else 0) or cores.at_once(config)
    return cores.Cores(jobs, cores.spins(config, jobs), warm)
