"""The command line: `ufm verify`, `ufm solve`, `ufm threshold`, `ufm phase`, `ufm sweep`, `ufm plot`, `ufm mitigate`, `ufm measure`.

`STATUSES` says what the exit status means. What goes wrong is one line on stderr.
"""

import argparse
import contextlib
import importlib
import io
import json
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any

from ufm import interruption
from ufm._support import __version__, counted, table_lines
from ufm.problems import ARGUMENTS, LOSSES, WORDS, did_you_mean, problem_of
from ufm.problems import BALLS as BALL_WORDS
from ufm.solving import SolveInterrupted

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
STATUSES = """\
exit status:
  0    done, and all of it certified, confirmed or found
  1    done, but not all of it is certified, confirmed or found; or a sweep had to stop
  2    bad use: an option, a file, or an output that cannot be written
  130  interrupted by Ctrl-C
  141  the reader of the output has gone, as with `| head`
"""
NOT_READ = 141  # 128 + SIGPIPE
PATIENCE = 2.0  # seconds that an interrupted command has to end by itself
PATIENCE_WITH_A_POINT = 10.0  # seconds to certify the point that an interrupted solve has reached
SWEEP_ENDS = 1.0  # seconds that the batch in work has to end in
MOST_POINTS = 1_000_000  # of an axis
AXIS = "imbalance_ratio:1:1000:100"
MATPLOTLIB = ("plot", "matplotlib")
PLOT_OPTIONS = {"store": "STORE", "quantity": "--quantity", "dataset": "--select"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        arguments: of the command line. If not given, those of this process, which is the command's own then: its output is flushed,
            a warning is one line, and Ctrl-C ends it within seconds (`ufm.interruption`).
    """
    return _own_process() if arguments is None else _main(arguments)


def _own_process() -> int:
    interruption.watch()
    warnings.showwarning = _show_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # it is None where it was closed
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _main(sys.argv[1:])
    except SystemExit as stop:  # of argparse
        status = stop.code if isinstance(stop.code, int) else 2
    except BrokenPipeError:  # the help of argparse, too, may have no reader or no room
        status = NOT_READ
    except OSError as error:
        interruption.say(f"error: {_message(error, argparse.Namespace())}")
        status = 2
    status = _flushed(status)
    interruption.expect(0.0)
    return status


def _main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    interruption.expect(PATIENCE, again=options.again)
    try:
        return options.run(options)
    except BrokenPipeError:
        return NOT_READ
    except (ValueError, OSError) as error:
        interruption.say(f"error: {_message(error, options)}")
        return 2
    except MemoryError as error:
        interruption.say(
            f"error: there is not enough memory: {error or 'the problem is too large'}; choose a smaller one"
        )
        return 2
    except KeyboardInterrupt as stop:
        _flushed(interruption.INTERRUPTED)
        words = str(stop) if not isinstance(stop, SolveInterrupted) and str(stop) else "interrupted"
        if isinstance(stop.__cause__, OSError):
            interruption.say(words)
            return 1
        interruption.end(words)
        return interruption.INTERRUPTED


def _flushed(status: int) -> int:
    """Flush the output, and return the exit status: the given one if that works."""
    if sys.stdout is None:
        return status
    try:
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        status = NOT_READ
    except OSError as error:
        if status != 2:  # else that was said already
            interruption.say(f"error: {_message(error, argparse.Namespace())}")
        status = 2
    # What is left in the buffer has nowhere to go, and Python would complain of it once more at the end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def _show_warning(message: Any, *where: Any, **more: Any) -> None:
    interruption.say(f"warning: {' '.join(str(message).split())}")


def _message(error: Exception, options: argparse.Namespace) -> str:
    """Return an error's message as one line; where it begins with an argument of the library, the option that gave it goes first."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else "standard output: "
        return f"{where}{error.strerror}{'' if error.filename else '; write the output elsewhere'}"
    line = " ".join(str(error).split())
    names = getattr(options, "names", OPTIONS) | (BALLS if getattr(options, "weight_ball", None) else {})
    argument = re.match(r"`([\w.]+)`", line)
    option = names.get(argument[1]) if argument else None
    return f"{option}: {line}" if option else line


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and that says where its help cannot be written."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is sys.stdout and file is not None:
            file.write(message)  # argparse's own passes over errors
        else:
            super()._print_message(message, file)

    def error(self, message: str) -> Any:
        self.exit(2, f"{self.prog}: error: {message}; see `{self.prog} --help`\n")


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line; what is misspelt is named before what is missing."""
    parser, commands = _parser()
    command = next((argument for argument in arguments if not argument.startswith("-")), None)
    if command is not None and command not in commands:
        names = ", ".join(commands)
        parser.error(f"COMMAND must be one of {names}; got {command!r}{did_you_mean(command, commands)}")
    options, rest = parser.parse_known_args(_with_negative_numbers(arguments))
    unknown = next((argument for argument in rest if argument.startswith("-")), rest[0] if rest else None)
    if unknown is not None:
        known = re.findall(r"--[a-z-]+", options.parser.format_help())
        options.parser.error(f"there is no option {unknown}{did_you_mean(unknown.partition('=')[0], known)}")
    return options


def _with_negative_numbers(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with each negative number, or list of numbers, joined to its option: argparse takes -1e-3 for an option."""
    joined: list[str] = []
    for argument in arguments:
        number = re.match(r"-(\.?\d|inf|nan)", argument, re.IGNORECASE)
        if number and joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _one_of(*names: str) -> dict[str, Any]:
    """Return what makes an argument one of some names."""

    def chosen(text: str) -> str:
        if text not in names:
            near = did_you_mean(text, names)
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(names)}; got {text!r}{near}")
        return text

    return {"type": chosen, "metavar": f"{{{','.join(names)}}}"}


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the parser, and those of the commands by name."""
    parser = _Parser(
        prog="ufm",
        description="Unconstrained features models of neural collapse: solved, certified, compared.",
        epilog=STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ufm {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=_Parser)

    verify = commands.add_parser("verify", help="hold every theorem against the solver, at published settings")
    verify.add_argument("--only", nargs="+", metavar="THEOREM", help="these theorems only (see --list)")
    verify.add_argument("--list", action="store_true", help="list the theorems and their settings, solve nothing")
    verify.add_argument("--json", action="store_true", help="print JSON instead of a table")
    verify.set_defaults(run=_verify)

    solve = commands.add_parser("solve", help="solve one problem, certify it, and compare with theory")
    _add_problem_options(solve)
    solve.add_argument("--resolution", default="auto", **_one_of("auto", "classes", "groups", "samples"))
    solve.add_argument("--method", default="default", **_one_of("default", "lbfgs", "newton", "gd"))
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
    phase.add_argument("--x", default=None, type=_grid, metavar="AXIS", help=axis)
    phase.add_argument("--y", default=None, type=_grid, metavar="AXIS", help="the same for the vertical axis")
    phase.add_argument(
        "--quantity",
        default=None,
        metavar="NAME",
        help="what to draw with --plot: cosine if not given, rank, minority_margin, majority_margin, ...",
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
    sweep.set_defaults(run=_sweep, names=SWEEP_OPTIONS, again=SWEEP_ENDS)

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
    measure.add_argument("--loss", default=None, help="the network's, ce if not given", **_one_of(*LOSSES))
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
    for command in commands.choices.values():
        command.set_defaults(parser=command, again=command.get_default("again"))
    return parser, dict(commands.choices)


def _add_problem_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--counts",
        default=None,
        metavar="COUNTS",
        help="class sizes, such as 5x500,5x5 (5 classes of 500, 5 of 5) or 200,100,50",
    )
    add("--feature-dim", type=int, default=None, metavar="d", help="number of classes if not given")
    add("--loss", default="ce", help="ce if not given", **_one_of(*LOSSES))
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
    add("--activation", default="linear", help="between the layers of --hidden", **_one_of("linear", "relu"))
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

    from ufm.comparison import verify

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
    if options.save is not None:
        _check_output("--save", options.save, ["npz"])
    with _Progress() as progress:
        try:
            solution = ufm.solve(
                problem,
                method=method,
                resolution=options.resolution,
                key=options.seed,
                tol=options.tol,
                max_steps=options.max_steps,
                restarts=options.restarts,
                progress=progress,
            )
        except ufm.SolveInterrupted as stop:
            solution = stop.solution
            progress.close()
            print(solution, file=sys.stderr if options.json else sys.stdout)
            if options.save:
                _save(options.save, solution)
                raise KeyboardInterrupt(f"interrupted; {options.save} holds the point reached") from stop
            raise
    unsaved = None
    if options.save:
        try:
            _save(options.save, solution)
        except ValueError as error:  # it must not cost the answer
            unsaved = error
    if not options.json:
        print(solution, flush=True)
    comparison, why = _compared(solution)
    verdict = ufm.verdict(solution) if problem.num_layers > 1 else None
    if options.json:
        _print_json(_solution_dict(solution, comparison, verdict))
    else:
        if solution.resolution == "groups":
            print(f"\n{_group_table(solution)}")
        print(f"\n{why if comparison is None else comparison}")
        if verdict is not None:
            print(f"\n{verdict}")
    if unsaved is not None:
        raise unsaved
    certificate = solution.certificate
    if certificate is None or not certificate.tight:
        return 0 if solution.status.ok or (certificate is not None and certificate.holds) else 1
    return 0 if certificate.holds else 1


def _compared(solution: Any) -> tuple[Any, str]:
    """Return the comparison with theory, by groups where the solution is, or None and why there is none."""
    import ufm

    problem = solution.problem
    by_groups = solution.resolution == "groups" and not problem.nonnegative_features
    try:
        prediction = ufm.theorems.predict_groups(problem, solution.groups) if by_groups else ufm.predict(problem)
        return ufm.compare(solution, prediction), ""
    except ufm.NoPrediction:
        return None, "no theorem in the atlas covers this problem"
    except ValueError as error:  # explicit matrices of too many classes; what was solved is worth its print
        if not _is_large(problem):
            raise
        return None, f"not compared with theory: {error}"


def _is_large(problem: Any) -> bool:
    """Whether there are too many classes for explicit matrices."""
    from ufm.problems import DENSE_LIMIT

    return problem.num_classes > DENSE_LIMIT


def _group_table(solution: Any) -> str:
    """Return what there is of each group as a table: cosines are those of two classes of the group."""
    found = solution.by_group()
    columns = {
        "classes": found["sizes"],
        "samples each": found["counts"],
        "|w|": found["weight_norms"],
        "|mean|": found["feature_norms"],
        "cos(w, w')": found["weight_cosines"].diagonal(),
        "cos(mean, mean')": found["feature_cosines"].diagonal(),
        "margin": found["margins"],
    }
    rows = [[f"{value:.10g}" for value in row] for row in zip(*columns.values(), strict=True)]
    return "\n".join(table_lines([list(columns), *rows], str.rjust))


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

    for option in ("x", "y"):
        if getattr(options, option) is None:
            raise ValueError(f"--{option} is missing; give it, such as --{option} {AXIS}")
    if options.quantity is not None and options.plot is None:
        raise ValueError("--quantity says what to draw, and goes with --plot FILE; add that, or leave --quantity out")
    quantities = ufm.PhaseDiagram._fields[4:-1]
    if options.quantity not in (None, *quantities):
        near = did_you_mean(options.quantity, quantities)
        raise ValueError(f"--quantity must be one of {', '.join(quantities)}; got {options.quantity!r}{near}")
    if options.save is not None:
        _check_output("--save", options.save, ["npz"])
    if options.plot is not None:
        _check_picture("--plot", options.plot)
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
        _write("--save", options.save, lambda file: np.savez(file, **arrays))
    if options.plot:
        from ufm import plots

        _draw("--plot", plots.phase_diagram(diagram, options.quantity or "cosine"), options.plot)
    return 0 if certified == points else 1


def _sweep(options: argparse.Namespace) -> int:
    from ufm.sweeps import example, examples, read_config

    told = {"--list": options.list, "--show": options.show is not None}
    rest = {"CONFIG": options.config, "--out": options.out, "--scheduler": options.scheduler, "--batch": options.batch}
    rest = told | {name: value is not None for name, value in rest.items()} | {"--resume": options.resume}
    alone = next((name for name, given in told.items() if given), None)
    ignored = [name for name, given in rest.items() if given and name != alone]
    ignored += ["--json"] if options.json and alone == "--show" else []
    if alone and ignored:
        raise ValueError(f"{alone} solves nothing and does not go with {ignored[0]}; leave one of them out")
    if options.list:
        titles = {name: example(name).splitlines()[0].lstrip("# ") for name in examples()}
        if options.json:
            _print_json([{"name": name, "title": title} for name, title in titles.items()])
            return 0
        for name, title in titles.items():
            print(f"{name}\n    {title}")
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
    remains = f"{options.out} holds the points that are done; go on with `ufm sweep --resume`"
    interruption.expect(PATIENCE, f"interrupted; {remains}", SWEEP_ENDS)
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
    _need("ufm plot", *MATPLOTLIB)
    store = os.path.normpath(options.store)
    out = options.out or f"{store.removesuffix('.zarr')}.png"
    _check_picture("--out", out)

    import ufm
    from ufm import plots

    dataset = ufm.open_sweep(store)
    for text in options.select:
        dataset = _selected(dataset, text)
    _draw("--out", plots.sweep(dataset, options.quantity), out)
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
    import numpy as np

    import ufm

    if options.plot is not None:
        _check_picture("--plot", options.plot)
    found = ufm.mitigations(_problem(options), tolerance=options.tolerance)
    if options.json:
        _print_json([row.to_dict(options.tolerance) for row in found.rows])
    else:
        print(found)
    if options.plot:
        from ufm import plots

        _draw("--plot", plots.mitigation_curves(found), options.plot)
    return 0 if all(np.max(np.abs(row.relative_gap)) <= 1e-9 for row in found.rows) else 1


def _draw(option: str, ax: Any, path: str) -> None:
    from matplotlib import pyplot as plt

    figure = ax.get_figure(root=True)
    ending = os.path.splitext(path)[1][1:].lower()
    _write(option, path, lambda file: figure.savefig(file, format=ending, bbox_inches="tight", dpi=200))
    plt.close(figure)


def _check_picture(option: str, path: str) -> None:
    """Check that a picture can be drawn, before the work."""
    _need(option, *MATPLOTLIB)
    from matplotlib.backend_bases import FigureCanvasBase

    formats = sorted(FigureCanvasBase.get_supported_filetypes())
    _check_output(option, path, ["png", "pdf", "svg", *(name for name in formats if name not in ("png", "pdf", "svg"))])


def _check_output(option: str, path: str, endings: Sequence[str]) -> None:
    """Check that a file of one of these formats can be written, before the work."""
    ending = os.path.splitext(path)[1]
    if ending[1:].lower() not in endings:
        rest = f" (or {', '.join(endings[1:])})" if len(endings) > 1 else ""
        raise ValueError(
            f"{option} {path!r}: the ending says the format, and must be {endings[0]}{rest}; "
            f"name it {path.removesuffix(ending) or option.lstrip('-')}.{endings[0]}"
        )
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise ValueError(f"{option} {path}: there is no folder {folder}; create it first")
    if os.path.isdir(path):
        raise ValueError(f"{option} {path}: this is a folder; name a file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{option} {path}: the folder {folder} cannot be written to; name another")


def _write(option: str, path: str, write: Callable[[Any], Any]) -> None:
    """Write a file as a whole or not at all: first beside it, then under its name."""
    target = os.path.realpath(path)
    partial = f"{target}.{os.getpid()}.partial"
    try:
        with open(partial, "wb") as file:
            write(file)
        os.replace(partial, target)
    except OSError as error:
        raise ValueError(f"{option} {path}: cannot be written ({error.strerror or error}); name another file") from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(partial)


def _grid(text: str) -> tuple[str, Any]:
    """Return the name and the values of an axis such as imbalance_ratio:1:1000:100."""
    import numpy as np

    name, *numbers = text.split(":")
    wanted = f"NAME:LOW:HIGH or NAME:LOW:HIGH:POINTS, such as {AXIS}"
    try:
        low, high, points = float(numbers[0]), float(numbers[1]), int(numbers[2]) if len(numbers) > 2 else 100
    except (IndexError, ValueError):
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}") from None
    possible = math.isfinite(low) and math.isfinite(high) and low < high and 2 <= points <= MOST_POINTS
    if len(numbers) > 3 or not possible:
        raise argparse.ArgumentTypeError(
            f"expected {wanted}, with LOW below HIGH and 2 to {MOST_POINTS} points, got {text!r}"
        )
    return name, np.geomspace(low, high, points) if low > 0 else np.linspace(low, high, points)


def _print_thresholds(vary: str, thresholds: Sequence[Any]) -> None:
    """Print one line per threshold, and below the table what was not found, and why."""
    found = [threshold for threshold in thresholds if threshold.found]
    name = "sqrt(lW lH)" if vary == "weight_decay" else vary
    rows = [("collapse", f"from {name}", "", "relative error", "from", "condition")]
    for threshold in found:
        solves = f"{counted(threshold.evaluations, 'solve')}, gaps {threshold.relative_gap:.0e}"
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


class _Progress:
    """Shows how far a solve is, in a line of the terminal, from its first second on; and what an interruption leaves."""

    def __init__(self) -> None:
        self.began, self.shown = time.perf_counter(), False

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *raised: Any) -> None:
        self.close()

    def __call__(self, step: int, objective: float, residual: float) -> None:
        state = f"step {step}  objective {objective:.12g}  relative gradient {residual:.1e}"
        interruption.expect(PATIENCE_WITH_A_POINT, f"interrupted at {' '.join(state.split())}")
        elapsed = time.perf_counter() - self.began
        if elapsed > 1 and sys.stderr.isatty():
            self.shown = True
            print(f"\r{state}  {elapsed:.0f} s".ljust(79), end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Clear the line."""
        interruption.expect(PATIENCE)
        if self.shown:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
            self.shown = False


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
        "groups": {name: value.tolist() for name, value in solution.by_group().items()}
        if solution.resolution == "groups"
        else None,
        "comparison": None if comparison is None else comparison.to_dict(),
        "verdict": None if verdict is None else verdict.to_dict(),
    }


def _save(path: str, solution: Any) -> None:
    """Write what `ufm measure` reads (last-layer features, labels, weights, bias), and the unknowns themselves."""
    import numpy as np

    if solution.resolution == "groups" and _is_large(solution.problem):
        np.savez(path, **solution.by_group())
        K = solution.problem.num_classes
        print(f"ufm: note: {path} has numbers per group, not matrices: {K} classes are too many", file=sys.stderr)
        return
    arrays = {f"weights_{layer + 1}": matrix for layer, matrix in enumerate(solution.weights)}
    if solution.bias is not None:
        arrays["bias"] = solution.bias
    arrays |= {
        "features": solution.class_features,
        "labels": np.arange(solution.problem.num_classes),
        "weights": solution.weights[-1],
        "unconstrained_features": solution.features,
        "logits": solution.logits,
    }
    _write("--save", path, lambda file: np.savez(file, **arrays))


def _measure(options: argparse.Namespace) -> int:
    from ufm import metrics

    if options.report is not None:
        _need("--report", *MATPLOTLIB)
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
    from ufm.problems import loss_of

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
    return networks.compare_with_model(trained, feature_decay=settings["feature_decay"], groups=settings["groups"])


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
