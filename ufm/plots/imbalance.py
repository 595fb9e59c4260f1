"""Pictures of imbalance: phase diagrams and mitigations."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from ufm._support import check_one_of
from ufm.geometry import AnyArray
from ufm.imbalance import Mitigations, PhaseDiagram
from ufm.plots.maps import MAP_LEGEND, UNDEFINED, heat_map, threshold_curves
from ufm.plots.style import MARKERS, axes_for, cycle, dress, finite_array, house_style
from ufm.problems import variable_of

__all__ = ["mitigation_curves", "phase_diagram"]

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


def phase_diagram(
    diagram: PhaseDiagram,
    quantity: str = "cosine",
    curves: Mapping[str, tuple[AnyArray, AnyArray]] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a quantity over the grid of a phase diagram, with threshold curves on top.

    Args:
        diagram: From `ufm.phase_diagram`.
        quantity: "cosine" between minority classifiers, "rank", "minority_margin",
            "majority_margin", or another array of the diagram.
        curves: (x, y) of each curve by name; points that are not finite are left out. If not given,
            the curves on which the classifiers of the minority and of the majority coincide, from
            certified prices on the grid.
        ax: Where to draw; a new figure if not given.

    Raises:
        ValueError: If `quantity` is not an array of the diagram.
    """
    for name in ("x", "y"):
        finite_array(f"diagram.{name}", getattr(diagram, name), 1)
    names = [name for name, value in diagram._asdict().items() if np.ndim(value) == 2]
    check_one_of("quantity", quantity, names)
    values = np.ma.masked_invalid(np.asarray(getattr(diagram, quantity), np.float64))
    with house_style():
        ax = axes_for(ax, (4.6, 3.6))
        label = PHASE_QUANTITIES.get(quantity, quantity.replace("_", " "))
        heat_map(
            ax,
            diagram.x,
            diagram.y,
            values,
            label,
            "viridis" if quantity != "cosine" else "cividis",
        )
        if curves is None:
            levels = {"minority": diagram.minority_level, "majority": diagram.majority_level}
            threshold_curves(ax, diagram.x, diagram.y, levels)
        if np.any(values.mask):
            ax.plot([], [], "s", color=UNDEFINED, label="undefined: they vanish")
        for index, (name, (x, y)) in enumerate((curves or {}).items()):
            x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
            finite = np.isfinite(x) & np.isfinite(y)
            style = ("-", "--", ":", "-.")[index % 4]
            ax.plot(
                x[finite],
                y[finite],
                style,
                color=("white", "black")[index % 2],
                linewidth=1.8,
                label=name,
            )
        for name, set_label in (
            (diagram.x_name, ax.set_xlabel),
            (diagram.y_name, ax.set_ylabel),
        ):
            variable = variable_of(name)
            set_label(name if variable is None else variable.picture_label)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="lower left", **MAP_LEGEND)
    return ax


def mitigation_curves(
    found: Mitigations, quantity: str = "etf_distance", ax: Axes | None = None
) -> Axes:
    """Draw a quantity of every mitigation against its strength.

    Lines are thin where minority classifiers coincide.

    Args:
        found: From `ufm.mitigations`.
        quantity: "etf_distance", "cosine", "norm_ratio" or "minority_margin".
        ax: Where to draw; a new figure if not given.

    Raises:
        ValueError: If `quantity` is none of these.
    """
    check_one_of("quantity", quantity, MITIGATION_QUANTITIES)
    with house_style():
        ax = axes_for(ax, (5.0, 3.6))
        for index, row in enumerate(found.rows):
            color = cycle()[index % len(cycle())]
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
        drawn = [np.asarray(getattr(row, quantity), np.float64) for row in found.rows]
        if quantity == "norm_ratio" and any(np.any(values > 0) for values in drawn):
            ax.set_yscale("log")
        ax.set_xlabel("strength")
        ax.set_ylabel(MITIGATION_QUANTITIES[quantity])
        dress(ax)
        if found.rows:
            ax.legend(fontsize="small")
    return ax
