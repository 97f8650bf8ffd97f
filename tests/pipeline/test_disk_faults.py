"""Disks that fill up, and bits that flip: one clear line, earlier results intact, and a way on that works."""

import hashlib
import json
import os
import re
import shutil

import projects
import pytest
from PIL import Image
from projects import LONG, logged_runs

REASON = "No space left on device"
RUN = ("models/adam-0.safetensors", "runs/adam-0/train.json")


def trouble_lines(result):
    """The lines that tell the user of trouble; nothing else may look like it."""
    text = result.stdout + "\n" + result.stderr
    assert "Traceback" not in text, text
    lines = re.split(r"[\r\n]+", result.stderr)
    found = [line for line in lines if line.startswith(("error:", "warning:"))]
    assert len(found) == len(re.findall(r"(?:error|warning): ", result.stderr)), result.stderr
    return found


def assert_single_trouble(result, kind, *words):
    assert len(trouble_lines(result)) == 1, result.stderr
    (line,) = trouble_lines(result)
    assert line.startswith(f"{kind}: "), line
    for word in words:
        assert word in line, line
    assert result.returncode == (1 if kind == "error" else 0), result.stderr


def read_outputs(project, *but):
    """The outputs by their paths, but for those that start so."""
    paths = [path for folder in ("data", "models", "runs", "reports") for path in (project.top / folder).rglob("*")]
    names = {path.relative_to(project.top).as_posix(): path for path in paths if path.is_file()}
    return {name: path.read_bytes() for name, path in names.items() if not name.startswith(but or ("/",))}


def assert_fully_uploaded(project, before, steps):
    """There is one new run in MLflow, finished, and it has every step once."""
    runs = logged_runs(project)
    (run,) = [each for each in runs if each not in before]
    assert {each["status"] for each in runs.values()} == {"FINISHED"}
    assert runs[run]["tags"]["status"] == "completed"
    assert runs[run]["steps"] == list(range(steps))
    (sent,) = project.top.glob(f"mlruns/*/{run}/artifacts/weights/adam-0.safetensors")
    assert sent.read_bytes() == (project.top / "models/adam-0.safetensors").read_bytes()


def fill_disk(folder, leave):
    """Take all the room that a disk has, but for so many bytes."""
    free = shutil.disk_usage(folder).free
    (folder / "filler").write_bytes(b"x" * max(0, free - leave))


def test_full_disk_while_writing_data_is_recoverable(copied, disk, resize):
    data = copied.top / "data"
    shutil.rmtree(data)
    before, expected = read_outputs(copied), recorded_data_digests(copied)
    disk(data, "1m")
    assert_single_trouble(copied.run_stage("download"), "error", "data/cifar10", REASON)
    assert [path for path in data.rglob("*") if path.is_file()] == []
    resize(data, "8m")
    assert copied.run_stage("download").returncode == 0
    assert {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in data.glob("cifar10/*")} == expected
    assert read_outputs(copied, "data") == before


def recorded_data_digests(project):
    """Name → MD5, as DVC has recorded it."""
    (folder,) = (project.top / ".dvc/cache/files/md5").glob("*/*.dir")
    return {each["relpath"]: each["md5"] for each in json.loads(folder.read_text())}


def test_full_disk_while_writing_weights_is_recoverable(copied, disk, resize):
    """The run's earlier record stays as well: weights come first."""
    logged, before = logged_runs(copied), read_outputs(copied)
    shutil.move(copied.top / "models", copied.top / "aside")
    disk(copied.top / "models", "300k")
    assert_single_trouble(copied.run_stage("train", "adam", "0"), "error", "models/adam-0.safetensors", REASON)
    assert list((copied.top / "models").iterdir()) == []
    assert read_outputs(copied) == without_prefix(before, "models")
    resize(copied.top / "models", "2m")
    assert copied.run_stage("train", "adam", "0").returncode == 0
    assert read_outputs(copied, "models/sgd") == without_prefix(before, "models/sgd")
    assert_fully_uploaded(copied, logged, 14)


def without_prefix(content, start):
    return {name: each for name, each in content.items() if not name.startswith(start)}


def test_full_disk_while_writing_checkpoint_gives_one_warning(longer, undisturbed, tmp_path, disk):
    project = longer.copy(tmp_path / "project")
    logged = logged_runs(project)
    disk(project.top / ".optlab" / "checkpoints", "100k")
    assert_single_trouble(project.run_stage("train", "adam", "0"), "warning", "checkpoint", ".safetensors", REASON)
    assert {name: (project.top / name).read_bytes() for name in undisturbed} == undisturbed
    assert_fully_uploaded(project, logged, 7 * LONG)


@pytest.mark.parametrize("room", [0, 100_000], ids=["at once", "with the weights"])
def test_full_disk_while_writing_event_log_is_recoverable(copied, disk, room):
    logged, before = logged_runs(copied), read_outputs(copied)
    log_folder = copied.top / ".optlab" / "event_logs"
    disk(log_folder, "4m")
    fill_disk(log_folder, room)
    assert_single_trouble(copied.run_stage("train", "adam", "0"), "error", ".optlab/event_logs/", REASON)
    assert read_outputs(copied, *RUN) == {name: each for name, each in before.items() if name not in RUN}
    (log_folder / "filler").unlink()
    assert copied.run_stage("train", "adam", "0").returncode == 0
    assert read_outputs(copied) == before
    assert_fully_uploaded(copied, logged, 14)


def test_full_disk_while_writing_metrics_is_recoverable(longer, undisturbed, tmp_path, disk):
    project = longer.copy(tmp_path / "project")
    logged, before = logged_runs(project), read_outputs(project)
    log_folder = project.top / ".optlab" / "event_logs"
    disk(log_folder, "4m")
    fill_disk(log_folder, 8192)
    failed = project.run_stage("train", "adam", "0")
    *warnings, error = trouble_lines(failed)
    assert error.startswith("error: .optlab/event_logs/") and "events.jsonl" in error and REASON in error
    assert all(line.startswith("warning: no checkpoint (.optlab/event_logs/") for line in warnings)
    assert failed.returncode == 1
    assert read_outputs(project) == before
    (log_folder / "filler").unlink()
    assert project.run_stage("train", "adam", "0").returncode == 0
    assert {name: (project.top / name).read_bytes() for name in undisturbed} == undisturbed
    assert_fully_uploaded(project, logged, 7 * LONG)


@pytest.mark.parametrize("exists", [True, False], ids=["a database", "none yet"])
def test_full_disk_while_writing_database_is_recoverable(copied, disk, tmp_path, exists):
    """All else is elsewhere; the training goes on, and `optlab sync` sends it once there is room."""
    before = read_outputs(copied)
    for name in (".optlab", "models", "runs", "mlruns"):
        shutil.move(copied.top / name, tmp_path / name)
        (copied.top / name).symlink_to(tmp_path / name)
    if not exists:
        (copied.top / "mlflow.db").unlink()
        shutil.rmtree(tmp_path / ".optlab" / "event_logs")
    disk(copied.top, "40m")
    logged = logged_runs(copied) if exists else {}
    fill_disk(copied.top, 8192 if exists else 300_000)
    assert_single_trouble(copied.run_stage("train", "adam", "0"), "warning", "mlflow.db", "disk is full")
    assert read_outputs(copied) == before
    assert list(copied.top.glob(".mlflow.db*")) == []
    (copied.top / "filler").unlink()
    sent = copied.run_forked("optlab", "sync")
    assert (sent.returncode, trouble_lines(sent)) == (0, []), sent.stderr
    assert_fully_uploaded(copied, logged, 14)


@pytest.mark.parametrize("room", [0, 20_000])
def test_full_disk_for_all_outputs_is_recoverable(copied, disk, room):
    logged, before = logged_runs(copied), read_outputs(copied)
    disk(copied.top, "40m")
    fill_disk(copied.top, room)
    failed = copied.run_stage("train", "adam", "0")
    *warnings, error = trouble_lines(failed)
    assert failed.returncode == 1
    assert error.startswith("error: ") and REASON in error
    assert len(warnings) == len({line[:20] for line in warnings}) <= 2  # of the checkpoint, and of MLflow
    assert all(line.startswith(("warning: no checkpoint (", "warning: MLflow at ")) for line in warnings)
    assert read_outputs(copied, *RUN) == {name: each for name, each in before.items() if name not in RUN}
    (copied.top / "filler").unlink()
    again = copied.run_stage("train", "adam", "0")
    assert (again.returncode, trouble_lines(again)) == (0, []), again.stderr
    assert read_outputs(copied) == before
    assert_fully_uploaded(copied, logged, 14)


def flip_bit(path):
    """Turn one bit in the middle of a file round, with the size and the times that it has."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(before.st_mode & 0o777)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def cache_path(project, path):
    """DVC's own copy of an output."""
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    return project.top / ".dvc/cache/files/md5" / digest[:2] / digest[2:]


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "grey.png"
    Image.new("L", (40, 40), 128).save(path)
    return str(path)


def assert_refused(result, *words):
    """One error line that has the words, and the remedy that it names."""
    assert_single_trouble(result, "error", *words)
    (line,) = trouble_lines(result)
    return line


def apply_remedy(project, line):
    """Do what the line says: delete what it names, and run the command in it."""
    told = re.search(r"error: (\S+): .*: delete it(?:, and DVC's damaged copy (.*))?, then run `dvc (.*)`$", line)
    assert told, line
    named = [told[1], *(told[2] or "").split(" and ")]
    for name in filter(None, named):
        (project.top / name).unlink()
    return project.run("dvc", *told[3].split(), **project.get_fork_environment())


def test_flipped_bit_in_data_file_is_detected(copied):
    before = read_outputs(copied)
    flip_bit(copied.top / "data/cifar10/data_batch_3.bin")
    line = assert_refused(copied.run_stage("train", "adam", "0"), "data/cifar10/data_batch_3.bin", "altered")
    assert "DVC" not in line  # its copy is whole
    assert apply_remedy(copied, line).returncode == 0
    assert read_outputs(copied) == before


def test_flipped_bit_in_weights_is_detected(copied, image):
    before = read_outputs(copied)
    flip_bit(copied.top / "models/adam-0.safetensors")
    assert_refused(copied.run_forked("optlab", "predict", image), "models/adam-0.safetensors", "altered")
    line = assert_refused(copied.run_stage("evaluate", "adam", "0"), "models/adam-0.safetensors", "altered")
    assert apply_remedy(copied, line).returncode == 0
    assert read_outputs(copied) == before


def test_flipped_bit_in_logged_weights_is_not_uploaded(copied):
    """A database made anew gets all but the damaged weights, and no model."""
    (kept,) = copied.top.glob(".optlab/event_logs/*-adam-0-*/adam-0.safetensors")
    flip_bit(kept)
    (copied.top / "mlflow.db").unlink()
    shutil.rmtree(copied.top / "mlruns")
    sent = copied.run_forked("optlab", "sync")
    assert sent.returncode == 0, sent.stderr
    artifact, model = trouble_lines(sent)
    assert "refuses the artifact of" in artifact and "was altered since it was written" in artifact
    assert "refuses the model of" in model and "altered since it was written" in model
    (run,) = [run for run, each in logged_runs(copied).items() if each["name"] == "adam-0"]
    assert not list(copied.top.glob(f"mlruns/*/{run}/artifacts/weights/*"))
    assert logged_runs(copied)[run]["status"] == "FINISHED"


def test_flipped_bit_in_checkpoint_is_detected(longer, undisturbed, tmp_path):
    project = longer.copy(tmp_path / "project")
    logged = logged_runs(project)
    checkpoint = interrupt_training(project)
    flip_bit(checkpoint)
    assert_single_trouble(project.run_stage("train", "adam", "0"), "warning", checkpoint.name, "SHA-256", "starts over")
    assert {name: (project.top / name).read_bytes() for name in undisturbed} == undisturbed
    assert_fully_uploaded(project, logged, 7 * LONG)


def interrupt_training(project):
    """Kill a training once it has a checkpoint; returns that."""
    with projects.started(project, "pipeline/train.py", "adam", "0", forked=True) as process:
        projects.until(process, lambda: projects.checkpoints(project))
    (path,) = projects.checkpoints(project)
    return path


def test_flipped_bit_in_cached_weights_is_detected(copied, image):
    """DVC takes a file of its cache for what it was; it is not used all the same, and the remedy works."""
    before, weights = read_outputs(copied), copied.top / "models/adam-0.safetensors"
    flip_bit(cache_path(copied, weights))
    shutil.rmtree(weights.parent)
    assert copied.run("dvc", "checkout", "train@adam-0", "train@sgd-0").returncode == 0
    assert weights.read_bytes() != before["models/adam-0.safetensors"]
    assert_refused(copied.run_forked("optlab", "predict", image), "altered", "DVC's damaged copy .dvc/cache/files/md5/")
    forced = copied.repro("-f", "-s", "evaluate@adam-0")
    assert forced.returncode != 0
    (line,) = trouble_lines(forced)
    assert "altered" in line
    again = apply_remedy(copied, line)
    assert again.returncode == 0, again.stderr
    assert "Running stage 'train@adam-0'" in again.stdout
    assert read_outputs(copied) == before
    assert hashlib.md5(weights.read_bytes()).hexdigest() == "".join(cache_path(copied, weights).parts[-2:])
    weights.unlink()
    assert copied.run("dvc", "checkout", "train@adam-0").returncode == 0
    assert read_outputs(copied) == before


def test_flipped_bit_in_cached_data_is_detected(copied):
    before, damaged = read_outputs(copied), copied.top / "data/cifar10/data_batch_3.bin"
    flip_bit(cache_path(copied, damaged))
    shutil.rmtree(copied.top / "data" / "cifar10")
    assert copied.run("dvc", "checkout", "download").returncode == 0
    line = assert_refused(copied.run_stage("train", "adam", "0"), "data/cifar10/data_batch_3.bin", "DVC's damaged copy")
    assert apply_remedy(copied, line).returncode == 0
    assert read_outputs(copied) == before
    damaged.unlink()
    assert copied.run("dvc", "checkout", "download").returncode == 0
    assert read_outputs(copied) == before
