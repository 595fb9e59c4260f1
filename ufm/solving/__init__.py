"""From a problem to a certified solution, at sample, class or group resolution."""

from ufm.solving.class_batch import ClassMinima, chunk_size, solve_class_batch
from ufm.solving.group_batch import GroupMinimum, certified, solve_batch
from ufm.solving.group_solution import GroupSolution, grouping_pays, solve_groups
from ufm.solving.solution import Solution, SolveError, SolveInterrupted, Trajectory
from ufm.solving.solve import certify, default_restarts, solve, start_sets, structured_starts

__all__ = [
    "ClassMinima",
    "GroupMinimum",
    "GroupSolution",
    "Solution",
    "SolveError",
    "SolveInterrupted",
    "Trajectory",
    "certified",
    "certify",
    "chunk_size",
    "default_restarts",
    "grouping_pays",
    "solve",
    "solve_batch",
    "solve_class_batch",
    "solve_groups",
    "start_sets",
    "structured_starts",
]
