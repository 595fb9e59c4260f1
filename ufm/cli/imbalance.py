"""`ufm threshold`, `ufm phase`, `ufm mitigate`: where minority collapse begins, and remedies."""

import argparse
from collections.abc import Sequence
from typing import Any

from ufm._support import counted, did_you_mean, table_lines
from ufm.cli.output import check_output, check_picture, draw, print_json, write_file
from ufm.cli.problem_options import AXIS, add_problem_options, grid, read_problem
from ufm.problems import SEARCHED, variable_of

__all__ = ["add_mitigate_parser", "add_phase_parser", "add_threshold_parser"]


def add_threshold_parser(subparsers: Any) -> None:
    """Add the parser of `ufm threshold`."""
    parser = subparsers.add_parser(
        "threshold", help="find where the minority collapses as one number of a problem varies"
    )
    add_problem_options(parser)
    parser.add_argument(
        "--vary",
        default=None,
        metavar="NAME",
        help=f"{', '.join(SEARCHED)}, or loss.PARAMETER; imbalance_ratio if not given, "
        "weight_decay for --targets",
    )
    parser.add_argument(
        "--from", type=float, default=None, metavar="A", dest="low", help="lowest value to look at"
    )
    parser.add_argument(
        "--to", type=float, default=None, metavar="B", dest="high", help="highest value to look at"
    )
    parser.add_argument(
        "--tol", type=float, default=1e-8, help="relative error of thresholds without a closed form"
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="every collapse along the path, of every group; always so for --targets",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=_threshold)


def _threshold(options: argparse.Namespace) -> int:
    import ufm

    problem, settings = (
        read_problem(options),
        {"bounds": (options.low, options.high), "tol": options.tol},
    )
    every = options.all or not problem.one_hot
    vary = options.vary or ("imbalance_ratio" if problem.one_hot else "weight_decay")
    if every:
        found = ufm.collapse_thresholds(problem, vary, **settings)
    else:
        found = (ufm.minority_collapse_threshold(problem, vary, **settings),)
    if options.json:
        print_json(found if every else found[0])
    else:
        _print_thresholds(vary, found)
    return 0 if any(threshold.found for threshold in found) else 1


def _print_thresholds(vary: str, thresholds: Sequence[Any]) -> None:
    """Print one line per threshold, and below the table what was not found, and why."""
    found = [threshold for threshold in thresholds if threshold.found]
    variable = variable_of(vary)
    name = vary if variable is None else variable.short
    rows = [("collapse", f"from {name}", "", "relative error", "from", "condition")]
    for threshold in found:
        solves = f"{counted(threshold.evaluations, 'solve')}, gaps {threshold.relative_gap:.0e}"
        side = "and above" if threshold.side == "above" else "and below"
        exact = "closed form" if threshold.exact else solves
        rows.append(
            (
                threshold.kind,
                f"{threshold.value:.12g}",
                side,
                f"{threshold.error:.0e}",
                exact,
                threshold.condition,
            )
        )
    if found:
        print(*table_lines(rows), sep="\n")
    for threshold in found:
        if threshold.factor is not None:
            print(f"{threshold.kind}: {threshold.factor:.12g} times the penalties given")
        if threshold.first_integer is not None:
            print(f"{threshold.kind}: {threshold.first_integer} classes, as a whole number")
    for threshold in thresholds:
        if not threshold.found:
            print(threshold)
    if not thresholds:
        print(f"nothing begins or ends to collapse in this range of {name}")


def add_phase_parser(subparsers: Any) -> None:
    """Add the parser of `ufm phase`."""
    parser = subparsers.add_parser(
        "phase", help="map minority collapse over two numbers of a problem, every point certified"
    )
    add_problem_options(parser)
    axis = "NAME:LOW:HIGH[:POINTS], log-spaced where LOW > 0; names as for `ufm threshold --vary`"
    parser.add_argument("--x", default=None, type=grid, metavar="AXIS", help=axis)
    parser.add_argument(
        "--y", default=None, type=grid, metavar="AXIS", help="the same for the vertical axis"
    )
    parser.add_argument(
        "--quantity",
        default=None,
        metavar="NAME",
        help="what to draw with --plot: cosine if not given, rank, minority_margin, "
        "majority_margin, ...",
    )
    parser.add_argument(
        "--plot",
        metavar="FILE",
        help="draw the diagram, thresholds on top, to a PNG, PDF or SVG file",
    )
    parser.add_argument("--save", metavar="FILE.npz", help="write all arrays")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a summary")
    parser.set_defaults(run=_phase)


def _phase(options: argparse.Namespace) -> int:
    import numpy as np

    import ufm

    for option in ("x", "y"):
        if getattr(options, option) is None:
            raise ValueError(f"--{option} is missing; give it, such as --{option} {AXIS}")
    if options.quantity is not None and options.plot is None:
        raise ValueError(
            "--quantity says what to draw, and goes with --plot FILE; add that, or leave "
            "--quantity out"
        )
    quantities = ufm.PhaseDiagram._fields[4:-1]
    if options.quantity not in (None, *quantities):
        near = did_you_mean(options.quantity, quantities)
        raise ValueError(
            f"--quantity must be one of {', '.join(quantities)}; got {options.quantity!r}{near}"
        )
    if options.save is not None:
        check_output("--save", options.save, ["npz"])
    if options.plot is not None:
        check_picture("--plot", options.plot)
    diagram = ufm.phase_diagram(read_problem(options), options.x, options.y)
    certified = int(
        np.sum((diagram.relative_gap <= 1e-9) & (diagram.status != ufm.Status.CONTRADICTION))
    )
    points = diagram.cosine.size
    collapsed = diagram.minority_level >= 0
    summary = {
        "points": points,
        "certified": certified,
        "largest_relative_gap": float(np.max(diagram.relative_gap)),
        "minority_classifiers_coincide": int(np.sum(collapsed)),
        "smallest_cosine": float(np.nanmin(diagram.cosine))
        if np.any(np.isfinite(diagram.cosine))
        else None,
        "seconds": diagram.seconds,
    }
    if options.json:
        print_json(summary)
    else:
        largest = summary["largest_relative_gap"]
        print(
            f"{certified} of {points} points certified to 1e-9 "
            f"(largest relative gap {largest:.1e}) in {diagram.seconds:.2f} s\n"
            f"minority classifiers coincide at {summary['minority_classifiers_coincide']} of them"
        )
    if options.save:
        arrays: dict[str, Any] = {
            name: value
            for name, value in diagram._asdict().items()
            if isinstance(value, np.ndarray)
        }
        write_file("--save", options.save, lambda file: np.savez(file, **arrays))
    if options.plot:
        from ufm import plots

        draw("--plot", plots.phase_diagram(diagram, options.quantity or "cosine"), options.plot)
    return 0 if certified == points else 1


def add_mitigate_parser(subparsers: Any) -> None:
    """Add the parser of `ufm mitigate`."""
    parser = subparsers.add_parser(
        "mitigate", help="compare mitigations of minority collapse on one problem"
    )
    add_problem_options(parser)
    parser.add_argument(
        "--tolerance", type=float, default=0.01, help="distance to the ETF that counts as restored"
    )
    parser.add_argument(
        "--plot", metavar="FILE", help="draw the distance to the ETF against the strength"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=_mitigate)


def _mitigate(options: argparse.Namespace) -> int:
    import numpy as np

    import ufm

    if options.plot is not None:
        check_picture("--plot", options.plot)
    found = ufm.mitigations(read_problem(options), tolerance=options.tolerance)
    if options.json:
        print_json([row.to_dict(options.tolerance) for row in found.rows])
    else:
        print(found)
    if options.plot:
        from ufm import plots

        draw("--plot", plots.mitigation_curves(found), options.plot)
    return 0 if all(np.max(np.abs(row.relative_gap)) <= 1e-9 for row in found.rows) else 1
