"""From a problem to a certified solution, at sample, class or group resolution."""

from ufm.solving.class_batch import ClassMinima, chunk_size, solve_class_batch
from ufm.solving.group_batch import GroupMinimum, certified, solve_batch
from ufm.solving.group_resolution import solve_groups
from ufm.solving.methods import SolveRecord
from ufm.solving.orbit_resolution import (
    OrbitMinimum,
    orbit_reduction,
    reduced_under,
    solve_orbits,
    solve_representatives,
)
from ufm.solving.resolution import choose_resolution
from ufm.solving.solution import (
    MatrixPoint,
    Solution,
    SolveError,
    SolveInterrupted,
    matrix_point,
)
from ufm.solving.solve import certify, solve
from ufm.solving.starts import (
    default_restarts,
    exchanged_starts,
    start_sets,
    structured_starts,
)

__all__ = [
    "ClassMinima",
    "GroupMinimum",
    "MatrixPoint",
    "OrbitMinimum",
    "Solution",
    "SolveError",
    "SolveInterrupted",
    "SolveRecord",
    "certified",
    "certify",
    "choose_resolution",
    "chunk_size",
    "default_restarts",
    "exchanged_starts",
    "matrix_point",
    "orbit_reduction",
    "reduced_under",
    "solve",
    "solve_batch",
    "solve_class_batch",
    "solve_groups",
    "solve_orbits",
    "solve_representatives",
    "start_sets",
    "structured_starts",
]
