r"""Hinge losses reach the geometry of hard margins at finite weight decay.

    (1/N) sum_i l(z_i, y_i) + (lambda_W/2) ||W||^2 + (lambda_H/2) ||H||^2,

l(z, y) = sum_{c != y} (1 + z_c - z_y)_+ (Weston, Watkins) or (1 + max_{c != y} z_c - z_y)_+
(Crammer, Singer), K classes of any sizes, d >= K - 1, no bias. With M = (P D P)^{+1/2}, P = I -
J/K, D = diag(n_k) and tau = sqrt(lambda_W lambda_H), the SELI logits P are minimal if N tau M is a
slope of the loss: N tau |M_cy| <= 1 for c != y, or N tau M_yy <= 1. All hinges are zero there, and
the minimum is tau ||D^{1/2} P||_*. Where the inequalities are strict it is the only one: slopes
between zero and the largest are those of margins of exactly one. Balanced classes have N tau |M_cy|
= t, and N tau M_yy = (K - 1) t, t = tau sqrt(n); beyond one all is zero.
"""

from typing import Any

import numpy as np

from ufm._support import is_concrete
from ufm.problems import CrammerSinger, Problem, WestonWatkins
from ufm.theory import conditions as needs
from ufm.theory.examples import example_problem
from ufm.theory.seli import seli
from ufm.theory.theorem import Condition, Example, Theorem

__all__ = ["THEOREMS"]


def _slopes(problem: Problem) -> float:
    """Return the largest slope that the SELI logits ask of a loss whose slopes are at most one."""
    counts = np.asarray(problem.class_counts.per_class, np.float64)
    matrix = np.asarray(seli(counts).dual) / np.sqrt(counts)[:, None]
    tau = float(np.sqrt(np.prod(problem.regularizer.decays(1))))
    of_sum = type(problem.loss) is CrammerSinger
    of_pairs = -matrix[~np.eye(len(counts), dtype=bool)]
    return float(counts.sum() * tau * np.max(np.diagonal(matrix) if of_sum else of_pairs))


def _conditions(problem: Problem) -> tuple[Condition, ...]:
    kinds = (WestonWatkins, CrammerSinger)
    found = type(problem.loss)
    conditions = (
        Condition("the loss WestonWatkins or CrammerSinger", found in kinds, found.__name__),
        needs.weight_decay(problem),
        needs.num_layers(problem, exactly=1),
        needs.signed_features(problem),
        needs.no_bias(problem),
        needs.centred_dims(problem),
        Condition("class counts", problem.one_hot, "target rows"),
    )
    statement = "slopes below one, or balanced classes and slopes above"
    if not (all(condition.holds for condition in conditions) and is_concrete(problem)):
        return (*conditions, Condition(statement, False, "another model, or traced numbers"))
    largest = _slopes(problem)
    covered = largest < 1 or (bool(needs.balanced(problem).holds) and largest > 1)
    return (*conditions, Condition(statement, covered, f"a largest slope of {largest:.6g}"))


def _examples() -> tuple[Example, ...]:
    hinge, largest = WestonWatkins(), CrammerSinger()
    steps, three, four = (10.0, 10.0, 1.0, 1.0), (8.0, 4.0, 2.0), (5.0,) * 4

    def setting(label: str, loss: Any, counts: Any, decay: float) -> Example:
        return Example(label, example_problem(loss, counts, decay, decay, len(counts) - 1))

    return (
        setting("Weston-Watkins, n=(10,10,1,1), 2e-2", hinge, steps, 2e-2),
        setting("Crammer-Singer, n=(8,4,2), 2e-2", largest, three, 2e-2),
        setting("Weston-Watkins, K=4, n=5, t=.22", hinge, four, 0.1),
        setting("collapsed: Weston-Watkins, t=1.1", hinge, four, 0.5),
        setting("collapsed: Crammer-Singer, 3t=1.3", largest, four, 0.2),
    )


def _check(hard_margin: Any, problem: Problem) -> Any:
    return hard_margin.hinge_check(problem, solved=True)


THEOREMS = (
    Theorem(
        name="hinge-seli",
        title="hinge losses: SELI exactly, at finite weight decay and any class sizes",
        reference=(
            "derived here; the geometry is that of Thrampoulidis et al. (NeurIPS 2022), "
            "arXiv:2208.05512"
        ),
        statement=(
            "(1/N) sum_i l(z_i, y_i) + (lW/2)||W||^2 + (lH/2) sum_i ||h_i||^2, l the hinge of "
            "Weston and Watkins or of Crammer and Singer, d >= K - 1, P = I - J/K, M = (P D "
            "P)^(+1/2): the logits are P, all margins one, and the minimum tau ||D^(1/2) P||_*, if "
            "N tau |M_cy| < 1 for c != y (Weston, Watkins), N tau M_yy < 1 (Crammer, Singer). "
            "Balanced: (K-1) min(t, 1) and min((K-1) t, 1), t = tau sqrt(n)."
        ),
        conditions=_conditions,
        make_examples=_examples,
        about="hard margins",
        evidence=_check,
    ),
)
