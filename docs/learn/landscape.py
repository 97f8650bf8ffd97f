"""Losses of the tutorial's network on a plane through three of its states: before training, after SGD, after Adam.

    python docs/learn/landscape.py     # needs data/cifar10 (`dvc repro download`); writes docs/learn/landscape.json

The plane is spanned by orthonormal vectors, so that a length in it is a length in the space of all weights, and a
gradient in it is the orthogonal projection of the network's gradient. Planes through trained weights: Garipov et al.
(2018), "Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs", section 5.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optlab.config import loader
from optlab.records import Record
from optlab.system import errors, processes, repository
from optlab.training import numerics

if TYPE_CHECKING:
    import torch

    from optlab.data.cifar10 import Split
    from optlab.schema.parameters import Config

HERE = Path(__file__).parent
PARAMS, RESULT = HERE / "landscape.yaml", HERE / "landscape.json"
IMAGES = 1000  # the first ones of the training split
POINTS = 31  # of the grid, in each direction
MARGIN = 0.5  # beyond the three states, as a share of their extent in that direction
DIGITS = 5  # of a loss, after the decimal point


class State(Record):
    """One state of the network.

    Attributes:
        name: `start`, or an optimizer of landscape.yaml.
        x, y: its place in the plane.
        loss: mean cross entropy over the images, in nats.
        accuracy: over the same images, a fraction.
    """

    name: str
    x: float
    y: float
    loss: float
    accuracy: float


class Landscape(Record):
    """landscape.json.

    Attributes:
        steps: of each training.
        images: number of training images over which a loss is the mean.
        x, y: lowest and highest coordinate of the grid; the distances between its points are equal.
        states: the three states that span the plane.
        losses: rows of the grid by increasing y, each by increasing x.
    """

    steps: int
    images: int
    x: tuple[float, float]
    y: tuple[float, float]
    states: list[State]
    losses: list[list[float]]


def main() -> None:
    os.chdir(repository.find_root(HERE.resolve()))
    config = loader.load(PARAMS)
    numerics.prepare(config.training)  # before torch is imported
    from optlab.data import cifar10
    from optlab.training import determinism

    determinism.configure_torch(config.training)
    compute(config, cifar10.load(repository.DATA, config.data, 0)).write(RESULT)


def compute(config: "Config", splits: Any, images: int = IMAGES, points: int = POINTS) -> Landscape:
    """Train, and evaluate the network on a grid of `points` × `points`.

    Args:
        splits: `cifar10.Splits`.
    """
    import torch

    from optlab.data.cifar10 import Split

    shown = Split(splits.train.images[:images], splits.train.labels[:images])
    weights = train_states(config, splits)
    origin, axes, places = span_plane(list(weights.values()))
    names = dict(zip(weights, places, strict=True))
    states = [
        State(name=name, x=_round(x), y=_round(y), **measure(config.model, weights[name], shown))
        for name, (x, y) in names.items()
    ]
    x, y = (_widen(coordinates) for coordinates in zip(*places, strict=True))
    rows = [
        [
            measure(config.model, origin + torch.tensor([a, b], dtype=torch.float64) @ axes, shown)["loss"]
            for a in interpolate(*x, points)
        ]
        for b in _with_progress(list(interpolate(*y, points)))
    ]
    return Landscape(steps=config.steps_per_epoch, images=images, x=x, y=y, states=states, losses=rows)


def train_states(config: "Config", splits: Any) -> dict[str, "torch.Tensor"]:
    """Return the weights before the training and after that of each optimizer: float64, shape (weights,)."""
    import torch
    from torch.nn.utils import parameters_to_vector

    from optlab.training import loop, models

    seed = config.seeds[0]
    trained = {"start": models.build(config.model, seed)}
    for name in config.optimizers:
        trained[name] = loop.train(config, name, seed, splits, torch.device("cpu")).model
    return {name: parameters_to_vector(model.parameters()).detach().double() for name, model in trained.items()}


def span_plane(
    weights: "list[torch.Tensor]",
) -> tuple["torch.Tensor", "torch.Tensor", list[tuple[float, float]]]:
    """Return the plane through three points by the method of Gram and Schmidt.

    Args:
        weights: float64, each of shape (weights,).

    Returns:
        The origin, which is the first point; two orthonormal vectors, shape (2, weights), the first towards the second
        point, the other to the side of the third; and the coordinates of the three points.
    """
    import torch

    origin, second, third = weights
    first = (second - origin) / (second - origin).norm()
    rest = (third - origin) - ((third - origin) @ first) * first
    axes = torch.stack([first, rest / rest.norm()])
    return origin, axes, [(float(x), float(y)) for x, y in ((each - origin) @ axes.T for each in weights)]


def measure(model_name: str, weights: "torch.Tensor", images: "Split") -> dict[str, float]:
    """Return loss and accuracy of the network with these weights, rounded."""
    from torch.nn.utils import vector_to_parameters

    from optlab.training import loop, models

    model = models.build(model_name, 0)
    vector_to_parameters(weights.float(), model.parameters())
    loss, accuracy = loop.compute_loss_and_accuracy(loop.predict(model, images), images.labels)
    return {"loss": _round(loss), "accuracy": accuracy}


def interpolate(low: float, high: float, points: int) -> Iterator[float]:
    """Yield equidistant numbers, both ends included."""
    return (low + (high - low) * index / (points - 1) for index in range(points))


def _widen(coordinates: tuple[float, ...]) -> tuple[float, float]:
    low, high = min(coordinates), max(coordinates)
    margin = MARGIN * (high - low)
    return math.floor((low - margin) * 100) / 100, math.ceil((high + margin) * 100) / 100


def _round(number: float) -> float:
    return round(number, DIGITS) + 0.0  # no -0.0


def _with_progress(rows: list[float]) -> Iterator[float]:
    from tqdm import tqdm

    yield from tqdm(rows, desc="rows", disable=None)


if __name__ == "__main__":
    processes.exit_with_caller()
    errors.run_main(main)
