"""Heat maps over two axes, with the curves on which classifiers coincide."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes

from ufm.plots.style import spans_decades

__all__ = [
    "MAP_LEGEND",
    "MISSING",
    "UNDEFINED",
    "heat_map",
    "threshold_curves",
    "write_numbers",
]

UNDEFINED, MISSING = "0.92", "0.65"  # greys of points without a value, and of those not computed
MAP_LEGEND: Any = {"frameon": True, "framealpha": 0.8, "facecolor": "0.75", "fontsize": "small"}
OUTLINED: Any = [
    patheffects.withStroke(linewidth=3.2, foreground="black")
]  # white lines, on any colour


def heat_map(
    ax: Axes, x: Any, y: Any, values: np.ma.MaskedArray, label: str, cmap: str, **options: Any
) -> None:
    """Draw values as colours, with a colour bar.

    Masked values are drawn as undefined. An axis is logarithmic if it spans enough.

    Args:
        ax: Where to draw.
        x: Places across, shape (X,).
        y: Places up, shape (Y,).
        values: Values, shape (Y, X).
        label: Label of the colour bar.
        cmap: Name of the colour map.
        options: Handed to `pcolormesh`.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.size == 1:  # a point has no width of its own
        x, values = x + np.array([-0.5, 0.5]), np.ma.concatenate([values, values], axis=1)
    if y.size == 1:
        y, values = y + np.array([-0.5, 0.5]), np.ma.concatenate([values, values], axis=0)
    mesh = ax.pcolormesh(x, y, values, cmap=cmap, shading="nearest", rasterized=True, **options)
    ax.set_facecolor(UNDEFINED)
    ax.figure.colorbar(mesh, ax=ax).set_label(label)
    for axis, values_of in (("x", x), ("y", y)):
        if spans_decades(values_of):
            getattr(ax, f"set_{axis}scale")("log")
    ax.set_xlim(np.min(x), np.max(x))
    ax.set_ylim(np.min(y), np.max(y))


def threshold_curves(ax: Axes, x: Any, y: Any, levels: Mapping[str, Any]) -> None:
    """Draw the curves on which the classifiers of a group coincide.

    Args:
        ax: Where to draw.
        x: Places across, shape (X,).
        y: Places up, shape (Y,).
        levels: Level of each group by name, shape (Y, X); it is zero on the curve.
    """
    for index, (group, level) in enumerate(levels.items()):
        style, finite = ("-", "--", ":", "-.")[index % 4], level[np.isfinite(level)]
        if finite.size and min(level.shape) > 1 and finite.min() < 0 < finite.max():
            lines = ax.contour(x, y, level, [0.0], colors="white", linewidths=1.8, linestyles=style)
            lines.set(path_effects=OUTLINED)
            label = f"{group} classifiers coincide"
            ax.plot([], [], style, color="white", linewidth=1.8, path_effects=OUTLINED, label=label)


def write_numbers(
    ax: Axes, matrix: np.ndarray, largest: float, origin: tuple[float, float], shown: Any = None
) -> None:
    """Write the entries of a matrix into its heat map, with two decimals.

    Args:
        ax: Where to write.
        matrix: The matrix; row j is drawn at height j.
        largest: Value of the strongest colour.
        origin: Centre of the first cell.
        shown: Mask of the entries to write; all if None.
    """
    for (j, k), value in np.ndenumerate(matrix):
        if shown is not None and not shown[j, k]:
            continue
        colour = "white" if abs(value) > 0.6 * largest else "black"
        # Adding zero turns the -0.00 of a rounded tiny negative number into 0.00.
        text = f"{round(float(value), 2) + 0.0:.2f}".replace("-", "\N{MINUS SIGN}")
        place = origin[0] + k, origin[1] + j
        ax.text(*place, text, ha="center", va="center", color=colour, fontsize=8)
