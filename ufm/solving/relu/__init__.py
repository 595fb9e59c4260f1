"""Models with ReLUs between layers: smooth pieces of the objective, and Newton's method on the kinks."""

from ufm.solving.relu.newton_on_kinks import Settled, settled
from ufm.solving.relu.smooth_pieces import (
    NEAR,
    Local,
    correction,
    hessian_along,
    idle,
    kink_gradients,
    kink_signals,
    local_at,
    moved,
    normal_basis,
    objective_at,
    parameter_step,
    products,
    pushed,
    read,
    resloped,
    tangent_basis,
)

__all__ = [
    "NEAR",
    "Local",
    "Settled",
    "correction",
    "hessian_along",
    "idle",
    "kink_gradients",
    "kink_signals",
    "local_at",
    "moved",
    "normal_basis",
    "objective_at",
    "parameter_step",
    "products",
    "pushed",
    "read",
    "resloped",
    "settled",
    "tangent_basis",
]
