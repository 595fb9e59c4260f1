"""The hard-margin problem, the limit of vanishing regularization: solved and certified."""

from ufm.imbalance.hard_margin.contexts import approach_of_contexts, collapse_of_contexts
from ufm.imbalance.hard_margin.hinge import hinge_check
from ufm.imbalance.hard_margin.problem import HardMargin
from ufm.imbalance.hard_margin.solve import closed_form_check, proxy_check, solve_hard_margin

__all__ = [
    "HardMargin",
    "approach_of_contexts",
    "closed_form_check",
    "collapse_of_contexts",
    "hinge_check",
    "proxy_check",
    "solve_hard_margin",
]
