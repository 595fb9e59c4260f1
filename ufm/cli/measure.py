"""`ufm measure`: measure saved features, and compare a trained last layer with its model."""

import argparse
import os
import sys
from collections.abc import Collection, Sequence
from typing import Any

from ufm._support import ArgumentError, check_one_of
from ufm.cli.output import MATPLOTLIB, need, print_json
from ufm.cli.problem_options import OPTION_OF, add_loss_options, whole_numbers
from ufm.problems import ARGUMENTS

__all__ = ["add_parser"]

MEASURED_WITH = (
    "weight_decay",
    "bias_decay",
    "feature_decay",
    "loss",
    "loss_parameter",
    "nonnegative",
    "groups",
)
MEASURE_OPTIONS = {
    name: OPTION_OF.get(name, "--" + name.replace("_", "-")) for name in MEASURED_WITH
} | {
    "nonnegative": "--nonnegative",
    "targets": "--targets",
    **{name: OPTION_OF[word] for name, word in ARGUMENTS.items() if word == "loss_parameter"},
}
TARGETS = ("classes", "regression", "multi-label", "contexts")
MOST_NAMED = 8  # keys named in the note about keys that were not read


def add_parser(subparsers: Any) -> None:
    """Add the parser of `ufm measure`."""
    parser = subparsers.add_parser(
        "measure",
        help="measure NC1 to NC4 of saved features, or the collapse of other targets, "
        "and hold a trained last layer against its model",
    )
    parser.add_argument(
        "file",
        metavar="FILE.npz",
        help="arrays `features`, `labels`, and optionally `weights` and `bias`; "
        "the options below may be keys of it, too, such as `weight_decay`",
    )
    parser.add_argument(
        "--weight-decay",
        type=float,
        default=None,
        metavar="L",
        help="the network's, as in (L/2) ||W||^2: holds it against its effective model, "
        "which needs `weights`",
    )
    parser.add_argument(
        "--bias-decay", type=float, default=None, metavar="L", help="the weight decay if not given"
    )
    parser.add_argument(
        "--feature-decay", type=float, default=None, metavar="L", help="estimated if not given"
    )
    add_loss_options(parser, None, "the network's, ")
    parser.add_argument(
        "--targets",
        choices=TARGETS,
        default=None,
        help="what `labels` are: classes, as if not given; real targets; multi-hot rows; or next "
        "tokens, with the context of each sample as the array `contexts`",
    )
    parser.add_argument(
        "--nonnegative",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether features have left a ReLU; if not given, whether none is negative",
    )
    parser.add_argument(
        "--groups",
        type=whole_numbers,
        default=None,
        metavar="g1,g2,...",
        help="classes to average: a number per class",
    )
    parser.add_argument(
        "--report", metavar="DIR", help="write a page, DIR/index.html, with tables and pictures"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=_measure, names=MEASURE_OPTIONS)


def _measure(options: argparse.Namespace) -> int:
    from ufm import metrics

    if options.report is not None:
        need("--report", *MATPLOTLIB)
    try:
        arrays = metrics.load_features(options.file)
        targets, contexts = _targets(options)
        measured = _measured(arrays, targets, contexts)
        stored = metrics.stored_arrays(options.file, (), MEASURED_WITH)
    except ValueError as error:
        of_path = isinstance(error, ArgumentError) and error.argument == "path"
        raise _of_file(options.file, error.claim if of_path else error) from error  # type: ignore[attr-defined]
    if targets != "classes" and options.report is not None:
        raise ValueError(
            f"--report draws the page of classes, not of targets {targets}; leave one of the two "
            "out, or print --json"
        )
    given = {name: getattr(options, name) for name in MEASURED_WITH}
    from_file = {
        name: value.tolist()
        for name, value in stored.items()
        if value is not None and given[name] is None
    }
    settings = given | from_file
    _check_settings(options.file, arrays, given, from_file)
    if options.report is not None:
        _make_folder("--report", options.report)
    try:
        held = _held(arrays, settings, from_file, targets, contexts)
    except ValueError as error:
        # An error in words speaks of the name of the loss.
        argument = error.argument if isinstance(error, ArgumentError) else "loss"
        if ARGUMENTS.get(argument, argument) in {*from_file, *_arrays_read(contexts)}:
            raise _of_file(options.file, error) from error
        raise
    words = _missing(arrays, settings, options.report is not None)
    path = "" if options.report is None else _write_page(options, measured, held, words)
    unused = list(from_file) if settings["weight_decay"] is None else []
    known = *_arrays_read(contexts), *MEASURED_WITH, "targets"
    _note_ignored(options.file, known, unused)
    if options.json:
        more = {"model": held, "missing": words or None, "report": path or None}
        print_json(
            measured.to_dict() | {name: value for name, value in more.items() if value is not None}
        )
        return 0
    print(*filter(None, (measured, held, words, f"wrote {path}" if path else "")), sep="\n\n")
    return 0


def _targets(options: argparse.Namespace) -> tuple[str, Any]:
    """Return what labels are, and the context of each sample where they are next tokens."""
    from ufm import metrics

    stored = metrics.stored_arrays(options.file, (), ("targets", "contexts"))
    given = "classes" if stored["targets"] is None else str(stored["targets"])
    targets = given if options.targets is None else options.targets
    check_one_of("targets", targets, TARGETS)
    if targets != "contexts":
        return targets, None
    if stored["contexts"] is None:
        raise ValueError(
            "targets contexts need the context of each sample, integers as the array `contexts`"
        )
    return targets, stored["contexts"]


def _measured(arrays: Any, targets: str, contexts: Any) -> Any:
    """Return the collapse of the features of a file."""
    from ufm import metrics

    features, labels, *head = arrays
    if targets == "regression":
        return metrics.regression_collapse(features, labels, *head)
    if targets == "multi-label":
        return metrics.multi_label_collapse(features, labels, *head)
    if targets == "contexts":
        return metrics.context_collapse(features, labels, contexts, *head)
    return metrics.neural_collapse(features, labels, *head)


def _arrays_read(contexts: Any) -> tuple[str, ...]:
    """Return the keys of arrays that are read."""
    from ufm import metrics

    return metrics.FeatureSet._fields + (() if contexts is None else ("contexts",))


def _of_file(path: str, what: Any) -> ValueError:
    return ValueError(f"FILE.npz {path}: {what}")


def _check_settings(
    path: str, arrays: Any, given: dict[str, Any], from_file: dict[str, Any]
) -> None:
    """Raise ValueError for options, or keys of the file, that have no effect."""
    if given["weight_decay"] is not None and arrays.weights is None:
        raise ValueError(
            "--weight-decay needs the matrix of the last layer, as the array `weights` in "
            f"{path}; add it there, or leave the option out"
        )
    if "weight_decay" in from_file or given["weight_decay"] is not None:
        return
    for name, value in given.items():
        if value is not None:
            raise _without_decay(name)
    for name in ("bias_decay", "feature_decay"):
        if name in from_file:
            raise _of_file(path, _without_decay(name))


def _write_page(options: argparse.Namespace, measured: Any, held: Any, words: str) -> str:
    from ufm.plots import report

    rest = report.Section("Held against the model", [words]) if held is None else held
    title = f"{os.path.basename(options.file)}: {report.TITLE[:1].lower()}{report.TITLE[1:]}"
    return str(report.write_page(options.report, measured, rest, title=title))


def _without_decay(name: str) -> ArgumentError:
    return ArgumentError(
        name, "goes with a weight decay, which is missing", remedy="give --weight-decay"
    )


def _make_folder(option: str, path: str) -> None:
    """Make a folder to write a page into, or say why there is none."""
    what = f"{option} {path!r}" if not path.strip() else f"{option} {path}"
    if not path.strip():
        raise ValueError(f"{what}: name a folder, such as page; it is made if it is not there")
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        reason = (
            "there is a file of this name" if isinstance(error, FileExistsError) else error.strerror
        )
        raise ValueError(f"{what}: this folder cannot be made ({reason}); name another") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise ValueError(f"{what}: this folder cannot be written to; name another")


def _note_ignored(path: str, known: Sequence[str], unused: Sequence[str]) -> None:
    """Say on stderr which keys of a file were not read, and which had no effect."""
    import numpy as np

    with np.load(path, allow_pickle=False) as file:
        ignored = sorted(set(file.files) - set(known))
    if ignored:
        more = f" and {len(ignored) - MOST_NAMED} more" if len(ignored) > MOST_NAMED else ""
        print(
            f"ufm: note: keys of {path} that were not read: "
            f"{', '.join(ignored[:MOST_NAMED])}{more}",
            file=sys.stderr,
        )
        print(f"ufm: note: those that are read: {', '.join(known)}", file=sys.stderr)
    if unused:
        print(
            f"ufm: note: of no use without a weight decay: {', '.join(unused)}; "
            "give --weight-decay",
            file=sys.stderr,
        )


def _missing(arrays: Any, settings: dict[str, Any], report: bool) -> str:
    """Return what a comparison with the model lacks; "" where only a measurement is wanted."""
    remedies = {
        "weights": "the matrix of the last layer, as the array `weights` in the file",
        "weight_decay": "the weight decay that the network was trained with, as --weight-decay "
        "or as the key `weight_decay` in the file",
    }
    has = {"weights": arrays.weights, "weight_decay": settings["weight_decay"]}
    wanted = [remedy for name, remedy in remedies.items() if has[name] is None]
    if not wanted or not (report or has["weight_decay"] is not None):
        return ""
    return f"Not compared with an effective model. Missing: {'; '.join(wanted)}."


def _held(
    arrays: Any,
    settings: dict[str, Any],
    from_file: Collection[str],
    targets: str,
    contexts: Any,
) -> Any:
    """Return the comparison of a file's network with its effective model.

    It is None without the weights or the weight decay.
    """
    from ufm import networks
    from ufm.problems import loss_of

    def name(setting: str) -> str:
        return f"`{setting}`" if setting in from_file else MEASURE_OPTIONS[setting]

    decay, loss, parameter = (
        settings[setting] for setting in ("weight_decay", "loss", "loss_parameter")
    )
    if decay is None or arrays.weights is None:
        return None
    trained = networks.TrainedNetwork.from_features(
        arrays.features,
        arrays.labels,
        arrays.weights,
        arrays.bias,
        weight_decay=decay,
        bias_decay=settings["bias_decay"],
        loss=None
        if loss is None and parameter is None
        else loss_of("ce" if loss is None else loss, parameter, name),
        nonnegative=settings["nonnegative"],
        targets=targets,
        contexts=contexts,
    )
    return networks.compare_with_model(
        trained, feature_decay=settings["feature_decay"], groups=settings["groups"]
    )
