"""The rooms of the package by its imports: floors, doors, the wall between the witnesses."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tables import for_each

import ufm
from ufm.problems import LIBRARY

ROOT = Path(ufm.__file__).parent

# From the ground up. A room imports from its own floor or below, except that the witnesses never
# import one another.
FLOORS = (
    ("_support", "interruption"),
    ("geometry", "problems"),
    ("metrics",),
    ("certificates", "theory", "solving.methods"),
    ("solving.relu",),
    ("solving",),
    ("imbalance.hard_margin", "landscape", "networks"),
    ("imbalance",),
    ("dynamics", "sweeps"),
    ("comparison",),
    ("plots",),
    ("__init__",),
    ("cli",),
    ("__main__",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
WITNESSES = ("certificates", "theory", "solving.methods")
MODULES = sorted(ROOT.rglob("*.py"))


def room_of(module: str) -> str:
    """Return the room of a dotted path below the package, such as `solving.methods.lbfgs`."""
    parts = module.split(".")
    return next((room for room in (".".join(parts[:2]), parts[0]) if room in FLOOR_OF), "")


def is_door(module: str) -> bool:
    """Return whether a dotted path is a room, or a room within one, rather than a file of it."""
    return (
        module in ("geometry", "interruption", "__init__")
        or (ROOT / module.replace(".", "/")).is_dir()
    )


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted paths below the package that are imported anywhere in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here"
            if node.module == "ufm":
                yield from (
                    alias.name if room_of(alias.name) else "__init__" for alias in node.names
                )
            elif (node.module or "").startswith("ufm."):
                yield str(node.module).removeprefix("ufm.")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "ufm":
                    yield alias.name.removeprefix("ufm").lstrip(".") or "__init__"


def violations(importer: str, source: str) -> list[str]:
    """Return what the imports of a module break, a line each."""
    room, found = room_of(importer), []
    for other in imported(ast.parse(source)):
        target = room_of(other)
        if not target:
            found.append(f"{other} is in no room: give it a floor")
        elif target == room:
            continue
        elif FLOOR_OF[target] > FLOOR_OF[room] or (room in WITNESSES and target in WITNESSES):
            found.append(f"{room} must not import {target}")
        elif not is_door(other) and other.split(".")[0] != importer.split(".")[0]:
            found.append(f"{importer} imports {other} past the door of {target}")
    return found


def name_of(path: Path) -> str:
    """Return the dotted path of a file below the package."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_every_module_has_a_floor() -> None:
    assert [name_of(path) for path in MODULES if not room_of(name_of(path))] == []
    assert len({room.split(".")[0] for room in FLOOR_OF if not room.startswith("__")}) <= 16


def test_imports_go_down_and_through_doors() -> None:
    broken = [
        line
        for path in MODULES
        for line in violations(name_of(path), path.read_text(encoding="utf-8"))
    ]
    assert broken == []


def test_a_class_has_a_name_of_its_own() -> None:
    homes: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(name_of(path))
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


@for_each(
    ("importer", "source"),
    [
        ("theory.atlas", "from ufm.solving.methods import LBFGS"),
        ("solving.methods.lbfgs", "import ufm.certificates"),
        ("certificates.dual", "def f():\n    from ufm import theory"),
        ("problems.losses", "from ufm.solving import solve"),
        ("metrics.layerwise", "import ufm"),
        ("cli.solve", "from ufm.plots.report import write_page"),
        ("problems.reductions", "from ufm import solve"),
        ("solving.solution", "from ufm.plots import spectrum"),
        ("solving.methods.newton", "from ufm.solving import solve"),
        ("problems.problem", "from ufm.unheard_of import anything"),
        ("comparison.compare", "from ufm.problems.problem import Problem"),
    ],
)
def test_the_rule_sees_a_violation(importer: str, source: str) -> None:
    assert len(violations(importer, source)) == 1


LOSSES = {kind.__name__ for kind in LIBRARY.values()}


def asked_by_inheritance(source: str) -> list[int]:
    """Return the lines that ask for a loss in a way that its subclasses pass, too."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
            "isinstance",
            "issubclass",
        ):
            names = {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
            names |= {
                part.attr for part in ast.walk(node.args[1]) if isinstance(part, ast.Attribute)
            }
            found += [node.lineno] if names & LOSSES else []
        elif isinstance(node, ast.Attribute) and node.attr == "singledispatch":
            found.append(node.lineno)
    return found


@for_each(
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
    heavy = (
        "scipy.optimize",
        "scipy.sparse",
        "scipy.linalg",
        "matplotlib",
        "xarray",
        "zarr",
        "dask",
        "torch",
        "flax",
        "pandas",
        "rich",
        "cvxpy",
        "diffrax",
    )
    later = ("ufm.dynamics", "ufm.landscape", "ufm.networks", "ufm.plots", "ufm.sweeps", "ufm.cli")
    check = f"import sys, ufm; print([name for name in {heavy + later} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", check],
        capture_output=True,
        text=True,
        cwd=ROOT.parent,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


def test_the_import_of_the_package_leaves_the_settings_of_jax_and_ctrl_c_alone() -> None:
    check = (
        "import jax, signal, sys; before = dict(jax.config.values); "
        "ctrl_c = signal.getsignal(2), sys.unraisablehook; import ufm; "
        "now = jax.config.values.items(); "
        "print([name for name, value in now if before.get(name, value) != value] "
        "+ [name for name in ctrl_c if name not in (signal.getsignal(2), sys.unraisablehook)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT.parent
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_public_names_are_there_and_documented() -> None:
    assert set(dir(ufm)) == {*ufm.__all__, "__version__"}
    for name in ufm.__all__:
        assert getattr(ufm, name).__doc__, name
