"""`ufm sweep` and `ufm plot`: solve a problem on a grid into a store, and draw a store."""

import argparse
import contextlib
import math
import os
import sys
import time
from typing import Any

from ufm import interruption
from ufm._support import table_lines
from ufm.cli.output import MATPLOTLIB, PATIENCE, check_picture, draw, need, print_json
from ufm.problems import VARIABLES

__all__ = ["add_parser", "add_plot_parser"]

# The options, or the keys of the config file, that give the library's arguments.
SWEEP_OPTIONS = {
    "store": "--out",
    "resume": "--resume",
    "batch": "--batch",
    "client": "--scheduler",
    **{
        name: f"[sweep] {name}"
        for name in ("how", "quantities", "resolution", "tol", "restarts", "max_steps")
    },
}
PLOT_OPTIONS = {"store": "STORE", "quantity": "--quantity", "dataset": "--select"}
SWEEP_ENDS = 1.0  # seconds after which the running batch is interrupted once more


def add_parser(subparsers: Any) -> None:
    """Add the parser of `ufm sweep`."""
    parser = subparsers.add_parser(
        "sweep", help="solve a problem at every point of a grid or list, into a store"
    )
    parser.add_argument(
        "config",
        nargs="?",
        metavar="CONFIG",
        help="a TOML file, or the name of an example (see --list)",
    )
    parser.add_argument(
        "--out", metavar="STORE", help="folder of the zarr store, such as phase.zarr"
    )
    parser.add_argument("--resume", action="store_true", help="go on with a store that is there")
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="of a Dask cluster, such as tcp://node1:8786"
    )
    parser.add_argument(
        "--batch", type=int, default=None, metavar="N", help="points solved and written together"
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="list the examples and what can be varied, solve nothing",
    )
    parser.add_argument(
        "--show",
        metavar="EXAMPLE",
        help="print the TOML text of an example, to begin a file of one's own",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=_sweep, names=SWEEP_OPTIONS, again=SWEEP_ENDS)


def _sweep(options: argparse.Namespace) -> int:
    from ufm.sweeps import read_config

    if options.list or options.show is not None:
        return _tell(options)
    if options.config is None:
        raise ValueError(
            "CONFIG is missing; give a TOML file, or the name of an example (`ufm sweep --list`)"
        )
    if options.out is None:
        raise ValueError("--out is missing; say where the store is to be, such as --out phase.zarr")
    config = read_config(options.config)
    need("ufm sweep", "sweep", "xarray", "zarr")
    there = os.path.exists(options.out)
    if there and not options.resume:
        raise ValueError(
            f"--out {options.out} exists already; add --resume to go on with it, "
            "or choose another path"
        )
    settings = config.settings | ({} if options.batch is None else {"batch": options.batch})

    import numpy as np

    import ufm

    before = 0
    if there:
        with contextlib.suppress(ValueError):  # a damaged store, which the sweep mends
            status = ufm.open_sweep(options.out)["status"].values
            before = int(np.sum(status != ufm.Status.NOT_COMPUTED))
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
        print_json(summary)
    else:
        _print_sweep(summary)
    return 0 if not summary["not_certified"] else 1


def _tell(options: argparse.Namespace) -> int:
    """List or show what comes with the package, and solve nothing."""
    from ufm.sweeps import example, examples

    alone = "--list" if options.list else "--show"
    given = {
        "--list": options.list,
        "--show": options.show is not None,
        "CONFIG": options.config is not None,
        "--out": options.out is not None,
        "--scheduler": options.scheduler is not None,
        "--batch": options.batch is not None,
        "--resume": options.resume,
        "--json": options.json and alone == "--show",
    }
    ignored = [name for name, present in given.items() if present and name != alone]
    if ignored:
        raise ValueError(
            f"{alone} solves nothing and does not go with {ignored[0]}; leave one of them out"
        )
    if options.show is not None:
        print(example(options.show), end="")
        return 0
    titles = {name: example(name).splitlines()[0].lstrip("# ") for name in examples()}
    meanings = {variable.name: variable.meaning for variable in VARIABLES}
    if options.json:
        listed = {
            "examples": [{"name": name, "title": text} for name, text in titles.items()],
            "axes": [{"name": name, "meaning": text} for name, text in meanings.items()],
        }
        print_json(listed)
        return 0
    for name, title in titles.items():
        print(f"{name}\n    {title}")
    print("\naxes of [over]", *table_lines(list(meanings.items())), sep="\n")
    return 0


def _client(address: str | None) -> Any:
    """Return a context manager: a client of the cluster at an address, or nothing."""
    if address is None:
        return contextlib.nullcontext()
    need("--scheduler", "cluster", "distributed")
    from distributed import Client

    try:
        return Client(address, timeout="10s")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--scheduler {address}: no scheduler answers there ({error}); "
            "start one with `dask scheduler`, and give the address it prints"
        ) from None


def _sweep_summary(dataset: Any, before: int, seconds: float, store: str) -> dict[str, Any]:
    """Return what a store holds in numbers; `before` of its points were solved before."""
    import numpy as np

    import ufm

    status = dataset["status"].values
    certified = dataset["certified"].values
    unbounded = (
        ~certified & np.isnan(dataset["lower_bound"].values) & (status == ufm.Status.CONVERGED)
    )
    gaps = dataset["relative_gap"].values[certified]
    codes, numbers = np.unique(status[~certified & ~unbounded], return_counts=True)
    solved = int(status.size) - before
    return {
        "points": int(status.size),
        "solved_before": before,
        "certified": int(np.sum(certified)),
        "converged_without_bound": int(np.sum(unbounded)),
        "not_certified": {
            str(ufm.Status(code)): int(number) for code, number in zip(codes, numbers, strict=True)
        },
        "largest_certified_gap": float(np.max(gaps)) if gaps.size else None,
        "seconds": seconds,
        "points_per_second": solved / seconds,
        "store": store,
    }


def _print_sweep(summary: dict[str, Any]) -> None:
    largest, before = summary["largest_certified_gap"], summary["solved_before"]
    unbounded = summary["converged_without_bound"]
    rows = [
        (
            "points",
            f"{summary['points']}" + (f", {before} of them solved before" if before else ""),
        ),
        ("certified", f"{summary['certified']}"),
        *([("converged, no bound", f"{unbounded}")] if unbounded else []),
        ("not certified", f"{sum(summary['not_certified'].values())}"),
        *((f"  {status}", f"{number}") for status, number in summary["not_certified"].items()),
        ("largest certified gap", "-" if largest is None else f"{largest:.1e}"),
        ("seconds", f"{summary['seconds']:.2f}"),
        ("points per second", f"{summary['points_per_second']:.4g}"),
        ("store", summary["store"]),
    ]
    print(*table_lines(rows), sep="\n")


def add_plot_parser(subparsers: Any) -> None:
    """Add the parser of `ufm plot`."""
    parser = subparsers.add_parser(
        "plot", help="draw a quantity of a store of `ufm sweep` over its axes"
    )
    parser.add_argument(
        "store", metavar="STORE", help="what `ufm sweep --out` wrote, complete or not"
    )
    parser.add_argument(
        "--quantity",
        default=None,
        metavar="NAME",
        help="such as margin, margin[1] or weight_cosine[0,1]; if not given, cosines",
    )
    parser.add_argument(
        "--select",
        nargs="+",
        default=[],
        action="extend",
        metavar="AXIS=VALUE",
        help="the nearest point of an axis only",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="a PNG, PDF or SVG file; the store's name with .png if not given",
    )
    parser.set_defaults(run=_plot, names=PLOT_OPTIONS)


def _plot(options: argparse.Namespace) -> int:
    need("ufm plot", "sweep", "xarray", "zarr")
    need("ufm plot", *MATPLOTLIB)
    store = os.path.normpath(options.store)
    out = options.out or f"{store.removesuffix('.zarr')}.png"
    check_picture("--out", out)

    import ufm
    from ufm import plots

    dataset = ufm.open_sweep(store)
    for text in options.select:
        dataset = _selected(dataset, text)
    draw("--out", plots.sweep(dataset, options.quantity), out)
    print(out)
    return 0


def _selected(dataset: Any, text: str) -> Any:
    """Return the part of a dataset nearest to the value in a text such as imbalance_ratio=10."""
    import numpy as np

    axis, equals, value = text.partition("=")
    axes = dataset["status"].dims
    if not equals or axis not in axes:
        raise ValueError(
            "--select must be AXIS=VALUE, with AXIS among "
            f"{', '.join(axes) or 'none that are left'}; got {text!r}"
        )
    values = dataset[axis].values if axis in dataset.coords else np.arange(dataset.sizes[axis])
    if values.dtype.kind in "iuf":
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(
                f"--select {axis} needs a number, from {values.min():g} to {values.max():g}; "
                f"got {value!r}"
            )
        return dataset.isel({axis: int(np.argmin(np.abs(values - number)))})
    names = [str(name) for name in values]
    found = [place for place, name in enumerate(names) if value.lower() == name.lower()]
    if not found:
        raise ValueError(f"--select {axis} must be one of {', '.join(names)}; got {value!r}")
    return dataset.isel({axis: found[0]})
