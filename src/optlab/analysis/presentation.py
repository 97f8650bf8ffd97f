"""Colours of the optimizers and HTML pages without network access, from the templates beside this file.

Training stages and the uploader import this module: it must not import matplotlib or scipy, and jinja2 only on use.
"""

import colorsys
import functools
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optlab.analysis.translation import translate_both
from optlab.schema.parameters import CLASS_NAMES

if TYPE_CHECKING:
    import jinja2
    import markupsafe

# Common optimizers have a reserved colour; others take the rest of the palette in order. Chosen from a grid in sRGB,
# visible on white and on black, to maximize the smallest distance between two colours, in CIEDE2000
# and in Oklab, for normal vision and without red or green cones (Machado et al. 2009). The first eleven are 22 and 16
# apart in CIEDE2000 (the ten of Petroff 2021: 17 and 12), all of them 8.6 and 6.6.
RESERVED_COLOURS = {
    "sgd": "#3c69ff",
    "adam": "#f0b400",
    "adamw": "#0f785a",
    "momentum": "#2db4ff",
    "nesterov": "#d29678",
    "rmsprop": "#691ea5",
    "nadam": "#4b4b5a",
    "muon": "#872d00",
    "lion": "#788700",
    "schedule_free": "#9687a5",
    "lbfgs": "#b4c3c3",
}
PALETTE = (
    *RESERVED_COLOURS.values(),
    "#875a96",
    "#c33c5a",
    "#003cf0",
    "#ff69d2",
    "#78691e",
    "#878778",
    "#784b3c",
    "#f0b478",
    "#ffa5a5",
    "#876978",
    "#4ba54b",
    "#f087a5",
    "#963c78",
    "#ff694b",
    "#4ba5c3",
    "#963cb4",
    "#f04b96",
    "#c34bc3",
    "#5a87ff",
    "#870078",
    "#96005a",
)
_GOLDEN_RATIO = 0.618033988749895  # as a step on the circle of hues, it keeps consecutive colours far apart


def assign_colours(optimizers: Iterable[str]) -> dict[str, str]:
    """Return a distinct colour, as #rrggbb, for each optimizer; appending an optimizer changes no other's colour."""
    names = list(dict.fromkeys(optimizers))
    rest = itertools.chain(PALETTE[len(RESERVED_COLOURS) :], _generate_colours())
    return {name: RESERVED_COLOURS.get(name) or next(rest) for name in names}


def _generate_colours() -> Iterator[str]:
    """Yield distinct colours outside the palette, without end."""
    seen = set(PALETTE)
    for number in itertools.count():
        parts = colorsys.hls_to_rgb(number * _GOLDEN_RATIO % 1, 0.35 + 0.15 * (number % 3), 0.4 + 0.3 * (number % 2))
        colour = "#" + "".join(f"{round(255 * part):02x}" for part in parts)
        if colour not in seen:
            seen.add(colour)
            yield colour


@functools.cache
def _create_jinja_environment() -> "jinja2.Environment":
    import jinja2

    environment = jinja2.Environment(loader=jinja2.PackageLoader("optlab.analysis", ""), autoescape=True)
    environment.globals |= {"t": translate_both, "read_asset": read_asset}
    return environment


def read_asset(name: str) -> "markupsafe.Markup":
    """Return a text file of this package, which a template puts into its page as it is."""
    import markupsafe

    return markupsafe.Markup((Path(__file__).parent / name).read_text("utf-8"))  # noqa: S704 - our own files


def render_template(template: str, **values: Any) -> bytes:
    """Return the page that `{template}.html.jinja` makes of these values and the class names."""
    page = _create_jinja_environment().get_template(f"{template}.html.jinja")
    return page.render(classes=CLASS_NAMES, **values).encode()


def render_confusion_matrix(run: str, matrix: list[list[int]]) -> bytes:
    """Return a page with a run's counts of test images; rows are the actual classes, columns the predicted ones."""
    return render_template("matrix", run=run, matrix=matrix)
