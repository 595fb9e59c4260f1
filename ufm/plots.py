"""Pictures of results: each function draws arrays or results on an `ax`, and returns it.

Nothing is solved here and nothing is shown: without an `ax` a new figure is made, which belongs to the caller
(`ax.figure.savefig(...)`). What is drawn is what was given, without smoothing or resampling.

Colours are those of Okabe and Ito (Color Universal Design, 2008), which stay apart for colour-blind readers,
and every distinction of colour is one of marker, line or place as well. What was found is drawn filled or
solid, what a theorem predicts open or dashed.

Needs the extra `plot`: pip install "ufm[plot]".
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ufm import geometry
from ufm.comparison import AGREES, DIFFERS, UNDECIDED, Comparison
from ufm.geometry import AnyArray
from ufm.mitigation import Mitigations
from ufm.phase import PhaseDiagram
from ufm.solution import Trajectory

try:
    import matplotlib as mpl
    from matplotlib import pyplot as plt
    from matplotlib.axes import Axes
except ImportError as error:
    raise ImportError("`ufm.plots` needs matplotlib, the extra `plot`: pip install 'ufm[plot]'.") from error

__all__ = [
    "PALETTE",
    "certificate_convergence",
    "cosine_matrix",
    "mitigation_curves",
    "phase_diagram",
    "predicted_against_found",
    "spectrum",
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
        mesh = ax.pcolormesh(
            diagram.x,
            diagram.y,
            values,
            cmap="viridis" if quantity != "cosine" else "cividis",
            shading="nearest",
            rasterized=True,
        )
        ax.set_facecolor("0.9")
        bar = ax.figure.colorbar(mesh, ax=ax)
        bar.set_label(PHASE_QUANTITIES.get(quantity, quantity.replace("_", " ")))
        if curves is None:
            for group, level, style in (
                ("minority", diagram.minority_level, "-"),
                ("majority", diagram.majority_level, "--"),
            ):
                if np.nanmin(level) < 0 < np.nanmax(level):
                    ax.contour(diagram.x, diagram.y, level, [0.0], colors="white", linewidths=1.8, linestyles=style)
                    ax.plot([], [], style, color="white", linewidth=1.8, label=f"{group} classifiers coincide")
        if np.any(values.mask):
            ax.plot([], [], "s", color="0.9", label="undefined: they vanish")
        for index, (name, (x, y)) in enumerate((curves or {}).items()):
            x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
            finite = np.isfinite(x) & np.isfinite(y)
            style = ("-", "--", ":", "-.")[index % 4]
            ax.plot(x[finite], y[finite], style, color=("white", "black")[index % 2], linewidth=1.8, label=name)
        for axis, values_of in (("x", diagram.x), ("y", diagram.y)):
            if np.all(values_of > 0) and values_of.max() > 20 * values_of.min():
                getattr(ax, f"set_{axis}scale")("log")
        ax.set_xlim(diagram.x.min(), diagram.x.max())
        ax.set_ylim(diagram.y.min(), diagram.y.max())
        ax.set_xlabel(diagram.x_name.replace("_", " "))
        ax.set_ylabel(diagram.y_name.replace("_", " "))
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="lower left", frameon=True, framealpha=0.8, facecolor="0.75", fontsize="small")
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
