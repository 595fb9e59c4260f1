"""Pictures of flows in time: measures, singular values, margins, and condensation of weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from ufm._support import ArgumentError, check_instance, check_one_of, checked_key
from ufm.dynamics import ANGLE, Condensation, DirectionCheck, Trajectory
from ufm.geometry import AnyArray
from ufm.plots.solutions import QUANTITIES
from ufm.plots.style import (
    MARKERS,
    PALETTE,
    axes_for,
    cycle,
    draw_marks,
    draw_series,
    house_style,
    ink,
    same_length,
)

__all__ = [
    "condensation_cosines",
    "margin_phase",
    "measures_in_time",
    "singular_values_in_time",
    "weight_directions",
]

SERIES = {
    **QUANTITIES,
    "gradient_norm": "gradient norm",
    "data_term": "loss without penalties",
    "norm": "norm of weights and features",
    "margin": "smallest margin",
    "balance": "balance of the first layer",
}
# Names in titles; "tanh" is its own name.
ACTIVATIONS = {"xtanh": r"$x\,\tanh\,x$", "x2tanh": r"$x^2\,\tanh\,x$", "relu": "ReLU"}
MOST_MODES = 12  # lines of singular values that a reader can tell apart


def measures_in_time(
    trajectory: Trajectory,
    quantities: Sequence[str] = ("objective", "nc1", "nc2_features", "nc2_weights", "nc3"),
    predicted: Mapping[str, float] | None = None,
    ax: Axes | None = None,
    *,
    zero: float = 0.0,
) -> Axes:
    """Draw measures along a path, with both axes logarithmic.

    The start, at time zero, is left out.

    Args:
        trajectory: From `ufm.dynamics.gradient_flow` or `descent`.
        quantities: Measures with one number per time: "objective", "data_term", "gradient_norm",
            "norm", "margin", "balance", "nc1" and so on.
        predicted: Values to draw as dashed lines, by quantity.
        ax: Where to draw; a new figure if not given.
        zero: Values up to this are left out. It hides measures that are zero except for rounding.

    Raises:
        ValueError: If the trajectory lacks a quantity.
    """
    _checked(trajectory)
    chosen = (quantities,) if isinstance(quantities, str) else tuple(quantities)
    unknown = [
        name
        for name in chosen
        if name not in SERIES or (name == "balance" and not trajectory.balance.size)
    ]
    if unknown or not chosen:
        raise ArgumentError(
            "quantities", f"must be among {', '.join(SERIES)}", unknown[0] if unknown else "none"
        )
    predicted = dict(predicted or {})
    if strange := [name for name in predicted if name not in chosen or not predicted[name] > 0]:
        raise ArgumentError(
            "predicted", "must be positive, for quantities that are drawn", strange[0]
        )
    times = trajectory.times[1:]
    with house_style():
        ax = axes_for(ax, (6.0, 3.6))
        series = {}
        for name in chosen:
            values = _measure(trajectory, name)[1:]
            shown = np.where(values > zero, values, np.nan)
            series[name] = SERIES[name] + " (zero)" * (not np.any(np.isfinite(shown))), shown
        draw_series(ax, times, series, predicted)
        ax.set(
            xscale="log",
            yscale="log",
            xlabel="time",
            ylabel=SERIES[chosen[0]] if len(chosen) == 1 else "value",
        )
        ax.legend()
    return ax


def singular_values_in_time(
    trajectory: Trajectory,
    expected: Float[AnyArray, "T r"] | None = None,
    ax: Axes | None = None,
    *,
    of: str = "logits",
    logarithmic: bool = False,
) -> Axes:
    """Draw singular values along a path as dots, and a closed form as lines beneath.

    Args:
        trajectory: From `ufm.dynamics.gradient_flow` or `descent`.
        expected: Closed form at the same times, shape (T, r), such as
            `ufm.dynamics.logistic_modes`.
        ax: Where to draw; a new figure if not given.
        of: "logits" (rows times the square roots of the counts), "features" (likewise) or "weights"
            (of the last layer).
        logarithmic: Whether time has a logarithmic axis.

    Raises:
        ValueError: If `of` is something else, or `expected` has another length.
    """
    _checked(trajectory)
    sources = {
        "logits": trajectory.logit_singular_values,
        "features": trajectory.feature_singular_values,
        "weights": trajectory.weight_singular_values[-1],
    }
    found, times = checked_key("of", of, sources)[:, :MOST_MODES], trajectory.times
    if expected is not None:
        expected = np.asarray(expected, np.float64)
        if expected.ndim != 2 or len(expected) != times.size:
            raise ArgumentError(
                "expected",
                f"must have one row for each of the {times.size} times, got shape {expected.shape}",
            )
    first = 1 if logarithmic else 0
    with house_style():
        ax = axes_for(ax, (6.0, 3.6))
        if expected is not None:
            for index, mode in enumerate(expected.T):
                label = "closed form" if index == 0 else None
                ax.plot(
                    times[first:],
                    mode[first:],
                    color="0.6",
                    linewidth=3.5,
                    alpha=0.7,
                    label=label,
                    zorder=1,
                )
        every = max(1, times.size // 25)
        for index, colour, marker in zip(range(found.shape[1]), cycle(), MARKERS * 9, strict=False):
            line = "none" if expected is not None else "-"
            ax.plot(
                times[first:],
                found[first:, index],
                color=colour,
                marker=marker,
                linestyle=line,
                markevery=every,
                label=f"{index + 1}",
            )
        if logarithmic:
            ax.set_xscale("log")
        ax.set(xlabel="time", ylabel=f"singular values of the {of}")
        ax.legend(ncols=2 if found.shape[1] > 4 else 1)
    return ax


def margin_phase(checks: Mapping[str, DirectionCheck], ax: Axes | None = None) -> Axes:
    """Draw how flows without penalties approach maximal margins.

    The normalised margin over its limit is drawn against the angle to the hard-margin solution. A
    path runs from the right to the upper left corner, which is the solution. Markers stand at each
    power of ten of time.

    Args:
        checks: Results of `ufm.dynamics.direction_check`, by name.
        ax: Where to draw; a new figure if not given.

    Raises:
        ValueError: If a check has no positive margins, or there is none.
    """
    if not checks or not all(_has_margins(check) for check in checks.values()):
        raise ArgumentError(
            "checks",
            f"must hold results of `direction_check` with positive margins, got {list(checks)}",
        )
    with house_style():
        ax = axes_for(ax, (5.4, 3.8))
        for (name, check), colour, marker in zip(
            checks.items(), cycle(), MARKERS * 9, strict=False
        ):
            decades = np.floor(np.log10(check.times) + 1e-9)
            places = [0, *(np.flatnonzero(np.diff(decades) > 0) + 1).tolist()]
            ratio = check.normalised_margin / check.limit
            ax.plot(
                check.angle,
                ratio,
                color=colour,
                marker=marker,
                markevery=places,
                label=name,
            )
        ax.axhline(1, color=ink(), linestyle="--", linewidth=1, label="largest possible")
        ax.set(
            xscale="log",
            xlabel="angle to the hard-margin logits (rad)",
            ylabel="normalised margin / largest",
        )
        ax.legend(loc="lower left")
    return ax


def condensation_cosines(
    found: Condensation,
    ax: Axes | None = None,
    *,
    when: str = "after",
    most: int = 200,
    colorbar: bool = True,
) -> Axes:
    """Draw the cosines between hidden weights, units in the order of their final direction.

    Args:
        found: From `ufm.dynamics.condensation`.
        ax: Where to draw; a new figure if not given.
        when: "before" or "after".
        most: Number of units to draw: the first of those that grew.
        colorbar: Whether to add a colour bar next to the axes.

    Raises:
        ValueError: If `when` is something else, or fewer than two units grew.
    """
    check_one_of("when", when, ("before", "after"))
    chosen = np.flatnonzero(found.grown)[:most]
    if chosen.size < 2:
        raise ArgumentError("found", f"must have at least 2 units that grew, got {chosen.size}")
    final = found.final[chosen]
    order = chosen[np.argsort(np.arctan2(final[:, 1], final[:, 0]), kind="stable")]
    weights = (found.initial if when == "before" else found.final)[order]
    unit = weights / np.linalg.norm(weights, axis=1, keepdims=True)
    with house_style():
        ax = axes_for(ax, (4.0, 3.4))
        image = ax.imshow(unit @ unit.T, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        ax.set(title=f"{_name(found)}, {when}", xlabel="hidden unit", ylabel="hidden unit")
        ax.grid(False)
        if colorbar:
            bar = ax.figure.colorbar(image, ax=ax, ticks=[-1, 0, 1], label="cosine", shrink=0.85)
            bar.outline.set_visible(False)
    return ax


def weight_directions(found: Condensation, ax: Axes | None = None) -> Axes:
    """Draw hidden weights of two dimensions as points in the plane.

    Predicted directions are rays. The distance from the rim is the logarithm of the growth.

    Args:
        found: From `ufm.dynamics.condensation`, for inputs of two dimensions.
        ax: Where to draw; a new figure if not given.

    Raises:
        ValueError: If the weights have other dimensions.
    """
    if found.final.shape[1] != 2:
        raise ArgumentError(
            "found", f"must have weights of 2 dimensions to draw, got {found.final.shape[1]}"
        )
    radius, unit, begun = _growth_and_directions(found)
    reach = float(np.max(radius)) * 1.15 + 0.1
    with house_style():
        ax = axes_for(ax, (3.8, 3.8))
        rays = np.zeros((0, 2)) if found.expected is None else found.expected
        for index, ray in enumerate(rays):
            ax.plot(
                [0, reach * ray[0]],
                [0, reach * ray[1]],
                "--",
                color=PALETTE["vermillion"],
                label="predicted" if index == 0 else None,
                zorder=1,
            )
        rim = 0.12 * reach
        after = (rim + radius * (1 - 0.12))[:, None] * unit
        draw_marks(ax, *(rim * begun.T), color="0.6", marker=".", markersize=3, label="before")
        draw_marks(ax, *after.T, color=PALETTE["blue"], markersize=4, alpha=0.6, label="after")
        ax.set(
            xlim=(-reach, reach),
            ylim=(-reach, reach),
            aspect="equal",
            xticks=[],
            yticks=[],
            xlabel="$w_1$",
            ylabel="$w_2$",
        )
        unknown = ", none predicted" if found.expected is None else ""
        ax.set_title(
            f"{_name(found)}: {len(found.directions)} directions within "
            f"{np.degrees(ANGLE):.0f}\N{DEGREE SIGN}{unknown}"
        )
        ax.spines[:].set_visible(False)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3, fontsize=8)
    return ax


def _growth_and_directions(found: Condensation) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the logarithm of the growth, and the directions after and before, of units that live.

    Raises:
        ValueError: If there is none.
    """
    growth = same_length("found.growth", found.growth, len(found.final))
    after = np.linalg.norm(found.final, axis=1)
    before = np.linalg.norm(found.initial, axis=1)
    finite = np.isfinite(growth) & np.isfinite(after) & np.isfinite(before)
    drawn = finite & (after > 0) & (before > 0)
    if not np.any(drawn):
        raise ArgumentError(
            "found",
            f"must have a unit with finite weights that are not zero; got {len(growth)} units "
            "without",
        )
    return (
        np.log10(np.maximum(growth[drawn], 1)),
        found.final[drawn] / after[drawn, None],
        found.initial[drawn] / before[drawn, None],
    )


def _has_margins(check: Any) -> bool:
    times, angle = (np.asarray(getattr(check, name, np.zeros(0))) for name in ("times", "angle"))
    return bool(
        times.size
        and np.all(np.isfinite(times) & (times > 0))
        and np.any(np.isfinite(angle) & (angle > 0))
    )


def _checked(trajectory: Any) -> None:
    check_instance("trajectory", trajectory, Trajectory, "a ufm.dynamics.Trajectory")
    if trajectory.times.size < 2:
        raise ArgumentError(
            "trajectory", "must have a time after the start to draw, got the start alone"
        )


def _name(found: Condensation) -> str:
    return ACTIVATIONS.get(found.activation, found.activation)


def _measure(trajectory: Trajectory, name: str) -> np.ndarray:
    if name == "margin":
        return np.asarray(np.min(trajectory.margins, axis=1))
    if name == "balance":
        return np.asarray(trajectory.balance[:, 0])
    return np.asarray(getattr(trajectory, name))
