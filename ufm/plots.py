"""Pictures of results: each function draws arrays or results on an `ax`, and returns it.

Nothing is solved here and nothing is shown: without an `ax` a new figure is made, which belongs to the caller
(`ax.figure.savefig(...)`). What is drawn is what was given, without smoothing or resampling.

Colours are those of Okabe and Ito (Color Universal Design, 2008), which stay apart for colour-blind readers,
and every distinction of colour is one of marker, line or place as well. What was found is drawn filled or
solid, what a theorem predicts open or dashed.

Needs the extra `plot`: pip install "ufm[plot]".
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ufm import geometry
from ufm.comparison import AGREES, DIFFERS, UNDECIDED, Comparison
from ufm.geometry import AnyArray
from ufm.landscape.census import Census
from ufm.landscape.paths import Path
from ufm.layerwise import Layerwise
from ufm.mitigation import Mitigations
from ufm.phase import PhaseDiagram
from ufm.solution import Trajectory
from ufm.status import Status

try:
    import matplotlib as mpl
    from matplotlib import patheffects, ticker
    from matplotlib import pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.colors import ListedColormap, LogNorm
except ImportError as error:
    raise ImportError("`ufm.plots` needs matplotlib, the extra `plot`: pip install 'ufm[plot]'.") from error

__all__ = [
    "PALETTE",
    "census",
    "certificate_convergence",
    "cosine_matrix",
    "layerwise",
    "mitigation_curves",
    "path",
    "phase_diagram",
    "predicted_against_found",
    "spectrum",
    "sweep",
    "trajectory",
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
VERDICTS = {AGREES: ("blue", "o"), UNDECIDED: ("orange", "D"), DIFFERS: ("vermillion", "X")}
MARKERS = "osD^vP*"
ANNOTATED_CLASSES = 10  # up to this many the numbers in a matrix are legible

PHASE_QUANTITIES = {
    "cosine": "cosine between minority classifiers",
    "minority_margin": "margin of minority classes",
    "majority_margin": "margin of majority classes",
    "relative_gap": "certified relative gap",
}
MITIGATION_QUANTITIES = {
    "etf_distance": "distance of the weights to the simplex ETF",
    "cosine": "cosine between minority classifiers",
    "norm_ratio": "classifier norm, majority over minority",
    "minority_margin": "margin of minority classes",
}
SWEPT = {
    "weight_decay": r"weight decay $\sqrt{\lambda_W \lambda_H}$",
    "relative_gap": "certified relative gap",
    "weight_cosine": "cosine between classifiers",
    "weight_cosine_within": "cosine between classifiers",
    "feature_cosine": "cosine between class means",
    "feature_cosine_within": "cosine between class means",
    "weight_norm": "norm of classifiers",
    "feature_norm": "norm of class means",
    "coincidence_level": "coincidence level, zero on the threshold",
    "nc2_weights": "NC2, weights to ETF",
    "nc2_features": "NC2, features to ETF",
    "nc2_weights_frame": "NC2, weights to orthogonal frame",
    "nc2_features_frame": "NC2, features to orthogonal frame",
    "nc3": "NC3, weights to features",
    "num_classes": "number of classes",
    "num_minority": "number of minority classes",
    "regularizer.weights": "penalty or bound of the weights",
    "regularizer.features": "penalty or bound of the features",
    "regularizer.bias": "penalty of the bias",
    "class_counts": "row of class_counts",
}
UNDEFINED, MISSING = "0.92", "0.65"  # greys of points that have no value, and of those that are not computed
MOST_LINES = 8
MOST_CROSSES = 300  # above it points are hatched

QUANTITIES = {
    "objective": "objective",
    "gradient_norm": "relative gradient",
    "nc1": "NC1, within-class variability",
    "nc2_features": "NC2, features to ETF",
    "nc2_weights": "NC2, weights to ETF",
    "nc2_features_frame": "NC2, features to orthogonal frame",
    "nc2_weights_frame": "NC2, weights to orthogonal frame",
    "nc3": "NC3, weights to features",
    "nc4": "NC4, decisions unlike nearest mean",
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
    r"""Draw the cosines between K vectors as a heat map, from -1 (blue) to 1 (red).

    The vectors are rows, such as `solution.weights[-1]` or `solution.class_features`; a prediction has their
    Gram matrix. Up to ten classes have the values written in. A zero vector has no direction: its row and
    column are grey.

    Args:
        vectors: (K, d). Either these or `gram`.
        ax: where to draw; a new figure if not given.
        gram: (K, K) Gram matrix, instead of the vectors.
        class_labels: K names for the ticks; 1 to K if not given.
        title: a title for the axes.
        colorbar: whether to add one, next to the axes.

    Raises:
        ValueError: for both or neither of `vectors` and `gram`, shapes that do not fit, or values that are
            not finite.
    """
    if (vectors is None) == (gram is None):
        given = "neither" if vectors is None else "both"
        raise ValueError(f"give either `vectors`, (K, d), or `gram`, (K, K); got {given}.")
    if vectors is not None:
        rows = _finite("vectors", vectors, 2)
        cosines, alive = geometry.cosines(rows), np.any(rows != 0, axis=1)
    else:
        matrix = _finite("gram", gram, 2)
        if matrix.shape[0] != matrix.shape[1] or not np.allclose(matrix, matrix.T) or np.any(np.diagonal(matrix) < 0):
            raise ValueError(
                "`gram` must be a Gram matrix, symmetric with a non-negative diagonal; got shape "
                f"{matrix.shape}. Vectors go in `vectors`."
            )
        norms = np.sqrt(np.diagonal(matrix))
        alive = norms > 0
        lengths = np.where(alive, norms, 1)
        cosines = matrix / np.outer(lengths, lengths)
    K = len(alive)
    names = [str(k + 1) for k in range(K)] if class_labels is None else [str(label) for label in class_labels]
    if len(names) != K:
        raise ValueError(f"`class_labels` must name {K} classes, got {len(names)}.")

    shown = np.ma.masked_array(cosines, mask=~np.outer(alive, alive))
    side = min(2.2 + 0.28 * K, 6.0)
    with _style():
        ax = _axes(ax, (side + 0.8 * colorbar, side))
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
            for (j, k), cosine in np.ndenumerate(cosines):
                if alive[j] and alive[k]:
                    ink = "white" if abs(cosine) > 0.6 else "black"
                    # Adding zero turns the -0.00 of a rounded tiny negative number into 0.00.
                    text = f"{round(float(cosine), 2) + 0.0:.2f}".replace("-", "\N{MINUS SIGN}")
                    ax.text(k, j, text, ha="center", va="center", color=ink, fontsize=8)
        if colorbar:
            bar = ax.figure.colorbar(image, ax=ax, ticks=[-1, -0.5, 0, 0.5, 1], label="cosine", shrink=0.85)
            bar.outline.set_visible(False)
    return ax


def trajectory(
    trajectory: Trajectory,
    quantities: Sequence[str] = ("nc1", "nc2_features", "nc2_weights", "nc3"),
    predicted: Mapping[str, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw recorded quantities along the steps of a solve, on a log scale.

    Args:
        trajectory: `solution.trajectory`, of a solve with `record_every`, or anything with a `step` and the
            named fields.
        quantities: fields of the trajectory, such as "objective", "nc1" or "nc2_weights_frame".
        predicted: for some of the quantities, the value at the predicted minimiser: a dashed line of the
            quantity's colour. A prediction of zero has no place on a log scale and is named in the legend
            instead.
        ax: where to draw; a new figure if not given.

    Raises:
        ValueError: for a quantity that is not recorded, a prediction of a quantity that is not drawn, or a
            solve without trajectory.
    """
    if trajectory is None:
        raise ValueError("`trajectory` is None: pass `record_every` to `solve` to have one recorded.")
    if isinstance(quantities, str):
        quantities = (quantities,)
    predicted = {} if predicted is None else dict(predicted)
    recorded = getattr(trajectory, "_fields", None) or tuple(QUANTITIES)
    unknown = [name for name in quantities if name == "step" or name not in recorded or not hasattr(trajectory, name)]
    if unknown or not quantities:
        choices = ", ".join(name for name in recorded if name != "step")
        raise ValueError(f"`quantities` must be among {choices}; got {unknown[0] if unknown else 'none'!r}.")
    for name, value in predicted.items():
        if name not in quantities or not (np.isfinite(value) and value >= 0):
            raise ValueError(
                f"`predicted` must hold finite numbers, not negative, for quantities that are drawn "
                f"({', '.join(quantities)}); got {name!r}: {value!r}."
            )
    steps = _finite("trajectory.step", trajectory.step, 1)
    columns = {name: _same_length(f"trajectory.{name}", getattr(trajectory, name), steps.size) for name in quantities}

    with _style():
        ax = _axes(ax, (6.0, 3.6))
        for (name, values), colour, marker in zip(columns.items(), _cycle(), MARKERS * 9, strict=False):
            label = QUANTITIES.get(name, name.replace("_", " "))
            if predicted.get(name) == 0:
                label += " (predicted: 0)"
            # A few markers tell lines apart without colour.
            ax.plot(steps, values, color=colour, marker=marker, markevery=(0.0, 0.12), label=label)
            if predicted.get(name, 0) > 0:
                ax.axhline(predicted[name], color=colour, linestyle="--", label=f"predicted: {predicted[name]:.4g}")
        if any(np.any(values > 0) for values in columns.values()):
            ax.set_yscale("log", nonpositive="mask")
        single = QUANTITIES.get(quantities[0], quantities[0]) if len(quantities) == 1 else "value"
        ax.set(xlabel="step", ylabel=single)
        ax.legend()
    return ax


def spectrum(
    values: Float[AnyArray, " r"], predicted: Float[AnyArray, " r"] | None = None, ax: Axes | None = None
) -> Axes:
    """Draw singular values in descending order: found as dots, predicted as open squares around them.

    Args:
        values: (r,) singular values, not negative.
        predicted: (r,) the predicted ones, such as `prediction.singular_values`.
        ax: where to draw; a new figure if not given.

    Raises:
        ValueError: for negative or non-finite values, or another number of predicted ones.
    """
    found = _finite("values", values, 1)
    expected = None if predicted is None else _same_length("predicted", _finite("predicted", predicted, 1), found.size)
    for name, array in (("values", found), ("predicted", expected)):
        if array is not None and np.any(array < 0):
            raise ValueError(f"`{name}` must not be negative, got {np.min(array)}.")
    index = np.arange(1, found.size + 1)
    with _style():
        ax = _axes(ax, (4.2, 3.2))
        if expected is not None:
            ax.plot(
                index,
                np.sort(expected)[::-1],
                linestyle="none",
                marker="s",
                markersize=10,
                markerfacecolor="none",
                markeredgewidth=1.5,
                color=PALETTE["vermillion"],
                label="predicted",
            )
        ax.plot(index, np.sort(found)[::-1], linestyle="none", marker="o", color=PALETTE["blue"], label="found")
        ax.set(xlabel="index", ylabel="singular value")
        if found.size <= 20:
            ax.set_xticks(index)
        ax.set_xlim(0.4, found.size + 0.6)
        top = float(np.max(found if expected is None else np.maximum(found, expected)))
        ax.set_ylim(-0.04 * (top or 1.0), 1.1 * (top or 1.0))
        ax.legend()
    return ax


def predicted_against_found(comparison: Comparison, ax: Axes | None = None) -> Axes:
    """Draw a comparison: each relative error as a dot, coloured by verdict, and its tolerance as a bar.

    A dot inside its bar agrees. An error of exactly zero is a triangle at the left edge, an infinite one at
    the right edge. A tolerance that is infinite, and decides nothing, is a bar across.

    Args:
        comparison: from `ufm.compare`.
        ax: where to draw; a new figure if not given.

    Raises:
        ValueError: if there is no row to draw.
    """
    rows = getattr(comparison, "rows", ())
    if not rows:
        raise ValueError(f"`comparison` must be the result of ufm.compare, with at least one row; got {comparison!r}.")
    errors = np.array([row.error for row in rows], np.float64)
    tolerances = np.array([row.tolerance for row in rows], np.float64)
    positive = np.concatenate([errors, tolerances])
    positive = positive[np.isfinite(positive) & (positive > 0)]
    low, high = (float(np.min(positive)), float(np.max(positive))) if positive.size else (1e-16, 1.0)
    left, right = 10.0 ** (np.floor(np.log10(low)) - 1), 10.0 ** (np.ceil(np.log10(high)) + 1)
    heights = np.arange(len(rows))

    with _style():
        ax = _axes(ax, (6.4, 1.3 + 0.28 * len(rows)))
        ax.set_xscale("log")
        bars = np.where(np.isnan(tolerances), 0, np.minimum(tolerances, right))
        ax.barh(heights, np.maximum(bars - left, 0), left=left, height=0.6, color="0.87", label="tolerance")
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
    """Draw an objective and its lower bound along iterations: the optimal value is in the band between.

    Args:
        steps: (T,) iteration numbers, increasing.
        objective: (T,) objective at each.
        lower_bound: (T,) lower bound at each; minus infinity where nothing is known.
        ax: where to draw; a new figure if not given.
        gap_ax: a second place, for the gap between the two on a log scale, where their meeting can be
            followed to rounding.

    Raises:
        ValueError: for arrays of different lengths, or a lower bound above the objective.
    """
    steps = _finite("steps", steps, 1)
    values = _same_length("objective", objective, steps.size)
    bounds = _same_length("lower_bound", lower_bound, steps.size)
    if np.any(np.diff(steps) <= 0):
        raise ValueError("`steps` must increase.")
    if np.any(np.isnan(values)) or np.any(np.isnan(bounds)):
        raise ValueError("`objective` and `lower_bound` must not contain NaN.")
    excess = bounds - values
    if np.any(excess > 1e-9 * np.maximum(np.abs(bounds), np.finfo(float).tiny)):
        worst = int(np.argmax(excess))
        raise ValueError(
            f"`lower_bound` must not exceed `objective`, got {bounds[worst]!r} above {values[worst]!r} "
            f"at step {steps[worst]:g}; the objective comes first."
        )
    with _style():
        ax = _axes(ax, (5.6, 3.4))
        ax.fill_between(
            steps, bounds, values, where=np.isfinite(bounds) & np.isfinite(values), color="0.9", linewidth=0
        )
        ax.plot(steps, values, color=PALETTE["blue"], label="objective")
        ax.plot(steps, bounds, color=PALETTE["vermillion"], linestyle="--", label="lower bound")
        ax.set(xlabel="step", ylabel="objective")
        ax.legend()
        if gap_ax is not None:
            _dress(gap_ax)
            gap = values - bounds
            gap_ax.plot(steps, gap, color=PALETTE["black"])
            if np.any(gap > 0):
                gap_ax.set_yscale("log", nonpositive="mask")
            gap_ax.set(xlabel="step", ylabel="objective \N{MINUS SIGN} lower bound")
    return ax


STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}


def phase_diagram(
    diagram: PhaseDiagram,
    quantity: str = "cosine",
    curves: Mapping[str, tuple[AnyArray, AnyArray]] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a quantity over the grid of a phase diagram, with threshold curves on top.

    Args:
        diagram: from `ufm.phase_diagram`.
        quantity: "cosine" between minority classifiers, "rank", "minority_margin", "majority_margin", or any of its arrays.
        curves: name to (x, y), points that are not finite left out; if not given, where the classifiers of the minority and of the majority come
            to coincide, from the certified prices on the grid.
        ax: where to draw; a new figure if not given.

    Raises:
        ValueError: if `quantity` is not one of the diagram's arrays.
    """
    names = [name for name, value in diagram._asdict().items() if np.ndim(value) == 2]
    if quantity not in names:
        raise ValueError(f"`quantity` must be one of {', '.join(names)}; got {quantity!r}.")
    values = np.ma.masked_invalid(np.asarray(getattr(diagram, quantity), np.float64))
    with _style():
        ax = _axes(ax, (4.6, 3.6))
        label = PHASE_QUANTITIES.get(quantity, quantity.replace("_", " "))
        _heat_map(ax, diagram.x, diagram.y, values, label, "viridis" if quantity != "cosine" else "cividis")
        if curves is None:
            levels = {"minority": diagram.minority_level, "majority": diagram.majority_level}
            _thresholds(ax, diagram.x, diagram.y, levels)
        if np.any(values.mask):
            ax.plot([], [], "s", color=UNDEFINED, label="undefined: they vanish")
        for index, (name, (x, y)) in enumerate((curves or {}).items()):
            x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
            finite = np.isfinite(x) & np.isfinite(y)
            style = ("-", "--", ":", "-.")[index % 4]
            ax.plot(x[finite], y[finite], style, color=("white", "black")[index % 2], linewidth=1.8, label=name)
        ax.set_xlabel(diagram.x_name.replace("_", " "))
        ax.set_ylabel(diagram.y_name.replace("_", " "))
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="lower left", **MAP_LEGEND)
    return ax


MAP_LEGEND: Any = {"frameon": True, "framealpha": 0.8, "facecolor": "0.75", "fontsize": "small"}
OUTLINED: Any = [patheffects.withStroke(linewidth=3.2, foreground="black")]  # white lines, on whatever is below


def _heat_map(ax: Axes, x: Any, y: Any, values: np.ma.MaskedArray, label: str, cmap: str, **options: Any) -> None:
    """Draw values (Y, X) as colours with a bar beside, what is masked as undefined; axes are logarithmic where they span enough."""
    mesh = ax.pcolormesh(x, y, values, cmap=cmap, shading="nearest", rasterized=True, **options)
    ax.set_facecolor(UNDEFINED)
    ax.figure.colorbar(mesh, ax=ax).set_label(label)
    for axis, values_of in (("x", np.asarray(x)), ("y", np.asarray(y))):
        if _spans(values_of):
            getattr(ax, f"set_{axis}scale")("log")
    ax.set_xlim(np.min(x), np.max(x))
    ax.set_ylim(np.min(y), np.max(y))


def _thresholds(ax: Axes, x: Any, y: Any, levels: Mapping[str, Any]) -> None:
    """Draw where each group's level (Y, X) is zero: there its classifiers come to coincide."""
    for index, (group, level) in enumerate(levels.items()):
        style, finite = ("-", "--", ":", "-.")[index % 4], level[np.isfinite(level)]
        if finite.size and finite.min() < 0 < finite.max():
            lines = ax.contour(x, y, level, [0.0], colors="white", linewidths=1.8, linestyles=style)
            lines.set(path_effects=OUTLINED)
            label = f"{group} classifiers coincide"
            ax.plot([], [], style, color="white", linewidth=1.8, path_effects=OUTLINED, label=label)


def _spans(values: np.ndarray) -> bool:
    """Whether values are for a logarithmic axis."""
    return bool(np.all(values > 0) and values.max() > 20 * values.min())


def layerwise(result: Layerwise, ax: Axes | None = None) -> Axes:
    """Draw how far every layer of a deep model is from neural collapse: distances of class means, misalignment of weights, and ranks.

    Solid lines are of the class means, from the features to the logits: distances of their normalised Gram matrix to the simplex ETF and to the
    orthogonal frame. Open markers are of the weights that multiply them: one less the cosine of NC3, and one less that to the matrix before.
    Below each layer's name is the rank of its class means. NaN leaves a gap.

    Args:
        result: from `ufm.layerwise`.
        ax: where to draw; a new figure if not given.
    """
    layers = result.layers
    x = np.arange(len(layers))
    means: Any = (
        ("class means to ETF", [layer.collapse.nc2_features.etf_distance for layer in layers], "blue", "o"),
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
        ("weights to matrix before, 1 - cos", [1 - W.adjacent_alignment for _, W in weighted], "purple", "^"),
    )
    with _style():
        ax = _axes(ax, (max(4.5, 0.9 * len(layers)), 3.2))
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
            x, [f"{name}\nrank {layer.rank}" for name, layer in zip(names, layers, strict=True)], fontsize="small"
        )
        ax.set_xlim(-0.4, len(layers) - 0.6)
        ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]), auto=None)
        ax.set_xlabel("layer")
        ax.set_ylabel("distance, zero where collapsed")
        ax.legend(fontsize="small")
        _dress(ax)
    return ax


def mitigation_curves(found: Mitigations, quantity: str = "etf_distance", ax: Axes | None = None) -> Axes:
    """Draw a quantity of every mitigation against its strength; thin where minority classifiers coincide.

    Args:
        found: from `ufm.mitigations`.
        quantity: "etf_distance", "cosine", "norm_ratio" or "minority_margin".
        ax: where to draw; a new figure if not given.

    Raises:
        ValueError: if `quantity` is none of these.
    """
    if quantity not in MITIGATION_QUANTITIES:
        raise ValueError(f"`quantity` must be one of {', '.join(MITIGATION_QUANTITIES)}; got {quantity!r}.")
    with _style():
        ax = _axes(ax, (5.0, 3.6))
        for index, row in enumerate(found.rows):
            color = _cycle()[index % len(_cycle())]
            values = np.asarray(getattr(row, quantity), np.float64)
            ax.plot(row.strength, values, color=color, linewidth=0.8)
            free = np.where(row.collapsed, np.nan, values)
            ax.plot(
                row.strength,
                free,
                color=color,
                linewidth=2,
                label=row.name,
                marker=MARKERS[index % len(MARKERS)],
                markevery=8,
                markersize=4,
            )
        if quantity == "norm_ratio":
            ax.set_yscale("log")
        ax.set_xlabel("strength")
        ax.set_ylabel(MITIGATION_QUANTITIES[quantity])
        _dress(ax)
        ax.legend(fontsize="small")
    return ax


def census(found: Census, ax: Axes | None = None) -> Axes:
    """Draw how many runs of a census ended at which objective: minima filled, with those that did not converge open, the certified bound dashed.

    Beside a minimum are the rank of its logits and the name of the construction that it equals.

    Args:
        found: from `ufm.landscape.census`.
        ax: where to draw; a new figure if not given.

    Raises:
        ValueError: if no run ended anywhere.
    """
    if not getattr(found, "points", ()):
        raise ValueError("`found` must be the result of ufm.landscape.census, with at least one run that ended.")
    certificate = found.certificate
    with _style():
        ax = _axes(ax, (6.0, 3.6))
        ax.set_yscale("log")
        for settled, colour, marker, label in (
            (False, "vermillion", "D", "not converged"),
            (True, "blue", "o", "minima"),
        ):
            points = [point for point in found.points if (point.settled if settled else point.unsettled)]
            if points:
                values = np.array([point.value for point in points])
                near = np.array([0 if settled else point.unsettled for point in points])
                runs = near + np.array([point.frequency for point in points])
                ax.vlines(values, MOST_RARE, runs, color=PALETTE[colour], linewidth=1.6 if settled else 0.6)
                style: Any = {"markerfacecolor": PALETTE[colour] if settled else "white", "color": PALETTE[colour]}
                ax.plot(values, runs, linestyle="none", marker=marker, label=label, zorder=3, **style)
        for point in found.minima[:MOST_LINES]:
            text = f"rank {point.rank}" + (f", {point.name}" if point.name else "")
            place = point.value, point.frequency
            ax.annotate(text, place, (5, 4), textcoords="offset points", fontsize="small", annotation_clip=False)
        if certificate is not None and np.isfinite(certificate.lower_bound):
            ax.axvline(certificate.lower_bound, color=PALETTE["green"], linestyle="--", label="lower bound")
        ax.set_ylim(MOST_RARE, 2.5 * max(point.frequency + point.unsettled for point in found.points))
        ax.set(xlabel="objective", ylabel="runs")
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return ax


MOST_RARE = 0.7  # where counts begin, so that one run is seen


def path(found: Path, ax: Axes | None = None) -> Axes:
    """Draw the objective along a path between two points, and along the straight line between them.

    Args:
        found: from `ufm.landscape.path`.
        ax: where to draw; a new figure if not given.

    Raises:
        ValueError: if `found` is not a path, or its objective not finite.
    """
    if not isinstance(found, Path):
        raise ValueError(f"`found` must be the result of ufm.landscape.path, got {type(found).__name__}.")
    values, straight = _finite("objective", found.objective, 1), _finite("straight", found.straight, 1)
    top = int(np.argmax(values))
    higher = max(values[0], values[-1])
    with _style():
        ax = _axes(ax, (5.2, 3.4))
        line = np.linspace(0, 1, straight.size)
        ax.plot(
            line, straight, "--", color=PALETTE["orange"], label=f"straight line, barrier {found.straight_barrier:.3g}"
        )
        label = "path found, " + ("no barrier" if found.connected else f"barrier at most {found.barrier:.3g}")
        ax.plot(found.position, values, color=PALETTE["blue"], label=label)
        ax.plot([0, 1], values[[0, -1]], linestyle="none", marker="o", color=PALETTE["black"], clip_on=False, zorder=3)
        if not found.connected:
            ax.axhline(higher, color="0.5", linewidth=0.8, linestyle=":")
            ax.plot(
                found.position[top],
                values[top],
                marker="D",
                color=PALETTE["vermillion"],
                label="highest point",
                linestyle="none",
            )
        ax.set(xlabel="length along the path", ylabel="objective", xlim=(0, 1))
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1))
    return ax


def sweep(dataset: Any, quantity: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw a quantity of a sweep over its axes: lines over one axis, a heat map over two, lines for every value of a short second one.

    Points that are neither certified nor, in a model without a bound, converged are crossed or hatched; those that are not computed yet are
    dark grey. Over two axes the curves on which classifiers of a group come to coincide are drawn where the sweep has them. What a theorem
    predicts is drawn open, where the sweep has it. Axes of one value are named in the title.

    Args:
        dataset: from `ufm.sweep` or `ufm.open_sweep`, or a selection of it, of one or two axes.
        quantity: one of its quantities, such as "objective"; of one group or pair of groups by its index, such as "margin[1]" or
            "weight_cosine[1,1]". Without an index, all of them over one axis, and that of the smallest classes over two. If not given, the
            cosine between classifiers; over two axes, within the group of the smallest classes, or their margin where they are single classes.
        ax: where to draw; a new figure if not given.

    Raises:
        ValueError: for what is no sweep, a quantity that it does not have, no axis or more than two.
    """
    dims = _sweep_axes(dataset)
    if len(dims) not in (1, 2):
        listed = ", ".join(f"{name} ({dataset.sizes[name]})" for name in dims)
        few = f"`dataset` has {len(dims)} axes of more than one value, {listed}, and 1 or 2 can be drawn"
        first = dims[0] if dims else ""
        raise ValueError(
            f"{few}; select values of the others, as in dataset.isel({first}=0) or --select {first}=VALUE."
            if dims
            else "`dataset` is a single point, and 1 or 2 axes can be drawn; leave an axis of several values in it."
        )
    dataset = dataset.squeeze([name for name in dataset["status"].dims if name not in dims])
    axes = [_SweepAxis(dataset, name) for name in dims]
    # The longer axis across, unless both are long.
    if len(axes) == 2 and (axes[1].long or not axes[0].long) and not (axes[0].long and axes[1].long):
        axes.reverse()
    across = axes[0]
    dataset = dataset.transpose(*(axis.name for axis in reversed(axes)), ...)
    dataset = dataset.isel({axis.name: axis.order for axis in axes})
    status = np.asarray(dataset["status"].values)
    missing = status == -1
    poor = ~missing & (status != Status.CONVERGED)
    names = _group_names(dataset)
    with _style():
        if len(axes) == 1:
            ax = _sweep_lines(dataset, quantity, across, names, poor, missing, ax)
        else:
            label, values = _one_of_many(dataset, quantity, names)
            values = np.where(missing, np.nan, values)
            if axes[1].long:
                ax = _sweep_map(dataset, label, values, (across, axes[1]), names, poor, missing, ax)
            else:
                ax = _axes(ax, (6.4, 3.6))
                for row, tick in enumerate(axes[1].ticks):
                    _swept_line(ax, across, values[row], row, f"{axes[1].text} = {tick}" if axes[1].numeric else tick)
                _marked(ax, across, values, poor, missing)
                _finish_lines(ax, across, label, values)
        fixed = [
            f"{_text_of(name)} = {_tick(coordinate.values[()])}"
            for name, coordinate in dataset.coords.items()
            if coordinate.ndim == 0 and name not in ("group", "other_group")
        ]
        if fixed:
            legend = ax.get_legend() if len(axes) == 2 and axes[1].long else None  # above a heat map
            rows = 0 if legend is None else len(legend.get_texts())
            ax.set_title(", ".join(fixed), pad=6 + (14 * rows + 8 if rows else 0))
    return ax


class _SweepAxis:
    """An axis of a sweep: where its points are drawn, and what they are called.

    places: numbers in increasing order, those of the coordinate, or 0, 1, 2 for what are no numbers. order: which entry of the dataset is
    at each place. ticks: names of the entries, in that order. joined: whether a line between neighbours means something.
    """

    def __init__(self, dataset: Any, name: str):
        length = dataset.sizes[name]
        self.name = name
        stated = dict(dataset.coords)
        coordinate = stated.get(name)
        along = [key for key, each in stated.items() if each.dims == (name,) and each.dtype.kind in "iuf"]
        # The points of a list have several coordinates, and no order of their own.
        if coordinate is None and along:
            name = next((key for key in along if np.all(np.diff(dataset[key].values) > 0)), name)
            coordinate = stated.get(name)
        values = np.arange(length) if coordinate is None else np.asarray(coordinate.values)
        self.numeric = values.dtype.kind in "iuf" and name != "class_counts"
        self.joined = self.numeric and (coordinate is not None)
        self.order = np.argsort(values, kind="stable") if self.numeric else np.arange(length)
        values = values[self.order]
        self.places = values.astype(np.float64) if self.numeric else np.arange(length, dtype=np.float64)
        self.ticks = [_tick(value) for value in values]
        self.text = _text_of(name)
        self.long = length > MOST_LINES
        self.logarithmic = self.numeric and _spans(self.places)

    def dress(self, ax: Axes, axis: str) -> None:
        """Give one of the axes its label, its scale and its ticks."""
        getattr(ax, f"set_{axis}label")(self.text)
        if self.logarithmic:
            getattr(ax, f"set_{axis}scale")("log")
        if not self.numeric:
            every = max(1, -(-len(self.ticks) // 20))
            crowded = axis == "x" and sum(map(len, self.ticks[::every])) > 40
            turned: Any = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
            getattr(ax, f"set_{axis}ticks")(self.places[::every], self.ticks[::every], **turned)


def _sweep_axes(dataset: Any) -> list[str]:
    """Return the names of the axes of a sweep that have more than one value."""
    try:
        return [name for name in dataset["status"].dims if dataset.sizes[name] > 1]
    except (KeyError, TypeError, AttributeError, IndexError):
        raise ValueError(
            f"`dataset` must be of ufm.sweep or ufm.open_sweep, got {type(dataset).__name__} without its quantities."
        ) from None


def _quantity(dataset: Any, quantity: str) -> tuple[str, tuple[int, ...]]:
    """Return the name and the index of a quantity such as "margin[1]"."""
    parts = re.fullmatch(r"(\w+)(?:\[\s*(\d+)\s*(?:,\s*(\d+)\s*)?\])?", str(quantity))
    name = parts[1] if parts else ""
    if parts is None or name not in dataset.data_vars:
        raise ValueError(
            f"`quantity` must be one of {', '.join(dataset.data_vars)}, or of one group, such as margin[1]; got {quantity!r}."
        )
    index = tuple(int(part) for part in parts.groups()[1:] if part is not None)
    groups = _group_dims(dataset, name)
    lengths = tuple(dataset.sizes[dim] for dim in groups)
    if index and (len(index) != len(groups) or any(i >= length for i, length in zip(index, lengths, strict=True))):
        has = f"{len(groups)} numbers below {lengths[0]}" if groups else "no index"
        raise ValueError(f"`quantity` {quantity!r} has an index that does not fit: {name} takes {has}.")
    return name, index


def _group_dims(dataset: Any, name: str) -> tuple[str, ...]:
    return tuple(dim for dim in dataset[name].dims if dim in ("group", "other_group"))


def _group_names(dataset: Any) -> list[str]:
    """Return what groups are called; those of the largest and of the smallest classes where there are two."""
    counts = _counts(dataset)
    if len(counts) == 2 and counts[0] != counts[1] and "class_counts" not in dataset.coords:
        return ["majority", "minority"] if counts[0] > counts[1] else ["minority", "majority"]
    return [f"group {group}" for group in range(dataset.sizes.get("group", len(counts)))]


def _counts(dataset: Any) -> list[float]:
    """Return the samples per class of each group as the problem was stated."""
    try:
        return list(json.loads(dataset.attrs["problem"])["counts"])
    except (KeyError, ValueError, AttributeError):
        return []


def _smallest(dataset: Any) -> int:
    """Return the group of the smallest classes, the last one where several are."""
    counts = np.asarray(_counts(dataset))
    groups = dataset.sizes.get("group", 1)
    return len(counts) - 1 - int(np.argmin(counts[::-1])) if len(counts) == groups else groups - 1


def _entry_label(name: str, index: tuple[int, ...], names: Sequence[str]) -> str:
    label = SWEPT.get(name, name.replace("_", " "))
    return f"{label}\n{_entry(index, names)}" if index else label


def _entry(index: tuple[int, ...], names: Sequence[str]) -> str:
    """Return which group or pair of groups an index is, in words."""
    listed = [names[i] if i < len(names) else f"group {i}" for i in index]
    if len(listed) == 2:
        return f"within {listed[0]}" if index[0] == index[1] else f"{listed[0]} to {listed[1]}"
    return listed[0]


def _one_of_many(dataset: Any, quantity: str | None, names: Sequence[str]) -> tuple[str, np.ndarray]:
    """Return the label and the values of a quantity of one number per point, by choice of a group where it has several."""
    group = _smallest(dataset)
    if quantity is None:
        within = {"weight_cosine": (group, group), "weight_cosine_within": (group,)}
        chosen = next((name for name in within if name in dataset.data_vars), None)
        if chosen is not None and np.any(np.isfinite(_entries(dataset[chosen].values, within[chosen]))):
            quantity = chosen
        else:
            margins = "margin" in dataset.data_vars and np.any(np.isfinite(dataset["margin"].values[..., group]))
            gaps = np.any(np.isfinite(dataset["relative_gap"].values))
            quantity = "margin" if margins else "relative_gap" if gaps else "objective"
    name, index = _quantity(dataset, quantity)
    index = index or (group,) * len(_group_dims(dataset, name))
    return _entry_label(name, index, names), _entries(dataset[name].values, index)


def _entries(values: Any, index: tuple[int, ...]) -> np.ndarray:
    """Return an entry of the last dimensions at every point."""
    where: Any = (..., *index)
    return np.asarray(values, np.float64)[where]


def _sweep_map(
    dataset: Any,
    label: str,
    values: np.ndarray,
    axes: tuple[_SweepAxis, _SweepAxis],
    names: Sequence[str],
    poor: np.ndarray,
    missing: np.ndarray,
    ax: Axes | None,
) -> Axes:
    ax = _axes(ax, (5.2, 4.0))
    x, y = (axis.places for axis in axes)
    ax.grid(False)
    options: dict[str, Any] = {}
    if label.startswith(SWEPT["relative_gap"]):
        values = np.maximum(values, 1e-17)
        options["norm"] = LogNorm()
    _heat_map(
        ax, x, y, np.ma.masked_invalid(values), label, "cividis" if label.startswith("cosine") else "viridis", **options
    )
    if np.any(missing):
        cover = np.ma.masked_where(~missing, np.ones(missing.shape))
        ax.pcolormesh(x, y, cover, cmap=ListedColormap([MISSING]), shading="nearest", rasterized=True)
        ax.plot([], [], "s", color=MISSING, markeredgecolor="black", markeredgewidth=0.5, label="not computed yet")
    if np.any(np.isnan(values) & ~missing):
        why = ": a vector vanishes" if label.startswith("cosine") else ""
        ax.plot([], [], "s", color=UNDEFINED, markeredgecolor="black", markeredgewidth=0.5, label=f"undefined{why}")
    if "coincidence_level" in dataset and axes[0].numeric and axes[1].numeric:
        levels = np.asarray(dataset["coincidence_level"].values)
        order = (
            np.argsort(_counts(dataset), kind="stable") if len(_counts(dataset)) == len(names) else range(len(names))
        )
        _thresholds(ax, x, y, {names[group]: levels[..., group] for group in order})
    if np.any(poor):
        _poor_points(ax, x, y, poor)
    axes[0].dress(ax, "x")
    axes[1].dress(ax, "y")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1.01), borderaxespad=0.2, **MAP_LEGEND)
    return ax


def _poor_points(ax: Axes, x: np.ndarray, y: np.ndarray, poor: np.ndarray) -> None:
    """Mark points that are not certified, one by one while they are few."""
    red = PALETTE["vermillion"]
    if np.sum(poor) <= MOST_CROSSES:
        rows, columns = np.nonzero(poor)
        ax.plot(x[columns], y[rows], "x", color=red, markersize=4, markeredgewidth=1.2, label="not certified")
        return
    area = np.ma.masked_where(~poor, np.ones(poor.shape))
    options: dict[str, Any] = {"facecolor": "none", "edgecolor": red, "linewidth": 0, "hatch": "xxxx"}
    with mpl.rc_context({"hatch.linewidth": 0.8}):
        ax.pcolor(x, y, area, shading="nearest", **options)
    ax.contour(x, y, poor.astype(float), [0.5], colors=red, linewidths=0.8)
    ax.fill_between([], [], [], label="not certified", **options)


def _sweep_lines(
    dataset: Any,
    quantity: str | None,
    across: _SweepAxis,
    names: Sequence[str],
    poor: np.ndarray,
    missing: np.ndarray,
    ax: Axes | None,
) -> Axes:
    """Draw a line per group or pair of groups over one axis, and what is predicted open."""
    if quantity is None:
        cosines = [name for name in ("weight_cosine", "weight_cosine_within") if name in dataset.data_vars]
        quantity = next((name for name in cosines if np.any(np.isfinite(dataset[name].values))), "objective")
    name, index = _quantity(dataset, quantity)
    dims = _group_dims(dataset, name)
    values = np.asarray(dataset[name].values, np.float64)
    values = np.where(missing.reshape(-1, *(1 for _ in dims)), np.nan, values)
    every = [index] if index else list(np.ndindex(*(dataset.sizes[dim] for dim in dims)))
    entries = [entry for entry in every if len(entry) < 2 or entry[0] <= entry[1] or index]
    entries = [entry for entry in entries if np.any(np.isfinite(_entries(values, entry)))] or entries[:1]
    if len(entries) > MOST_LINES and len(dims) == 2:
        raise ValueError(
            f"`quantity` {name} has {len(entries)} pairs of groups, and {MOST_LINES} lines can be told apart; "
            f"name one, such as {name}[0,{entries[-1][1]}]."
        )
    predicted = dataset.data_vars.get(f"predicted_{name}")
    if predicted is not None and not np.any(np.isfinite(predicted.values) & (np.asarray(predicted.values) != -1)):
        predicted = None
    ax = _axes(ax, (6.4, 3.6))
    drawn = np.stack([_entries(values, entry) for entry in entries], axis=1)
    if len(entries) > MOST_LINES:
        shades = mpl.colormaps["viridis"](np.linspace(0, 0.95, len(entries)))
        for column, shade in enumerate(shades):
            ends = column in (0, len(entries) - 1)
            ax.plot(
                across.places,
                drawn[:, column],
                color=shade,
                linewidth=1,
                label=_entry(entries[column], names) if ends else None,
            )
    else:
        for row, entry in enumerate(entries):
            label = _entry(entry, names) if entry else None
            if predicted is None:
                _swept_line(ax, across, drawn[:, row], row, label)
                continue
            expected = np.where(missing, np.nan, _entries(predicted.values, entry))
            if predicted.dtype.kind == "i":
                expected[expected < 0] = np.nan  # a rank that is not predicted
            _found_and_predicted(ax, across, drawn[:, row], expected, row, label or name.replace("_", " "))
    _marked(ax, across, drawn.T, np.broadcast_to(poor, drawn.T.shape), missing)
    label = _entry_label(name, () if len(entries) > 1 else entries[0], names)
    _finish_lines(ax, across, label, drawn)
    if dataset[name].dtype.kind == "i":
        ax.yaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
    if predicted is not None and len(entries) <= MOST_LINES:
        ax.legend(title="open markers: predicted", loc="center left", bbox_to_anchor=(1.01, 0.5))
    return ax


def _found_and_predicted(
    ax: Axes, across: _SweepAxis, found: np.ndarray, predicted: np.ndarray, row: int, label: str
) -> None:
    """Draw what was found as a line, or dots where there is none to draw, and what is predicted as open markers around it."""
    spread = np.unique(np.linspace(0, len(across.places) - 1, 20).astype(int))
    hollow: Any = {"color": _cycle()[row], "marker": MARKERS[row % len(MARKERS)], "markersize": 7}
    hollow |= {"markerfacecolor": "none", "markeredgewidth": 1.2}
    joined = "-" if across.joined else "none"
    ax.plot(across.places, found, linestyle=joined, marker=None if across.joined else ".", color=_cycle()[row])
    ax.plot(across.places[spread], predicted[spread], linestyle="none", **hollow)
    ax.plot([], [], linestyle=joined, label=label, **hollow)


def _swept_line(ax: Axes, across: _SweepAxis, values: np.ndarray, row: int, label: str | None) -> None:
    sparse = len(across.places) <= 20 or not across.joined
    ax.plot(
        across.places,
        values,
        color=_cycle()[row],
        linestyle=("-", "--")[row // 7 % 2] if across.joined else "none",
        marker=MARKERS[row % len(MARKERS)],
        markersize=4,
        markevery=None if sparse else (0.02 * (row % 4), 0.12),
        label=label,
    )


def _marked(ax: Axes, across: _SweepAxis, values: np.ndarray, poor: np.ndarray, missing: np.ndarray) -> None:
    """Cross the points of lines that are not certified, and shade where points are not computed yet."""
    rows, columns = np.nonzero(poor & np.isfinite(values))
    if rows.size:
        ax.plot(
            across.places[columns],
            values[rows, columns],
            linestyle="none",
            marker="x",
            markersize=6,
            markeredgewidth=1.4,
            color=PALETTE["black"],
            label="not certified",
            zorder=3,
        )
    gone = np.any(np.atleast_2d(missing), axis=0)
    if np.any(gone):
        places = np.log(across.places) if across.logarithmic else across.places
        middles = (places[1:] + places[:-1]) / 2
        edges = np.concatenate([places[:1], middles, places[-1:]])
        edges = np.exp(edges) if across.logarithmic else edges
        text = (
            "not computed yet"
            if np.array_equal(gone, np.all(np.atleast_2d(missing), axis=0))
            else "not all computed yet"
        )
        starts = np.flatnonzero(np.diff(np.concatenate([[0], gone.astype(int)])) == 1)
        stops = np.flatnonzero(np.diff(np.concatenate([gone.astype(int), [0]])) == -1)
        for start, stop in zip(starts, stops, strict=True):
            label = text if start == starts[0] else None
            ax.axvspan(edges[start], edges[stop + 1], color=MISSING, alpha=0.5, linewidth=0, zorder=0, label=label)


def _finish_lines(ax: Axes, across: _SweepAxis, label: str, values: np.ndarray) -> None:
    across.dress(ax, "x")
    finite = values[np.isfinite(values)]
    wide = finite.size and not label.startswith("cosine") and _spans(finite)
    if finite.size and (label.startswith(SWEPT["relative_gap"]) or wide) and np.any(finite > 0):
        ax.set_yscale("log", nonpositive="mask")
    ax.set_ylabel(label)
    # All of the axis, also where nothing is drawn because it is not defined.
    ends = np.array([np.min(across.places), np.max(across.places)])
    ends = np.log(ends) if across.logarithmic else ends
    ends = ends + np.array([-1, 1]) * (0.03 * (ends[1] - ends[0]) or 0.5)
    ax.set_xlim(*(np.exp(ends) if across.logarithmic else ends))
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


def _text_of(name: str) -> str:
    return SWEPT.get(name, name.replace("_", " ").replace("loss.", "loss's "))


def _tick(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (float, np.floating)) else str(value)


@contextmanager
def _style() -> Iterator[None]:
    with mpl.rc_context(STYLE):
        yield


def _axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """Return the axes to draw on, a new figure's if none are given."""
    if ax is None:
        _, ax = plt.subplots(figsize=size, layout="constrained")
    elif not isinstance(ax, Axes):
        raise ValueError(f"`ax` must be matplotlib axes, got {type(ax).__name__}.")
    _dress(ax)
    return ax


def _dress(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, color="0.92", linewidth=0.8)
    ax.set_axisbelow(True)


def _cycle() -> list[str]:
    return list(PALETTE.values()) * 9


def _finite(name: str, value: Any, ndim: int) -> np.ndarray:
    array = np.asarray(value, np.float64)
    if array.ndim != ndim or array.size == 0:
        raise ValueError(f"`{name}` must be an array of {ndim} dimension(s), not empty; got shape {array.shape}.")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"`{name}` must be finite; {int(np.sum(~np.isfinite(array)))} of its entries are not.")
    return array


def _same_length(name: str, value: Any, length: int) -> np.ndarray:
    array = np.asarray(value, np.float64)
    if array.shape != (length,):
        raise ValueError(f"`{name}` must have shape ({length},), got {array.shape}.")
    return array
