"""The methods side by side.

Each module has `measure`, and `objective_at`: its own objective at a point.

Modules are imported in the process that runs them only, so that one method's threads never disturb
another's.
"""

import importlib
import importlib.util
from types import ModuleType
from typing import NamedTuple

__all__ = ["RIVALS", "Rival"]


class Rival(NamedTuple):
    """A method of the command line.

    module: where it is. variant: which of the module's methods. packages: what must be installed.
    labels: its rows in the table.
    """

    module: str
    variant: str
    packages: tuple[str, ...]
    labels: tuple[str, ...]

    @property
    def missing(self) -> list[str]:
        """The packages that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]

    def load(self) -> ModuleType:
        """Import the module."""
        return importlib.import_module(f"benchmarks.rivals.{self.module}")


RIVALS = {
    "ufm": Rival("library", "", (), ("ufm, warm", "ufm, first call")),
    "torch-gd": Rival("torch_descent", "gd", ("torch",), ("PyTorch GD, lr 0.1",)),
    "torch-sgd": Rival("torch_descent", "sgd", ("torch",), ("PyTorch SGD, lr 0.1, momentum 0.9",)),
    "scipy": Rival("scipy_lbfgs", "plain", ("scipy",), ("SciPy L-BFGS-B on (W, H)",)),
    "scipy-balanced": Rival("scipy_lbfgs", "balanced", ("scipy",), ("SciPy L-BFGS-B, balanced",)),
    "clarabel": Rival(
        "cvxpy_convex",
        "CLARABEL",
        ("cvxpy", "clarabel"),
        ("CVXPY + Clarabel", "CVXPY + Clarabel, solver only"),
    ),
    "scs": Rival(
        "cvxpy_convex", "SCS", ("cvxpy", "scs"), ("CVXPY + SCS", "CVXPY + SCS, solver only")
    ),
}
