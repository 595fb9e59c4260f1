"""Heat maps over two axes, with the curves on which classifiers come to coincide."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes

from ufm.plots.style import spans_decades

__all__ = ["MAP_LEGEND", "MISSING", "UNDEFINED", "heat_map", "threshold_curves"]

UNDEFINED, MISSING = "0.92", "0.65"  # greys of points that have no value, and of those that are not computed
MAP_LEGEND: Any = {"frameon": True, "framealpha": 0.8, "facecolor": "0.75", "fontsize": "small"}
OUTLINED: Any = [patheffects.withStroke(linewidth=3.2, foreground="black")]  # white lines, on whatever is below


def heat_map(ax: Axes, x: Any, y: Any, values: np.ma.MaskedArray, label: str, cmap: str, **options: Any) -> None:
    """Draw values (Y, X) as colours with a bar beside, what is masked as undefined; axes are logarithmic where they span enough."""
    mesh = ax.pcolormesh(x, y, values, cmap=cmap, shading="nearest", rasterized=True, **options)
    ax.set_facecolor(UNDEFINED)
    ax.figure.colorbar(mesh, ax=ax).set_label(label)
    for axis, values_of in (("x", np.asarray(x)), ("y", np.asarray(y))):
        if spans_decades(values_of):
            getattr(ax, f"set_{axis}scale")("log")
    ax.set_xlim(np.min(x), np.max(x))
    ax.set_ylim(np.min(y), np.max(y))


def threshold_curves(ax: Axes, x: Any, y: Any, levels: Mapping[str, Any]) -> None:
    """Draw where each group's level (Y, X) is zero: there its classifiers come to coincide."""
    for index, (group, level) in enumerate(levels.items()):
        style, finite = ("-", "--", ":", "-.")[index % 4], level[np.isfinite(level)]
        if finite.size and finite.min() < 0 < finite.max():
            lines = ax.contour(x, y, level, [0.0], colors="white", linewidths=1.8, linestyles=style)
            lines.set(path_effects=OUTLINED)
            label = f"{group} classifiers coincide"
            ax.plot([], [], style, color="white", linewidth=1.8, path_effects=OUTLINED, label=label)
