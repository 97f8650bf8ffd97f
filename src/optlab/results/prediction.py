"""The class of any picture, by a trained network."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import nn

from optlab.config import parameters, reading
from optlab.config.parameters import CLASSES
from optlab.data.dataset import IMAGE_SIZE, to_input
from optlab.record.contents import Champion, Trained
from optlab.record.runs import REPORTS, RunFiles
from optlab.system import dvc, repository
from optlab.system.errors import ImageError, RecordError, WeightsError
from optlab.training import weights


def champion(pipeline: Path) -> tuple[Path, str]:
    """The weights of the best run of the comparison in a folder, and their SHA-256.

    Raises:
        RecordError: there is no comparison yet, no run of it completed, or the best one was trained again since.
    """
    place = pipeline / REPORTS / "champion.json"
    best = Champion.read(place)
    if best.champion is None:
        raise RecordError(f"{REPORTS / 'champion.json'}: no run completed, so there is no champion: give --weights")
    run = RunFiles.of(pipeline, best.champion)
    trained = Trained.read(run.training)
    if trained.validation_accuracy != best.validation_accuracy:
        raise RecordError(f"{place}: {run.id} was trained again since it was chosen: run `dvc repro`")
    return run.weights, trained.weights_sha256


def load(path: Path | None) -> nn.Module:
    """The network with these weights, of the model that params.yaml names; None takes the champion's.

    Both are those of the pipeline in the working directory, or of that at the top where it has none.

    Raises:
        WeightsError: as in `weights.read`; the champion's must be those that its record names.
        RecordError: there is no champion, or its record is damaged.
    """
    top, here = repository.root(), Path.cwd()
    pipeline = here if (here / parameters.PARAMS).exists() else top
    model, digest = reading.load(pipeline / parameters.PARAMS).model, None
    if path is None:
        path, digest = champion(pipeline)
        if not (here / path).exists():
            remedy = f"run `dvc repro train@{path.stem}`"
            remedy += ", or `dvc pull`" if dvc.has_remote(top) else ", which trains this run again"
            raise WeightsError(f"{path}: git does not keep weights, and DVC's cache has none here: {remedy}")
    with contextlib.chdir(top):  # where the modules of custom/ are looked for
        return weights.read(here / path, model, digest)[0]


def predict(model: nn.Module, paths: list[Path]) -> Iterator[tuple[Path, list[tuple[str, float]]]]:
    """For each image, its path and (class, probability), the likeliest first. All are opened before the first.

    Raises:
        ImageError: a file is missing or no image.
        WeightsError: the network's outputs are not finite.
    """
    pictures = [read_image(path) for path in paths]
    for path, pixels in zip(paths, pictures, strict=True):
        with torch.inference_mode():
            probabilities = model(to_input(pixels)).softmax(1)[0]
        if not probabilities.isfinite().all():
            raise WeightsError("the network's outputs are not finite, for its training has diverged: use another run's")
        order = probabilities.argsort(descending=True).tolist()
        yield path, [(CLASSES[index], float(probabilities[index])) for index in order]


def read_image(path: Path) -> torch.Tensor:
    """Any image as uint8, shape (1, 32, 32, 3): upright, on white where transparent, cut to a square, scaled.

    Raises:
        ImageError: the file is missing or no image.
    """
    try:
        with Image.open(path) as image:
            upright = _eight_bits(_upright(image)).convert("RGBA")
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


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says; as it is where that is damaged."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # of many kinds
        image.load()
        return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """Of 16 bits grey the upper eight, which Pillow's own conversion cuts off instead.

    Raises:
        ImageError: it has floating-point numbers, of which nobody knows what is white.
    """
    if image.mode == "F":
        raise ImageError("has floating-point numbers: give 8 or 16 bits for each channel")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    return image
