"""Where trainings are done: on this machine's cores, or on a cluster."""

from pathlib import Path

from optlab.config.parameters import Config
from optlab.execution import cores
from optlab.execution.jobs import Warm
from optlab.execution.orders import Access, Pool


def pool(config: Config, folder: Path, jobs: int | None = None, warm: Warm | None = None,
         access: Access | None = None) -> Pool:  # fmt: skip
    """Who trains the runs and trials of a pipeline.

    Args:
        jobs: how many at once on this machine; default: as many as the cores have room for.
        warm: as for `Cores`.
        access: to a cluster, which does it then.
    """
    if access:
        from optlab.execution.cluster import Cluster

        return Cluster(config, folder, access)
    jobs = jobs or cores.at_once(config)
    return cores.Cores(jobs, cores.spins(config, jobs), warm)
