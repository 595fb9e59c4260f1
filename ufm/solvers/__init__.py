"""Methods that minimise an objective, and the compiled loop they run in."""

from ufm.solvers.gradient_descent import GradientDescent
from ufm.solvers.lbfgs import LBFGS
from ufm.solvers.loop import (
    Iterate,
    Start,
    advance,
    first_iterate,
    has_aligned_start,
    num_unknowns,
    parameters_of,
    unknowns_of,
)
from ufm.solvers.newton import NewtonCG
from ufm.solvers.records import Collapse, Records, collapse, empty_records

__all__ = [
    "LBFGS",
    "Collapse",
    "GradientDescent",
    "Iterate",
    "NewtonCG",
    "Records",
    "Start",
    "advance",
    "collapse",
    "empty_records",
    "first_iterate",
    "has_aligned_start",
    "num_unknowns",
    "parameters_of",
    "unknowns_of",
]
