"""Compare this tree with another commit in one run: ratios of times, and the numbers found.

Run as `python -m benchmarks.baseline COMMIT`. Both run the tasks of `benchmarks/tasks.py` in fresh
processes in turn, so that a machine whose speed drifts slows both.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.table import markdown

ROOT = Path(__file__).parent.parent
HEADER = ["task", "warm, before", "now", "now / before", "first call", "difference"]


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    commit = _git("rev-parse", "--short", options.commit)
    print(
        f"{machine.description()}\nbefore: {commit}; "
        f"now: {_git('describe', '--always', '--dirty')}\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        _git("worktree", "add", "--detach", str(before), commit)
        try:
            runs = [
                (measured(before, options.tasks), measured(ROOT, options.tasks))
                for _ in range(options.rounds)
            ]
        finally:
            _git("worktree", "remove", "--force", str(before))
    print(markdown(HEADER, [_row(name, runs) for name in runs[0][0]]))
    return 0


def measured(tree: Path, tasks: list[str]) -> dict[str, Any]:
    """Run the tasks in a fresh process that imports the `ufm` of a tree."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = [sys.executable, str(ROOT / "benchmarks" / "tasks.py"), *tasks]
    done = subprocess.run(
        command, env=environment, cwd=tree, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def _row(name: str, runs: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """Return medians over rounds: fastest warm calls, ratios within a round, and first calls."""
    pairs = [(before[name], now[name]) for before, now in runs]
    warm = [statistics.median(one["warm"] for one in side) for side in zip(*pairs, strict=True)]
    ratios, first = ([now[key] / before[key] for before, now in pairs] for key in ("warm", "first"))
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    found = zip(pairs[0][0]["values"], pairs[0][1]["values"], strict=True)
    change = max((abs(b - a) / max(abs(a), 1e-300) for a, b in found), default=0.0)
    times = [f"{1e3 * seconds:.2f} ms" for seconds in warm]
    return [name, *times, spread, f"{statistics.median(first):.2f}", f"{change:.1e}"]


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.baseline", description=__doc__)
    parser.add_argument("commit", help="what to measure against, such as main~20")
    parser.add_argument("tasks", nargs="*", help="names of tasks; all if not given")
    parser.add_argument("--rounds", type=int, default=5, help="of both, in turn")
    return parser


if __name__ == "__main__":
    sys.exit(main())
