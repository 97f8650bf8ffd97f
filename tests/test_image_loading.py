"""Pictures of many kinds, as the network gets them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from optlab.analysis.inference import find_champion, load_model, predict, read_image
from optlab.system import repository
from optlab.system.errors import ImageError, WeightsError

TOP = Path(__file__).resolve().parents[1]

GREY = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) * 64  # from black to white


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_image_of_16_bits_keeps_upper_byte(tmp_path, suffix):
    path = tmp_path / f"grey.{suffix}"
    Image.fromarray(GREY).save(path)
    expected = torch.from_numpy((GREY >> 8).astype(np.uint8))
    assert torch.equal(read_image(path), expected[None, :, :, None].expand(1, 32, 32, 3))


def test_float_image_is_rejected(tmp_path):
    path = tmp_path / "grey.tiff"
    Image.fromarray(GREY.astype(np.float32)).save(path)
    with pytest.raises(ImageError, match=r"grey\.tiff: has floating-point numbers"):
        read_image(path)


@pytest.mark.parametrize("kind", [0, 26])  # of a field, in its place: such as Pillow fails at in ways of their own
def test_damaged_exif_leaves_image_unrotated(tmp_path, kind):
    path, exif = tmp_path / "turned.jpg", Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "maker", 72.0
    plain = Image.fromarray((GREY >> 8).astype(np.uint8))
    plain.save(path, exif=exif, quality=100)
    whole = path.read_bytes()
    place = whole.index(b"Exif") + 17
    path.write_bytes(whole[:place] + bytes([kind]) + whole[place + 1 :])
    seen = read_image(path)[0, :, :, 0].int()
    assert (seen - torch.from_numpy(np.array(plain)).int()).abs().max() <= 8  # as far as JPEG keeps it


def test_prediction_of_diverged_model_is_rejected(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "black.png")
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
    torch.nn.init.constant_(model[1].bias, torch.nan)
    with pytest.raises(WeightsError, match="the network's outputs are not finite, for its training has diverged"):
        list(predict(model, [tmp_path / "black.png"]))


@pytest.mark.parametrize(
    ("project", "remedy"), [("studies/mine", "or `dvc pull`"), (".", "which trains this run again")]
)
def test_missing_weights_of_study_are_pulled_if_its_own_project_has_a_remote(tmp_path, monkeypatch, project, remedy):
    weights, _ = find_champion(TOP)
    run, study = weights.stem, tmp_path / "studies" / "mine"
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").touch()
    monkeypatch.chdir(tmp_path)
    repository.make_dvc_project(Path("studies/mine"))
    for name in ("params.yaml", "reports/champion.json", f"runs/{run}/train.json"):
        (study / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(TOP / name, study / name)
    with (tmp_path / project / ".dvc" / "config").open("a") as file:
        file.write("['remote \"there\"']\n    url = /nowhere\n")
    monkeypatch.chdir(study)
    with pytest.raises(WeightsError, match=rf"{run}\.safetensors: git does not keep weights, .*@{run}`, {remedy}$"):
        load_model(None)
