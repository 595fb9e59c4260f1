"""Pictures of one solution: cosines, singular values, convergence, comparison, layers."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes

from ufm import geometry
from ufm._support import ArgumentError
from ufm.comparison import AGREES, DIFFERS, UNDECIDED, Comparison
from ufm.geometry import AnyArray
from ufm.metrics import MEASURES, Layerwise
from ufm.plots.maps import write_numbers
from ufm.plots.style import (
    PALETTE,
    axes_for,
    blue,
    draw_marks,
    draw_predicted,
    draw_series,
    dress,
    finite_array,
    house_style,
    same_length,
)
from ufm.solving import SolveRecord

__all__ = [
    "certificate_convergence",
    "cosine_matrix",
    "layerwise",
    "predicted_against_found",
    "singular_values",
    "trajectory",
]

VERDICTS = {AGREES: ("blue", "o"), UNDECIDED: ("orange", "D"), DIFFERS: ("vermillion", "X")}
ANNOTATED_CLASSES = 10  # most classes for which the numbers in a matrix are legible
QUANTITIES = {
    "objective": "objective",
    "gradient_norm": "relative gradient",
    **{name: measure.label for name, measure in MEASURES.items()},
}


def cosine_matrix(
    vectors: Float[AnyArray, "K d"] | None = None,
    ax: Axes | None = None,
    *,
    gram: Float[AnyArray, "K K"] | None = None,
    class_labels: Sequence[Any] | None = None,
    title: str | None = None,
    colorbar: bool = True,
) -> Axes:
    """Draw the cosines between K vectors as a heat map, from -1 (blue) to 1 (red).

    The vectors are rows, such as `solution.weights[-1]` or `solution.class_features`. A prediction
    has their Gram matrix. Up to ten classes have the values written in. A zero vector has no
    direction: its row and column are grey.

    Args:
        vectors: Vectors, shape (K, d). Give either these or `gram`.
        ax: Where to draw; a new figure if not given.
        gram: Gram matrix, shape (K, K), instead of the vectors.
        class_labels: K names for the ticks; 1 to K if not given.
        title: A title for the axes.
        colorbar: Whether to add a colour bar next to the axes.

    Raises:
        ValueError: If both or neither of `vectors` and `gram` are given, shapes do not fit, or
            values are not finite.
    """
    cosines, alive = _cosines_of(vectors, gram)
    K = len(alive)
    names = (
        [str(k + 1) for k in range(K)]
        if class_labels is None
        else [str(label) for label in class_labels]
    )
    if len(names) != K:
        raise ArgumentError("class_labels", f"must name {K} classes, got {len(names)}")

    shown = np.ma.masked_array(cosines, mask=~np.outer(alive, alive))
    side = min(2.2 + 0.28 * K, 6.0)
    with house_style():
        ax = axes_for(ax, (side + 0.8 * colorbar, side))
        colours = mpl.colormaps["RdBu_r"].with_extremes(bad="0.85")
        image = ax.imshow(shown, cmap=colours, vmin=-1, vmax=1, interpolation="nearest")
        every = max(1, int(np.ceil(K / 20)))
        ax.set_xticks(range(0, K, every), names[::every])
        ax.set_yticks(range(0, K, every), names[::every])
        ax.tick_params(length=0)
        ax.set(xlabel="class", ylabel="class")
        ax.grid(False)
        for spine in ax.spines.values():
            spine.set_visible(False)
        if title is not None:
            ax.set_title(title)
        if K <= ANNOTATED_CLASSES:
            write_numbers(ax, cosines, 1.0, (0, 0), np.outer(alive, alive))
        if colorbar:
            bar = ax.figure.colorbar(
                image, ax=ax, ticks=[-1, -0.5, 0, 0.5, 1], label="cosine", shrink=0.85
            )
            bar.outline.set_visible(False)
    return ax


def _cosines_of(vectors: Any, gram: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the cosines between vectors, and which of them are not zero."""
    if (vectors is None) == (gram is None):
        given = "neither" if vectors is None else "both"
        raise ValueError(f"give either `vectors`, (K, d), or `gram`, (K, K); got {given}.")
    if vectors is not None:
        rows = finite_array("vectors", vectors, 2)
        return np.asarray(geometry.cosines(rows)), np.any(rows != 0, axis=1)
    matrix = finite_array("gram", gram, 2)
    if (
        matrix.shape[0] != matrix.shape[1]
        or not np.allclose(matrix, matrix.T)
        or np.any(np.diagonal(matrix) < 0)
    ):
        raise ArgumentError(
            "gram",
            "must be a Gram matrix, symmetric with a non-negative diagonal; got shape "
            f"{matrix.shape}. Vectors go in `vectors`",
        )
    norms = np.sqrt(np.diagonal(matrix))
    alive = norms > 0
    lengths = np.where(alive, norms, 1)
    return matrix / np.outer(lengths, lengths), alive


def _label(name: str) -> str:
    return QUANTITIES.get(name, name.replace("_", " "))


def trajectory(
    trajectory: SolveRecord,
    quantities: Sequence[str] = ("nc1", "nc2_features", "nc2_weights", "nc3"),
    predicted: Mapping[str, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw recorded quantities along the steps of a solve, on a logarithmic scale.

    Args:
        trajectory: `solution.trajectory` of a solve with `record_every`, or anything with a `step`
            and the named fields.
        quantities: Fields of the trajectory, such as "objective", "nc1" or "nc2_weights_frame".
        predicted: Values at the predicted minimiser, by quantity: a dashed line of the quantity's
            colour. A prediction of zero has no place on a logarithmic scale; the legend names it.
        ax: Where to draw; a new figure if not given.

    Raises:
        ValueError: If a quantity is not recorded, a predicted quantity is not drawn, or the solve
            has no trajectory.
    """
    if trajectory is None:
        raise ArgumentError(
            "trajectory", "is None: pass `record_every` to `solve` to have one recorded"
        )
    if isinstance(quantities, str):
        quantities = (quantities,)
    predicted = {} if predicted is None else dict(predicted)
    recorded = getattr(trajectory, "_fields", None) or tuple(QUANTITIES)
    unknown = [
        name
        for name in quantities
        if name == "step" or name not in recorded or not hasattr(trajectory, name)
    ]
    if unknown or not quantities:
        choices = ", ".join(name for name in recorded if name != "step")
        raise ArgumentError(
            "quantities", f"must be among {choices}", unknown[0] if unknown else "none"
        )
    for name, value in predicted.items():
        if name not in quantities or not (np.isfinite(value) and value >= 0):
            raise ArgumentError(
                "predicted",
                "must hold finite numbers, not negative, for quantities that are drawn "
                f"({', '.join(quantities)}); got {name!r}: {value!r}",
            )
    steps = finite_array("trajectory.step", trajectory.step, 1)
    columns = {
        name: same_length(f"trajectory.{name}", getattr(trajectory, name), steps.size)
        for name in quantities
    }

    with house_style():
        ax = axes_for(ax, (6.0, 3.6))
        series = {
            name: (_label(name) + " (predicted: 0)" * (predicted.get(name) == 0), values)
            for name, values in columns.items()
        }
        draw_series(ax, steps, series, predicted)
        if any(np.any(values > 0) for values in columns.values()):
            ax.set_yscale("log", nonpositive="mask")
        single = QUANTITIES.get(quantities[0], quantities[0]) if len(quantities) == 1 else "value"
        ax.set(xlabel="step", ylabel=single)
        ax.legend()
    return ax


def singular_values(
    values: Float[AnyArray, " r"],
    predicted: Float[AnyArray, " r"] | None = None,
    ax: Axes | None = None,
    *,
    label: str = "found",
) -> Axes:
    """Draw singular values in descending order: found as dots, predicted as open squares.

    Args:
        values: Singular values, not negative, shape (r,).
        predicted: Predicted ones, shape (r,), such as `prediction.singular_values`.
        ax: Where to draw; a new figure if not given.
        label: Name of the values in the legend.

    Raises:
        ValueError: If values are negative or not finite, or there is another number of predicted
            ones.
    """
    found = finite_array("values", values, 1)
    expected = (
        None
        if predicted is None
        else same_length("predicted", finite_array("predicted", predicted, 1), found.size)
    )
    for name, array in (("values", found), ("predicted", expected)):
        if array is not None and np.any(array < 0):
            raise ArgumentError(name, f"must not be negative, got {np.min(array)}")
    index = np.arange(1, found.size + 1)
    with house_style():
        ax = axes_for(ax, (4.2, 3.2))
        if expected is not None:
            draw_predicted(ax, index, np.sort(expected)[::-1])
        draw_marks(ax, index, np.sort(found)[::-1], color=blue(), label=label)
        ax.set(xlabel="index", ylabel="singular value")
        if found.size <= 20:
            ax.set_xticks(index)
        ax.set_xlim(0.4, found.size + 0.6)
        top = float(np.max(found if expected is None else np.maximum(found, expected)))
        ax.set_ylim(-0.04 * (top or 1.0), 1.1 * (top or 1.0))
        ax.legend()
    return ax


def predicted_against_found(comparison: Comparison, ax: Axes | None = None) -> Axes:
    """Draw a comparison: each relative error as a dot, and its tolerance as a bar.

    The colour of a dot is its verdict. A dot inside its bar agrees. An error of exactly zero is a
    triangle at the left edge, an infinite one at the right edge. An infinite tolerance, which
    decides nothing, is a bar across.

    Args:
        comparison: From `ufm.compare`.
        ax: Where to draw; a new figure if not given.

    Raises:
        ValueError: If there is no row to draw.
    """
    rows = getattr(comparison, "rows", ())
    if not rows:
        raise ArgumentError(
            "comparison", "must be the result of ufm.compare, with at least one row", comparison
        )
    errors = np.array([row.error for row in rows], np.float64)
    tolerances = np.array([row.tolerance for row in rows], np.float64)
    positive = np.concatenate([errors, tolerances])
    positive = positive[np.isfinite(positive) & (positive > 0)]
    low, high = (
        (float(np.min(positive)), float(np.max(positive))) if positive.size else (1e-16, 1.0)
    )
    left, right = 10.0 ** (np.floor(np.log10(low)) - 1), 10.0 ** (np.ceil(np.log10(high)) + 1)
    heights = np.arange(len(rows))

    with house_style():
        ax = axes_for(ax, (6.4, 1.3 + 0.28 * len(rows)))
        ax.set_xscale("log")
        bars = np.where(np.isnan(tolerances), 0, np.minimum(tolerances, right))
        ax.barh(
            heights,
            np.maximum(bars - left, 0),
            left=left,
            height=0.6,
            color="0.87",
            label="tolerance",
        )
        for verdict, (colour, marker) in VERDICTS.items():
            chosen = np.array([row.verdict == verdict for row in rows])
            inside = chosen & np.isfinite(errors) & (errors > 0)
            style: dict[str, Any] = {"linestyle": "none", "color": PALETTE[colour]}
            labelled = False
            for where, place, shape in (
                (inside, errors, marker),
                (chosen & (errors == 0), np.full_like(errors, left), "<"),
                (chosen & ~np.isfinite(errors), np.full_like(errors, right), ">"),
            ):
                if np.any(where):
                    name = None if labelled else verdict
                    ax.plot(
                        place[where],
                        heights[where],
                        marker=shape,
                        label=name,
                        clip_on=False,
                        zorder=3,
                        **style,
                    )
                    labelled = True
        ax.set_yticks(heights, [row.quantity for row in rows])
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.set_xlim(left, right)
        ax.grid(False, axis="y")
        ax.set_xlabel("relative error")
        ax.set_title(comparison.theorem, loc="left")
        ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return ax


def certificate_convergence(
    steps: Int[AnyArray, " T"],
    objective: Float[AnyArray, " T"],
    lower_bound: Float[AnyArray, " T"],
    ax: Axes | None = None,
    *,
    gap_ax: Axes | None = None,
) -> Axes:
    """Draw an objective and its lower bound along iterations, with the band between them.

    The optimal value lies in the band.

    Args:
        steps: Numbers of iterations, increasing, shape (T,).
        objective: Objective at each, shape (T,).
        lower_bound: Lower bound at each, shape (T,); minus infinity if there is none.
        ax: Where to draw; a new figure if not given.
        gap_ax: Second axes for the gap between the two, on a logarithmic scale.

    Raises:
        ValueError: If lengths differ, or a lower bound exceeds the objective.
    """
    steps = finite_array("steps", steps, 1)
    values = same_length("objective", objective, steps.size)
    bounds = same_length("lower_bound", lower_bound, steps.size)
    if np.any(np.diff(steps) <= 0):
        raise ArgumentError("steps", "must increase")
    if np.any(np.isnan(values)) or np.any(np.isnan(bounds)):
        raise ArgumentError("objective", "and `lower_bound` must not contain NaN")
    excess = bounds - values
    if np.any(excess > 1e-9 * np.maximum(np.abs(bounds), np.finfo(float).tiny)):
        worst = int(np.argmax(excess))
        raise ArgumentError(
            "lower_bound",
            f"must not exceed `objective`, got {bounds[worst]!r} above {values[worst]!r} at "
            f"step {steps[worst]:g}; the objective comes first",
        )
    with house_style():
        ax = axes_for(ax, (5.6, 3.4))
        ax.fill_between(
            steps,
            bounds,
            values,
            where=np.isfinite(bounds) & np.isfinite(values),
            color="0.9",
            linewidth=0,
        )
        ax.plot(steps, values, color=PALETTE["blue"], label="objective")
        ax.plot(steps, bounds, color=PALETTE["vermillion"], linestyle="--", label="lower bound")
        ax.set(xlabel="step", ylabel="objective")
        ax.legend()
        if gap_ax is not None:
            dress(gap_ax)
            gap = values - bounds
            gap_ax.plot(steps, gap, color=PALETTE["black"])
            if np.any(gap > 0):
                gap_ax.set_yscale("log", nonpositive="mask")
            gap_ax.set(xlabel="step", ylabel="objective \N{MINUS SIGN} lower bound")
    return ax


def layerwise(result: Layerwise, ax: Axes | None = None) -> Axes:
    """Draw how far every layer of a deep model is from neural collapse.

    Solid lines belong to the class means, from the features to the logits: distances of their
    normalised Gram matrix from the simplex ETF and from the orthogonal frame. Open markers belong
    to the weights that multiply them: one minus the cosine of NC3, and one minus the cosine with
    the matrix before. Below each layer's name is the rank of its class means. NaN leaves a gap.

    Args:
        result: From `ufm.layerwise`.
        ax: Where to draw; a new figure if not given.
    """
    layers = result.layers
    x = np.arange(len(layers))
    means: Any = (
        (
            "class means to ETF",
            [layer.collapse.nc2_features.etf_distance for layer in layers],
            "blue",
            "o",
        ),
        (
            "class means to orthogonal frame",
            [layer.collapse.nc2_features.orthogonal_distance for layer in layers],
            "vermillion",
            "s",
        ),
    )
    weighted = [(k, layer.weights) for k, layer in enumerate(layers) if layer.weights is not None]
    weights: Any = (
        ("weights to class means, 1 - cos", [1 - W.alignment for _, W in weighted], "green", "D"),
        (
            "weights to matrix before, 1 - cos",
            [1 - W.adjacent_alignment for _, W in weighted],
            "purple",
            "^",
        ),
    )
    with house_style():
        ax = axes_for(ax, (max(4.5, 0.9 * len(layers)), 3.2))
        for label, values, colour, marker in means:
            ax.plot(x, values, color=PALETTE[colour], marker=marker, label=label)
        for label, values, colour, marker in weights:
            ax.plot(
                [k for k, _ in weighted],
                values,
                color=PALETTE[colour],
                marker=marker,
                mfc="none",
                ls="none",
                label=label,
            )
        names = [layer.name.replace(" before ", "\nbefore ") for layer in layers]
        ax.set_xticks(
            x,
            [f"{name}\nrank {layer.rank}" for name, layer in zip(names, layers, strict=True)],
            fontsize="small",
        )
        ax.set_xlim(-0.4, len(layers) - 0.6)
        ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]), auto=None)
        ax.set_xlabel("layer")
        ax.set_ylabel("distance, zero where collapsed")
        ax.legend(fontsize="small")
        dress(ax)
    return ax
