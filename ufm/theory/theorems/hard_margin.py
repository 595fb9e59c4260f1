"""Theorems about the hard-margin problem, the limit of vanishing weight decay.

The mathematics and the derivations are those of `ufm.theory.seli`. The evidence is the certificate
and the solver of `ufm.imbalance.hard_margin`, which do not use the closed form.
"""

from typing import Any, NamedTuple

from ufm.problems import Problem
from ufm.theory.seli import seli
from ufm.theory.theorem import Condition, Example, Theorem

__all__ = ["THEOREMS", "Margins"]


class Margins(NamedTuple):
    """A setting of the hard-margin problem: the arguments of `ufm.HardMargin`.

    Attributes:
        class_counts: Samples per class, (K,).
        multipliers: delta, (K,); None for 1.
        margins: gamma, (K,); None for 1.
    """

    class_counts: tuple[float, ...]
    multipliers: tuple[float, ...] | None = None
    margins: tuple[float, ...] | None = None


def _no_penalties(problem: Problem) -> tuple[Condition, ...]:
    return (Condition("a hard-margin problem", False, "a problem with penalties or bounds"),)


def _closed_form(hard_margin: Any, setting: Margins) -> Any:
    counts, delta, gamma = setting
    exact = seli(counts, multipliers=delta, margins=gamma)
    return hard_margin.closed_form_check(hard_margin.HardMargin(counts, delta, gamma), exact)


THEOREMS = (
    Theorem(
        name="hard-margin-seli",
        title="hard margins (UF-SVM): the SELI geometry, for any class sizes",
        reference=(
            "Thrampoulidis et al. (NeurIPS 2022), arXiv:2208.05512, for steps; all class sizes are "
            "derived here"
        ),
        statement=(
            "min (1/2)||W||^2 + (1/2) sum_i ||h_i||^2 with z_y - z_c >= 1 for all samples and c != "
            "y, d >= K - 1: the class logits are Z = I - J/K, all constraints hold with equality, "
            "and D^(1/2) Z = U S V', D = diag(n_k), gives the value tr S, W W' = V S V' and the "
            "Gram matrix of the class means D^(-1/2) U S U' D^(-1/2)."
        ),
        conditions=_no_penalties,
        make_examples=lambda: (
            Example("n=(10,10,1,1)", Margins((10.0, 10.0, 1.0, 1.0))),
            Example("n=(8,4,2,1)", Margins((8.0, 4.0, 2.0, 1.0))),
        ),
        about="hard margins",
        evidence=_closed_form,
    ),
    Theorem(
        name="hard-margin-multipliers",
        title="hard margins with multipliers (CDT) and margins (LDT): the geometry in closed form",
        reference=(
            "Behnia et al. (AISTATS 2023), arXiv:2303.07608; all class sizes are derived here"
        ),
        statement=(
            "With delta_y z_y - delta_c z_c >= g_y: D^(1/2) Z = U S V' for Z' = P diag(g / delta), "
            "P the projection off 1 / delta. Margins g proportional to 1 / sqrt(n_k) give "
            "classifiers that are a simplex ETF."
        ),
        conditions=_no_penalties,
        make_examples=lambda: (
            Example("n=(8,8,2,2), delta=(1,1,.5,.5)", Margins((8, 8, 2, 2), (1, 1, 0.5, 0.5))),
            Example("n=(4,4,1,1), g=(1,1,2,2)", Margins((4, 4, 1, 1), None, (1, 1, 2, 2))),
        ),
        about="hard margins",
        evidence=_closed_form,
    ),
)
