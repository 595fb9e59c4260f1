"""Pictures of sweeps: lines over one axis, heat maps over two."""

import json
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm

from ufm._support import ArgumentError, Status, did_you_mean, has_converged
from ufm.metrics import MEASURES
from ufm.plots.maps import MAP_LEGEND, MISSING, UNDEFINED, heat_map, threshold_curves
from ufm.plots.style import (
    MARKERS,
    MOST_LINES,
    PALETTE,
    axes_for,
    cycle,
    draw_marks,
    house_style,
    marked_places,
    spans_decades,
)
from ufm.problems import variable_of

__all__ = ["sweep"]

QUANTITIES = {
    "relative_gap": "certified relative gap",
    "weight_cosine": "cosine between classifiers",
    "weight_cosine_within": "cosine between classifiers",
    "feature_cosine": "cosine between class means",
    "feature_cosine_within": "cosine between class means",
    "weight_norm": "norm of classifiers",
    "feature_norm": "norm of class means",
    "coincidence_level": "coincidence level, zero on the threshold",
    **{name: measure.label for name, measure in MEASURES.items()},
}
ROUNDING = 1e-6  # relative spread below which values count as constant
MOST_CROSSES = 300  # most points that are crossed one by one; more are hatched


def sweep(dataset: Any, quantity: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw a quantity of a sweep over its axes.

    One axis gives lines. Two axes give a heat map, or lines for every value of a short second axis.
    Axes of one value are named in the title.

    Points without a certificate are crossed or hatched (in a model without a bound, points that did
    not converge). Points that are not computed yet are dark grey. Over two axes, curves show where
    the classifiers of a group coincide, if the sweep has them. Predictions of theorems are drawn
    open, if the sweep has them.

    Args:
        dataset: From `ufm.sweep` or `ufm.open_sweep`, or a selection of it, with one or two axes.
        quantity: One of its quantities, such as "objective". An index picks one group or pair of
            groups, such as "margin[1]" or "weight_cosine[1,1]". Without an index, one axis shows
            all groups, and two axes show the smallest classes. If not given, the cosine between
            classifiers: over two axes that within the group of the smallest classes, or their
            margin if they are single classes, or the rank for `targets`.
        ax: Where to draw; a new figure if not given.

    Raises:
        ValueError: If `dataset` is not a sweep, lacks the quantity, or does not have one or two
            axes.
    """
    dims = _drawn_dims(dataset)
    dataset = dataset.squeeze([name for name in dataset["status"].dims if name not in dims])
    axes = [_SweepAxis(dataset, name) for name in dims]
    # The longer axis across, unless both are long.
    if (
        len(axes) == 2
        and (axes[1].long or not axes[0].long)
        and not (axes[0].long and axes[1].long)
    ):
        axes.reverse()
    across = axes[0]
    dataset = dataset.transpose(*(axis.name for axis in reversed(axes)), ...)
    dataset = dataset.isel({axis.name: axis.order for axis in axes})
    status = np.asarray(dataset["status"].values)
    missing = status == Status.NOT_COMPUTED
    poor = ~missing & ~has_converged(status)
    names = _group_names(dataset)
    with house_style():
        if len(axes) == 1:
            ax = _sweep_lines(dataset, quantity, across, names, poor, missing, ax)
        else:
            label, values = _one_of_many(dataset, quantity, names)
            values = np.where(missing, np.nan, values)
            if axes[1].long:
                ax = _sweep_map(dataset, label, values, (across, axes[1]), names, poor, missing, ax)
            else:
                ax = axes_for(ax, (6.4, 3.6))
                for row, tick in enumerate(axes[1].ticks):
                    _swept_line(
                        ax,
                        across,
                        values[row],
                        row,
                        f"{axes[1].text} = {tick}" if axes[1].numeric else tick,
                    )
                _marked(ax, across, values, poor, missing)
                _finish_lines(ax, across, label, values)
        fixed = [
            f"{_text_of(name)} = {_tick(coordinate.values[()])}"
            for name, coordinate in dataset.coords.items()
            if coordinate.ndim == 0 and name not in ("group", "other_group")
        ]
        if fixed:
            legend = (
                ax.get_legend() if len(axes) == 2 and axes[1].long else None
            )  # above a heat map
            rows = 0 if legend is None else len(legend.get_texts())
            ax.set_title(", ".join(fixed), pad=6 + (14 * rows + 8 if rows else 0))
    return ax


def _drawn_dims(dataset: Any) -> list[str]:
    """Return the names of the one or two axes that are drawn."""
    dims = _sweep_axes(dataset)
    if not dims:
        raise ArgumentError(
            "dataset",
            "is a single point, and 1 or 2 axes can be drawn",
            remedy="leave an axis of several values in it",
        )
    if len(dims) > 2:
        listed = ", ".join(f"{name} ({dataset.sizes[name]})" for name in dims)
        raise ArgumentError(
            "dataset",
            f"has {len(dims)} axes of more than one value, {listed}, and 1 or 2 can be drawn",
            remedy=f"select values of the others, as in dataset.isel({dims[0]}=0) or "
            f"--select {dims[0]}=VALUE",
        )
    return dims


class _SweepAxis:
    """An axis of a sweep: where its points are drawn, and what they are called.

    Attributes:
        places: Increasing numbers: those of the coordinate, or 0, 1, 2 if it has no numbers.
        order: Entry of the dataset at each place.
        ticks: Names of the entries, in that order.
        joined: Whether a line between neighbours has a meaning.
    """

    def __init__(self, dataset: Any, name: str):
        length = dataset.sizes[name]
        self.name = name
        stated = dict(dataset.coords)
        coordinate = stated.get(name)
        along = [
            key for key, each in stated.items() if each.dims == (name,) and each.dtype.kind in "iuf"
        ]
        # The points of a list have several coordinates, and no order of their own.
        if coordinate is None and along:
            name = next((key for key in along if np.all(np.diff(dataset[key].values) > 0)), name)
            coordinate = stated.get(name)
        values = np.arange(length) if coordinate is None else np.asarray(coordinate.values)
        self.numeric = values.dtype.kind in "iuf" and name != "class_counts"
        self.joined = self.numeric and (coordinate is not None)
        self.order = np.argsort(values, kind="stable") if self.numeric else np.arange(length)
        values = values[self.order]
        self.places = (
            values.astype(np.float64) if self.numeric else np.arange(length, dtype=np.float64)
        )
        self.ticks = [_tick(value) for value in values]
        self.text = _text_of(name)
        self.long = length > MOST_LINES
        self.logarithmic = self.numeric and spans_decades(self.places)

    def dress(self, ax: Axes, axis: str) -> None:
        """Give one of the axes its label, its scale and its ticks."""
        getattr(ax, f"set_{axis}label")(self.text)
        if self.logarithmic:
            getattr(ax, f"set_{axis}scale")("log")
        if not self.numeric:
            every = max(1, -(-len(self.ticks) // 20))
            crowded = axis == "x" and sum(map(len, self.ticks[::every])) > 40
            turned: Any = (
                {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
            )
            getattr(ax, f"set_{axis}ticks")(self.places[::every], self.ticks[::every], **turned)


def _sweep_axes(dataset: Any) -> list[str]:
    """Return the names of the axes of a sweep that have more than one value."""
    try:
        return [name for name in dataset["status"].dims if dataset.sizes[name] > 1]
    except (KeyError, TypeError, AttributeError, IndexError):
        raise ArgumentError(
            "dataset",
            f"must be of ufm.sweep or ufm.open_sweep, got {type(dataset).__name__} without "
            "its quantities",
        ) from None


def _quantity(dataset: Any, quantity: str) -> tuple[str, tuple[int, ...]]:
    """Return the name and the index of a quantity such as "margin[1]"."""
    parts = re.fullmatch(r"(\w+)(?:\[\s*(\d+)\s*(?:,\s*(\d+)\s*)?\])?", str(quantity))
    name = parts[1] if parts else ""
    numbers = [key for key, values in dataset.data_vars.items() if values.dtype.kind != "O"]
    if parts is None or name not in numbers:
        raise ArgumentError(
            "quantity",
            f"must be one of {', '.join(numbers)}, or of one group, such as margin[1]; got "
            f"{quantity!r}{did_you_mean(name, numbers)}",
        )
    index = tuple(int(part) for part in parts.groups()[1:] if part is not None)
    groups = _group_dims(dataset, name)
    lengths = tuple(dataset.sizes[dim] for dim in groups)
    if index and (
        len(index) != len(groups)
        or any(i >= length for i, length in zip(index, lengths, strict=True))
    ):
        has = f"{len(groups)} numbers below {lengths[0]}" if groups else "no index"
        raise ArgumentError(
            "quantity", f"{quantity!r} has an index that does not fit: {name} takes {has}"
        )
    return name, index


def _group_dims(dataset: Any, name: str) -> tuple[str, ...]:
    return tuple(dim for dim in dataset[name].dims if dim in ("group", "other_group"))


def _group_names(dataset: Any) -> list[str]:
    """Return the names of the groups; majority and minority if there are two."""
    counts = _counts(dataset)
    if not _of_classes(dataset):
        return [f"output {output}" for output in range(dataset.sizes.get("group", len(counts)))]
    if len(counts) == 2 and counts[0] != counts[1] and "class_counts" not in dataset.coords:
        return ["majority", "minority"] if counts[0] > counts[1] else ["minority", "majority"]
    return [f"group {group}" for group in range(dataset.sizes.get("group", len(counts)))]


def _counts(dataset: Any) -> list[float]:
    """Return the samples per class of each group as the problem was stated."""
    try:
        return list(json.loads(dataset.attrs["problem"])["counts"])
    except (KeyError, ValueError, AttributeError):
        return []


def _of_classes(dataset: Any) -> bool:
    """Return whether the rows are one-hot classes: neither given nor varied targets."""
    try:
        stated = "targets" not in json.loads(dataset.attrs["problem"])
    except (KeyError, ValueError, AttributeError):
        stated = True
    return stated and not any(str(name).startswith("targets") for name in dataset.coords)


def _smallest(dataset: Any) -> int:
    """Return the group of the smallest classes, the last one of several."""
    counts = np.asarray(_counts(dataset))
    groups = dataset.sizes.get("group", 1)
    return len(counts) - 1 - int(np.argmin(counts[::-1])) if len(counts) == groups else groups - 1


def _entry_label(name: str, index: tuple[int, ...], names: Sequence[str]) -> str:
    label = QUANTITIES.get(name, name.replace("_", " "))
    return f"{label}\n{_entry(index, names)}" if index else label


def _entry(index: tuple[int, ...], names: Sequence[str]) -> str:
    """Return which group or pair of groups an index is, in words."""
    listed = [names[i] if i < len(names) else f"group {i}" for i in index]
    if len(listed) == 2:
        return f"within {listed[0]}" if index[0] == index[1] else f"{listed[0]} to {listed[1]}"
    return listed[0]


def _one_of_many(
    dataset: Any, quantity: str | None, names: Sequence[str]
) -> tuple[str, np.ndarray]:
    """Return the label and the values of a quantity with one number per point.

    If the quantity has several groups, the smallest classes are chosen.
    """
    group = _smallest(dataset)
    if quantity is None:
        within = {"weight_cosine": (group, group), "weight_cosine_within": (group,)}
        chosen = next((name for name in within if name in dataset.data_vars), None)
        if chosen is not None and np.any(
            np.isfinite(_entries(dataset[chosen].values, within[chosen]))
        ):
            quantity = chosen
        else:
            margins = "margin" in dataset.data_vars and np.any(
                np.isfinite(dataset["margin"].values[..., group])
            )
            gaps = np.any(np.isfinite(dataset["relative_gap"].values))
            quantity = "margin" if margins else "relative_gap" if gaps else "objective"
            if not _of_classes(dataset) and "rank" in dataset.data_vars:
                quantity = "rank"
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
    """Draw a quantity as a heat map over two axes."""
    ax = axes_for(ax, (5.2, 4.0))
    x, y = (axis.places for axis in axes)
    ax.grid(False)
    options: dict[str, Any] = {}
    if label.startswith(QUANTITIES["relative_gap"]):
        values = np.maximum(values, 1e-17)
        options["norm"] = LogNorm()
    heat_map(
        ax,
        x,
        y,
        np.ma.masked_invalid(values),
        label,
        "cividis" if label.startswith("cosine") else "viridis",
        **options,
    )
    _grey_points(ax, x, y, values, missing, label)
    if "coincidence_level" in dataset and axes[0].numeric and axes[1].numeric:
        levels = np.asarray(dataset["coincidence_level"].values)
        order = (
            np.argsort(_counts(dataset), kind="stable")
            if len(_counts(dataset)) == len(names)
            else range(len(names))
        )
        threshold_curves(ax, x, y, {names[group]: levels[..., group] for group in order})
    if np.any(poor):
        _poor_points(ax, x, y, poor)
    axes[0].dress(ax, "x")
    axes[1].dress(ax, "y")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1.01), borderaxespad=0.2, **MAP_LEGEND)
    return ax


def _grey_points(
    ax: Axes, x: np.ndarray, y: np.ndarray, values: np.ndarray, missing: np.ndarray, label: str
) -> None:
    """Cover points that are not computed yet, and name both greys in the legend."""
    square: Any = {"markeredgecolor": "black", "markeredgewidth": 0.5}
    if np.any(missing):
        cover = np.ma.masked_where(~missing, np.ones(missing.shape))
        shade = ListedColormap([MISSING])
        ax.pcolormesh(x, y, cover, cmap=shade, shading="nearest", rasterized=True)
        ax.plot([], [], "s", color=MISSING, label="not computed yet", **square)
    if np.any(np.isnan(values) & ~missing):
        why = ": a vector vanishes" if label.startswith("cosine") else ""
        ax.plot([], [], "s", color=UNDEFINED, label=f"undefined{why}", **square)


def _poor_points(ax: Axes, x: np.ndarray, y: np.ndarray, poor: np.ndarray) -> None:
    """Mark points that are not certified, one by one while they are few."""
    red = PALETTE["vermillion"]
    if np.sum(poor) <= MOST_CROSSES:
        rows, columns = np.nonzero(poor)
        cross: Any = {"marker": "x", "markersize": 4, "markeredgewidth": 1.2}
        draw_marks(ax, x[columns], y[rows], color=red, label="not certified", **cross)
        return
    area = np.ma.masked_where(~poor, np.ones(poor.shape))
    options: dict[str, Any] = {
        "facecolor": "none",
        "edgecolor": red,
        "linewidth": 0,
        "hatch": "xxxx",
    }
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
    name, values, entries = _drawn_entries(dataset, quantity, missing)
    predicted = dataset.data_vars.get(f"predicted_{name}")
    if predicted is not None and not np.any(
        np.isfinite(predicted.values) & (np.asarray(predicted.values) != -1)
    ):
        predicted = None
    ax = axes_for(ax, (6.4, 3.6))
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
            _found_and_predicted(
                ax, across, drawn[:, row], expected, row, label or name.replace("_", " ")
            )
    _marked(ax, across, drawn.T, np.broadcast_to(poor, drawn.T.shape), missing)
    label = _entry_label(name, () if len(entries) > 1 else entries[0], names)
    _finish_lines(ax, across, label, drawn)
    if dataset[name].dtype.kind == "i":
        ax.yaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
    if predicted is not None and len(entries) <= MOST_LINES:
        ax.legend(title="open markers: predicted", loc="center left", bbox_to_anchor=(1.01, 0.5))
    return ax


def _drawn_entries(
    dataset: Any, quantity: str | None, missing: np.ndarray
) -> tuple[str, np.ndarray, list[tuple[int, ...]]]:
    """Return the name and the values of a quantity, and the groups or pairs that are drawn."""
    if quantity is None:
        cosines = [
            name for name in ("weight_cosine", "weight_cosine_within") if name in dataset.data_vars
        ]
        quantity = next(
            (name for name in cosines if np.any(np.isfinite(dataset[name].values))), "objective"
        )
    name, index = _quantity(dataset, quantity)
    dims = _group_dims(dataset, name)
    values = np.asarray(dataset[name].values, np.float64)
    values = np.where(missing.reshape(-1, *(1 for _ in dims)), np.nan, values)
    every = [index] if index else list(np.ndindex(*(dataset.sizes[dim] for dim in dims)))
    entries = [entry for entry in every if len(entry) < 2 or entry[0] <= entry[1] or index]
    entries = [
        entry for entry in entries if np.any(np.isfinite(_entries(values, entry)))
    ] or entries[:1]
    if len(entries) > MOST_LINES and len(dims) == 2:
        raise ArgumentError(
            "quantity",
            f"{name} has {len(entries)} pairs of groups, and {MOST_LINES} lines can be told "
            f"apart; name one, such as {name}[0,{entries[-1][1]}]",
        )
    return name, values, entries


def _found_and_predicted(
    ax: Axes, across: _SweepAxis, found: np.ndarray, predicted: np.ndarray, row: int, label: str
) -> None:
    """Draw what was found as a line, and what is predicted as open markers around it.

    Without an order of the points, dots take the place of the line.
    """
    spread = np.unique(np.linspace(0, len(across.places) - 1, 20).astype(int))
    hollow: Any = {"color": cycle()[row], "marker": MARKERS[row % len(MARKERS)], "markersize": 7}
    hollow |= {"markerfacecolor": "none", "markeredgewidth": 1.2}
    joined = "-" if across.joined else "none"
    ax.plot(
        across.places,
        found,
        linestyle=joined,
        marker=None if across.joined else ".",
        color=cycle()[row],
    )
    ax.plot(across.places[spread], predicted[spread], linestyle="none", **hollow)
    ax.plot([], [], linestyle=joined, label=label, **hollow)


def _swept_line(
    ax: Axes, across: _SweepAxis, values: np.ndarray, row: int, label: str | None
) -> None:
    sparse = len(across.places) <= 20 or not across.joined
    ax.plot(
        across.places,
        values,
        color=cycle()[row],
        linestyle=("-", "--")[row // 7 % 2] if across.joined else "none",
        marker=MARKERS[row % len(MARKERS)],
        markersize=4,
        markevery=None if sparse else marked_places(values, row),
        label=label,
    )


def _marked(
    ax: Axes, across: _SweepAxis, values: np.ndarray, poor: np.ndarray, missing: np.ndarray
) -> None:
    """Cross the points of lines that are not certified, and shade points not computed yet."""
    rows, columns = np.nonzero(poor & np.isfinite(values))
    if rows.size:
        cross: Any = {"marker": "x", "markersize": 6, "markeredgewidth": 1.4, "zorder": 3}
        places, found = across.places[columns], values[rows, columns]
        draw_marks(ax, places, found, color=PALETTE["black"], label="not certified", **cross)
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
            ax.axvspan(
                edges[start],
                edges[stop + 1],
                color=MISSING,
                alpha=0.5,
                linewidth=0,
                zorder=0,
                label=label,
            )


def _finish_lines(ax: Axes, across: _SweepAxis, label: str, values: np.ndarray) -> None:
    across.dress(ax, "x")
    finite = values[np.isfinite(values)]
    wide = finite.size and not label.startswith("cosine") and spans_decades(finite)
    if (
        finite.size
        and (label.startswith(QUANTITIES["relative_gap"]) or wide)
        and np.any(finite > 0)
    ):
        ax.set_yscale("log", nonpositive="mask")
    ax.set_ylabel(label)
    if finite.size and np.ptp(finite) <= ROUNDING * np.max(np.abs(finite)):
        # What is constant but for rounding is drawn as constant.
        ax.set_ylim(*(np.mean(finite) + np.array([-0.1, 0.1]) * (np.max(np.abs(finite)) or 1.0)))
    # All of the axis, also where nothing is drawn because it is not defined.
    ends = np.array([np.min(across.places), np.max(across.places)])
    ends = np.log(ends) if across.logarithmic else ends
    ends = ends + np.array([-1, 1]) * (0.03 * (ends[1] - ends[0]) or 0.5)
    ax.set_xlim(*(np.exp(ends) if across.logarithmic else ends))
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


def _text_of(name: str) -> str:
    """Return the label of an axis."""
    variable = variable_of(name)
    return name.replace("_", " ") if variable is None else variable.picture_label


def _tick(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (float, np.floating)) else str(value)
