"""Classification of image files by a trained network, and the choice of the network: the champion or given weights."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import nn

from optlab.config import loader
from optlab.data.cifar10 import IMAGE_SIZE, convert_to_input
from optlab.records import REPORTS_FOLDER, Champion, RunFiles, TrainRecord
from optlab.schema import parameters
from optlab.schema.parameters import CLASS_NAMES
from optlab.system import repository
from optlab.system.errors import ImageError, RecordError, WeightsError
from optlab.training import weights


def find_champion(pipeline: Path) -> tuple[Path, str]:
    """Return path and SHA-256 of the weights of a pipeline's champion.

    Raises:
        RecordError: there is no comparison, no run completed, or the champion was trained again since.
    """
    champion_path = pipeline / REPORTS_FOLDER / "champion.json"
    best = Champion.read(champion_path)
    if best.champion is None:
        name = REPORTS_FOLDER / "champion.json"
        raise RecordError(f"{name}: no run completed, so there is no champion: give --weights")
    run = RunFiles.from_id(pipeline, best.champion)
    trained = TrainRecord.read(run.training)
    if trained.validation_accuracy != best.validation_accuracy:
        raise RecordError(f"{champion_path}: {run.id} was trained again since it was chosen: run `dvc repro`")
    return run.weights, trained.weights_sha256


def load_model(path: Path | None) -> nn.Module:
    """Load the model of params.yaml with the weights at `path`; None loads the champion's weights.

    The pipeline is that of the working directory, or the top one where the working directory has none.

    Raises:
        WeightsError: from `weights.load_model`, or the champion's weights are missing or not those of its record.
        RecordError: there is no champion, or its record is damaged.
    """
    top, here = repository.find_root(), Path.cwd()
    pipeline = here if (here / parameters.PARAMS_FILE).exists() else top
    model, digest = loader.load(pipeline / parameters.PARAMS_FILE).model, None
    if path is None:
        path, digest = find_champion(pipeline)
        if not (here / path).exists():
            remedy = f"run `dvc repro train@{path.stem}`"
            remedy += ", or `dvc pull`" if repository.has_dvc_remote(pipeline) else ", which trains this run again"
            raise WeightsError(f"{path}: git does not keep weights, and DVC's cache has none here: {remedy}")
    with contextlib.chdir(top):  # to import modules of custom/
        return weights.load_model(here / path, model, digest)[0]


def predict(model: nn.Module, paths: list[Path]) -> Iterator[tuple[Path, list[tuple[str, float]]]]:
    """Yield each image's path with (class, probability), likeliest class first; all files are read before the first.

    Raises:
        ImageError: a file is missing or not an image.
        WeightsError: the network's outputs are not finite.
    """
    pictures = [read_image(path) for path in paths]
    for path, pixels in zip(paths, pictures, strict=True):
        with torch.inference_mode():
            probabilities = model(convert_to_input(pixels)).softmax(1)[0]
        if not probabilities.isfinite().all():
            raise WeightsError("the network's outputs are not finite, for its training has diverged: use another run's")
        order = probabilities.argsort(descending=True).tolist()
        yield path, [(CLASS_NAMES[index], float(probabilities[index])) for index in order]


def read_image(path: Path) -> torch.Tensor:
    """Read an image as uint8, shape (1, 32, 32, 3): upright, white where transparent, cropped to a square, scaled.

    Raises:
        ImageError: the file is missing or not an image.
    """
    try:
        with Image.open(path) as image:
            upright = _convert_to_8_bits(_apply_exif_orientation(image)).convert("RGBA")
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        reason = "not an image that can be read" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ImageError(f"{path}: {reason}: give a PNG, JPEG, WebP or the like") from None
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    white = Image.new("RGBA", upright.size, "white")
    picture = Image.alpha_composite(white, upright).convert("RGB")
    small = ImageOps.fit(picture, (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(small))[None]


def _apply_exif_orientation(image: Image.Image) -> Image.Image:
    """Rotate the image as its EXIF data says; return it unchanged where these are damaged."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data raise errors of many types
        image.load()
        return image


def _convert_to_8_bits(image: Image.Image) -> Image.Image:
    """Reduce 16-bit grey to its upper eight bits; Pillow's own conversion clips instead.

    Raises:
        ImageError: the pixels are floating-point numbers, whose white is unknown.
    """
    if image.mode == "F":
        raise ImageError("has floating-point numbers: give 8 or 16 bits for each channel")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    return image
