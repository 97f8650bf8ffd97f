"""benchmarks/gpu.py without a device: it keeps what it measured, says what failed, and ends at its deadline."""

import dataclasses
import os
import re
import subprocess
import sys
import time

import gpu
import gpu_tasks
import psutil
import pytest
import torch

from optlab.data import cifar10
from optlab.system.errors import OptlabError
from optlab.training import loop, models, optimizers
from optlab.training.optimizer_factory import TrainingContext

CPU = gpu.Task("cpu", 2)


def read_table(path):
    """Return title → result of a page."""
    return dict(re.findall(r"^\| (.*?) \| (.*) \|$", path.read_text(), re.MULTILINE)[2:])


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that makes a dry run of some measurements, and returns its page."""

    def run(measurements, *arguments):
        if measurements:
            monkeypatch.setattr(gpu, "plan", lambda *_: measurements)
        output = tmp_path / "page.md"
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--output", str(output), *arguments])
        gpu.main()
        return output

    return run


def fail(error):
    def measure(deadline):
        raise error

    return measure


def test_dry_run_measures_at_once_and_compares_weights(run, monkeypatch):
    monkeypatch.setattr(gpu, "NEIGHBOURS", 1)
    planned = {each.title: each for each in gpu.plan("cpu", 2)}
    titles = [f"{CPU.title}, 2 at once", "weights of zilliax in a second process beside 1 other trainings"]
    task = dataclasses.replace(CPU, loop="CUDA graph")
    graph = gpu.Measurement("graph", lambda deadline: gpu.report_rate(task, 1, deadline))
    chosen = [dataclasses.replace(each, limit=1000) for each in (planned[titles[0]], graph, planned[titles[1]])]
    page = run(chosen, "--minutes", "30", "--steps", "2")
    table = read_table(page)
    assert re.fullmatch(r"[\d,]+ images/s in all", table[titles[0]])
    names = [f"{name} in {precision}" for precision in gpu.PRECISIONS.values() for name in gpu_tasks.OPTIMIZERS]
    assert table[titles[1]] == f"equal: {'; '.join(names)}"
    assert re.match("failed: .*Error: .*CUDA", table["graph"])  # the child's own error
    assert "none of these figures is a GPU's" in page.read_text()


def test_different_weights_are_named(monkeypatch):
    results = iter([{"sgd": "a", "adam": "b"}, {"rates": []}, {"sgd": "a", "adam": "c"}])

    @gpu.contextlib.contextmanager
    def run_together(tasks, deadline):
        yield [next(results) for _ in tasks]

    monkeypatch.setattr(gpu, "run_together", run_together)
    assert gpu.compare_weights(CPU, 1, 0) == "different: adam"


def test_nothing_is_measured_after_deadline(run, monkeypatch):
    monkeypatch.setattr(gpu, "Child", fail(AssertionError("a process was started")))
    table = read_table(run(None, "--minutes", "0"))
    assert len(table) == len(gpu.plan("cpu", 500)) > 20
    assert set(table.values()) == {
        "left out: time limit reached",
        "left out: the CPU has no CUDA graphs",
        "left out: optlab has no network `fast`",
        "left out: it needs a GPU",
    } - ({"left out: optlab has no network `fast`"} if "fast" in models.MODELS else set())


def test_failed_measurement_leaves_line_and_others_follow(run):
    measurements = [
        gpu.Measurement("memory", fail(torch.OutOfMemoryError("CUDA out of memory | 2 GiB\nmore"))),
        gpu.Measurement("process", fail(gpu.MeasurementError("it was killed"))),
        gpu.Measurement("absent", fail(AssertionError), obstacle="there is none"),
        gpu.Measurement("rate", lambda deadline: "12 images/s"),
    ]
    assert read_table(run(measurements)) == {
        "memory": "failed: OutOfMemoryError: CUDA out of memory / 2 GiB",
        "process": "failed: it was killed",
        "absent": "left out: there is none",
        "rate": "12 images/s",
    }


def test_late_process_is_killed_at_deadline():
    before = time.monotonic()
    with pytest.raises(gpu.MeasurementError, match="not done after 0 s"), gpu.run_together([CPU] * 2, before + 0.2):
        pass
    assert not [each for each in psutil.Process().children() if "gpu_tasks.py" in " ".join(each.cmdline())]


def test_page_has_what_was_measured_before_a_kill(tmp_path):
    output = tmp_path / "page.md"
    command = [sys.executable, gpu.__file__, "--device", "cpu", "--steps", "2", "--output", str(output)]
    with subprocess.Popen([*command, "--minutes", "30"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert "images/s" in process.stdout.readline()
            while not (children := psutil.Process(process.pid).children()):  # the next measurement's
                time.sleep(0.01)
        finally:
            process.kill()
    first, *others = read_table(output).values()
    assert re.fullmatch(r"[\d,]+ \([\d,]+ – [\d,]+\) images/s", first)
    assert all(each == "not measured" or each.startswith("left out: ") for each in others)
    assert not psutil.wait_procs(children, timeout=300)[1]  # no child outlives the script for long


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_captured_step_is_the_trainings_step(precision):
    """What a CUDA graph captures gives the bits of `loop.train_step`."""
    config = gpu_tasks.make_config(CPU, precision, 640)
    split, ends = gpu_tasks.load_splits(config).train, []
    for step in (loop.train_step, gpu_tasks.take_step):
        model = models.build("zilliax", 0)
        driver = optimizers.build("sgd", config.get_optimizer("sgd"), TrainingContext.from_config(config, model))
        batches = cifar10.iterate_epoch_batches(split, config.data, 0, 1, 64, 8)  # the last two
        losses = [float(step(model, driver, *batch, config.training)) for batch in batches]
        ends.append((losses, [each.detach() for each in model.parameters()]))
    (losses, own), (other_losses, other) = ends
    assert losses == other_losses and len(losses) == 2
    assert all(torch.equal(*each) for each in zip(own, other, strict=True))


def test_tf32_flags_are_set_and_restored():
    flags = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [each.allow_tf32 for each in flags]
    for allowed in (True, False):
        with pytest.raises(ZeroDivisionError), gpu_tasks.set_tf32(allowed):
            assert [each.allow_tf32 for each in flags] == [allowed, allowed]
            raise ZeroDivisionError
        assert [each.allow_tf32 for each in flags] == before


def test_missing_device_and_page_of_dry_run_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(OptlabError, match="there is no CUDA device: `--device cpu` is a dry run"):
        gpu.main()
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--output", os.path.relpath(gpu.RESULTS)])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "a dry run does not write GPU.md" in capsys.readouterr().err
