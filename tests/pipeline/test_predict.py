"""`optlab predict` and `optlab check` as a user types them."""

import re
import shutil

import projects
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    gradient = Image.radial_gradient("L").resize((200, 120))
    gradient.save(folder / "grey.png")
    gradient.convert("RGB").save(folder / "rgb.jpg")
    gradient.convert("P").save(folder / "palette.gif")
    Image.merge("RGBA", (gradient, gradient, gradient, gradient)).save(folder / "transparent.png")
    gradient.convert("I;16").save(folder / "sixteen.png")
    (folder / "text.png").write_text("not a picture")
    (folder / "cut.png").write_bytes((folder / "grey.png").read_bytes()[:500])
    return folder


def test_image_formats_get_class_and_probabilities(reproduced, image_folder):
    names = ["grey.png", "rgb.jpg", "palette.gif", "transparent.png", "sixteen.png"]
    result = reproduced[0].run_forked("optlab", "predict", *(str(image_folder / name) for name in names))
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines] == [str(image_folder / name) for name in names]
    assert all(line.count("%") == 3 for line in lines)


@pytest.mark.parametrize("name", ["text.png", "cut.png", "missing.png", ""], ids=["text", "cut", "missing", "folder"])
def test_invalid_image_is_rejected_before_predictions(reproduced, image_folder, name):
    result = reproduced[0].run_forked("optlab", "predict", str(image_folder / "grey.png"), str(image_folder / name))
    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {image_folder / name}".rstrip("/"))


def test_predict_without_comparison_names_next_command(fresh, image_folder):
    result = fresh.run_forked("optlab", "predict", str(image_folder / "grey.png"))
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "run `dvc repro`" in line


def test_predict_without_weights_names_remedy(reproduced, image_folder, tmp_path):
    """As in a clone: git has the record, and no cache or remote has the weights."""
    project = projects.Project(tmp_path / "clone")
    shutil.copytree(reproduced[0].top, project.top, ignore=shutil.ignore_patterns("*.safetensors", "cache", "*.sock"))
    result = project.run_forked("optlab", "predict", str(image_folder / "grey.png"))
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert re.search(
        r"models/\w+-0\.safetensors: git does not keep weights, .*: run `dvc repro train@\w+-0`, which", line
    )
    (project.top / ".dvc" / "config.local").write_text("['remote \"there\"']\n    url = /nowhere\n")
    line = project.run_forked("optlab", "predict", str(image_folder / "grey.png")).stderr
    assert line.endswith("-0`, or `dvc pull`\n")


def test_check_lists_runs(fresh):
    result = fresh.run_forked("optlab", "check")
    first, *others = result.stdout.splitlines()
    assert first == "params.yaml: no errors; 2 runs: sgd, adam"
    assert all(
        line.startswith("`training.precision: bf16` shortens a step of sgd by ") for line in others
    )  # on some machines
    assert fresh.run_forked("optlab", "check", "--quiet").stdout == ""
    fresh.edit("params.yaml", "class: Adam", "class: Adm")
    result = fresh.run_forked("optlab", "check")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    assert "did you mean Adam?" in result.stderr
