r"""Models with one logit: two classes at any imbalance, and ordered levels.

    (1/N) sum_r n_r phi_r(z_r) + (lambda_W/2) ||w||^2 + (lambda_H/2) sum_r n_r ||h_r||^2,

z_r = <w, h_r> (+ b), any d >= 1. The price of the logits is a norm: with tau = sqrt(lambda_W
lambda_H) and kappa^2 = sum_r n_r (z_r - b)^2

    f = min (1/N) sum_r n_r phi_r(z_r) + tau kappa,    phi_r'(z_r) = -(N tau / kappa) (z_r - b),
    ||w||^2 = sqrt(lambda_H / lambda_W) kappa,
    <h_r, h_s> = sqrt(lambda_W / lambda_H) (z_r - b) (z_s - b) / kappa.

Two classes, phi(z) = log(1 + e^{-z}) and log(1 + e^z). Without a bias the objective is the same for
all samples but for their sign, and so are their logits: imbalance has no effect. A free bias makes
the features' mean zero, and the probability of the wrong class is p_+ = tau sqrt(N n_- / n_+), p_-
= tau sqrt(N n_+ / n_-). Cross-entropy with K = 2 is this model with tau over sqrt 2.

Ordered levels, phi_q(z) = -log(sigma(b_q - z) - sigma(b_{q-1} - z)) with fixed thresholds b, have
two nested scalar equations: phi_q'(z_q) = -mu z_q for every level at a given mu, and sum_q n_q
phi_q'(z_q)^2 = (N tau)^2 for mu, whose left side increases. As tau vanishes, interior levels go to
the middle of their thresholds.
"""

import functools
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from ufm._support import is_concrete
from ufm.problems import BinaryCrossEntropy, Ordinal, Problem, Targets, WeightDecay
from ufm.theory import conditions as needs
from ufm.theory.examples import example_problem
from ufm.theory.optimal_factors import (
    Frame,
    Letters,
    feature_share,
    letters,
    predicted,
    weight_share,
)
from ufm.theory.roots import root
from ufm.theory.theorem import Condition, Example, Prediction, Theorem

__all__ = ["THEOREMS"]

FAR = 1e3  # distance of the thresholds that stand for infinite ones
SMALLEST = 50.0  # -log of the smallest mu that is looked for, besides the thresholds


def _prediction(
    name: str,
    numbers: Letters,
    scores: Float[Array, " R"],
    data_term: Float[Array, ""],
    bias: Any,
    constants: dict[str, Any],
) -> Prediction:
    """Return the prediction of scores (R,) without the bias; `bias` is a number or None."""
    xp = numbers.xp
    kappa = xp.sqrt(xp.sum(numbers.counts * scores**2))
    values = kappa[None]
    direction = scores / xp.where(kappa > 0, kappa, 1)
    frame = Frame(
        weight_gram=weight_share(numbers, values)[:, None],
        feature_gram=feature_share(numbers, values)[:, None]
        * (direction[:, None] * direction[None, :]),
        logits=scores[:, None],
    )
    return predicted(
        name,
        numbers,
        objective=data_term + numbers.decay * kappa,
        values=values,
        frame=frame,
        bias=None if bias is None else bias[None],
        constants=constants,
    )


def _softplus(xp: Any, x: Any) -> Any:
    return xp.logaddexp(xp.zeros_like(x), x)


def _sigmoid(xp: Any, x: Any) -> Any:
    return xp.exp(-_softplus(xp, -x))


# Two classes


def _two_rows(problem: Problem) -> Condition:
    """The targets are one label that is there, and one that is not."""
    statement = "two target rows of one label, 1 and 0"
    rows = problem.target_rows(np.float64, np) if is_concrete(problem.targets) else None
    if rows is None or rows.shape != (2, 1):
        return Condition(statement, False, f"{problem.num_rows} rows of {problem.num_outputs}")
    found = f"{rows[0, 0]:.6g} and {rows[1, 0]:.6g}"
    return Condition(statement, bool(sorted(rows[:, 0]) == [0.0, 1.0]), found)


def _two_class_conditions(free_bias: bool, problem: Problem) -> tuple[Condition, ...]:
    return (
        *needs.one_layer(problem, BinaryCrossEntropy),
        needs.target_rows(problem),
        needs.signed_features(problem),
        needs.free_bias(problem) if free_bias else needs.no_bias(problem),
        needs.proportional_weights(problem),
        _two_rows(problem),
    )


def _signs(numbers: Letters, problem: Problem) -> Array:
    rows = problem.target_rows(numbers.counts.dtype, numbers.xp)
    return 2 * rows[:, 0] - 1


def _without_bias(name: str, problem: Problem) -> Prediction:
    """Return the logits +-a, a = log(1 / (tau sqrt(N)) - 1)_+."""
    numbers = letters(problem)
    xp = numbers.xp
    c = numbers.decay * xp.sqrt(numbers.total)
    score = xp.log1p(xp.maximum(1 / c - 2, 0))
    constants = {"score": score, "c": c, "threshold": 0.5 * xp.ones_like(c)}
    data_term = _softplus(xp, -score)
    return _prediction(name, numbers, score * _signs(numbers, problem), data_term, None, constants)


def _with_free_bias(name: str, problem: Problem) -> Prediction:
    """Return the logits of probabilities p of the wrong class; one bias where they sum to one."""
    numbers = letters(problem)
    xp, counts, total = numbers.xp, numbers.counts, numbers.total
    signs = _signs(numbers, problem)
    wrong = numbers.decay * xp.sqrt(total * (total - counts) / counts)
    c = xp.sum(wrong)
    alone = (total - counts) / total  # of one logit for all
    p = xp.where(c < 1, wrong, alone)
    logits = signs * (xp.log1p(-p) - xp.log(p))
    bias = xp.sum(counts * logits) / total
    scores = xp.where(c < 1, logits - bias, 0)
    data_term = xp.sum(counts / total * -xp.log1p(-p))
    constants = {"c": c, "threshold": xp.ones_like(c)}
    return _prediction(name, numbers, scores, data_term, bias, constants)


def _two_class_examples(free_bias: bool) -> tuple[Example, ...]:
    def problem(counts: Any, decay: float, dims: int) -> Problem:
        return Problem(
            targets=Targets([[1.0], [0.0]], counts),
            feature_dim=dims,
            loss=BinaryCrossEntropy(),
            regularizer=WeightDecay(weights=decay, features=decay),
            use_bias=free_bias,
        )

    return (
        Example("n=(90,10), d=2, 5e-3", problem((90.0, 10.0), 5e-3, 2)),
        Example("n=(5,5), d=1, 2e-2", problem((5.0, 5.0), 2e-2, 1)),
        Example("n=(1000,1), d=3, 5e-4", problem((1000.0, 1.0), 5e-4, 3)),
        Example("collapsed: n=(90,10), 0.1", problem((90.0, 10.0), 0.1, 2)),
    )


# Ordered levels


def _levels(problem: Problem) -> Condition:
    return Condition("levels given by class counts", problem.one_hot, "target rows")


def _ordinal_conditions(problem: Problem) -> tuple[Condition, ...]:
    return (
        *needs.one_layer(problem, Ordinal),
        _levels(problem),
        needs.signed_features(problem),
        needs.no_bias(problem),
    )


def _slope(xp: Any, z: Any, ends: Any) -> Any:
    """Return phi'(z) of levels between the thresholds `ends`, two arrays (Q,)."""
    lower, upper = ends
    return _sigmoid(xp, z - upper) - _sigmoid(xp, lower - z)


def _at(xp: Any, log_mu: Any, ends: Any) -> Any:
    """Return the z of every level with phi'(z) = -mu z, (Q,)."""
    mu = xp.exp(log_mu)
    inner = xp.where(xp.abs(ends[0]) < xp.abs(ends[1]), ends[0], ends[1])
    # Beyond this mu |z| is larger than any slope.
    far = (xp.max(xp.abs(inner)) + 1 + _softplus(xp, -log_mu)) * xp.ones_like(ends[0])
    return root(functools.partial(_balance, xp), -far, far, (mu, ends))


def _balance(xp: Any, z: Any, parameters: Any) -> Any:
    mu, ends = parameters
    return _slope(xp, z, ends) + mu * z


def _excess(xp: Any, log_mu: Any, parameters: Any) -> Any:
    counts, ends, level = parameters
    slopes = _slope(xp, _at(xp, log_mu, ends), ends)
    return xp.sqrt(xp.sum(counts * slopes**2)) - level


def _ordinal_formula(name: str, problem: Problem) -> Prediction:
    numbers = letters(problem)
    xp, counts, total = numbers.xp, numbers.counts, numbers.total
    thresholds = xp.asarray(problem.loss.thresholds, counts.dtype)  # type: ignore[attr-defined]
    size = xp.max(xp.abs(thresholds))
    far = (size + FAR)[None]
    ends = xp.concatenate([-far, thresholds]), xp.concatenate([thresholds, far])
    at_zero = _slope(xp, xp.zeros_like(counts), ends)
    largest = xp.sqrt(xp.sum(counts * at_zero**2))
    level = total * numbers.decay
    alive = level < largest
    # phi'' <= 1/2, so that |phi'(z)| >= |phi'(0)| mu / (mu + 1/2).
    ratio = xp.where(alive, level / largest, 0.5)
    high = xp.log(0.5 * ratio / (1 - ratio)) + 1e-6
    low = xp.minimum(xp.log(ratio * largest / xp.sqrt(total) / (size + SMALLEST)), high - 1)
    goal = xp.where(alive, level, 0.5 * largest)
    log_mu = root(functools.partial(_excess, xp), low, high, (counts, ends, goal))
    scores = xp.where(alive, _at(xp, log_mu, ends), 0)
    inside = -xp.log(-xp.expm1(ends[0] - ends[1]))
    losses = _softplus(xp, scores - ends[1]) + _softplus(xp, ends[0] - scores) + inside
    constants = {"c": level, "threshold": largest}
    data_term = xp.sum(counts / total * losses)
    return _prediction(name, numbers, scores, data_term, None, constants)


def _ordinal_examples() -> tuple[Example, ...]:
    loss = Ordinal([-1.0, 0.5, 1.5])
    return (
        Example(
            "Q=4, n=(8,4,2,1), 1e-2", example_problem(loss, (8.0, 4.0, 2.0, 1.0), 1e-2, 1e-2, 2)
        ),
        Example("Q=4, n=5, d=1, 1e-3", example_problem(loss, (5.0,) * 4, 1e-3, 1e-3, 1)),
        Example("Q=2, threshold 0", example_problem(Ordinal([0.0]), (9.0, 1.0), 1e-2, 1e-2, 3)),
        Example("collapsed: 1", example_problem(loss, (8.0, 4.0, 2.0, 1.0), 1.0, 1.0, 2)),
    )


MODEL = "+ (lW/2)||w||^2 + (lH/2) sum_i ||h_i||^2, one logit, tau = sqrt(lW lH)"

THEOREMS = (
    Theorem(
        name="two-classes-one-logit",
        title="two classes, one logit, no bias: imbalance has no effect",
        reference="derived here; the binary case of arXiv:2505.05813",
        statement=(
            f"(1/N) sum_i log(1 + exp(-s_i z_i)) {MODEL}, s_i = +-1 with any class sizes: z_i = "
            "s_i log(1/(tau sqrt N) - 1)_+; zero from tau sqrt N = 1/2 on. Cross-entropy with K = "
            "2 is the same with tau / sqrt 2 for z_y - z_c."
        ),
        conditions=functools.partial(_two_class_conditions, False),
        formula=functools.partial(_without_bias, "two-classes-one-logit"),
        make_examples=functools.partial(_two_class_examples, False),
        any_targets=True,
    ),
    Theorem(
        name="two-classes-one-logit-free-bias",
        title="two classes, one logit, free bias: both probabilities in closed form",
        reference="derived here; the binary case of arXiv:2505.05813",
        statement=(
            f"(1/N) sum_i log(1 + exp(-s_i z_i)) {MODEL}, free bias, n_+ and n_- samples: the "
            "wrong class has the probability p_+ = tau sqrt(N n_-/n_+), p_- = tau sqrt(N n_+/n_-), "
            "z = s log((1-p)/p), b the mean of z; collapse to b = log(n_+/n_-) from p_+ + p_- = 1."
        ),
        conditions=functools.partial(_two_class_conditions, True),
        formula=functools.partial(_with_free_bias, "two-classes-one-logit-free-bias"),
        make_examples=functools.partial(_two_class_examples, True),
        any_targets=True,
    ),
    Theorem(
        name="ordinal-levels",
        title="ordered levels with fixed thresholds: scores by one scalar equation",
        reference=(
            "Ma, Obuchi, Tanaka (NeurIPS 2025), arXiv:2506.05801, for the limits; the equation is "
            "derived here"
        ),
        statement=(
            f"(1/N) sum_i phi_q(z_i) {MODEL}, phi_q(z) = -log(sigma(b_q - z) - sigma(b_(q-1) - "
            "z)), no bias, any level sizes: phi_q'(z_q) = -(N tau/kappa) z_q, kappa^2 = sum n_q "
            "z_q^2; zero iff N tau >= sqrt(sum n_q phi_q'(0)^2). As tau vanishes, interior levels "
            "go to the middle of their thresholds."
        ),
        conditions=_ordinal_conditions,
        formula=functools.partial(_ordinal_formula, "ordinal-levels"),
        make_examples=_ordinal_examples,
    ),
)
