"""The command line: `python -m benchmarks`, from the root of the repository."""

import argparse
import json
import sys
import time
from typing import Any

from benchmarks import machine, table
from benchmarks.agreement import disagreements
from benchmarks.large import report_in_fresh_process, to_markdown
from benchmarks.measurement import Measurement
from benchmarks.optimum import Optimum, certified_optimum
from benchmarks.problems import PROBLEMS, QUICK, Setting, setting
from benchmarks.rivals import RIVALS
from benchmarks.runner import run

AGREEMENT = 1e-11
LARGE = {"clarabel": "tail-30", "scipy": "tail-300", "products": "tail-1000"}
LARGE_QUICK = {"clarabel": "tail-10", "scipy": "tail-60", "products": "tail-200"}


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.check:
        return _check(options.problems or list(QUICK))
    limit = options.limit or (5.0 if options.quick else 600.0 if options.large else 60.0)
    methods = options.methods or list(RIVALS)
    large = (LARGE_QUICK if options.quick else LARGE) if options.large else None
    if large is None:
        plan = [
            (name, methods) for name in options.problems or (QUICK if options.quick else PROBLEMS)
        ]
    else:
        plan = [
            (large["clarabel"], ["ufm", "clarabel"]),
            (large["scipy"], ["ufm", "scipy", "scipy-balanced"]),
        ]
    print(f"{machine.description()}\n")
    measured = []
    data: dict[str, Any] = {"machine": machine.description(), "limit": limit, "problems": []}
    for name, rivals in plan:
        measured.append(_measured(setting(name), rivals, limit))
        data["problems"].append(_plain(*measured[-1]))
        _write(data, options.json)
    print(table.results(measured, limit), flush=True)
    if large is not None:
        print(f"{large['products']}: ufm and its products ...", file=sys.stderr, flush=True)
        data["large"] = report_in_fresh_process(large["products"])
        _write(data, options.json)
        print(f"\n{to_markdown(data['large'])}")
    return 0


def _measured(
    one: Setting, methods: list[str], limit: float
) -> tuple[Setting, Optimum, list[Measurement]]:
    optimum = certified_optimum(one)
    measurements = []
    for method in methods:
        began = time.monotonic()
        print(f"{one.name}: {method} ...", end=" ", file=sys.stderr, flush=True)
        measurements += run(method, one.name, optimum.lower_bound, limit)
        print(f"{time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
    return one, optimum, measurements


def _write(data: dict[str, Any], path: str | None) -> None:
    """Write what is known so far, so that an interrupted run leaves what it measured."""
    if path is not None:
        with open(path, "w") as file:
            json.dump(data, file, indent=1)


def _check(names: list[str]) -> int:
    """Print how far each objective is from `ufm`'s at a random point; 1 if one is too far."""
    rows, worst = [], 0.0
    for name in names:
        for method, difference in disagreements(setting(name)).items():
            rows.append([name, method, f"{difference:.1e}"])
            worst = max(worst, difference)
    print(table.markdown(["problem", "method", "relative difference of the objective"], rows))
    return 0 if worst <= AGREEMENT else 1


def _plain(one: Setting, optimum: Optimum, measurements: list[Measurement]) -> dict[str, Any]:
    return {
        "setting": one._asdict(),
        "optimum": optimum._asdict(),
        "measurements": [measurement.to_json() for measurement in measurements],
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time to relative gaps of 1e-4 and 1e-8 above the certified optimum.",
    )
    parser.add_argument(
        "--problems",
        type=_names(setting, lambda: [*PROBLEMS, "tail-K"]),
        help=f"comma-separated: {', '.join(PROBLEMS)}, or tail-K for any K",
    )
    parser.add_argument(
        "--methods",
        type=_names(RIVALS.__getitem__, lambda: list(RIVALS)),
        help=f"comma-separated: {', '.join(RIVALS)}",
    )
    limits = "seconds per method and problem: 60 if not given, 600 with --large, 5 with --quick"
    parser.add_argument("--limit", type=_positive, help=limits)
    parser.add_argument("--json", metavar="FILE", help="write the numbers there too")
    parser.add_argument(
        "--quick", action="store_true", help="small and short, to see that everything works"
    )
    parser.add_argument("--large", action="store_true", help="K = 30, 300 and 1000 instead")
    parser.add_argument(
        "--check", action="store_true", help="only compare all objectives at a random point"
    )
    return parser


def _names(known: Any, choices: Any) -> Any:
    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        try:
            for name in names:
                known(name)
        except (KeyError, ValueError):
            message = f"unknown {name!r}; choose from {', '.join(choices())}"
            raise argparse.ArgumentTypeError(message) from None
        return names

    return parse


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number of seconds, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
