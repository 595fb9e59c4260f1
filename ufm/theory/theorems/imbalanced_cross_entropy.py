r"""Cross-entropy with one layer and unequal classes.

The theorems are about two class sizes, complete collapse, and non-negative features.

    (1/N) sum_i CE(z_i, y_i) + (lambda_W/2) ||W||^2 + (lambda_H/2) ||H||^2 (+ (lambda_b/2) ||b||^2),
    Z = H W^T + 1 b^T,

tau = sqrt(lambda_W lambda_H), n_k samples of class k, D = diag(n_k), pi = n / N, P = I - J/K. Where
classes of equal size are merged depends on N tau alone: classes of n samples coincide from N tau =
sqrt(n) on, with a bias or without.
"""

import functools
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from ufm._support import array_module
from ufm.problems import ClassGroups, CrossEntropy, Problem
from ufm.theory import conditions as needs
from ufm.theory import matrices
from ufm.theory.examples import example_problem
from ufm.theory.optimal_factors import Frame, Letters, letters, predicted
from ufm.theory.roots import root
from ufm.theory.theorem import Condition, Example, Prediction, Theorem
from ufm.theory.two_groups import basis, first_of, split, two_groups, two_sizes

__all__ = ["THEOREMS"]


def _penalty(problem: Problem, numbers: Letters) -> Any:
    """Return the bias's penalty, None in a model without bias."""
    return numbers.bias if problem.use_bias else None


# Two class sizes


def _two_sizes_conditions(problem: Problem) -> tuple[Condition, ...]:
    return (
        *needs.one_layer(problem, CrossEntropy),
        needs.signed_features(problem),
        two_sizes(problem),
        needs.centred_dims(problem),
    )


def _two_sizes_formula(problem: Problem) -> Prediction:
    r"""Return the minimiser for k_A classes of n_A samples and k_B of n_B.

    With a_g, nu, v, c and P_g of `two_groups`,

        D^{1/2} (Z - 1 b^T) = sum_g sqrt(n_g) a_g P_g + nu c v^T,
        W W^T = sqrt(lambda_H / lambda_W) (sum_g sqrt(n_g) a_g P_g + nu v v^T),
        F F^T = sqrt(lambda_W / lambda_H) D^{-1/2} (sum_g sqrt(n_g) a_g P_g + nu c c^T) D^{-1/2}.

    The constants `minority_ratio` = N tau / sqrt(n_B) and `majority_ratio` = N tau / sqrt(n_A) are
    at least one exactly where the classes of the group coincide, `contrast_ratio` where nothing
    tells the two groups apart but a bias; `minority_margin` and `majority_margin` are a_B and a_A,
    the margins between two classes of one group. A group of one class has no such margin: zero.
    """
    numbers = letters(problem)
    xp, groups = numbers.xp, split(problem)
    roots = xp.sqrt(groups.counts)
    found = two_groups(groups, roots, xp.log(numbers.decay), _penalty(problem, numbers))
    lengths = roots * found.margins
    parts = basis(groups, found.direction, lengths)
    within = parts.within
    root_counts = roots @ groups.members
    balance = xp.sqrt(numbers.features / numbers.weights[-1])
    first = first_of(groups.members)
    values = xp.sum(xp.where(first, 0, lengths[:, None] * groups.members), axis=0) + xp.where(
        first[0], found.contrast, 0
    )
    ratios = numbers.total * numbers.decay / roots
    minority = xp.argmin(groups.counts)
    return predicted(
        "cross-entropy-two-groups",
        numbers,
        objective=found.data_term + numbers.decay * found.gauge + found.bias_term,
        values=values,
        frame=Frame(
            balance * (within + found.contrast * parts.classifiers),
            matrices.scaled(
                (1 / balance) * (within + found.contrast * parts.features),
                1 / root_counts,
                both=True,
            ),
            matrices.scaled(within + found.contrast * parts.between, 1 / root_counts),
        ),
        bias=_two_biases(problem, found.gap, groups.sizes, groups.members),
        constants={
            "minority_ratio": ratios[minority],
            "majority_ratio": ratios[1 - minority],
            "contrast_ratio": found.contrast_ratio,
            "minority_margin": found.margins[minority],
            "majority_margin": found.margins[1 - minority],
        },
    )


def _two_biases(
    problem: Problem, gap: Any, sizes: Float[Array, " 2"], members: Float[Array, "2 K"]
) -> Any:
    """Return the bias of two groups that is `gap` apart and has the mean zero."""
    if not problem.use_bias:
        return None
    xp = array_module((gap, sizes))
    return gap * (xp.asarray([1.0, -1.0], sizes.dtype) * sizes[::-1] / xp.sum(sizes)) @ members


# Complete collapse


def _collapse_conditions(problem: Problem) -> tuple[Condition, ...]:
    return (
        *needs.one_layer(problem, CrossEntropy),
        needs.signed_features(problem),
        _collapsed(problem),
    )


def _collapsed(problem: Problem) -> Condition:
    """The penalties are strong enough for everything but a bias to vanish."""
    statement = "N sqrt(lW lH) >= ||(I - p 1') D^(1/2)||_2, p = softmax(b)"
    if not needs.weight_decay(problem).holds or problem.num_layers != 1:
        return Condition(statement, False, "another model")
    numbers = letters(problem)
    ratio = (
        numbers.total * numbers.decay / _collapse_size(numbers, _constant_bias(problem, numbers))
    )
    return Condition(statement, ratio >= 1, f"a ratio of {needs.number(ratio)}")


def _collapse_size(numbers: Letters, bias: Float[Array, " K"]) -> Float[Array, ""]:
    """Return ||(I - p 1^T) D^{1/2}||_2, p = softmax(b).

    It is N times the norm of the gradient at logits that are all b.
    """
    xp = numbers.xp
    p = xp.exp(bias - _logsumexp(xp, bias))
    if xp is np:  # by groups of equal classes, of which there may be few
        keys = np.stack([numbers.counts, p])
        groups = np.unique(keys, axis=1, return_inverse=True)[1]
        with matrices.by_groups(np.ravel(groups)):
            blocks = matrices.identity_matrix(np, p.size, p.dtype) - matrices.outer(
                np, p, np.ones_like(p)
            )
            scaled = matrices.scaled(blocks.transposed, xp.sqrt(numbers.counts))
        return np.asarray(scaled.singular_values()[0][0])  # type: ignore[return-value]
    matrix = xp.eye(numbers.num_classes, dtype=p.dtype) - p[:, None]
    return xp.linalg.svd(matrix * xp.sqrt(numbers.counts)[None, :], compute_uv=False)[0]


def _logsumexp(xp: Any, values: Any) -> Any:
    top = xp.max(values)
    return top + xp.log(xp.sum(xp.exp(values - top)))


def _constant_bias(problem: Problem, numbers: Letters) -> Float[Array, " K"]:
    r"""Return the b of mean zero that minimises logsumexp(b) - <pi, b> + (lambda_b/2) ||b||^2.

    It is zero in a model without bias.

    Its classes have softmax(b) + lambda_b b = pi. So y = log softmax(b) = b - c solves e^y +
    lambda_b (y + c) = pi, class by class, and the c for which the probabilities e^y sum to one lies
    in log K + [0, log(max pi / min pi)].
    """
    xp = numbers.xp
    pi = numbers.counts / numbers.total
    if not problem.use_bias:
        return xp.zeros_like(pi)
    if xp is np and numbers.bias == 0:  # no root to find, of as many numbers as classes
        return np.log(pi) - np.mean(np.log(pi))
    bottom, top = xp.log(xp.min(pi)), xp.log(xp.max(pi))

    def equation(y: Any, parameters: Any) -> Any:
        pi, penalty, c = parameters
        return xp.exp(y) + penalty * (y + c) - pi

    def logs(c: Any, parameters: Any) -> Any:
        pi, penalty, bottom, top = parameters
        ends = xp.zeros_like(pi) + bottom - 1, xp.zeros_like(pi) + top + 1
        return root(equation, *ends, (pi, penalty, c))

    def total(c: Any, parameters: Any) -> Any:
        return xp.sum(xp.exp(logs(c, parameters))) - 1

    start = xp.log(xp.asarray(numbers.num_classes, pi.dtype)) + 0 * bottom
    free = numbers.bias == 0
    safe = (pi, xp.where(free, 1, numbers.bias), bottom, top)
    c = root(total, start - 1, start + top - bottom + 1, safe)
    logits = xp.where(free, xp.log(pi), logs(c, safe))
    logits = logits - xp.mean(logits)
    # Where the penalty is large, b is small, and has all its digits from the condition of
    # stationarity.
    small = (pi - xp.exp(logits - _logsumexp(xp, logits))) / safe[1]
    return xp.where(numbers.bias >= 1, small, logits)


def _collapse_formula(problem: Problem) -> Prediction:
    r"""Return zero weights and features, and the bias that is best alone.

        objective = logsumexp(b) - <pi, b> + (lambda_b/2) ||b||^2.

    Without a bias this is log K, with a free one b = log pi (of mean zero) and the entropy of pi.
    The constant `collapse_ratio` is N tau over the size that the collapse needs, which is ||P
    D^{1/2}||_2 without a bias and
    ||(I - pi 1^T) D^{1/2}||_2 with a free one.
    """
    numbers = letters(problem)
    xp, K = numbers.xp, numbers.num_classes
    bias = _constant_bias(problem, numbers)
    pi = numbers.counts / numbers.total
    objective = _logsumexp(xp, bias) - pi @ bias + 0.5 * numbers.bias * xp.sum(bias**2)
    zero = matrices.zero_matrix(xp, K, pi.dtype)
    return predicted(
        "cross-entropy-complete-collapse",
        numbers,
        objective=objective,
        values=xp.zeros((K,), pi.dtype),
        frame=Frame(zero, zero, zero),
        bias=bias if problem.use_bias else None,
        constants={"collapse_ratio": numbers.total * numbers.decay / _collapse_size(numbers, bias)},
    )


# Non-negative features


def _nonnegative_conditions(problem: Problem) -> tuple[Condition, ...]:
    return (
        *needs.one_layer(problem, CrossEntropy),
        needs.nonnegative_features(problem),
        needs.no_bias(problem),
        needs.wide(problem),
    )


def _nonnegative_formula(problem: Problem) -> Prediction:
    r"""Return orthogonal class means with a margin for every class.

        q_k = N tau sqrt((K-1) / (K n_k)),    M_k = log((K-1) (1/q_k - 1))_+,
        Z = diag(M) P,    F F^T = diag(sqrt((K-1) lambda_W / (K lambda_H n_k)) M_k),
        W W^T = P diag(A) P,    A_k = sqrt(K n_k lambda_H / ((K-1) lambda_W)) M_k,
        objective = sum_k [ (n_k/N) log(1 + (K-1) e^{-M_k}) + tau sqrt(n_k (K-1) / K) M_k ].

    A class vanishes, M_k = 0, where its count is at most the constant `smallest_count` = N^2
    lambda_W lambda_H K / (K-1).
    """
    numbers = letters(problem)
    xp, K, n = numbers.xp, numbers.num_classes, numbers.counts
    q = numbers.total * numbers.decay * xp.sqrt((K - 1) / (K * n))
    margins = xp.log1p(xp.maximum((K - 1) / q - K, 0))
    losses = n / numbers.total * xp.log1p((K - 1) * xp.exp(-margins))
    sizes = xp.sqrt(n * (K - 1) / K) * margins
    centring = xp.eye(K, dtype=n.dtype) - xp.full((K, K), 1 / K, n.dtype)
    balance = xp.sqrt(numbers.features / numbers.weights[-1])
    alive = xp.sum(margins > 0, dtype=np.int32)
    rank = xp.where(alive == K, alive - 1, alive)
    found = xp.linalg.svd((xp.sqrt(n) * margins)[:, None] * centring, compute_uv=False)
    values = xp.where(xp.arange(K, dtype=np.int32) < rank, found, 0)
    gauge = xp.sum(sizes)
    return Prediction(
        theorem="cross-entropy-nonnegative",
        objective=xp.sum(losses) + numbers.decay * gauge,
        logits=margins[:, None] * centring,
        weight_gram=balance * (centring * (K / (K - 1) * sizes)[None, :]) @ centring,
        feature_gram=xp.diag(sizes / n / balance),
        bias=None,
        layer_norms=xp.stack([balance * gauge, gauge / balance]),
        singular_values=values,
        rank=rank,
        collapsed=alive == 0,
        constants={"smallest_count": (numbers.total * numbers.decay) ** 2 * K / (K - 1)},
    )


# Examples


_problem = functools.partial(example_problem, CrossEntropy())


def _two_sizes_examples() -> tuple[Example, ...]:
    small, step = ClassGroups((100, 20), sizes=(2, 3)), ClassGroups((500, 100), sizes=(5, 5))
    single = ClassGroups((500, 100), sizes=(3, 1))
    return (
        Example("2x100 + 3x20, d=5, 5e-3, 5e-4", _problem(small, 5e-3, 5e-4, 5)),
        Example("5x500 + 5x100, d=9, 2e-3", _problem(step, 2e-3, 2e-3, 9)),
        Example("minority collapse: 3.5e-3", _problem(step, 3.5e-3, 3.5e-3, 10)),
        Example("minority features vanish: 5e-3", _problem(step, 5e-3, 5e-3, 10)),
        Example("free bias, 2e-3", _problem(step, 2e-3, 2e-3, 10, bias=0.0)),
        Example(
            "minority collapse, penalised bias 1e-2", _problem(step, 3.5e-3, 3.5e-3, 10, bias=1e-2)
        ),
        Example("3x500 + 1x100, free bias, 2e-3", _problem(single, 2e-3, 2e-3, 5, bias=0.0)),
        Example("collapsed: 1e-2", _problem(step, 1e-2, 1e-2, 10)),
    )


def _collapse_examples() -> tuple[Example, ...]:
    counts = (200.0, 100.0, 50.0)
    return (
        Example("n=(200,100,50), 5e-2", _problem(counts, 5e-2, 5e-2, 3)),
        Example("free bias, 5e-2", _problem(counts, 5e-2, 5e-2, 3, bias=0.0)),
        Example("penalised bias 1e-2, 5e-2", _problem(counts, 5e-2, 5e-2, 3, bias=1e-2)),
    )


def _nonnegative_examples() -> tuple[Example, ...]:
    counts = (200.0, 100.0, 50.0)
    published = ClassGroups((1000, 2000, 3000, 4000, 5000), sizes=(2, 2, 2, 2, 2))
    return (
        Example(
            "n=(200,100,50), d=4, 5e-3, 5e-4",
            _problem(counts, 5e-3, 5e-4, 4, nonnegative_features=True),
        ),
        Example(
            "n=1000 to 5000, d=10, 1e-4, 1e-5",
            _problem(published, 1e-4, 1e-5, 10, nonnegative_features=True),
        ),
        Example(
            "one class vanishes: 1.8e-2",
            _problem(counts, 1.8e-2, 1.8e-2, 4, nonnegative_features=True),
        ),
        Example("collapsed: 5e-2", _problem(counts, 5e-2, 5e-2, 4, nonnegative_features=True)),
    )


two_class_sizes = Theorem(
    name="cross-entropy-two-groups",
    title=(
        "cross-entropy with two class sizes, with or without a bias: exact, with minority collapse"
    ),
    reference=(
        "Hong & Ling (JMLR 2024), arXiv:2309.09725; the reduction to one equation is derived here"
    ),
    statement=(
        "(1/N) sum CE + (lW/2)||W||^2 + (lH/2)||H||^2 [+ (lb/2)||b||^2], k_A classes of n_A "
        "samples and k_B of n_B, d >= K - 1: features collapse to class means; classifiers and "
        "class means of one group form an ETF around their mean, and coincide exactly where N "
        "sqrt(lW lH) >= sqrt(n_g), for any bias and any other group."
    ),
    conditions=_two_sizes_conditions,
    formula=_two_sizes_formula,
    make_examples=_two_sizes_examples,
    by_groups=True,
)

complete_collapse = Theorem(
    name="cross-entropy-complete-collapse",
    title="cross-entropy with strong penalties, any class sizes: only a bias is left",
    reference=(
        "Hong & Ling (JMLR 2024), arXiv:2309.09725; the condition with a penalised bias is "
        "derived here"
    ),
    statement=(
        "(1/N) sum CE + (lW/2)||W||^2 + (lH/2)||H||^2 [+ (lb/2)||b||^2], any class sizes: W = 0 "
        "and H = 0 where N sqrt(lW lH) >= ||(I - p 1') D^(1/2)||_2, with p = 1/K without a bias, "
        "p = n/N and b = log p with a free one, and p = softmax(b) = n/N - lb b in general."
    ),
    conditions=_collapse_conditions,
    formula=_collapse_formula,
    make_examples=_collapse_examples,
    by_groups=True,
)

nonnegative_features = Theorem(
    name="cross-entropy-nonnegative",
    title="cross-entropy with non-negative features, any class sizes: orthogonal class means",
    reference=(
        "Dang et al. (ICML 2024), arXiv:2401.02058; the closed form of the scales is derived here"
    ),
    statement=(
        "(1/N) sum CE + (lW/2)||W||^2 + (lH/2)||H||^2 with h >= 0, no bias, any class sizes, d >= "
        "K: class means are orthogonal and class logits M_k (e_k - 1/K), M_k = log((K-1)(1/q_k - "
        "1))_+ with q_k = N sqrt(lW lH (K-1) / (K n_k)); class k vanishes exactly where n_k <= "
        "N^2 lW lH K/(K-1)."
    ),
    conditions=_nonnegative_conditions,
    formula=_nonnegative_formula,
    make_examples=_nonnegative_examples,
)

THEOREMS = (
    two_class_sizes,
    complete_collapse,
    nonnegative_features,
)
