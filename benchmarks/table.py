"""Measurements as a Markdown table."""

from collections.abc import Iterable, Sequence

from benchmarks.measurement import TARGETS, Measurement
from benchmarks.optimum import Optimum
from benchmarks.problems import Setting

__all__ = ["markdown", "results", "seconds"]

Result = tuple[Setting, Optimum, list[Measurement]]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table with aligned columns."""
    rows = [list(row) for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *rows]) for i in range(len(header))]
    table = [list(header), ["-" * width for width in widths], *rows]
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |"
        for row in table
    )


def results(measured: Iterable[Result], limit: float) -> str:
    """Return the table of problems: time to each target, also in multiples of warm `ufm` calls."""
    header = ["problem", "method"]
    for target in TARGETS:
        header += [f"to {target:.0e}", "x ufm"]
    header += ["smallest gap", "remarks"]
    rows = []
    for setting, optimum, measurements in measured:
        ours = next((m.arrivals for m in measurements if m.label == "ufm, warm"), {})
        interval = f"optimum {optimum.objective:.12g}, certified to {optimum.relative_gap:.0e}"
        rows.append([f"**{setting.name}**", setting.about, *[""] * (len(header) - 3), interval])
        for measurement in measurements:
            row = ["", measurement.label]
            for target in TARGETS:
                row += _cells(measurement, target, ours.get(target), limit)
            row += [
                f"{measurement.gap:.1e}" if measurement.gap < float("inf") else "",
                measurement.note,
            ]
            rows.append(row)
    return markdown(header, rows)


def seconds(value: float) -> str:
    """Return a time with three digits in a unit that suits it."""
    if value < 1e-3:
        return f"{1e6 * value:.3g} us"
    return f"{1e3 * value:.3g} ms" if value < 1 else f"{value:.4g} s"


def _cells(measurement: Measurement, target: float, ours: float | None, limit: float) -> list[str]:
    arrived = measurement.arrivals.get(target)
    if arrived is not None:
        return [seconds(arrived), "" if ours is None else _ratio(arrived / ours)]
    reached = f"gap {measurement.gap:.0e}" if measurement.gap < float("inf") else ""
    if measurement.timed_out:
        late = f"> {limit:g} s ({reached or 'no answer'})"
        return [late, "" if ours is None else f"> {_ratio(limit / ours)}"]
    if measurement.trouble:
        return [measurement.trouble + (f" ({reached})" if reached else ""), ""]
    return [f"not reached ({reached} after {seconds(measurement.seconds)})", ""]


def _ratio(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
