"""Theorems about next-token models: contexts with soft targets, as weight decay vanishes.

The mathematics and the derivations are those of `ufm.theory.next_token` and of
`ufm.imbalance.hard_margin.contexts`. The evidence is certified solutions of the problem and of its
hard-margin problem, which use neither.
"""

from typing import Any

import numpy as np

from ufm._support import is_concrete
from ufm.problems import CrossEntropy, Problem, Targets, WeightDecay
from ufm.theory import conditions as needs
from ufm.theory.next_token import support_proxy
from ufm.theory.theorem import Condition, Example, Theorem

__all__ = ["THEOREMS"]


def _distributions(problem: Problem) -> Condition:
    """All target rows are distributions."""
    statement = "target rows that are distributions"
    rows = problem.target_rows(np.float64, np)
    if not is_concrete(rows):
        return Condition(statement, False, "traced rows")
    sums = rows.sum(axis=1)
    found = f"entries from {rows.min():.6g}, sums from {sums.min():.6g} to {sums.max():.6g}"
    return Condition(statement, bool(rows.min() >= 0 and np.allclose(sums, 1, atol=1e-9)), found)


def _room(problem: Problem) -> Condition:
    """The features have room for all that logits can be."""
    R, K, d = problem.num_rows, problem.num_outputs, problem.feature_dim
    return Condition("d >= min(R, K - 1)", d >= min(R, K - 1), f"d = {d}, R = {R}, K = {K}")


def _incomplete(problem: Problem) -> Condition:
    """Some token never follows some context."""
    rows = np.asarray(problem.target_rows(np.float64, np))
    full = int(np.sum(np.all(rows > 0, axis=1)))
    found = f"{full} of {len(rows)} supports are complete"
    return Condition("a support that is not complete", full < len(rows), found)


def _contexts(problem: Problem) -> tuple[Condition, ...]:
    return (
        *needs.one_layer(problem, CrossEntropy),
        needs.signed_features(problem),
        needs.no_bias(problem),
        _distributions(problem),
        _incomplete(problem),
        _room(problem),
        Condition("targets", problem.targets is not None, problem.row_words),
    )


def _of_proxy(problem: Problem) -> tuple[Condition, ...]:
    found = "the test leaves it open"
    conditions = _contexts(problem)
    if all(condition.holds for condition in conditions):
        assert problem.targets is not None
        proxy = support_proxy(problem.targets)
        decided = bool(proxy.exact or proxy.decided)
        return (*conditions, Condition("a polar factor that decides", decided, found))
    return conditions


def _equal_rows(problem: Problem) -> tuple[Condition, ...]:
    rows = np.asarray(problem.target_rows(np.float64, np))
    distinct = len(np.unique(rows, axis=0))
    found = f"{distinct} distinct ones of {len(rows)}"
    return (
        *_contexts(problem),
        Condition("two equal target rows", distinct < len(rows), found),
    )


def _rows(num_tokens: int, supports: Any, probabilities: Any = None) -> np.ndarray:
    """Return distributions with these supports, tokens counted from 1; uniform if not given."""
    rows = np.zeros((len(supports), num_tokens))
    for index, (row, support) in enumerate(zip(rows, supports, strict=True)):
        own = np.full(len(support), 1 / len(support))
        row[np.asarray(support) - 1] = own if probabilities is None else probabilities[index]
    return rows


def _problem(rows: np.ndarray, counts: Any = None, weights: Any = None) -> Problem:
    targets = Targets.contexts(rows, counts)
    if weights is not None:
        targets = Targets(rows, targets.counts, weights)
    return Problem(
        targets=targets,
        feature_dim=rows.shape[1],
        loss=CrossEntropy(),
        regularizer=WeightDecay(weights=1e-2, features=1e-2),
    )


PUBLISHED = ((1, 2, 5), (1, 4, 5), (2, 3, 4))
PAIRS = ((1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4))
FANO = ((1, 2, 3), (1, 4, 5), (1, 6, 7), (2, 4, 6), (2, 5, 7), (3, 4, 7), (3, 5, 6))
UNEQUAL = ((1, 2), (1, 2), (1, 2), (1, 3), (4,))


def _rate_examples() -> tuple[Example, ...]:
    profile = ((0.5, 0.3, 0.2), (0.6, 0.3, 0.1), (0.2, 0.5, 0.3))
    two = ((0.9, 0.1), (0.3, 0.7), (0.5, 0.5), (0.4, 0.6))
    of_two = ((1, 2), (1, 2), (1, 3), (2, 3))
    published = _rows(5, PUBLISHED, profile)
    return (
        Example("V=5, R=3, unequal probabilities", _problem(published, (2, 3, 5))),
        Example("V=3, two contexts of one support", _problem(_rows(3, of_two, two))),
        Example("V=4, the limit is not the centred supports", _problem(_rows(4, UNEQUAL))),
    )


def _proxy_examples() -> tuple[Example, ...]:
    steps = Targets.one_hot((10.0, 10.0, 1.0, 1.0))
    return (
        Example("V=5, supports 125, 145, 234", _problem(_rows(5, PUBLISHED))),
        Example("V=4, all pairs", _problem(_rows(4, PAIRS))),
        Example("V=7, the lines of the Fano plane", _problem(_rows(7, FANO))),
        Example("V=4, nested supports", _problem(_rows(4, ((1,), (1, 2), (1, 2, 3))))),
        Example(
            "one-hot rows, n=(10,10,1,1)",
            _problem(np.asarray(steps.rows), steps.counts, steps.counts),
        ),
        Example("not exact: V=4, supports 12, 12, 12, 13, 4", _problem(_rows(4, UNEQUAL))),
    )


def _collapse_examples() -> tuple[Example, ...]:
    rows = np.array([[0.6, 0.4, 0.0], [0.6, 0.4, 0.0], [0.6, 0.4, 0.0], [0.0, 0.3, 0.7]])
    counts = np.array([4.0, 2.0, 2.0, 3.0])
    return (
        Example("equal ratios", _problem(rows, counts, counts / 2)),
        Example("contexts counted once", _problem(rows, counts)),
    )


def _approach(hard_margin: Any, problem: Problem) -> Any:
    return hard_margin.approach_of_contexts(problem)


def _proxy(hard_margin: Any, problem: Problem) -> Any:
    return hard_margin.proxy_check(hard_margin.HardMargin(targets=problem.targets))


def _collapse(hard_margin: Any, problem: Problem) -> Any:
    return hard_margin.collapse_of_contexts(problem)


MODEL = (
    "sum_j pi_j CE(W h_j, p_j) + (lW/2)||W||^2 + (lH/2) sum_j om_j ||h_j||^2, tau = sqrt(lW lH), "
    "contexts j with supports S_j (om = 1: each counted once)"
)

THEOREMS = (
    Theorem(
        name="next-token-rates",
        title="next-token cross-entropy as weight decay vanishes: entropy floor, log-odds, margins",
        reference=(
            "Zhao et al. (2024), arXiv:2408.15417, for the limits; the expansions and rates are "
            "derived here"
        ),
        statement=(
            f"{MODEL}; T and lambda the value and the multipliers of the hard-margin problem min "
            "||Om^(1/2) Z||_* with equal logits in supports and margins of 1 outside, L = "
            "log(1/tau), H = sum pi_j Entropy(p_j): the minimum is H + tau (T L + T + B + c/L + "
            "O(1/L^2)), in-support logits tend to log-odds up to O(tau), z_z - z_v = L + log(p_jz "
            "pi_j / lambda_jv) + O(1/L), and features of one support have a relative distance of "
            "order 1/L, with B, c and the distance in closed form where all multipliers are "
            "positive and the limit has full rank."
        ),
        conditions=_contexts,
        make_examples=_rate_examples,
        any_targets=True,
        about="hard margins",
        evidence=_approach,
    ),
    Theorem(
        name="next-token-centred-supports",
        title="hard margins of contexts (NTP-SVM): when the centred supports are the solution",
        reference=(
            "Zhao et al. (2024), arXiv:2408.15417, for the proxy; the test of when it is exact is "
            "derived here"
        ),
        statement=(
            "min ||Om^(1/2) Z||_* with equal logits in the supports and margins of 1 outside: Z = "
            "S (I - J/V), S the 0/1 supports, with W W' = V S V' of its singular value "
            "decomposition, if the polar factor of Om^(1/2) Z has no positive entry off the "
            "supports; only if, where Z has rank R or V - 1."
        ),
        conditions=_of_proxy,
        make_examples=_proxy_examples,
        any_targets=True,
        about="hard margins",
        evidence=_proxy,
    ),
    Theorem(
        name="next-token-collapse",
        title="contexts of equal targets: exact collapse at any weight decay, or none",
        reference=(
            "derived here; Zhao et al. (2024), arXiv:2408.15417, have contexts of one support that "
            "collapse in the limit"
        ),
        statement=(
            f"{MODEL}: contexts with equal p_j and equal om_j / pi_j have equal features at every "
            "decay; with equal p_j and another om_j / pi_j they have not, unless they are zero."
        ),
        conditions=_equal_rows,
        make_examples=_collapse_examples,
        any_targets=True,
        about="hard margins",
        evidence=_collapse,
    ),
)
