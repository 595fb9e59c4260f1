"""Colours, markers and axes of all pictures, and checks of what is drawn."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from ufm._support import ArgumentError

__all__ = [
    "MARKERS",
    "MOST_LINES",
    "PALETTE",
    "axes_for",
    "blue",
    "cycle",
    "dark_style",
    "draw_marks",
    "draw_predicted",
    "draw_series",
    "dress",
    "finite_array",
    "house_style",
    "ink",
    "marked_places",
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
MOST_LINES = 8  # lines that a reader can tell apart in one picture
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}


PAPER, INK = "#15181d", "#e4e6ea"  # background and text of pictures for a dark page
DARK: Any = {
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), PAPER),
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    ),
}


@contextmanager
def dark_style() -> Iterator[None]:
    """Draw for a dark page inside the context.

    `plt.style.use("dark_background")` works as well.
    """
    with mpl.rc_context(DARK):
        yield


def blue() -> str:
    """Return the blue that stands out on the current background."""
    return PALETTE[
        "blue" if np.mean(mpl.colors.to_rgb(mpl.rcParams["axes.facecolor"])) > 0.5 else "sky"
    ]


def ink() -> str:
    """Return the colour of text and outlines: dark on a light page, light on a dark one."""
    return str(mpl.colors.to_hex(mpl.rcParams["text.color"]))


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the style of this package inside the context."""
    with mpl.rc_context(STYLE):
        yield


def axes_for(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """Return the axes to draw on.

    Args:
        ax: The axes; those of a new figure if None.
        size: Size of a new figure in inches.

    Raises:
        ValueError: If `ax` is something else.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=size, layout="constrained")
    elif not isinstance(ax, Axes):
        raise ArgumentError("ax", f"must be matplotlib axes, got {type(ax).__name__}")
    dress(ax)
    return ax


def dress(ax: Axes) -> None:
    """Give axes a light grid behind the data, and no frame at the top and right."""
    ax.spines[["top", "right"]].set_visible(False)
    dark = np.mean(mpl.colors.to_rgb(mpl.rcParams["axes.facecolor"])) < 0.5
    ax.grid(True, color="0.25" if dark else "0.92", linewidth=0.8)
    ax.set_axisbelow(True)


def cycle() -> list[str]:
    """Return the colours of the palette, repeated for more lines than anyone draws."""
    return list(PALETTE.values()) * 9


def marked_places(values: np.ndarray, row: int = 0) -> np.ndarray:
    """Return where along a line to put its markers.

    About eight of the finite points are marked, shifted by the row, and every finite point without
    a finite neighbour. The result is empty where no point is finite: matplotlib's spacing by
    distance raises there.
    """
    drawn = np.isfinite(values)
    places = np.flatnonzero(drawn)
    every = max(1, places.size // 8)
    padded = np.concatenate([[False], drawn, [False]])
    alone = np.flatnonzero(drawn & ~padded[:-2] & ~padded[2:])
    return np.union1d(places[row % 4 * every // 4 :: every], alone)


def draw_marks(
    ax: Axes, x: Any, y: Any, *, color: Any, marker: str = "o", hollow: bool = False, **options: Any
) -> None:
    """Draw marks without a line.

    Args:
        ax: Where to draw.
        x: Horizontal places.
        y: Vertical places.
        color: Colour of the marks.
        marker: Their shape.
        hollow: Whether only their outlines are drawn, as for what is predicted.
        options: Handed to `Axes.plot`.
    """
    face: Any = {"markerfacecolor": "none"} if hollow else {}
    ax.plot(x, y, linestyle="none", color=color, marker=marker, **face, **options)


def draw_predicted(ax: Axes, x: Any, y: Any) -> None:
    """Draw predicted values as open squares, around the dots of what was found."""
    square: Any = {"marker": "s", "markersize": 10, "markeredgewidth": 1.5}
    draw_marks(ax, x, y, color=PALETTE["vermillion"], hollow=True, label="predicted", **square)


def draw_series(
    ax: Axes,
    places: np.ndarray,
    series: Mapping[str, tuple[str, np.ndarray]],
    predicted: Mapping[str, float],
) -> None:
    """Draw series that can be told apart by colour and by marker, and predicted values dashed.

    Args:
        ax: Where to draw.
        places: Horizontal places, shape (T,).
        series: Label and values, shape (T,), by name.
        predicted: Values by the name of a series; those that are not positive are left out.
    """
    for (name, (label, values)), colour, marker in zip(
        series.items(), cycle(), MARKERS * 9, strict=False
    ):
        every = marked_places(values)
        ax.plot(places, values, color=colour, marker=marker, markevery=every, label=label)
        if predicted.get(name, 0) > 0:
            text = f"predicted: {predicted[name]:.4g}"
            ax.axhline(predicted[name], color=colour, linestyle="--", label=text)


def _unmasked(value: Any) -> np.ndarray:
    """Return a float64 array with NaN where the argument is masked."""
    array = np.ma.asarray(value).astype(np.float64)
    return np.asarray(np.ma.filled(array, np.nan))


def spans_decades(values: np.ndarray) -> bool:
    """Return whether values suit a logarithmic axis."""
    return bool(np.size(values) and np.all(values > 0) and np.max(values) > 20 * np.min(values))


def finite_array(name: str, value: Any, ndim: int) -> np.ndarray:
    """Return an argument as a float64 array.

    Args:
        name: Name of the argument.
        value: The argument.
        ndim: Number of dimensions that it must have.

    Raises:
        ValueError: If the array has other dimensions, is empty or is not finite.
    """
    array = _unmasked(value)
    if array.ndim != ndim or array.size == 0:
        raise ArgumentError(
            name, f"must be an array of {ndim} dimension(s), not empty; got shape {array.shape}"
        )
    if not np.all(np.isfinite(array)):
        raise ArgumentError(
            name, f"must be finite; {int(np.sum(~np.isfinite(array)))} of its entries are not"
        )
    return array


def same_length(name: str, value: Any, length: int) -> np.ndarray:
    """Return an argument as a float64 array of shape (length,).

    Args:
        name: Name of the argument.
        value: The argument.
        length: The length that it must have.

    Raises:
        ValueError: If the shape is another one.
    """
    array = _unmasked(value)
    if array.shape != (length,):
        raise ArgumentError(name, f"must have shape ({length},), got {array.shape}")
    return array
