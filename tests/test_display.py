"""The progress bars of `optlab repro`."""

import json

from optlab.orchestration.display import Display
from optlab.records import RunFiles
from optlab.system import processes


def test_total_counts_parts_of_runs_and_no_speed_of_recorded_ones(tmp_path):
    """A run that is on record ends at once, and says nothing about the time that is left."""
    with Display([RunFiles(tmp_path, "sgd", seed) for seed in range(4)]) as display:
        total = display._progress.tasks[0]
        display.end("sgd-0", None)
        display.end("sgd-1", None)
        assert (total.completed, total.total, total.speed, total.time_remaining) == (2, 4, None, None)
        for images in (20, 50):
            line = json.dumps({"images": images, "total": 100, "loss": 1.0})
            assert display.handle_line("sgd-2", f"{processes.PROGRESS_PREFIX}{line}\n")
        assert total.completed == 2.5 and total.speed
        display.end("sgd-2", None)
        assert total.completed == 3


def test_lines_are_printed_as_they_are(tmp_path, capsys):
    with Display([RunFiles(tmp_path, "sgd", 0)]) as display:
        display.print_line("x[:100:2] of group:x: [bold]")
    assert "x[:100:2] of group:x: [bold]" in capsys.readouterr().out


def test_warning_of_several_runs_is_shown_once(tmp_path, capsys):
    runs = [RunFiles(tmp_path, "sgd", seed) for seed in range(2)]
    with Display(runs, ["warning: shown by the check"]) as display:
        for run in runs:
            for line in ("warning: shown by the check\n", "warning: slow\n", f"{run.id}  epoch 1/1\n"):
                assert display.handle_line(run.id, line)
        assert not display.handle_line("sgd-0", "Traceback\n")
    shown = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in shown if "warning" in line or "epoch" in line] == [
        "sgd-0  warning: slow",
        "sgd-0  epoch 1/1",
        "sgd-1  epoch 1/1",
    ]
