"""What a trial of a tuning costs besides its training, and whether memory grows with their number.

    python benchmarks/trials.py [--trials N]          # writes benchmarks/TRIALS.md

The stage `tune` alone, on the small sample, one trial at a time, `halving: 1`: once with a tenth of the trials and once
with all of them. The difference between the two has no start-up in it. What the training itself takes is measured in
one process, with the same images and steps.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from needs import TOP

sys.path.insert(0, str(TOP / "tests"))
import projects

from optlab.config import loader
from optlab.data import cifar10
from optlab.environment import capture_environment
from optlab.training import determinism, loop

RESULTS = TOP / "benchmarks" / "TRIALS.md"
MEASURED = """
import resource, sys
sys.argv = ["pipeline/tune.py", "sgd", "0"]
exec(compile(open("pipeline/tune.py").read(), "pipeline/tune.py", "exec"))
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def tuned(project: projects.Project, trials: int) -> tuple[float, int]:
    """Seconds that the stage takes for so many trials and the default, and its highest memory in KiB."""
    params = (project.top / "params.yaml").read_text()
    (project.top / "params.yaml").write_text(re.sub(r"trials: \d+", f"trials: {trials}", params))
    subprocess.run(["rm", "-rf", "tuning", ".optlab/trials"], cwd=project.top, check=True)
    began = time.monotonic()
    result = project.run(sys.executable, "-c", MEASURED)
    seconds = time.monotonic() - began
    assert result.returncode == 0, result.stderr
    return seconds, int(re.search(r"peak (\d+)", result.stdout)[1])


def training(project: projects.Project, rounds: int) -> float:
    """Seconds of one such training, in a process that does nothing else; the mean of so many."""
    config = loader.load(project.top / "params.yaml")
    config = config.model_copy(update={"optimizers": {"sgd": config.get_optimizer("sgd").replace_ranges({})}})
    device = determinism.configure_torch(config.training)
    splits = cifar10.load(project.top / "data" / "cifar10", config.data, 0)
    loop.train(config, "sgd", 0, splits, device)
    began = time.monotonic()
    for seed in range(rounds):
        loop.train(config, "sgd", seed, splits, device)
    return (time.monotonic() - began) / rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=100)
    count = parser.parse_args().trials
    with tempfile.TemporaryDirectory() as folder:
        project = projects.create(Path(folder))
        project.edit("params.yaml", "sgd: {class: SGD, lr: 0.01}", "sgd: {class: SGD, lr: {log: [0.001, 0.1]}}")
        project.edit("params.yaml", "trials: 4, halving: 2", "trials: 4, halving: 1")
        assert project.run(sys.executable, "pipeline/download.py").returncode == 0
        few, many = tuned(project, count // 10), tuned(project, count)
        own = training(project, 20)
    beyond = (many[0] - few[0]) / (count - count // 10) - own
    text = (
        f"# Trials\n\n{capture_environment(determinism.torch.device('cpu')).cpu}, {count // 10} and "
        f"{count} "
        f"trials; one tuning of each size, one trial at a time, trainings of 14 steps of 16 images.\n\n"
        f"| trials | the stage `tune`, s | its highest memory, MiB |\n| --- | --- | --- |\n"
        + "".join(f"| {n} | {s:.1f} | {kib / 1024:.0f} |\n" for n, (s, kib) in ((count // 10, few), (count, many)))
        + f"\nA trial costs {beyond:.2f} s beyond its training, which takes {own:.2f} s.\n"
    )
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
