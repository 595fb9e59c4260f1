"""What all pictures share: colours, markers, axes, and the checks of what is drawn."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

__all__ = [
    "MARKERS",
    "MOST_LINES",
    "PALETTE",
    "axes_for",
    "blue",
    "cycle",
    "dark_style",
    "dress",
    "finite_array",
    "house_style",
    "ink",
    "same_length",
    "spans_decades",
]

PALETTE = {
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "green": "#009E73",
    "purple": "#CC79A7",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "black": "#000000",
}
MARKERS = "osD^vP*"
MOST_LINES = 8  # that can be told apart in one picture
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}


PAPER, INK = "#15181d", "#e4e6ea"  # of pictures for a dark page
DARK: Any = {
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), PAPER),
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


@contextmanager
def dark_style() -> Iterator[None]:
    """Draw for a dark page inside the context; `plt.style.use("dark_background")` will do as well."""
    with mpl.rc_context(DARK):
        yield


def blue() -> str:
    """Return the blue that stands out on the page there is."""
    return PALETTE["blue" if np.mean(mpl.colors.to_rgb(mpl.rcParams["axes.facecolor"])) > 0.5 else "sky"]


def ink() -> str:
    """Return the colour of text and of outlines, dark on a light page and light on a dark one."""
    return str(mpl.colors.to_hex(mpl.rcParams["text.color"]))


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the style of the house inside the context."""
    with mpl.rc_context(STYLE):
        yield


def axes_for(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """Return the axes to draw on, a new figure's if none are given."""
    if ax is None:
        _, ax = plt.subplots(figsize=size, layout="constrained")
    elif not isinstance(ax, Axes):
        raise ValueError(f"`ax` must be matplotlib axes, got {type(ax).__name__}.")
    dress(ax)
    return ax


def dress(ax: Axes) -> None:
    """Give axes a light grid behind what is drawn, and no frame."""
    ax.spines[["top", "right"]].set_visible(False)
    dark = np.mean(mpl.colors.to_rgb(mpl.rcParams["axes.facecolor"])) < 0.5
    ax.grid(True, color="0.25" if dark else "0.92", linewidth=0.8)
    ax.set_axisbelow(True)


def cycle() -> list[str]:
    """Return colours for more lines than anyone draws, over and over."""
    return list(PALETTE.values()) * 9


def spans_decades(values: np.ndarray) -> bool:
    """Return whether values are for a logarithmic axis."""
    return bool(np.all(values > 0) and values.max() > 20 * values.min())


def finite_array(name: str, value: Any, ndim: int) -> np.ndarray:
    """Return an argument as a float64 array of `ndim` dimensions; a ValueError names it if it is empty or not finite."""
    array = np.asarray(value, np.float64)
    if array.ndim != ndim or array.size == 0:
        raise ValueError(f"`{name}` must be an array of {ndim} dimension(s), not empty; got shape {array.shape}.")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"`{name}` must be finite; {int(np.sum(~np.isfinite(array)))} of its entries are not.")
    return array


def same_length(name: str, value: Any, length: int) -> np.ndarray:
    """Return an argument as a float64 array of shape (length,); a ValueError names it if it has another."""
    array = np.asarray(value, np.float64)
    if array.shape != (length,):
        raise ValueError(f"`{name}` must have shape ({length},), got {array.shape}.")
    return array
