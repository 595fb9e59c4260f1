"""Pictures of solutions for targets: logits of every row, margins of supports, Gram matrices."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from ufm._support import ArgumentError
from ufm.geometry import AnyArray
from ufm.plots.maps import write_numbers
from ufm.plots.style import (
    MARKERS,
    MOST_LINES,
    axes_for,
    cycle,
    finite_array,
    house_style,
    ink,
    same_length,
)
from ufm.problems import Targets

__all__ = ["gram_matrix", "logit_matrix", "support_margins"]

WRITTEN = 12  # most rows and columns whose numbers are legible
MARKED = 40  # most rows and columns in which the supports can be told apart
NAMED = 20  # most ticks of an axis


def logit_matrix(
    logits: Float[AnyArray, "R K"],
    targets: Targets | None = None,
    ax: Axes | None = None,
    *,
    centred: bool = False,
    row_labels: Sequence[Any] | None = None,
    output_labels: Sequence[Any] | None = None,
    title: str | None = None,
) -> Axes:
    """Draw the logits of every target row as a heat map, zero in white.

    A dot marks the outputs in the support of a row's target, where there are few enough. Up to
    twelve rows and outputs have the values written in, and a frame instead of the dot.

    Args:
        logits: Such as `solution.logits`, shape (R, K).
        targets: The targets, such as `solution.problem.targets`; without them nothing is marked.
        ax: Where to draw; a new figure if not given.
        centred: Whether the mean of every row is taken off, for losses that do not see it.
        row_labels: R names for the rows; 0 to R - 1 if not given.
        output_labels: K names for the outputs; 0 to K - 1 if not given.
        title: A title for the axes.

    Raises:
        ValueError: If shapes do not fit, or values are not finite.
    """
    values = finite_array("logits", logits, 2)
    if centred:
        values = values - values.mean(axis=1, keepdims=True)
    inside = None
    if targets is not None:
        if np.shape(targets.rows) != values.shape:
            raise ArgumentError(
                "targets",
                f"must have rows of shape {values.shape}, as the logits, got "
                f"{np.shape(targets.rows)}",
            )
        inside = np.asarray(targets.rows) > 0
    with house_style():
        ax = _heat_map(values, ax, "logit, row mean zero" if centred else "logit")
        if inside is not None:
            _mark(ax, inside)
        _name_ticks(ax, "y", "row_labels", row_labels, values.shape[0])
        _name_ticks(ax, "x", "output_labels", output_labels, values.shape[1])
        ax.set(xlabel="output", ylabel="target row")
        if title is not None:
            ax.set_title(title)
    return ax


def gram_matrix(
    vectors: Float[AnyArray, "K d"] | None = None,
    ax: Axes | None = None,
    *,
    gram: Float[AnyArray, "K K"] | None = None,
    output_labels: Sequence[Any] | None = None,
    title: str | None = None,
) -> Axes:
    """Draw the inner products of K vectors as a heat map, zero in white.

    Lengths count, which `cosine_matrix` leaves out: in a regression they are what the covariance of
    the responses decides. Up to twelve vectors have the values written in.

    Args:
        vectors: Vectors, such as `solution.weights[-1]`, shape (K, d). Give either these or `gram`.
        ax: Where to draw; a new figure if not given.
        gram: Gram matrix, shape (K, K), instead of the vectors.
        output_labels: K names for the ticks; 0 to K - 1 if not given.
        title: A title for the axes.

    Raises:
        ValueError: If both or neither of `vectors` and `gram` are given, or values are not finite
            or not symmetric.
    """
    if (vectors is None) == (gram is None):
        given = "neither" if vectors is None else "both"
        raise ArgumentError("vectors", f"or `gram` must be given, one of the two; got {given}")
    if gram is None:
        rows = finite_array("vectors", vectors, 2)
        values = rows @ rows.T
    else:
        values = finite_array("gram", gram, 2)
        if values.shape[0] != values.shape[1] or not np.allclose(values, values.T):
            raise ArgumentError("gram", f"must be symmetric, got shape {values.shape}")
    with house_style():
        ax = _heat_map(values, ax, "inner product")
        for axis in ("x", "y"):
            _name_ticks(ax, axis, "output_labels", output_labels, len(values))
        ax.set(xlabel="output", ylabel="output")
        if title is not None:
            ax.set_title(title)
    return ax


def support_margins(
    margins: Float[AnyArray, " R"],
    targets: Targets | None = None,
    ax: Axes | None = None,
    *,
    title: str | None = None,
) -> Axes:
    """Draw the margins of all target rows in order, from the least.

    A margin is the least logit in the support of a row's target, less the largest other one. Above
    the line at zero the logits tell the support from the rest. Rows whose support is empty or has
    all outputs have no margin, and are left out.

    Args:
        margins: Such as `solution.margins`, shape (R,); infinite where there is none.
        targets: The targets. With them rows are told apart by the size of their supports, if there
            are at most eight sizes.
        ax: Where to draw; a new figure if not given.
        title: A title for the axes.

    Raises:
        ValueError: If no margin is finite, or there is another number of rows.
    """
    values = np.asarray(margins, np.float64)
    if values.ndim != 1 or np.any(np.isnan(values)) or not np.any(np.isfinite(values)):
        raise ArgumentError(
            "margins",
            "must be one number per target row, finite where its support has some outputs and not "
            f"all; got shape {values.shape} with {int(np.sum(np.isfinite(values)))} finite ones",
        )
    sizes = np.zeros(values.size, int)
    if targets is not None:
        sizes = np.sum(np.asarray(targets.rows) > 0, axis=1)
        same_length("targets.rows", sizes, values.size)
    known = np.isfinite(values)
    order = np.argsort(values[known], kind="stable")
    shown, of_size = values[known][order], sizes[known][order]
    kinds = np.unique(of_size)
    if len(kinds) > MOST_LINES:
        of_size, kinds = np.zeros_like(of_size), np.zeros(1, int)
    places = np.arange(1, shown.size + 1)
    with house_style():
        ax = axes_for(ax, (5.2, 3.4))
        ax.axhline(0, color=ink(), linewidth=0.8)
        for index, kind in enumerate(kinds):
            chosen = of_size == kind
            label = f"{kind} in the support" if len(kinds) > 1 or kind else None
            style: Any = {"color": cycle()[index % len(cycle())], "label": label}
            marker = MARKERS[index % len(MARKERS)]
            ax.plot(places[chosen], shown[chosen], marker, markersize=4, **style)
        separated = int(np.sum(shown > 0))
        ax.set(xlabel="target row, by its margin", ylabel="margin of the support")
        ax.set_title(
            title or f"{separated} of {shown.size} supports told from the rest", loc="left"
        )
        if shown.size <= NAMED:
            ax.set_xticks(places)
        if ax.get_legend_handles_labels()[0]:
            ax.legend()
    return ax


def _mark(ax: Axes, inside: np.ndarray) -> None:
    """Mark entries of a heat map: by frames, by dots where they are many, or not at all."""
    if max(inside.shape) <= WRITTEN:
        for row, output in np.argwhere(inside):
            place = output - 0.5, row - 0.5
            frame = mpl.patches.Rectangle(place, 1, 1, fill=False, edgecolor="black", lw=1.5)
            ax.add_patch(frame)
    elif max(inside.shape) <= MARKED:
        rows, outputs = np.nonzero(inside)
        dot: Any = {"color": "black", "markersize": 5, "markeredgecolor": "white"}
        ax.plot(outputs, rows, "o", label="in the support", markeredgewidth=0.4, **dot)
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1.01), borderaxespad=0.2)


def _heat_map(values: np.ndarray, ax: Axes | None, label: str) -> Axes:
    """Draw a matrix with zero in white, row by row from the top, and its numbers where few."""
    rows, columns = values.shape
    largest = float(np.max(np.abs(values))) or 1.0
    sides = (min(1.6 + 0.42 * columns, 7.0) + 1.0, min(1.3 + 0.34 * rows, 7.0))
    ax = axes_for(ax, sides)
    aspect = "equal" if rows == columns else "auto"
    style: Any = {"vmin": -largest, "vmax": largest, "aspect": aspect, "interpolation": "nearest"}
    image = ax.imshow(values, cmap="RdBu_r", **style)
    ax.tick_params(length=0)
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    if max(values.shape) <= WRITTEN:
        write_numbers(ax, values, largest, (0, 0))
    ax.figure.colorbar(image, ax=ax, label=label, shrink=0.85).outline.set_visible(False)
    return ax


def _name_ticks(
    ax: Axes, axis: str, argument: str, labels: Sequence[Any] | None, number: int
) -> None:
    names = list(map(str, range(number))) if labels is None else list(map(str, labels))
    if len(names) != number:
        raise ArgumentError(argument, f"must be {number} names, got {len(names)}")
    every = max(1, -(-number // NAMED))
    getattr(ax, f"set_{axis}ticks")(range(0, number, every), names[::every])
