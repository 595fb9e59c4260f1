"""The layers of the package, read from its imports: theory, solvers and certificates never see one another."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ufm
from ufm.losses import LIBRARY

ROOT = Path(ufm.__file__).parent
LAYERS = (
    (
        "geometry",
        "losses",
        "loss_checks",
        "classes",
        "regularizers",
        "resolutions",
        "modules",
        "precision",
        "tables",
        "compilation",
        "devices",
        "interruption",
        "status",
        "blocks",
        "version",
    ),
    ("problem",),
    ("coordinates", "presolve", "metrics", "layerwise", "groups", "paths", "margins", "constructions", "words"),
    ("theory", "solvers", "certificates"),
    (
        "solution",
        "escape",
        "group_batch",
        "group_geometry",
        "class_batch",
        "collapse",
        "thresholds",
        "orbits",
        "group_solution",
        "phase",
        "mitigation",
        "pipeline",
        "accuracy",
        "group_accuracy",
        "comparison",
        "hard_margin",
        "verdict",
        "verify",
        "kinks",
        "landscape",
        "pieces",
        "sweeps",
        "networks",
        "dynamics",
    ),
    ("plots", "cli", "__main__", "__init__"),
)
RANK = {unit: rank for rank, units in enumerate(LAYERS) for unit in units}
SEPARATE = LAYERS[3]
MODULES = sorted(ROOT.rglob("*.py"))


def unit_of(path: Path) -> str:
    """The module or subpackage directly under `ufm`."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_units(tree: ast.AST) -> Iterator[str]:
    """Every unit of the package that is imported, at the top or inside a function; the package itself as `__init__`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here"
            if node.module == "ufm":
                yield from (alias.name if alias.name in RANK else "__init__" for alias in node.names)
            elif (node.module or "").startswith("ufm."):
                yield str(node.module).split(".")[1]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == "ufm":
                    yield "__init__"
                elif alias.name.startswith("ufm."):
                    yield alias.name.split(".")[1]


def violations(unit: str, source: str) -> list[str]:
    found = []
    for other in imported_units(ast.parse(source)):
        if other == unit:
            continue
        if other not in RANK or unit not in RANK:
            found.append(f"{unit} imports {other}, and one of them has no layer")
        elif RANK[other] > RANK[unit] or (unit in SEPARATE and other in SEPARATE):
            found.append(f"{unit} must not import {other}")
    return found


def test_every_module_has_a_layer() -> None:
    assert {unit_of(path) for path in MODULES} <= set(RANK), "give the new module a layer above"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    assert violations(unit_of(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("unit", "source"),
    [
        ("theory", "from ufm.solvers import LBFGS"),
        ("solvers", "import ufm.certificates.dual"),
        ("certificates", "def f():\n    from ufm import theory"),
        ("losses", "from ufm.problem import Problem"),
        ("metrics", "import ufm"),
        ("presolve", "from ufm import solve"),
        ("solution", "from ufm.plots import gram"),
        ("problem", "from ufm.unheard_of import anything"),
    ],
)
def test_the_rule_sees_a_violation(unit: str, source: str) -> None:
    assert len(violations(unit, source)) == 1


LOSSES = {kind.__name__ for kind in LIBRARY}


def asked_by_inheritance(source: str) -> list[int]:
    """Lines on which a loss is held against one of the library's in a way that its subclasses pass, too."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
            names = {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
            names |= {part.attr for part in ast.walk(node.args[1]) if isinstance(part, ast.Attribute)}
            found += [node.lineno] if names & LOSSES else []
        elif isinstance(node, ast.Attribute) and node.attr == "singledispatch":
            found.append(node.lineno)
    return found


@pytest.mark.parametrize(
    "source",
    [
        "isinstance(loss, CrossEntropy)",
        "issubclass(kind, (Focal, ufm.CDT))",
        "@functools.singledispatch\ndef f(x): ...",
    ],
)
def test_the_rule_of_exact_types_sees_a_violation(source: str) -> None:
    assert asked_by_inheritance(source) != []


def test_what_a_loss_is_is_asked_of_its_exact_type() -> None:
    found = {path.name: asked_by_inheritance(path.read_text(encoding="utf-8")) for path in MODULES}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_the_import_of_the_package_is_light() -> None:
    heavy = ("matplotlib", "xarray", "zarr", "dask", "torch", "flax", "pandas", "rich", "cvxpy", "diffrax")
    check = f"import sys, ufm; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", check], capture_output=True, text=True, cwd=ROOT.parent)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


def test_the_import_of_the_package_leaves_the_settings_of_jax_and_ctrl_c_alone() -> None:
    check = (
        "import jax, signal, sys; before = dict(jax.config.values); ctrl_c = signal.getsignal(2), sys.unraisablehook; import ufm; "
        "print([name for name, value in jax.config.values.items() if before.get(name, value) != value] "
        "+ [name for name in ctrl_c if name not in (signal.getsignal(2), sys.unraisablehook)])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT.parent)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_public_names_are_there_and_documented() -> None:
    for name in ufm.__all__:
        assert getattr(ufm, name).__doc__, name
