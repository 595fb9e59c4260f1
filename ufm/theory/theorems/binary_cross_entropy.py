r"""Binary cross-entropy, a logistic loss for every logit, with balanced classes or tag sets.

    (1/N) sum_r n_r sum_c [ log(1 + e^{z_rc}) - y_rc z_rc ] + (lambda_W/2) ||W||^2 + (lambda_H/2)
    sum_r n_r ||h_r||^2 (+ (lambda_b/2) ||b||^2),

summed over the K logits. PyTorch's mean over logits has K times the penalties here. tau =
sqrt(lambda_W lambda_H), P = I - J/K.

The loss sees a common shift of the logits. Without a free bias the features may carry it, and
weights and class means then have opposite means: they are not dual to one another.
"""

from typing import Any, NamedTuple

from jaxtyping import Array, Float

from ufm._support import array_module
from ufm.problems import BinaryCrossEntropy, ClassGroups, Problem, Targets, WeightDecay
from ufm.theory import conditions as needs
from ufm.theory import matrices
from ufm.theory.examples import example_problem
from ufm.theory.optimal_factors import centred_frame, letters, predicted
from ufm.theory.roots import root
from ufm.theory.symmetric_rows import etf_moments, etf_rows_prediction
from ufm.theory.theorem import Condition, Example, Prediction, Theorem

__all__ = ["THEOREMS"]

SYMMETRIC = 1e-10  # relative error of second moments


def _logit(xp: Any, probability: Any, rest: Any) -> Any:
    """Return log(p / (1 - p)) of a probability and the rest of one, both kept above zero."""
    tiny = xp.finfo(xp.asarray(probability).dtype).tiny
    return xp.log(xp.maximum(probability, tiny)) - xp.log(xp.maximum(rest, tiny))


def _softplus(xp: Any, x: Any) -> Any:
    return xp.maximum(x, 0) + xp.log1p(xp.exp(-xp.abs(x)))


# Balanced classes


def _balanced_conditions(problem: Problem) -> tuple[Condition, ...]:
    K, d = problem.num_classes, problem.feature_dim
    room = K - 1 if problem.use_bias and problem.regularizer.has_free_bias else K
    return (
        *needs.one_layer(problem, BinaryCrossEntropy),
        needs.signed_features(problem),
        needs.balanced(problem),
        Condition("d >= K, or K - 1 with a free bias", d >= room, f"d = {d}, K = {K}"),
    )


class _Logits(NamedTuple):
    """Logit of the own class, of another, and their mean over the classes of a row."""

    own: Float[Array, ""]
    other: Float[Array, ""]
    mean: Float[Array, ""]


def _logits(xp: Any, g: Any, lost: Any, K: int) -> _Logits:
    """Return the logits for the multiplier g of the common mode, `lost` = min(c, 1).

    1 - sigma(z_own) = ((K - 1) min(c, 1) - g) / K, and sigma(z_other) = (min(c, 1) + g) / K.
    """
    wrong, other = ((K - 1) * lost - g) / K, (lost + g) / K
    own = _logit(xp, 1 - wrong, wrong)
    others = _logit(xp, other, 1 - other)
    return _Logits(own, others, (own + (K - 1) * others) / K)


def _balanced_formula(problem: Problem) -> Prediction:
    r"""Return Z = x P + (s_1 / K) J + 1 b^T.

    With c = K sqrt(n) tau, and phi(g) the mean logit at the multiplier g (see `_logits`):

        free bias: g = 0, s_1 = 0, b = phi(0);
        penalised, or none (lambda_b = infinity): if phi(c) <= -c / (K lambda_b), then g = c, b =
        -c / (K lambda_b) and s_1 = K (phi(c) - b) < 0, else s_1 = 0, phi(g) = -g / (K lambda_b) =
        b.

    x = z_own - z_other, zero from c = 1 on. W W^T and the Gram matrix of class means are multiples
    of x P + |s_1| J/K. The constant `common` is s_1.
    """
    numbers = letters(problem)
    xp, K = numbers.xp, numbers.num_classes
    root_count = xp.sqrt(numbers.mean_count)
    c = K * root_count * numbers.decay
    lost = xp.minimum(c, 1)
    free = (numbers.bias == 0) if problem.use_bias else xp.zeros_like(c, dtype=bool)
    slope = 1 / (K * xp.where(free, 1, numbers.bias)) if problem.use_bias else 0 * c

    def excess(g: Any, parameters: Any) -> Any:
        lost, slope = parameters
        return _logits(xp, g, lost, K).mean + slope * g

    top = xp.minimum(c, (K - 1) * lost)
    carried = ~free & (excess(top, (lost, slope)) <= 0) & (c < K - 1)
    g = xp.where(carried, c, root(excess, 0 * c, top, (lost, slope)))
    g = xp.where(free, 0, g)
    found = _logits(xp, g, lost, K)
    bias = xp.where(free, found.mean, -slope * g)
    common = xp.where(carried, K * (found.mean - bias), 0)
    x = xp.where(c < 1, found.own - found.other, 0)
    frame = centred_frame(numbers, root_count * x, root_count * xp.abs(common))
    mean = matrices.mean_matrix(xp, K, c.dtype)
    centring = matrices.identity_matrix(xp, K, c.dtype) - mean
    penalty = numbers.decay * root_count * ((K - 1) * x + xp.abs(common))
    return predicted(
        "binary-cross-entropy-balanced",
        numbers,
        objective=_softplus(xp, -found.own)
        + (K - 1) * _softplus(xp, found.other)
        + penalty
        + (0.5 * numbers.bias * K * bias**2 if problem.use_bias else 0),
        values=root_count * xp.where(xp.arange(K) < K - 1, x, xp.abs(common)),
        frame=frame._replace(logits=x * centring + common * mean),
        bias=xp.ones((K,), c.dtype) * bias if problem.use_bias else None,
        constants={"c": c, "margin": x, "common": common},
    )


# Tag sets of one multiplicity


def _tags_conditions(problem: Problem) -> tuple[Condition, ...]:
    common = (
        needs.target_rows(problem),
        needs.several_labels(problem),
        *needs.one_layer(problem, BinaryCrossEntropy),
        needs.free_bias(problem),
        needs.signed_features(problem),
        needs.proportional_weights(problem),
        needs.centred_dims(problem),
    )
    if any(condition.holds is False for condition in common):
        return common
    xp, K = array_module(problem), problem.num_outputs
    numbers = letters(problem)
    rows = problem.target_rows(numbers.counts.dtype, xp)
    sizes = xp.sum(rows, axis=1)
    whole = xp.max(xp.minimum(xp.abs(rows), xp.abs(rows - 1)))
    same = (whole == 0) & (xp.max(sizes) == xp.min(sizes)) & (sizes[0] > 0) & (sizes[0] < K)
    found = f"{needs.number(xp.min(sizes))} to {needs.number(xp.max(sizes))} labels"
    error = etf_moments(problem, rows - sizes[:, None] / K)
    return (
        *common,
        Condition("tag sets with m labels each, 0 < m < K", same, found),
        Condition(
            "labels and pairs of labels equally often (a 2-design)",
            error <= SYMMETRIC,
            f"off by {needs.number(error)}",
        ),
    )


def _tags_formula(problem: Problem) -> Prediction:
    r"""Return z_S = a P 1_S + b, for N samples with m labels each.

        c = tau sqrt(N K (K - 1) / (m (K - m))),
        1 - sigma(z_in) = (K - m) c / K,    sigma(z_off) = m c / K,
        a = z_in - z_off,    b = (m z_in + (K - m) z_off) / K,
        objective = m log(1 + e^{-z_in}) + (K - m) log(1 + e^{z_off}) + tau (K - 1) sqrt(theta) a,

    theta = N m (K - m) / (K (K - 1)). From c = 1 on a = 0 and b = log(m / (K - m)).
    """
    numbers = letters(problem)
    xp, K, total = numbers.xp, numbers.num_classes, numbers.total
    rows = problem.target_rows(numbers.counts.dtype, xp)
    m = xp.sum(rows[0])
    c = numbers.decay * xp.sqrt(total * K * (K - 1) / (m * (K - m)))
    lost = xp.minimum(c, 1)
    inside = _logit(xp, 1 - (K - m) * lost / K, (K - m) * lost / K)
    off = _logit(xp, m * lost / K, 1 - m * lost / K)
    a = xp.where(c < 1, inside - off, 0)
    bias = (m * inside + (K - m) * off) / K
    size = xp.sqrt(total * m * (K - m) / (K * (K - 1)))
    return etf_rows_prediction(
        "binary-cross-entropy-tags",
        problem,
        a * (rows - m / K),
        # Of Om^{1/2} Z instead of D^{1/2} Z.
        size * a * xp.sqrt(numbers.features / problem.regularizer.decays(1)[-1]),
        m * _softplus(xp, -inside)
        + (K - m) * _softplus(xp, off)
        + numbers.decay * (K - 1) * size * a,
        {"c": c, "coefficient": a},
        bias,
    )


# Examples


def _balanced_examples() -> tuple[Example, ...]:
    loss, four, ten = (
        BinaryCrossEntropy(),
        ClassGroups.balanced(4, 50),
        ClassGroups.balanced(10, 500),
    )
    return (
        Example("K=4, n=50, free bias, d=20", example_problem(loss, four, 5e-3, 1e-4, 20, 0.0)),
        Example("K=10, n=500, d=9", example_problem(loss, ten, 5e-4, 5e-4, 9, 0.0)),
        Example("no bias", example_problem(loss, four, 5e-3, 1e-4, 20)),
        Example("bias 1e-3", example_problem(loss, four, 5e-3, 1e-4, 20, 1e-3)),
        Example("bias 10", example_problem(loss, four, 5e-3, 1e-4, 20, 10.0)),
        Example("K=3, no bias", example_problem(loss, (5.0,) * 3, 5e-2, 8e-2, 3)),
        Example("common mode alone: K=6", example_problem(loss, (5.0,) * 6, 0.1, 0.12, 6)),
        Example("collapsed: 5e-2", example_problem(loss, four, 5e-2, 5e-2, 20, 0.0)),
    )


def _tags_examples() -> tuple[Example, ...]:
    def problem(targets: Targets, decay: float, dim: int) -> Problem:
        regularizer = WeightDecay(2 * decay, decay / 2)
        return Problem(
            targets=targets,
            feature_dim=dim,
            loss=BinaryCrossEntropy(),
            regularizer=regularizer,
            use_bias=True,
        )

    pairs, triples = Targets.multi_label(5, {2: 40}), Targets.multi_label(5, {3: 20})
    return (
        Example("pairs of 5", problem(pairs, 1e-2, 6)),
        Example("triples of 5, d=4", problem(triples, 2e-2, 4)),
        Example("collapsed: 0.5", problem(pairs, 0.5, 6)),
    )


binary_balanced = Theorem(
    name="binary-cross-entropy-balanced",
    title="balanced binary cross-entropy: an ETF with a free bias, else a common mode as well",
    reference=(
        "Li, Xiao & Shen (ICML 2025), arXiv:2505.05813, for the ETF with a bias; closed forms, and "
        "those without a free bias, derived here"
    ),
    statement=(
        "(1/N) sum_i sum_c BCE + (lW/2)||W||^2 + (lH/2)||H||^2 [+ (lb/2)||b||^2], K classes of n "
        "samples, c = K sqrt(n lW lH): class logits x P + (s/K) J + b with 1 - sigma(z_own) = "
        "((K-1) c - g)/K, sigma(z_other) = (c + g)/K, x their difference, zero from c = 1 on (with "
        "c = 1 in these). Free bias: g = s = 0. Otherwise (no bias: lb infinite), phi the mean "
        "logit: if phi(c) <= -c/(K lb), g = c, b = -c/(K lb), s = K(phi(c) - b) < 0, so features "
        "carry a bias, opposite to the weights'; else s = 0 and phi(g) = -g/(K lb) = b. W W' = "
        "sqrt(n lH/lW)(x P + |s| J/K). PyTorch's mean over logits: penalties times K."
    ),
    conditions=_balanced_conditions,
    formula=_balanced_formula,
    make_examples=_balanced_examples,
    by_groups=True,
)

binary_tags = Theorem(
    name="binary-cross-entropy-tags",
    title="binary cross-entropy with m labels per sample and a free bias: an ETF",
    reference="derived here, after Li, Xiao & Shen (ICML 2025), arXiv:2505.05813",
    statement=(
        "(1/N) sum_S n_S sum_c BCE + (lW/2)||W||^2 + (lH/2) sum n_S ||h_S||^2, b free, tag sets of "
        "m labels in which labels and pairs of labels are equally often, d >= K - 1, c = tau "
        "sqrt(N K(K-1)/(m(K-m))): z_S = a P 1_S + b, 1 - sigma(z_in) = (K-m) c/K, sigma(z_off) = m "
        "c/K, a = z_in - z_off, b = (m z_in + (K-m) z_off)/K; a = 0, b = log(m/(K-m)) from c = 1 "
        "on. W W' = sqrt(lH/lW) kappa P, kappa = a sqrt(N m(K-m)/(K(K-1)))."
    ),
    conditions=_tags_conditions,
    formula=_tags_formula,
    make_examples=_tags_examples,
    any_targets=True,
)

THEOREMS = (binary_balanced, binary_tags)
