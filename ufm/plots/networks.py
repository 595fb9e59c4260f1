"""Pictures of trained networks beside their models: measured filled, predicted open."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patches import Patch

from ufm._support import check_instance, checked_key
from ufm.networks import LEVELS, ModelComparison, ModelComparisons
from ufm.plots.maps import write_numbers
from ufm.plots.style import (
    MARKERS,
    PALETTE,
    axes_for,
    blue,
    draw_marks,
    draw_predicted,
    house_style,
    ink,
)

__all__ = [
    "network_balance",
    "network_classes",
    "network_errors",
    "network_losses",
    "network_matrices",
]

ANNOTATED_CLASSES = 6  # most classes for which numbers in two matrices are legible
MOST_TICKS = 20  # most names of classes along an axis
NEGLIGIBLE = 1e-9  # bias up to this share of the logits is zero up to rounding of the solver
LEAST_SHARE = 1e-4  # share of the largest penalty below which a direction is at the edge
LEAST_ERROR = 1e-6  # lowest end of the axis of errors
MATRICES = {
    "weight cosines": ("weight_cosines", "cosine between classifiers"),
    "mean cosines": ("mean_cosines", "cosine between class means"),
    "centred mean cosines": ("centred_cosines", "cosine between centred class means"),
    "weight gram": ("weight_gram", r"$W W^T$"),
    "mean gram": ("mean_gram", r"$M M^T$, class means"),
    "logits": ("logits", "mean logits of a class"),
}
CLASSES = {
    "weight norms": ("weight_norms", "norm of classifier"),
    "mean norms": ("mean_norms", "norm of class mean"),
    "margins": ("margins", "margin of class mean"),
    "alignment": ("alignment", "cosine of classifier and class mean"),
    "bias": ("bias", "bias"),
}
HATCHES = ("", "//", "..", "xx", "--", "\\\\", "oo")


def network_matrices(
    report: ModelComparison, quantity: str = "weight cosines", ax: Axes | None = None
) -> Axes:
    """Draw a measured matrix over classes beside the predicted one, on one scale of colours.

    Args:
        report: From `ufm.networks.compare_with_model`.
        quantity: "weight cosines", "mean cosines", "centred mean cosines", "weight gram", "mean
            gram" or "logits".
        ax: Where to draw; a new figure if not given.

    Raises:
        ValueError: If `report` is not a report, or the quantity is another one, or none that it
            compares.
    """
    field, label = _chosen(report, quantity, MATRICES)
    measured, predicted = (
        np.asarray(getattr(state, field)) for state in (report.measured, report.predicted)
    )
    R, K = measured.shape
    label_name, row_name = report.trained.of_kind.words
    down = label_name if quantity.startswith("weight") else row_name
    across = row_name if quantity.startswith(("mean", "centred")) else label_name
    largest = (
        1.0 if quantity.endswith("cosines") else float(np.max(np.abs([measured, predicted]))) or 1.0
    )
    with house_style():
        few = max(R, K) <= ANNOTATED_CLASSES
        cell = 0.42 if few else 0.19
        ax = axes_for(ax, (min(1.7 + 2 * cell * K, 8.0), min(1.0 + cell * R, 4.4)))
        norm, step = Normalize(-largest, largest), K + max(0.06 * K, 0.4)
        for place, matrix in ((0, measured), (1, predicted)):
            extent = (place * step, place * step + K, R, 0)
            image = ax.imshow(
                matrix, cmap="RdBu_r", norm=norm, extent=extent, interpolation="nearest"
            )
            if few:
                write_numbers(ax, matrix, largest, (place * step + 0.5, 0.5))
        columns, rows = (np.arange(0, n, max(1, -(-2 * n // MOST_TICKS))) for n in (K, R))
        names = [str(k) for k in columns]
        ax.set_xticks([*(columns + 0.5), *(columns + 0.5 + step)], [*names, *names])
        ax.set_yticks(rows + 0.5, [str(r) for r in rows])
        ax.set(xlim=(0, step + K), ylim=(R, 0), xlabel=across, ylabel=down)
        ax.set_aspect("equal")
        ax.grid(False)
        ax.tick_params(length=0)
        for spine in ax.spines.values():
            spine.set_visible(False)
        for place, name in ((0, "measured"), (1, "predicted")):
            ax.text(place * step + K / 2, -0.03 * R - 0.05, name, ha="center", va="bottom")
        bar = ax.figure.colorbar(image, ax=ax, shrink=0.85, label=label)
        bar.outline.set_visible(False)
    return ax


def network_classes(
    report: ModelComparison, quantity: str = "weight norms", ax: Axes | None = None
) -> Axes:
    """Draw a quantity class by class: measured as dots, predicted as open squares.

    Classes are ordered from the largest to the smallest; so are the labels or rows of other
    targets.

    Args:
        report: From `ufm.networks.compare_with_model`.
        quantity: "weight norms", "mean norms", "margins", "alignment" or "bias".
        ax: Where to draw; a new figure if not given.

    Raises:
        ValueError: If `report` is not a report, or the quantity is another one, or none that it
            compares.
    """
    field, label = _chosen(report, quantity, CLASSES)
    trained, (label_name, row_name) = report.trained, report.trained.of_kind.words
    measured, predicted = (
        np.asarray(getattr(state, field)) for state in (report.measured, report.predicted)
    )
    of_labels = quantity in ("weight norms", "bias")
    counts = trained.class_counts if of_labels else trained.row_counts
    if counts.size != measured.size:  # margins of those rows that have one
        counts = np.ones(measured.size)
    order = np.argsort(-counts, kind="stable")
    measured, predicted = measured[order], predicted[order]
    places = np.arange(order.size)
    unit = float(np.max(np.abs(report.predicted.logits))) or 1.0
    if quantity == "bias":
        measured, predicted = (
            np.where(np.abs(b) > NEGLIGIBLE * unit, b, 0.0) for b in (measured, predicted)
        )
    with house_style():
        ax = axes_for(ax, (min(2.6 + 0.24 * order.size, 8.0), 2.9))
        draw_predicted(ax, places, predicted)
        draw_marks(ax, places, measured, color=blue(), label="measured")
        every = max(1, int(np.ceil(order.size / MOST_TICKS)))
        ax.set_xticks(places[::every], [str(k) for k in order[::every]])
        sizes = (
            ""
            if np.all(counts == counts[0])
            else f", from {counts.max():g} to {counts.min():g} samples"
        )
        name = label_name if of_labels else row_name
        ax.set(xlabel=f"{name}{sizes}", ylabel=label, xlim=(-0.6, order.size - 0.4))
        both = np.concatenate([measured, predicted])
        both = both[np.isfinite(both)]
        low, high = float(np.min(both, initial=np.inf)), float(np.max(both, initial=-np.inf))
        low, high = (low, high) if both.size else (0.0, 1.0)
        if quantity == "alignment":
            margin = max(0.08 * (1 - low), 0.01)
            ax.set_ylim(low - margin, 1 + margin)
        elif quantity == "bias":
            least = 1e-3 * unit
            ax.set_ylim(min(1.15 * low, -least), max(1.15 * high, least))
        else:
            ax.set_ylim(min(0.0, 1.15 * low), max(0.0, 1.15 * high) or 1.0)
        ax.ticklabel_format(axis="y", useOffset=False)
        _legend_above(ax, 2)
    return ax


def network_losses(report: ModelComparison, ax: Axes | None = None) -> Axes:
    """Draw the parts of the objective, measured above predicted.

    A line marks the certified lower bound of the minimum.

    Args:
        report: From `ufm.networks.compare_with_model`.
        ax: Where to draw; a new figure if not given.

    Raises:
        ValueError: If `report` is not a report.
    """
    _check(report)
    layers = report.measured.loss.weights.size
    weights = ["weights"] if layers == 1 else [f"layer {index + 1}" for index in range(layers)]
    parts = ["data term", *weights, "features", "bias"]
    colours = [PALETTE[name] for name in ("blue", "orange", "green", "sky", "vermillion")] * 3
    with house_style():
        ax = axes_for(ax, (6.0, 2.4))
        names = ("predicted", "measured")
        for height, name in enumerate(names):
            loss = getattr(report, name).loss
            left = 0.0
            for index, value in enumerate((loss.data, *loss.weights, loss.features, loss.bias)):
                style: dict[str, Any] = {
                    "color": colours[index],
                    "hatch": HATCHES[index % len(HATCHES)],
                    "edgecolor": "white",
                }
                ax.barh(height, value, left=left, height=0.6, linewidth=0, **style)
                left += float(value)
            ax.text(left, height, f" {left:.4g}", va="center", ha="left")
        handles: list[Any] = [
            Patch(
                facecolor=colours[i], hatch=HATCHES[i % len(HATCHES)], edgecolor="white", label=part
            )
            for i, part in enumerate(parts)
            if part != "bias" or report.trained.bias is not None
        ]
        certificate = report.solution.certificate
        if certificate is not None:
            bound = certificate.lower_bound
            line = ax.axvline(
                bound,
                color=ink(),
                linestyle="--",
                linewidth=1.2,
                label="lower bound of the minimum",
            )
            handles.append(line)
        totals = np.array([report.measured.loss.total, report.predicted.loss.total])
        top = float(np.max(totals[np.isfinite(totals)], initial=0.0)) or 1.0
        ax.set_yticks((0, 1), names)
        ax.set(ylim=(-0.5, 1.5), xlim=(0, 1.16 * top), xlabel="objective")
        ax.spines["left"].set_visible(False)
        ax.grid(False, axis="y")
        ax.legend(
            handles=handles,
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            ncols=min(len(handles), 3),
        )
    return ax


def network_balance(report: ModelComparison, ax: Axes | None = None) -> Axes:
    """Draw both sides of the balance of the first layer against each other.

    A network that the model describes lies on the line. The directions are units if features are
    non-negative, and the right singular vectors of the weights otherwise. The sides are the
    penalties of the weights and of the features in a direction. If a side is below a ten thousandth
    of the largest, its mark is at the edge.

    Args:
        report: From `ufm.networks.compare_with_model`.
        ax: Where to draw; a new figure if not given.

    Raises:
        ValueError: If `report` is not a report.
    """
    _check(report)
    trained, balance = report.trained, report.effective.balance
    inputs, W = trained.inputs[0], trained.weights[0]
    directions = np.eye(W.shape[1]) if balance.by == "units" else np.linalg.svd(W)[2]
    regularizer: Any = report.effective.problem.regularizer
    left = trained.weight_decay[0] * np.sum((W @ directions.T) ** 2, axis=0)
    means = trained.row_weights @ (inputs.means @ directions.T) ** 2
    within = 0.0
    if inputs.within is not None:
        within = trained.row_weights.sum() * np.sum(
            (directions @ inputs.within) * directions, axis=1
        )
    right = float(regularizer.features) * (means + within)
    shown = (left > 0) & (right > 0)
    by = "units" if balance.by == "units" else "directions"
    with house_style():
        ax = axes_for(ax, (3.9, 3.6))
        if np.any(shown):
            both = np.concatenate([left[shown], right[shown]])
            floor = float(both.max()) * LEAST_SHARE
            inside = shown & (left >= floor) & (right >= floor)
            least = float(np.minimum(left, right)[inside].min(initial=float(both.max())))
            low, high = least / 1.5, float(both.max()) * 1.5
            ax.plot(
                [low, high], [low, high], color=ink(), linewidth=1, linestyle="--", label="balanced"
            )
            own = f"{by} of the network"
            draw_marks(ax, left[inside], right[inside], color=blue(), alpha=0.7, label=own)
            outside = ~inside
            if np.any(outside):
                edges = np.maximum(left[outside], low), np.maximum(right[outside], low)
                less = f"{np.sum(outside)} {by} with less, at the edge"
                style: Any = {"marker": "<", "hollow": True, "clip_on": False}
                draw_marks(ax, *edges, color=blue(), label=less, **style)
            ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
        ax.set_aspect("equal")
        ax.set(
            xlabel=r"$\lambda_W \|W v\|^2$", ylabel=r"$\lambda_H \sum_i \langle h_i, v \rangle^2$"
        )
        ax.legend(
            loc="lower center", bbox_to_anchor=(0.5, 1.0), title=f"residual {balance.residual:.2g}"
        )
    return ax


def network_errors(
    report: ModelComparison | ModelComparisons,
    quantities: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw how far apart measured and predicted are, by quantity; several models side by side.

    Filled marks are errors class by class. Open marks are errors of averages over groups of
    classes. Lines are the levels "agrees", "close" and "rough". Errors below the axis are at its
    edge.

    Args:
        report: From `ufm.networks.compare_with_model` or `compare_with_models`.
        quantities: Rows to draw; all if not given.
        ax: Where to draw; a new figure if not given.

    Raises:
        ValueError: If `report` is not a report, or lacks a quantity.
    """
    if isinstance(report, ModelComparisons):
        reports, names = report.reports, report.quantities
    else:
        _check(report)
        reports, names = (report,), tuple(row.quantity for row in report.rows)
    chosen = list(names if quantities is None else quantities)
    rows = [[one.row(name) for name in chosen] for one in reports]
    colours = [blue(), *(PALETTE[name] for name in ("vermillion", "green", "purple", "orange"))] * 9
    heights = np.arange(len(chosen))[::-1]
    with house_style():
        ax = axes_for(ax, (6.4, 1.1 + 0.24 * len(chosen)))
        errors = np.array([[row.error for row in of_one] for of_one in rows])
        grouped = np.array([[row.group_error for row in of_one] for of_one in rows])
        known = np.concatenate([errors.ravel(), grouped.ravel()])
        known = known[np.isfinite(known) & (known > 0)]
        left = 10.0 ** np.floor(np.log10(np.clip(known.min(initial=1e-3), LEAST_ERROR, 1e-3)))
        right = 10.0 ** np.ceil(np.log10(np.clip(1.2 * known.max(initial=1.0), 1.0, 1e3)))
        ax.set_xscale("log")
        for index, one in enumerate(reports):
            shift = 0.0 if len(reports) == 1 else 0.22 * (index / (len(reports) - 1) - 0.5) * -2
            style: dict[str, Any] = {
                "color": colours[index],
                "marker": MARKERS[index % len(MARKERS)],
            }
            name = one.name if len(reports) > 1 else "class by class"
            places = heights + shift
            _error_marks(ax, errors[index], grouped[index], places, (left, right), name, style)
            if index == 0 and np.any(errors < left):
                note = f"less than {left:g}"
                draw_marks(ax, [], [], color=ink(), marker="<", markersize=9, label=note)
        draw_marks(ax, [], [], color=ink(), hollow=True, label="open: averages over groups")
        for (_, bound), side in zip(LEVELS, ("center", "right", "left"), strict=True):
            ax.axvline(bound, color=ink(), linewidth=1, linestyle=":")
            ax.text(
                bound, len(chosen) - 0.4, f"{100 * bound:g} %", ha=side, va="bottom", fontsize=8
            )
        ax.set(
            xlim=(left, right),
            ylim=(-0.6, len(chosen) - 0.4),
            xlabel="error, relative to what the table says",
        )
        ax.set_yticks(heights, chosen)
        inches = ax.bbox.height / ax.figure.dpi
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1 + 0.16 / inches), ncols=2)
    return ax


def _error_marks(
    ax: Axes,
    errors: np.ndarray,
    grouped: np.ndarray,
    heights: np.ndarray,
    limits: tuple[float, float],
    name: str,
    style: dict[str, Any],
) -> None:
    """Draw the errors of one model: filled class by class, open of averages over groups."""
    left, right = limits
    single, average = (
        np.clip(np.nan_to_num(values, nan=right, posinf=right), left, right)
        for values in (errors, grouped)
    )
    style |= {"clip_on": False}
    draw_marks(ax, average, heights, hollow=True, **style)
    draw_marks(ax, single, heights, label=name, **style)
    below = np.asarray(errors < left)
    edge = style | {"marker": "<", "markersize": 9}
    draw_marks(ax, np.full(np.sum(below), left), heights[below], **edge)


def _legend_above(ax: Axes, columns: int) -> None:
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns)


def _check(report: Any) -> None:
    check_instance(
        "report", report, ModelComparison, "the result of ufm.networks.compare_with_model"
    )


def _chosen(report: Any, quantity: str, table: dict[str, tuple[str, str]]) -> tuple[str, str]:
    _check(report)
    compared = {row.quantity for row in report.rows}
    return checked_key("quantity", quantity, {k: v for k, v in table.items() if k in compared})
