"""From a problem to a certified solution, at sample, class or group resolution."""

from ufm.solving.class_batch import ClassMinima, chunk_size, solve_class_batch
from ufm.solving.group_batch import GroupMinimum, certified, solve_batch
from ufm.solving.group_resolution import grouping_pays, solve_groups
from ufm.solving.methods import SolveRecord
from ufm.solving.solution import (
    MatrixPoint,
    Solution,
    SolveError,
    SolveInterrupted,
    matrix_point,
)
from ufm.solving.solve import certify, default_restarts, solve, start_sets, structured_starts

__all__ = [
    "ClassMinima",
    "GroupMinimum",
    "MatrixPoint",
    "Solution",
    "SolveError",
    "SolveInterrupted",
    "SolveRecord",
    "certified",
    "certify",
    "chunk_size",
    "default_restarts",
    "grouping_pays",
    "matrix_point",
    "solve",
    "solve_batch",
    "solve_class_batch",
    "solve_groups",
    "start_sets",
    "structured_starts",
]
