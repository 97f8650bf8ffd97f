"""The figures of docs/optimizers.md, drawn with the functions of that page.

    python docs/draw.py        # writes docs/figures/

So the figures show what the text says, and no other code.
"""

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from optlab.analysis.figures import draw_grid, use_default_rc
from optlab.analysis.presentation import assign_colours

PAGE = Path(__file__).parent / "optimizers.md"
FIGURES = Path(__file__).parent / "figures"
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
RULES = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "nadam", "lion", "muon")
COLOURS = assign_colours(RULES)
STEPS = 100

Slope = Callable[[np.ndarray], Any]
View = tuple[float, float, float, float]  # left, right, bottom, top


@functools.cache
def rules(page: Path = PAGE) -> dict[str, Any]:
    """The functions of a page by their names."""
    found: dict[str, Any] = {}
    for block in BLOCK.findall(page.read_text()):
        exec(block, found)
    return found


def valley(w: np.ndarray) -> Any:
    """Fifty times as steep in the second weight as in the first; lowest at 0, 0."""
    return 0.5 * (w[..., 0] ** 2 + 50 * w[..., 1] ** 2)


def rosenbrock(w: np.ndarray) -> Any:
    """Rosenbrock (1960): a curved valley; lowest at 1, 1."""
    return (1 - w[..., 0]) ** 2 + 100 * (w[..., 1] - w[..., 0] ** 2) ** 2


def gradient(slope: Slope, w: np.ndarray, width: float = 1e-6) -> np.ndarray:
    """By central differences, shape (1, 2) as `w`."""
    shifts = width * np.eye(2)
    return np.array([[(slope(w + shift)[0] - slope(w - shift)[0]) / (2 * width) for shift in shifts]])


def path(rule: Any, slope: Slope, start: tuple[float, float], lr: float) -> np.ndarray:
    """Where the steps lead, shape (steps + 1, 2), float64; beyond a million, it stays where it is."""
    state: dict[str, Any] = {}
    points = [np.array([start])]
    for _ in range(STEPS):
        w = points[-1]
        points.append(rule(w, gradient(slope, w), state, lr=lr) if np.abs(w).max() < 1e6 else w)
    return np.concatenate(points)


def best(rule: Any, slope: Slope, start: tuple[float, float], view: View) -> tuple[float, np.ndarray]:
    """Of the learning rates with which the steps stay within the view, that which ends lowest, and its path."""
    left, right, bottom, top = view
    tried = ((lr, path(rule, slope, start, lr)) for lr in np.geomspace(1e-4, 10, 60))
    within = [each for each in tried if ((each[1] >= (left, bottom)) & (each[1] <= (right, top))).all()]
    return min(within, key=lambda each: slope(each[1][-1]))


def paths(slope: Slope, start: tuple[float, float], lowest: tuple[float, float], view: View) -> Figure:
    """A panel for each rule."""
    x, y = np.meshgrid(np.linspace(*view[:2], 200), np.linspace(*view[2:], 200))
    height = np.log10(slope(np.stack([x, y], axis=-1)) + 0.1)

    def drawn(name: str) -> Callable[[Axes], None]:
        lr, points = best(rules()[name], slope, start, view)

        def draw(axis: Axes) -> None:
            axis.contour(x, y, height, levels=8, cmap="Greys_r", linewidths=0.7, alpha=0.6)
            axis.plot(*points.T, "-", color=COLOURS[name], linewidth=1.4)
            axis.plot(*points.T, ".", color=COLOURS[name], markersize=3)
            axis.plot(*start, "o", color="black", markersize=5)
            axis.plot(*lowest, "x", color="black", markersize=7)
            axis.set(xlim=view[:2], ylim=view[2:], xticks=[], yticks=[])
            loss = slope(points[-1])
            axis.set_title(f"{name}\nη {lr:.2g}, loss {loss if loss > 1e-15 else 0:.1g}", fontsize=10)

        return draw

    return draw_grid([drawn(name) for name in RULES], 5, (2.1, 2.1))


def bias() -> Figure:
    """Adam's step for a gradient that stays 1, with the page's function and without its hats."""
    adam, state, w, steps = rules()["adam"], dict[str, Any](), 0.0, []
    count = np.arange(1, 10_001)
    for _ in count:
        before, w = w, adam(w, 1.0, state, lr=1.0)
        steps.append(before - w)

    def draw(axis: Axes) -> None:
        axis.plot(count, steps, color=COLOURS["adam"], label="with bias correction")
        axis.plot(count, uncorrected(count), color="black", linestyle="--", label="without")
        axis.set(xscale="log", ylim=(0, None), xlabel="step", ylabel="length of the step, in η")
        axis.legend(frameon=False)

    return draw_grid([draw], 1, (6.8, 3.0))


def uncorrected(t: np.ndarray, beta1: float = 0.9, beta2: float = 0.999) -> np.ndarray:
    """The length of step t, in learning rates, without the correction, for a gradient that stays the same."""
    return (1 - beta1**t) / np.sqrt(1 - beta2**t)


def decay(steps: int = 4000) -> Figure:
    """Two weights whose gradients are noise of standard deviations 0.1 and 10; means over 400 such pairs."""
    noise = np.random.default_rng(0).normal(size=(steps, 2, 400)) * np.array([[0.1], [10.0]])
    adam, adamw, strength = rules()["adam"], rules()["adamw"], 0.1

    def l2(w: np.ndarray, g: np.ndarray, s: dict[str, Any], lr: float) -> np.ndarray:
        return adam(w, g + strength * w, s, lr=lr)

    def decoupled(w: np.ndarray, g: np.ndarray, s: dict[str, Any], lr: float) -> np.ndarray:
        return adamw(w, g, s, lr=lr, decay=strength)

    return draw_grid([_decaying("L2 in Adam", l2, noise), _decaying("AdamW", decoupled, noise)], 2, (4.2, 3.0))


def _decaying(title: str, rule: Any, noise: np.ndarray) -> Callable[[Axes], None]:
    w, state = np.ones(noise.shape[1:]), dict[str, Any]()
    sizes = [w.mean(axis=1)]
    for g in noise:
        w = rule(w, g, state, lr=0.01)
        sizes.append(w.mean(axis=1))

    def draw(axis: Axes) -> None:
        for size, label, line in zip(np.transpose(sizes), ("small gradients", "large gradients"), "-:", strict=True):
            axis.plot(size, line, color="black", label=label)
        axis.set(title=title, xlabel="step", ylabel="mean weight", ylim=(-0.1, 1.05))
        axis.legend(frameon=False)

    return draw


def figures() -> Iterator[tuple[str, Figure]]:
    """Each by the name of its file."""
    yield "valley", paths(valley, (-4.0, 0.9), (0.0, 0.0), (-4.4, 2.4, -1.2, 1.2))
    yield "rosenbrock", paths(rosenbrock, (-1.5, 1.5), (1.0, 1.0), (-2.0, 2.0, -0.8, 2.8))
    yield "bias", bias()
    yield "decay", decay()


@use_default_rc
def main() -> None:
    matplotlib.rcParams.update({"svg.hashsalt": "optlab", "svg.fonttype": "path", "path.simplify_threshold": 0.5})
    FIGURES.mkdir(exist_ok=True)
    for name, figure in figures():
        figure.savefig(FIGURES / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
