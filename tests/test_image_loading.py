"""Pictures of many kinds, as the network gets them."""

import numpy as np
import pytest
import torch
from PIL import Image

from optlab.analysis.inference import predict, read_image
from optlab.system.errors import ImageError, WeightsError

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
