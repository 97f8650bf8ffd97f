"""Event logs as trainings write them."""

from optlab.tracking import event_log

DATASET = {"name": "cifar10", "digest": "0" * 32, "source": "https://example.org/cifar"}


def begun(run="adam-0"):
    """An event log as a training begins it."""
    log = event_log.EventLog.create(run)
    start(log, run)
    return log


def start(log, run="adam-0"):
    """Write an event log's first event."""
    log.append("start", time=1000, name=run.rpartition("-")[0], experiment="optlab", params={"lr": "0.1"},
               tags={"optlab.run": run}, dataset=DATASET)  # fmt: skip


def complete(run="adam-0", digest="abc"):
    """An event log as an evaluated training leaves it."""
    log = begun(run)
    log.log_metrics([("step/loss", 2.5, 1001, 0)])
    log.append("tags", tags={"weights.sha256": digest})
    log.append("end", status="completed", time=2000)
    return log
