"""Models with ReLUs between layers: smooth pieces of the objective, and Newton on the kinks."""

from ufm.solving.relu.newton_on_kinks import Polished, polish
from ufm.solving.relu.smooth_pieces import (
    ZERO_SHARE,
    SmoothPiece,
    correction,
    hessian_along,
    idle,
    kink_gradients,
    kink_signals,
    moved,
    normal_basis,
    objective_at,
    parameter_step,
    products,
    pushed,
    read,
    smooth_piece_at,
    tangent_basis,
    with_slopes,
)

__all__ = [
    "ZERO_SHARE",
    "Polished",
    "SmoothPiece",
    "correction",
    "hessian_along",
    "idle",
    "kink_gradients",
    "kink_signals",
    "moved",
    "normal_basis",
    "objective_at",
    "parameter_step",
    "polish",
    "products",
    "pushed",
    "read",
    "smooth_piece_at",
    "tangent_basis",
    "with_slopes",
]
