"""`ufm verify`: check every theorem of the atlas."""

import argparse
import time
from collections.abc import Iterable, Sequence
from typing import Any

from ufm._support import table_lines
from ufm.cli.output import print_json

__all__ = ["add_parser"]

# The columns of numbers, and their widths.
NUMBERS = {"predicted": 14, "found": 14, "error": 8, "cert.gap": 8, "geometry": 8}


def add_parser(subparsers: Any) -> None:
    """Add the parser of `ufm verify`."""
    parser = subparsers.add_parser(
        "verify", help="check every theorem of the atlas, at published settings"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="THEOREM", help="these theorems only (see --list)"
    )
    parser.add_argument(
        "--list", action="store_true", help="list the theorems and their settings, solve nothing"
    )
    parser.add_argument("--quick", action="store_true", help="one setting of every theorem")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=_verify)


def _verify(options: argparse.Namespace) -> int:
    from ufm.theory import theorems

    names = options.only
    for name in names or ():
        theorems[name]
    if options.list:
        listed = [theorems[name] for name in names] if names else list(theorems)
        if options.json:
            print_json(
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
            mark = f" {theorem.mark}".rstrip()
            print(f"{theorem.name}{mark}\n    {theorem.title} ({theorem.reference})")
            for example in theorem.examples:
                print(f"    - {example.label}")
        return 0

    from ufm.comparison import verify

    began = time.perf_counter()
    table = _VerifyTable([theorems[name] for name in names] if names else list(theorems))
    checks = verify(names, quick=options.quick, done=None if options.json else table.row)
    failed = [check for check in checks if check.verdict == "FAILED"]
    if options.json:
        print_json(checks)
    else:
        verdicts = [check.verdict for check in checks]
        others = [
            f", {verdicts.count(verdict)} {verdict}"
            for verdict in ("disputed", "not run")
            if verdict in verdicts
        ]
        seconds = time.perf_counter() - began
        confirmed = f"{verdicts.count('ok')} of {len(checks)} confirmed"
        print(f"\n{confirmed}{''.join(others)} in {seconds:.1f} s")
        for name in dict.fromkeys(check.theorem for check in checks if check.disputed):
            print(f"disputed: {name}, {theorems[name].dispute}")
        if table.open:
            print(
                "gaps in parentheses: the lower bound need not be tight "
                "(d < K, or the bracket of a deep model)"
            )
        for check in checks:
            if check.verdict in ("FAILED", "not run"):
                print(f"{check.verdict} {check.theorem} at {check.setting}: {check.reason}")
    return 1 if failed else 0


class _VerifyTable:
    """Prints one line per check as it comes. The atlas gives the widths beforehand."""

    def __init__(self, listed: Sequence[Any]):
        names = [theorem.name for theorem in listed]
        settings = [example.label for theorem in listed for example in theorem.examples]
        self.widths = (max(map(len, names)), max(map(len, settings)), *NUMBERS.values(), 8, 5, 0)
        self.started = self.open = False

    def row(self, check: Any) -> None:
        gap = _number(check.relative_gap, ".1e")
        if (
            check.relative_gap is not None
            and not check.tight
            and check.relative_gap > check.objective_error + 1e-9
        ):
            gap = f"({gap})"
            self.open = True
        numbers = (
            _number(check.predicted, ".12f"),
            _number(check.found, ".12f"),
            _number(check.objective_error, ".1e"),
            gap,
            _number(check.geometry_error, ".1e"),
        )
        if not self.started:
            self._print("theorem", "setting", NUMBERS, "verdict", " time", "reference")
            self.started = True
        seconds = f"{check.seconds:.1f}s".rjust(5)
        self._print(check.theorem, check.setting, numbers, check.verdict, seconds, check.reference)

    def _print(self, name: str, setting: str, numbers: Iterable[str], *rest: str) -> None:
        right = [n.rjust(width) for n, width in zip(numbers, NUMBERS.values(), strict=True)]
        row = (name, setting, *right, *rest)
        print(*table_lines([row], widths=self.widths), flush=True)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"
