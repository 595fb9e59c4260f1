"""Methods that minimise an objective, and the compiled loop they run in."""

from ufm.solving.methods.balanced_coordinates import typical_inputs, typical_norm
from ufm.solving.methods.cholesky import inverse_factor
from ufm.solving.methods.gradient_descent import GradientDescent
from ufm.solving.methods.interior_point import (
    PATH_STEPS,
    PathEnd,
    complement,
    first_margins,
    follow_path,
    most_steps,
    smoothed_nuclear_norm,
    steps_on_path,
)
from ufm.solving.methods.lbfgs import LBFGS
from ufm.solving.methods.loop import (
    Iterate,
    advance,
    descended,
    first_iterate,
    iterate_at,
    parameters_of,
    unknowns_of,
)
from ufm.solving.methods.method import Method, Step
from ufm.solving.methods.newton import NewtonCG
from ufm.solving.methods.orbit_path import (
    OrbitPathEnd,
    follow_orbit_path,
    num_orbit_unknowns,
)
from ufm.solving.methods.recording import Records, SolveRecord, empty_records
from ufm.solving.methods.schedule import (
    AIM,
    HANDOVER,
    SEARCH_STEPS,
    SMOOTHINGS,
    Stage,
    can_go_on,
    default_schedule,
    default_steps,
    has_kinks,
    made_once,
    relative_to_objective,
)
from ufm.solving.methods.search_spaces import (
    Space,
    balanced_space,
    free_space,
    infimum_of,
    num_unknowns,
)
from ufm.solving.methods.starts import (
    Start,
    can_be_aligned,
    generator,
    most_starts,
    search_scales,
    start_scales,
)

__all__ = [
    "AIM",
    "HANDOVER",
    "LBFGS",
    "PATH_STEPS",
    "SEARCH_STEPS",
    "SMOOTHINGS",
    "GradientDescent",
    "Iterate",
    "Method",
    "NewtonCG",
    "OrbitPathEnd",
    "PathEnd",
    "Records",
    "SolveRecord",
    "Space",
    "Stage",
    "Start",
    "Step",
    "advance",
    "balanced_space",
    "can_be_aligned",
    "can_go_on",
    "complement",
    "default_schedule",
    "default_steps",
    "descended",
    "empty_records",
    "first_iterate",
    "first_margins",
    "follow_orbit_path",
    "follow_path",
    "free_space",
    "generator",
    "has_kinks",
    "infimum_of",
    "inverse_factor",
    "iterate_at",
    "made_once",
    "most_starts",
    "most_steps",
    "num_orbit_unknowns",
    "num_unknowns",
    "parameters_of",
    "relative_to_objective",
    "search_scales",
    "smoothed_nuclear_norm",
    "start_scales",
    "steps_on_path",
    "typical_inputs",
    "typical_norm",
    "unknowns_of",
]
