"""The command line: `ufm verify`, `ufm solve`, `ufm threshold`, `ufm phase`, `ufm sweep`, `ufm plot`, `ufm mitigate`, `ufm measure`.

Exit status: 0 if all is well, 1 if a check failed, a solve is not certified, there is no threshold in the range or a sweep had to stop, 2 for
bad input (one line on stderr), 130 on Ctrl-C.
"""

import argparse
import contextlib
import importlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from ufm.tables import table_lines
from ufm.words import ARGUMENTS, LOSSES, WORDS, problem_of
from ufm.words import BALLS as BALL_WORDS

__all__ = ["main"]

# The options that give the library's arguments, by which its messages begin.
OPTION_OF = {word: "--" + word.replace("_", "-") for word in WORDS} | {"class_counts": "--counts"}
OPTIONS = {argument: OPTION_OF[word] for argument, word in ARGUMENTS.items()} | {
    "learning_rate": "--learning-rate",
    "momentum": "--momentum",
    "resolution": "--resolution",
    "tol": "--tol",
    "max_steps": "--max-steps",
    "restarts": "--restarts",
    "key": "--seed",
    "name": "--only",
    "vary": "--vary",
    "bounds": "--from and --to",
}
BALLS = {argument: OPTION_OF[word] for argument, word in BALL_WORDS.items()}
# Those of `ufm sweep`, whose problem and settings are in a file, and of `ufm plot`.
SWEEP_OPTIONS = {
    "store": "--out",
    "resume": "--resume",
    "batch": "--batch",
    "client": "--scheduler",
    **{name: f"[sweep] {name}" for name in ("how", "quantities", "resolution", "tol", "restarts", "max_steps")},
}
MEASURED_WITH = ("weight_decay", "bias_decay", "feature_decay", "loss", "loss_parameter", "nonnegative", "groups")
MEASURE_OPTIONS = {name: OPTION_OF.get(name, "--" + name.replace("_", "-")) for name in MEASURED_WITH} | {
    "nonnegative": "--nonnegative",
    **dict.fromkeys(("alpha", "gamma", "strength", "exponent"), "--loss-parameter"),
}
MOST_NAMED = 8  # of keys that were not read
PLOT_OPTIONS = {"store": "STORE", "quantity": "--quantity", "dataset": "--select"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, OSError) as error:
        print(f"ufm: error: {_message(error, options)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        solution = getattr(stop, "solution", None)
        if solution is not None:
            print(solution, file=sys.stderr if options.json else sys.stdout)
        print(f"ufm: {stop if hasattr(stop, 'dataset') else 'interrupted'}", file=sys.stderr)
        return 1 if isinstance(stop.__cause__, OSError) else 130


def _message(error: Exception, options: argparse.Namespace) -> str:
    """Return an error's message as one line; where it begins with an argument of the library, the option that gave it goes first."""
    line = " ".join(str(error).split())
    names = getattr(options, "names", OPTIONS) | (BALLS if getattr(options, "weight_ball", None) else {})
    argument = re.match(r"`([\w.]+)`", line)
    option = names.get(argument[1]) if argument else None
    return f"{option}: {line}" if option else line


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> Any:
        self.exit(2, f"{self.prog}: error: {message}; see `{self.prog} --help`\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ufm", description="Unconstrained features models of neural collapse: solved, certified, compared."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=_Parser)

    verify = commands.add_parser("verify", help="hold every theorem against the solver, at published settings")
    verify.add_argument("--only", nargs="+", metavar="THEOREM", help="these theorems only (see --list)")
    verify.add_argument("--list", action="store_true", help="list the theorems and their settings, solve nothing")
    verify.add_argument("--json", action="store_true", help="print JSON instead of a table")
    verify.set_defaults(run=_verify)

    solve = commands.add_parser("solve", help="solve one problem, certify it, and compare with theory")
    _add_problem_options(solve)
    solve.add_argument("--resolution", choices=("auto", "classes", "groups", "samples"), default="auto")
    solve.add_argument("--method", choices=("default", "lbfgs", "newton", "gd"), default="default")
    solve.add_argument("--learning-rate", type=float, default=None, help="of --method gd, 0.1 if not given")
    solve.add_argument("--momentum", type=float, default=None, help="of --method gd")
    solve.add_argument("--tol", type=float, default=1e-9, help="relative gradient to stop at")
    solve.add_argument("--max-steps", type=int, default=None)
    solve.add_argument("--restarts", type=int, default=None, help="initial points, solved in one batch")
    solve.add_argument("--seed", type=int, default=0)
    solve.add_argument("--json", action="store_true", help="print JSON instead of a table")
    solve.add_argument("--save", metavar="FILE.npz", help="write weights, features, bias and logits")
    solve.set_defaults(run=_solve)

    threshold = commands.add_parser(
        "threshold", help="find where the minority collapses as one number of a problem varies"
    )
    _add_problem_options(threshold)
    threshold.add_argument(
        "--vary",
        default="imbalance_ratio",
        metavar="NAME",
        help="imbalance_ratio, weight_decay, num_minority, minority_count, majority_count, regularizer.weights, regularizer.features, "
        "or loss.PARAMETER",
    )
    threshold.add_argument("--from", type=float, default=None, metavar="A", dest="low", help="lowest value to look at")
    threshold.add_argument("--to", type=float, default=None, metavar="B", dest="high", help="highest value to look at")
    threshold.add_argument("--tol", type=float, default=1e-8, help="relative error of thresholds without a closed form")
    threshold.add_argument("--all", action="store_true", help="every collapse along the path, of every group")
    threshold.add_argument("--json", action="store_true", help="print JSON instead of a table")
    threshold.set_defaults(run=_threshold)

    phase = commands.add_parser(
        "phase", help="map minority collapse over two numbers of a problem, every point certified"
    )
    _add_problem_options(phase)
    axis = "NAME:LOW:HIGH[:POINTS], log-spaced where LOW > 0; names as for `ufm threshold --vary`"
    phase.add_argument("--x", required=True, type=_grid, metavar="AXIS", help=axis)
    phase.add_argument("--y", required=True, type=_grid, metavar="AXIS", help="the same for the vertical axis")
    phase.add_argument(
        "--quantity", default="cosine", help="what to draw: cosine, rank, minority_margin, majority_margin, ..."
    )
    phase.add_argument("--plot", metavar="FILE", help="draw the diagram, thresholds on top, to a PNG, PDF or SVG file")
    phase.add_argument("--save", metavar="FILE.npz", help="write all arrays")
    phase.add_argument("--json", action="store_true", help="print JSON instead of a summary")
    phase.set_defaults(run=_phase)

    sweep = commands.add_parser("sweep", help="solve a problem at every point of a grid or list, into a store")
    sweep.add_argument(
        "config", nargs="?", metavar="CONFIG", help="a TOML file, or the name of an example (see --list)"
    )
    sweep.add_argument("--out", metavar="STORE", help="folder of the zarr store, such as phase.zarr")
    sweep.add_argument("--resume", action="store_true", help="go on with a store that is there")
    sweep.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster, such as tcp://node1:8786")
    sweep.add_argument("--batch", type=int, default=None, metavar="N", help="points solved and written together")
    sweep.add_argument("--list", action="store_true", help="list the examples, solve nothing")
    sweep.add_argument(
        "--show", metavar="EXAMPLE", help="print the TOML text of an example, to begin a file of one's own"
    )
    sweep.add_argument("--json", action="store_true", help="print JSON instead of a table")
    sweep.set_defaults(run=_sweep, names=SWEEP_OPTIONS)

    plot = commands.add_parser("plot", help="draw a quantity of a store of `ufm sweep` over its axes")
    plot.add_argument("store", metavar="STORE", help="what `ufm sweep --out` wrote, complete or not")
    plot.add_argument(
        "--quantity",
        default=None,
        metavar="NAME",
        help="such as margin, margin[1] or weight_cosine[0,1]; if not given, cosines",
    )
    plot.add_argument(
        "--select",
        nargs="+",
        default=[],
        action="extend",
        metavar="AXIS=VALUE",
        help="the nearest point of an axis only",
    )
    plot.add_argument("--out", metavar="FILE", help="a PNG, PDF or SVG file; the store's name with .png if not given")
    plot.set_defaults(run=_plot, names=PLOT_OPTIONS)

    mitigate = commands.add_parser("mitigate", help="compare mitigations of minority collapse on one problem")
    _add_problem_options(mitigate)
    mitigate.add_argument("--tolerance", type=float, default=0.01, help="distance to the ETF that counts as restored")
    mitigate.add_argument("--plot", metavar="FILE", help="draw the distance to the ETF against the strength")
    mitigate.add_argument("--json", action="store_true", help="print JSON instead of a table")
    mitigate.set_defaults(run=_mitigate)

    measure = commands.add_parser(
        "measure", help="measure NC1 to NC4 of saved features, and hold a trained last layer against its model"
    )
    measure.add_argument(
        "file",
        metavar="FILE.npz",
        help="arrays `features`, `labels`, and optionally `weights` and `bias`; the options below may be keys of it, too, such as `weight_decay`",
    )
    measure.add_argument(
        "--weight-decay",
        type=float,
        default=None,
        metavar="L",
        help="the network's, as in (L/2) ||W||^2: holds it against its effective model, which needs `weights`",
    )
    measure.add_argument("--bias-decay", type=float, default=None, metavar="L", help="the weight decay if not given")
    measure.add_argument("--feature-decay", type=float, default=None, metavar="L", help="estimated if not given")
    measure.add_argument("--loss", choices=LOSSES, default=None, help="the network's, ce if not given")
    measure.add_argument(
        "--loss-parameter", type=float, default=None, metavar="X", help="smoothing, gamma, strength or exponent"
    )
    measure.add_argument(
        "--nonnegative",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether features have left a ReLU; if not given, whether none is negative",
    )
    measure.add_argument(
        "--groups",
        type=_whole_numbers,
        default=None,
        metavar="g1,g2,...",
        help="classes to average: a number per class",
    )
    measure.add_argument("--report", metavar="DIR", help="write a page, DIR/index.html, with tables and pictures")
    measure.add_argument("--json", action="store_true", help="print JSON instead of a table")
    measure.set_defaults(run=_measure, names=MEASURE_OPTIONS)
    return parser


def _add_problem_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--counts",
        required=True,
        metavar="COUNTS",
        help="class sizes, such as 5x500,5x5 (5 classes of 500, 5 of 5) or 200,100,50",
    )
    add("--feature-dim", type=int, default=None, metavar="d", help="number of classes if not given")
    add("--loss", choices=LOSSES, default="ce")
    add(
        "--loss-parameter",
        type=float,
        default=None,
        metavar="X",
        help="smoothing, focal gamma, adjustment strength, exponent",
    )
    add(
        "--weight-decay",
        type=_numbers,
        default=None,
        metavar="L",
        help="penalty of the weights (halved); one per layer with commas",
    )
    add(
        "--feature-decay",
        type=float,
        default=None,
        metavar="L",
        help="penalty of the features (halved, summed over samples)",
    )
    add("--bias-decay", type=float, default=0.0, metavar="L", help="penalty of the bias, 0: free")
    add(
        "--weight-ball",
        type=_numbers,
        default=None,
        metavar="E",
        help="E_W of the layer-peeled model, instead of weight decay",
    )
    add("--feature-ball", type=float, default=None, metavar="E", help="E_H of the layer-peeled model")
    add("--bias", action="store_true", help="the last layer has a bias")
    add("--hidden", type=_whole_numbers, default=(), metavar="d1,d2", help="hidden layer widths")
    add("--activation", choices=("linear", "relu"), default="linear", help="between the layers of --hidden")
    add("--nonnegative-features", action="store_true", help="features h >= 0")


def _verify(options: argparse.Namespace) -> int:
    from ufm.theory import theorems

    names = options.only
    for name in names or ():
        theorems[name]
    if options.list:
        listed = [theorems[name] for name in names] if names else list(theorems)
        if options.json:
            _print_json(
                [
                    {
                        "name": t.name,
                        "status": t.status,
                        "reference": t.reference,
                        "settings": [e.label for e in t.examples],
                    }
                    for t in listed
                ]
            )
            return 0
        for theorem in listed:
            mark = "" if theorem.predictive else f" [{theorem.status}]"
            print(f"{theorem.name}{mark}\n    {theorem.title} ({theorem.reference})")
            for example in theorem.examples:
                print(f"    - {example.label}")
        return 0

    from ufm.verify import verify

    began = time.perf_counter()
    table = _VerifyTable([theorems[name] for name in names] if names else list(theorems))
    checks = verify(names, done=None if options.json else table.row)
    failed = [check for check in checks if not check.passed]
    if options.json:
        _print_json([check.to_dict() for check in checks])
    else:
        disputed = [check for check in checks if check.verdict == "disputed"]
        confirmed = f"{len(checks) - len(failed) - len(disputed)} of {len(checks)} confirmed"
        contradicted = f", {len(disputed)} disputed" if disputed else ""
        print(f"\n{confirmed}{contradicted} in {time.perf_counter() - began:.1f} s")
        for name in dict.fromkeys(check.theorem for check in disputed):
            print(f"disputed: {name}, {theorems[name].dispute}")
        if table.open:
            print("gaps in parentheses: the lower bound need not be tight (d < K, or the bracket of a deep model)")
        for check in failed:
            print(f"FAILED {check.theorem} at {check.setting}: {check.reason}")
    return 1 if failed else 0


class _VerifyTable:
    """Prints one line per check as it comes; the widths are known from the atlas beforehand."""

    def __init__(self, listed: Sequence[Any]):
        self.name_width = max(len(theorem.name) for theorem in listed)
        self.reference_width = max(len(theorem.reference) for theorem in listed)
        self.setting_width = max(len(example.label) for theorem in listed for example in theorem.examples)
        self.started = self.open = False

    def row(self, check: Any) -> None:
        gap = "-" if check.relative_gap is None else f"{check.relative_gap:.1e}"
        if check.relative_gap is not None and not check.tight and check.relative_gap > check.objective_error + 1e-9:
            gap = f"({gap})"
            self.open = True
        numbers = (
            f"{check.predicted:.12f}",
            f"{check.found:.12f}",
            f"{check.objective_error:.1e}",
            gap,
            f"{check.geometry_error:.1e}",
        )
        if not self.started:
            self._print(
                "theorem",
                "reference",
                "setting",
                ("predicted", "found", "error", "cert.gap", "geometry"),
                "verdict",
                "time",
            )
            self.started = True
        self._print(check.theorem, check.reference, check.setting, numbers, check.verdict, f"{check.seconds:.1f}s")

    def _print(
        self, name: str, reference: str, setting: str, numbers: Sequence[str], verdict: str, seconds: str
    ) -> None:
        widths = (14, 14, 8, 8, 8)
        columns = "  ".join(number.rjust(width) for number, width in zip(numbers, widths, strict=True))
        print(
            f"{name.ljust(self.name_width)}  {setting.ljust(self.setting_width)}  {columns}  {verdict:8}  {seconds:>5}  {reference}",
            flush=True,
        )


def _solve(options: argparse.Namespace) -> int:
    import ufm

    problem, method = _problem(options), _method(options)
    if options.save:
        _check_folder("--save", options.save)
    solution = ufm.solve(
        problem,
        method=method,
        resolution=options.resolution,
        key=options.seed,
        tol=options.tol,
        max_steps=options.max_steps,
        restarts=options.restarts,
        progress=_progress_bar() if sys.stderr.isatty() else None,
    )
    if not options.json:
        print(solution, flush=True)
    try:
        prediction = ufm.predict(problem)
    except ufm.NoPrediction:
        comparison = None
    else:
        comparison = ufm.compare(solution, prediction)
    verdict = ufm.verdict(solution) if problem.num_layers > 1 else None
    if options.json:
        _print_json(_solution_dict(solution, comparison, verdict))
    else:
        print(f"\n{comparison}" if comparison is not None else "\nno theorem in the atlas covers this problem")
        if verdict is not None:
            print(f"\n{verdict}")
    if options.save:  # last, so that a path that cannot be written does not cost the answer
        _save(options.save, solution)
    certificate = solution.certificate
    if certificate is None or not certificate.tight:
        return 0 if solution.status.ok or (certificate is not None and certificate.holds) else 1
    return 0 if certificate.holds else 1


def _threshold(options: argparse.Namespace) -> int:
    import ufm

    problem, settings = _problem(options), {"bounds": (options.low, options.high), "tol": options.tol}
    if options.all:
        found = ufm.collapse_thresholds(problem, options.vary, **settings)
    else:
        found = (ufm.minority_collapse_threshold(problem, options.vary, **settings),)
    if options.json:
        listed = [threshold.to_dict() for threshold in found]
        _print_json(listed if options.all else listed[0])
    else:
        _print_thresholds(options.vary, found)
    return 0 if any(threshold.found for threshold in found) else 1


def _phase(options: argparse.Namespace) -> int:
    import numpy as np

    import ufm

    for path in filter(None, (options.plot, options.save)):
        _check_folder("--plot" if path == options.plot else "--save", path)
    if options.quantity not in ufm.PhaseDiagram._fields:
        raise ValueError(
            f"--quantity must be one of {', '.join(ufm.PhaseDiagram._fields[4:-1])}; got {options.quantity!r}"
        )
    diagram = ufm.phase_diagram(_problem(options), options.x, options.y)
    certified = int(np.sum((diagram.relative_gap <= 1e-9) & (diagram.status != ufm.Status.CONTRADICTION)))
    points = diagram.cosine.size
    collapsed = diagram.minority_level >= 0
    summary = {
        "points": points,
        "certified": certified,
        "largest_relative_gap": float(np.max(diagram.relative_gap)),
        "minority_classifiers_coincide": int(np.sum(collapsed)),
        "smallest_cosine": float(np.nanmin(diagram.cosine)) if np.any(np.isfinite(diagram.cosine)) else None,
        "seconds": diagram.seconds,
    }
    if options.json:
        _print_json(summary)
    else:
        largest = summary["largest_relative_gap"]
        print(
            f"{certified} of {points} points certified to 1e-9 (largest relative gap {largest:.1e}) in {diagram.seconds:.2f} s\n"
            f"minority classifiers coincide at {summary['minority_classifiers_coincide']} of them"
        )
    if options.save:
        arrays: dict[str, Any] = {
            name: value for name, value in diagram._asdict().items() if isinstance(value, np.ndarray)
        }
        np.savez(options.save, **arrays)
    if options.plot:
        from ufm import plots

        _draw(plots.phase_diagram(diagram, options.quantity), options.plot)
    return 0 if certified == points else 1


def _sweep(options: argparse.Namespace) -> int:
    from ufm.sweeps.config import example, examples, read_config

    if options.list:
        for name in examples():
            print(f"{name}\n    {example(name).splitlines()[0].lstrip('# ')}")
        return 0
    if options.show is not None:
        print(example(options.show), end="")
        return 0
    if options.config is None:
        raise ValueError("CONFIG is missing; give a TOML file, or the name of an example (`ufm sweep --list`)")
    if options.out is None:
        raise ValueError("--out is missing; say where the store is to be, such as --out phase.zarr")
    config = read_config(options.config)
    _need("ufm sweep", "sweep", "xarray", "zarr")
    there = os.path.exists(options.out)
    if there and not options.resume:
        raise ValueError(f"--out {options.out} exists already; add --resume to go on with it, or choose another path")
    settings = config.settings | ({} if options.batch is None else {"batch": options.batch})

    import numpy as np

    import ufm

    before = int(np.sum(ufm.open_sweep(options.out)["status"].values != -1)) if there else 0
    began = time.perf_counter()
    with _client(options.scheduler) as client:
        dataset = ufm.sweep(
            config.problem,
            config.over,
            **settings,
            store=options.out,
            resume=options.resume,
            client=client,
            progress=sys.stderr.isatty(),
        )
    summary = _sweep_summary(dataset, before, time.perf_counter() - began, options.out)
    if options.json:
        _print_json(summary)
    else:
        _print_sweep(summary)
    return 0 if not summary["not_certified"] else 1


def _client(address: str | None) -> Any:
    """Return a client of the cluster at an address, or nothing, as something to use in a `with` statement."""
    if address is None:
        return contextlib.nullcontext()
    _need("--scheduler", "cluster", "distributed")
    from distributed import Client

    try:
        return Client(address, timeout="10s")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--scheduler {address}: no scheduler answers there ({error}); start one with `dask scheduler`, and give the address it prints"
        ) from None


def _sweep_summary(dataset: Any, before: int, seconds: float, store: str) -> dict[str, Any]:
    """Return what a store holds in numbers; `before` of its points were there already."""
    import numpy as np

    import ufm

    status = dataset["status"].values
    certified = dataset["certified"].values
    unbounded = ~certified & np.isnan(dataset["lower_bound"].values) & (status == ufm.Status.CONVERGED)
    gaps = dataset["relative_gap"].values[certified]
    codes, numbers = np.unique(status[~certified & ~unbounded], return_counts=True)
    known = {int(code): str(code) for code in ufm.Status}
    solved = int(status.size) - before
    return {
        "points": int(status.size),
        "solved_before": before,
        "certified": int(np.sum(certified)),
        "converged_without_bound": int(np.sum(unbounded)),
        "not_certified": {
            known.get(int(code), "not computed"): int(number) for code, number in zip(codes, numbers, strict=True)
        },
        "largest_certified_gap": float(np.max(gaps)) if gaps.size else None,
        "seconds": seconds,
        "points_per_second": solved / seconds,
        "store": store,
    }


def _print_sweep(summary: dict[str, Any]) -> None:
    largest, before = summary["largest_certified_gap"], summary["solved_before"]
    rows = [
        ("points", f"{summary['points']}" + (f", {before} of them solved before" if before else "")),
        ("certified", f"{summary['certified']}"),
        ("converged, no bound", f"{summary['converged_without_bound']}"),
        ("not certified", f"{sum(summary['not_certified'].values())}"),
        *((f"  {status}", f"{number}") for status, number in summary["not_certified"].items()),
        ("largest certified gap", "-" if largest is None else f"{largest:.1e}"),
        ("seconds", f"{summary['seconds']:.2f}"),
        ("points per second", f"{summary['points_per_second']:.4g}"),
        ("store", summary["store"]),
    ]
    for name, value in rows:
        if name != "converged, no bound" or summary["converged_without_bound"]:
            print(f"{name:<23}{value}")


def _plot(options: argparse.Namespace) -> int:
    _need("ufm plot", "sweep", "xarray", "zarr")
    _need("ufm plot", "plot", "matplotlib")
    store = os.path.normpath(options.store)
    out = options.out or f"{store.removesuffix('.zarr')}.png"
    _check_folder("--out", out)

    import ufm
    from ufm import plots

    dataset = ufm.open_sweep(store)
    for text in options.select:
        dataset = _selected(dataset, text)
    _draw(plots.sweep(dataset, options.quantity), out)
    print(out)
    return 0


def _selected(dataset: Any, text: str) -> Any:
    """Return the part of a dataset at the coordinate nearest to that of a text such as imbalance_ratio=10."""
    import numpy as np

    axis, equals, value = text.partition("=")
    axes = dataset["status"].dims
    if not equals or axis not in axes:
        raise ValueError(
            f"--select must be AXIS=VALUE, with AXIS among {', '.join(axes) or 'none that are left'}; got {text!r}"
        )
    values = dataset[axis].values if axis in dataset.coords else np.arange(dataset.sizes[axis])
    if values.dtype.kind in "iuf":
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(
                f"--select {axis} needs a number, from {values.min():g} to {values.max():g}; got {value!r}"
            )
        return dataset.isel({axis: int(np.argmin(np.abs(values - number)))})
    names = [str(name) for name in values]
    found = [place for place, name in enumerate(names) if value.lower() == name.lower()]
    if not found:
        raise ValueError(f"--select {axis} must be one of {', '.join(names)}; got {value!r}")
    return dataset.isel({axis: found[0]})


def _need(what: str, extra: str, *modules: str) -> None:
    """Raise ValueError where something that is not installed is needed."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError:
            raise ValueError(f'{what} needs {module}, which is not installed: pip install "ufm[{extra}]"') from None


def _mitigate(options: argparse.Namespace) -> int:
    import ufm

    if options.plot:
        _check_folder("--plot", options.plot)
    found = ufm.mitigations(_problem(options), tolerance=options.tolerance)
    if options.json:
        _print_json([row.to_dict(options.tolerance) for row in found.rows])
    else:
        print(found)
    if options.plot:
        from ufm import plots

        _draw(plots.mitigation_curves(found), options.plot)
    return 0 if all(np.max(np.abs(row.relative_gap)) <= 1e-9 for row in found.rows) else 1


def _draw(ax: Any, path: str) -> None:
    from matplotlib import pyplot as plt

    figure = ax.get_figure(root=True)
    figure.savefig(path, bbox_inches="tight", dpi=200)
    plt.close(figure)


def _check_folder(option: str, path: str) -> None:
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise ValueError(f"{option} {path}: there is no folder {folder}; create it first")


def _grid(text: str) -> tuple[str, Any]:
    """Return the name and the values of an axis such as imbalance_ratio:1:1000:100."""
    import numpy as np

    name, *numbers = text.split(":")
    wanted = "NAME:LOW:HIGH or NAME:LOW:HIGH:POINTS, such as imbalance_ratio:1:1000:100"
    try:
        low, high, points = float(numbers[0]), float(numbers[1]), int(numbers[2]) if len(numbers) > 2 else 100
    except (IndexError, ValueError):
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}") from None
    if len(numbers) > 3 or not (math.isfinite(low) and math.isfinite(high) and low < high and points >= 2):
        raise argparse.ArgumentTypeError(f"expected {wanted}, with LOW below HIGH and at least 2 points, got {text!r}")
    return name, np.geomspace(low, high, points) if low > 0 else np.linspace(low, high, points)


def _print_thresholds(vary: str, thresholds: Sequence[Any]) -> None:
    """Print one line per threshold, and below the table what was not found, and why."""
    found = [threshold for threshold in thresholds if threshold.found]
    name = "sqrt(lW lH)" if vary == "weight_decay" else vary
    rows = [("collapse", f"from {name}", "", "relative error", "from", "condition")]
    for threshold in found:
        solves = f"{threshold.evaluations} solves, gaps {threshold.relative_gap:.0e}"
        side = "and above" if threshold.side == "above" else "and below"
        exact = "closed form" if threshold.exact else solves
        rows.append(
            (threshold.kind, f"{threshold.value:.12g}", side, f"{threshold.error:.0e}", exact, threshold.condition)
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


def _problem(options: argparse.Namespace) -> Any:
    words = {word: getattr(options, word) for word in WORDS if word != "class_counts"}
    return problem_of(words | {"class_counts": options.counts}, OPTION_OF.__getitem__)


def _method(options: argparse.Namespace) -> Any:
    import ufm

    if options.method == "gd":
        return ufm.GradientDescent(options.learning_rate, momentum=options.momentum)
    for option, value in (("--learning-rate", options.learning_rate), ("--momentum", options.momentum)):
        if value is not None:
            raise ValueError(f"{option} goes with --method gd; add that, or leave {option} out")
    return {"default": None, "lbfgs": ufm.LBFGS(), "newton": ufm.NewtonCG()}[options.method]


def _progress_bar() -> Any:
    """Return a progress callback that rewrites one line of the terminal, once the solve has taken a second."""
    began = time.perf_counter()

    def show(step: int, objective: float, residual: float) -> None:
        elapsed = time.perf_counter() - began
        if elapsed > 1:
            line = f"step {step}  objective {objective:.12g}  relative gradient {residual:.1e}  {elapsed:.0f} s"
            print(f"\r{line:<78}", end="", file=sys.stderr, flush=True)

    return show


def _solution_dict(solution: Any, comparison: Any, verdict: Any) -> dict[str, Any]:
    certificate = solution.certificate
    return {
        "objective": solution.objective,
        "status": str(solution.status),
        "message": solution.status.message,
        "relative_gradient": solution.relative_gradient,
        "steps": solution.steps,
        "evaluations": solution.evaluations,
        "seconds": solution.seconds,
        "certificate": None
        if certificate is None
        else {
            "lower_bound": certificate.lower_bound,
            "gap": certificate.gap,
            "relative_gap": certificate.relative_gap,
            "holds": certificate.holds,
            "method": certificate.method,
            "tight": certificate.tight,
        },
        "comparison": None if comparison is None else comparison.to_dict(),
        "verdict": None if verdict is None else verdict.to_dict(),
    }


def _save(path: str, solution: Any) -> None:
    """Write what `ufm measure` reads (last-layer features, labels, weights, bias), and the unknowns themselves."""
    import numpy as np

    arrays = {f"weights_{layer + 1}": matrix for layer, matrix in enumerate(solution.weights)}
    if solution.bias is not None:
        arrays["bias"] = solution.bias
    np.savez(
        path,
        features=solution.class_features,
        labels=np.arange(solution.problem.num_classes),
        weights=solution.weights[-1],
        unconstrained_features=solution.features,
        logits=solution.logits,
        **arrays,
    )


def _measure(options: argparse.Namespace) -> int:
    from ufm import metrics

    if options.report is not None:
        _need("--report", "plot", "matplotlib")
    try:
        arrays = metrics.load_features(options.file)
        measured = metrics.neural_collapse(*arrays)
        stored = metrics.stored_arrays(options.file, (), MEASURED_WITH)
    except ValueError as error:
        raise ValueError(f"FILE.npz {options.file}: {str(error).removeprefix('`path` ')}") from error
    given = {name: getattr(options, name) for name in MEASURED_WITH}
    from_file = {name: value.tolist() for name, value in stored.items() if value is not None and given[name] is None}
    if given["weight_decay"] is not None and arrays.weights is None:
        raise ValueError(
            f"--weight-decay needs the matrix of the last layer, as the array `weights` in {options.file}; add it there, or leave the option out"
        )
    if "weight_decay" not in from_file and given["weight_decay"] is None:
        for name, value in given.items():
            if value is not None:
                raise ValueError(
                    f"{MEASURE_OPTIONS[name]}: `{name}` goes with a weight decay, which is missing; give --weight-decay"
                )
    if options.report is not None:
        _make_folder("--report", options.report)
    try:
        held = _held(arrays, given | from_file, from_file)
    except ValueError as error:
        argument = re.match(r"`(\w+)`", str(error))
        of_loss = "loss_parameter" in from_file and argument and MEASURE_OPTIONS.get(argument[1]) == "--loss-parameter"
        if of_loss or (argument and argument[1] in {*from_file, *metrics.FeatureSet._fields}):
            raise ValueError(f"FILE.npz {options.file}: {error}") from error
        raise
    missing = [name for name in ("weights", "weight_decay") if (arrays._asdict() | given | from_file)[name] is None]
    # Nothing is missing where nothing but a measurement is asked for.
    words = _missing(missing) if missing and (options.report or "weight_decay" not in missing) else ""
    path = ""
    if options.report:
        from ufm.plots import report

        rest = report.Section("Held against the model", [words]) if held is None else held
        title = f"{os.path.basename(options.file)}: {report.TITLE[:1].lower()}{report.TITLE[1:]}"
        path = str(report.write_page(options.report, measured, rest, title=title))
    unused = [] if "weight_decay" in from_file or given["weight_decay"] is not None else list(from_file)
    _note_ignored(options.file, (*metrics.FeatureSet._fields, *MEASURED_WITH), unused)
    if options.json:
        more = {"model": None if held is None else held.to_dict(), "missing": words or None, "report": path or None}
        _print_json(measured.to_dict() | {name: value for name, value in more.items() if value is not None})
        return 0
    print(*filter(None, (measured, held, words, f"wrote {path}" if path else "")), sep="\n\n")
    return 0


def _make_folder(option: str, path: str) -> None:
    """Make a folder to write a page into, or say why there is none."""
    what = f"{option} {path!r}" if not path.strip() else f"{option} {path}"
    if not path.strip():
        raise ValueError(f"{what}: name a folder, such as page; it is made if it is not there")
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        reason = "there is a file of this name" if isinstance(error, FileExistsError) else error.strerror
        raise ValueError(f"{what}: this folder cannot be made ({reason}); name another") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise ValueError(f"{what}: this folder cannot be written to; name another")


def _note_ignored(path: str, known: Sequence[str], unused: Sequence[str]) -> None:
    """Say on stderr which keys of a file were not read, and which were of no use."""
    import numpy as np

    with np.load(path, allow_pickle=False) as file:
        ignored = sorted(set(file.files) - set(known))
    if ignored:
        more = f" and {len(ignored) - MOST_NAMED} more" if len(ignored) > MOST_NAMED else ""
        print(f"ufm: note: keys of {path} that were not read: {', '.join(ignored[:MOST_NAMED])}{more}", file=sys.stderr)
        print(f"ufm: note: those that are read: {', '.join(known)}", file=sys.stderr)
    if unused:
        print(f"ufm: note: of no use without a weight decay: {', '.join(unused)}; give --weight-decay", file=sys.stderr)


def _missing(names: Sequence[str]) -> str:
    remedies = {
        "weights": "the matrix of the last layer, as the array `weights` in the file",
        "weight_decay": "the weight decay that the network was trained with, as --weight-decay or as the key `weight_decay` in the file",
    }
    wanted = "; ".join(remedies[name] for name in names)
    return f"Not held against an effective model. What is missing: {wanted}."


def _held(arrays: Any, settings: dict[str, Any], from_file: Collection[str]) -> Any:
    """Return the network of a file held against its effective model, None without its weights or its weight decay."""
    from ufm import networks
    from ufm.words import loss_of

    def name(setting: str) -> str:
        return f"`{setting}`" if setting in from_file else MEASURE_OPTIONS[setting]

    decay, loss, parameter = (settings[setting] for setting in ("weight_decay", "loss", "loss_parameter"))
    if decay is None:
        for setting, value in settings.items():
            if value is not None and setting not in ("loss", "loss_parameter", "nonnegative", "groups"):
                raise ValueError(f"`{setting}` goes with a weight decay, which is missing; give --weight-decay.")
        return None
    if arrays.weights is None:
        return None
    trained = networks.TrainedNetwork.from_features(
        arrays.features,
        arrays.labels,
        arrays.weights,
        arrays.bias,
        weight_decay=decay,
        bias_decay=settings["bias_decay"],
        loss=None if loss is None and parameter is None else loss_of("ce" if loss is None else loss, parameter, name),
        nonnegative=settings["nonnegative"],
    )
    return networks.held_against_model(trained, feature_decay=settings["feature_decay"], groups=settings["groups"])


def _print_json(data: Any) -> None:
    """Print JSON; it has no infinity and no NaN, so those become null."""
    print(json.dumps(_finite(data), indent=2, allow_nan=False))


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: _finite(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _numbers(text: str) -> tuple[float, ...]:
    return _parsed(float, text, "one number, or several with commas")


def _whole_numbers(text: str) -> tuple[int, ...]:
    return _parsed(int, text, "whole numbers with commas")


def _parsed(kind: Callable[[str], Any], text: str, wanted: str) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}") from None
