"""One colour per optimizer, the same in every figure, table and chart."""

import zlib

COLOURS = {
    "sgd": "#1f77b4",
    "adam": "#ff7f0e",
    "adamw": "#2ca02c",
    "momentum": "#17becf",
    "nesterov": "#e377c2",
    "rmsprop": "#9467bd",
    "nadam": "#8c564b",
    "muon": "#d62728",
    "lion": "#bcbd22",
    "schedule_free": "#006d5b",
    "lbfgs": "#7f7f7f",
}
_MORE = (
    "#393b79", "#637939", "#8c6d31", "#843c39", "#7b4173", "#3182bd", "#e6550d", "#31a354",
    "#756bb1", "#636363", "#fd8d3c", "#a55194", "#6baed6", "#b5cf6b", "#d6616b", "#e7ba52", "#9c9ede",
    "#c51b8a", "#08519c", "#a6761d",
)  # fmt: skip


def colour(optimizer: str) -> str:
    """The common optimizers have one each; any other gets one by its name."""
    return COLOURS.get(optimizer) or _MORE[zlib.crc32(optimizer.encode()) % len(_MORE)]
