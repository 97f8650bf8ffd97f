"""One colour per optimizer, the same in every figure, table and chart of a comparison."""

import colorsys
import itertools
from collections.abc import Iterable, Iterator

# The common optimizers have one each, the others the rest, in their order. Chosen from a grid in sRGB, of a lightness
# that is seen on white and on black, so that the two nearest are as far apart as possible, in CIEDE2000 and in Oklab,
# as most people see them and as they look without red or green cones (Machado et al. 2009). The first eleven are 22 and
# 16 apart in CIEDE2000 (the ten of Petroff 2021: 17 and 12), all of them 8.6 and 6.6.
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
_GOLDEN_RATIO = 0.618033988749895  # of the circle of hues: no two of its multiples come near each other soon


def assign_colours(optimizers: Iterable[str]) -> dict[str, str]:
    """Return a colour for each optimizer of a comparison, no two alike; one that is added last changes no other's."""
    names = list(dict.fromkeys(optimizers))
    rest = itertools.chain(PALETTE[len(RESERVED_COLOURS) :], _generate_colours())
    return {name: RESERVED_COLOURS.get(name) or next(rest) for name in names}


def _generate_colours() -> Iterator[str]:
    """Yield colours beyond the palette, without an end."""
    seen = set(PALETTE)
    for number in itertools.count():
        parts = colorsys.hls_to_rgb(number * _GOLDEN_RATIO % 1, 0.35 + 0.15 * (number % 3), 0.4 + 0.3 * (number % 2))
        found = "#" + "".join(f"{round(255 * part):02x}" for part in parts)
        if found not in seen:
            seen.add(found)
            yield found
