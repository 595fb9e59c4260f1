"""The hard-margin problem, the limit of vanishing regularization: solved and certified."""

from ufm.imbalance.hard_margin.problem import HardMargin
from ufm.imbalance.hard_margin.solve import closed_form_check, solve_hard_margin

__all__ = [
    "HardMargin",
    "closed_form_check",
    "solve_hard_margin",
]
