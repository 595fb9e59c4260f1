"""Pictures of the landscape: where runs end, and paths between minima."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ufm._support import ArgumentError, check_instance
from ufm.landscape import Census, MinimaPath
from ufm.plots.style import (
    MOST_LINES,
    PALETTE,
    axes_for,
    draw_marks,
    finite_array,
    house_style,
)

__all__ = ["census", "path"]

MOST_RARE = 0.7  # lower end of the axis of counts, so that a single run is visible


def census(found: Census, ax: Axes | None = None) -> Axes:
    """Draw how many runs of a census ended at which objective.

    Minima are filled, points that did not converge are open, and the certified bound is dashed.
    Beside a minimum are the rank of its logits and the name of the construction that it equals.

    Args:
        found: From `ufm.landscape.census`.
        ax: Where to draw; a new figure if not given.

    Raises:
        ValueError: If no run ended anywhere.
    """
    if not getattr(found, "points", ()):
        raise ArgumentError(
            "found", "must be the result of ufm.landscape.census, with at least one run that ended"
        )
    certificate = found.certificate
    with house_style():
        ax = axes_for(ax, (6.0, 3.6))
        ax.set_yscale("log")
        for settled, colour, marker, label in (
            (False, "vermillion", "D", "not converged"),
            (True, "blue", "o", "minima"),
        ):
            points = [
                point for point in found.points if (point.settled if settled else point.unsettled)
            ]
            if points:
                values = np.array([point.value for point in points])
                near = np.array([0 if settled else point.unsettled for point in points])
                runs = near + np.array([point.frequency for point in points])
                width = 1.6 if settled else 0.6
                ax.vlines(values, MOST_RARE, runs, color=PALETTE[colour], linewidth=width)
                style: Any = {"markerfacecolor": PALETTE[colour] if settled else "white"}
                style |= {"color": PALETTE[colour], "marker": marker, "label": label, "zorder": 3}
                draw_marks(ax, values, runs, **style)
        for point in found.minima[:MOST_LINES]:
            text = f"rank {point.rank}" + (f", {point.name}" if point.name else "")
            place = point.value, point.frequency
            ax.annotate(
                text,
                place,
                (5, 4),
                textcoords="offset points",
                fontsize="small",
                annotation_clip=False,
            )
        if certificate is not None and np.isfinite(certificate.lower_bound):
            ax.axvline(
                certificate.lower_bound, color=PALETTE["green"], linestyle="--", label="lower bound"
            )
        ax.set_ylim(
            MOST_RARE, 2.5 * max(point.frequency + point.unsettled for point in found.points)
        )
        ax.set(xlabel="objective", ylabel="runs")
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return ax


def path(found: MinimaPath, ax: Axes | None = None) -> Axes:
    """Draw the objective along a path between two points, and along the straight line between them.

    Args:
        found: From `ufm.landscape.connect`.
        ax: Where to draw; a new figure if not given.

    Raises:
        ValueError: If `found` is not a path, or its objective is not finite.
    """
    check_instance("found", found, MinimaPath, "the result of ufm.landscape.connect")
    values, straight = (
        finite_array("objective", found.objective, 1),
        finite_array("straight", found.straight, 1),
    )
    top = int(np.argmax(values))
    higher = max(values[0], values[-1])
    with house_style():
        ax = axes_for(ax, (5.2, 3.4))
        line = np.linspace(0, 1, straight.size)
        ax.plot(
            line,
            straight,
            "--",
            color=PALETTE["orange"],
            label=f"straight line, barrier {found.straight_barrier:.3g}",
        )
        label = "path found, " + (
            "no barrier" if found.connected else f"barrier at most {found.barrier:.3g}"
        )
        ax.plot(found.position, values, color=PALETTE["blue"], label=label)
        draw_marks(ax, [0, 1], values[[0, -1]], color=PALETTE["black"], clip_on=False, zorder=3)
        if not found.connected:
            ax.axhline(higher, color="0.5", linewidth=0.8, linestyle=":")
            highest: Any = {"marker": "D", "label": "highest point"}
            draw_marks(ax, found.position[top], values[top], color=PALETTE["vermillion"], **highest)
        ax.set(xlabel="length along the path", ylabel="objective", xlim=(0, 1))
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1))
    return ax
