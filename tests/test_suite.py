"""The rules of the tests: where they lie, what they may name, and which package they are of."""

import ast
import doctest
import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
from tables import for_each

import ufm
from ufm import geometry

TESTS = Path(__file__).parent
PACKAGE = Path(ufm.__file__).parent
# Tests in rooms that are of no one file: what all members of a room have in common, and what
# several files do together. Rules of the whole package lie beside this file.
OF_NO_FILE = {
    "cli/test_interruption.py",
    "dynamics/test_printed_checks.py",
    "landscape/test_printed_results.py",
    "networks/test_neural_collapse_package.py",
    "notebooks/test_digits.py",
    "notebooks/test_notebooks.py",
    "plots/test_holes.py",
    "problems/test_subclasses.py",
    "theory/test_minimisers.py",
    "theory/test_special_cases.py",
}
PUBLIC = {"_asdict", "_fields", "_make", "_replace", "_repr_html_", "_support"}


def is_private(name: str) -> bool:
    """Return whether a name is for its own module alone."""
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


def private_names(source: str) -> Iterator[str]:
    """Yield the private names of the package that a test imports, reads or replaces."""
    tree, imported = ast.parse(source), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ufm":
            imported |= {alias.asname or alias.name for alias in node.names}
            yield from (alias.name for alias in node.names if is_private(alias.name))
        elif isinstance(node, ast.Import):
            imported |= {"ufm"} & {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Assign) and "import_module" in ast.unparse(node.value):
            imported |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner, name = node.value, node.attr
        elif isinstance(node, ast.Call) and len(node.args) > 1:
            # monkeypatch.setattr(module, "name", ...), getattr(module, "name")
            owner, name = node.args[0], getattr(node.args[1], "value", "")
        else:
            continue
        while isinstance(owner, ast.Attribute):
            owner = owner.value
        if isinstance(name, str) and is_private(name) and getattr(owner, "id", "") in imported:
            yield name


@for_each(
    "source",
    [
        "from ufm.solving.solve import _run",
        "import ufm\nufm.solving.solve._run()",
        "from ufm.sweeps import run\nmonkeypatch.setattr(run, '_evaluate', None)",
        "run = importlib.import_module('ufm.sweeps.run')\nrun._evaluate()",
    ],
)
def test_a_private_name_is_seen(source: str) -> None:
    assert len(list(private_names(source))) == 1


def test_tests_name_nothing_private() -> None:
    found = {
        str(path.relative_to(TESTS)): set(private_names(path.read_text(encoding="utf-8")))
        for path in TESTS.rglob("*.py")
    }
    assert {path: names for path, names in found.items() if names} == {}


def has_a_file(test: Path) -> bool:
    """Return whether a test has a file, or a room, of the same place and name."""
    path = PACKAGE / test.parent / test.name.removeprefix("test_")
    return path.exists() or path.with_suffix("").is_dir()


def test_the_test_of_a_file_has_its_name() -> None:
    paths = [path.relative_to(TESTS) for path in TESTS.rglob("*/test_*.py")]
    assert {str(path) for path in paths if not has_a_file(path)} == OF_NO_FILE


def test_the_examples_of_docstrings_give_what_they_show() -> None:
    paths = [path for path in PACKAGE.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8")]
    for path in paths:
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        found = doctest.testmod(importlib.import_module(module))
        assert (found.failed, found.attempted > 0) == (0, True), module
    assert paths


def test_the_package_under_test_is_the_one_that_is_meant() -> None:
    """`UFM_TEST_INSTALLED` is set where the tests are of an installed wheel, not of the tree."""
    if os.environ.get("UFM_TEST_INSTALLED"):
        assert "site-packages" in PACKAGE.parts


@pytest.mark.skipif(os.environ.get("UFM_TEST_SHAPES") != "1", reason="annotations are not checked")
def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'target'"):
        geometry.gram_error(np.eye(3), np.eye(4))
