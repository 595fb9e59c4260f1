"""Methods that minimise an objective, and the compiled loop they run in."""

from ufm.solvers.gradient_descent import GradientDescent
from ufm.solvers.lbfgs import LBFGS
from ufm.solvers.loop import Iterate, advance, num_unknowns, parameters_of, random_start, start_at
from ufm.solvers.newton import NewtonCG
from ufm.solvers.records import Records

__all__ = [
    "LBFGS",
    "GradientDescent",
    "Iterate",
    "NewtonCG",
    "Records",
    "advance",
    "num_unknowns",
    "parameters_of",
    "random_start",
    "start_at",
]
