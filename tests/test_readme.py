"""The examples of README, with their types, and the files that CONTRIBUTING names."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What a reader brings along: a network, batches, and the arrays of a last layer.
BROUGHT = ("model", "loader", "features", "labels", "weights", "bias")


def snippets() -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    brought = "".join(f"{name}: Any\n" for name in BROUGHT)
    return "\n".join(
        ["from typing import Any", brought, *re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
    )


def test_the_snippets_are_python() -> None:
    source = snippets()
    compile(source, "README.md", "exec")
    assert source.count("ufm.solve(") >= 3


@pytest.mark.slow
def test_the_snippets_pass_a_strict_type_checker(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    path = tmp_path / "snippets.py"
    path.write_text(snippets())
    # The package is checked by its own settings; here only the snippets are.
    arguments = ["--strict", "--config-file=", "--follow-imports=silent", f"--cache-dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *arguments, str(path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"MYPYPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_files_that_contributing_names_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:\w+/)+\w+\.py)`", text))
    # Capitals, and `room/x.py`, stand for a name.
    given = {path for path in named if path.islower() and "room/" not in path}
    missing = {path for path in given if not any((ROOT / at / path).exists() for at in ("", "ufm"))}
    assert missing == set()
    assert len(given) > 20
