r"""Cross-entropy with two class sizes: the minimiser by the root of a single equation.

    min  sum_g k_g s_g l_g(Z) + lambda ||R Z||_* (+ (lambda_b/2) ||b||^2),

over the class logits Z + 1 b^T of two groups g of k_g classes, K = k_A + k_B: s_g = n_g / N the
share of a class, l_g the cross-entropy of a class of the group, R diagonal with one number r_g per
group. Weight decay has lambda = sqrt(lambda_W lambda_H) and r_g = sqrt(n_g), the layer-peeled model
a multiplier for lambda and r_g = 1.

The problem is convex and symmetric under permutations within the groups, so that it has a minimiser
of the form

    R Z = r_A a_A P_A + r_B a_B P_B + nu c v^T,    v = sqrt(k_A k_B / K) (1_A / k_A, -1_B / k_B),

P_g the centring projection of a group, c a unit vector that is (cos phi / sqrt(k_A), -sin phi /
sqrt(k_B)) on the groups, a_g >= 0 the margin between two classes of a group, nu >= 0 what tells the
groups apart. A bias has one number per group and beta = b_A - b_B. In terms of the probability u_g
that the classes of g give to the other group altogether, with

    theta_g = lambda r_g / s_g,    theta'_g = min(theta_g, 1) (1 where k_g = 1),

stationarity in a_g says that the probabilities of the own and of the other classes of the group are

    p_own = 1 - theta'_g + p_other,    p_other = (theta'_g - u_g) / k_g,
    a_g = log(p_own / p_other),

so a_g = 0 from theta_g = 1 on, for any rest of the model. The margin of the group against the other
one, less its part of a_g, is the decreasing function

    x_g(u) = log(k_{-g} / u) + (1 / k_g) log p_own + (1 - 1 / k_g) log p_other,

and x_A - beta = nu cos phi w_A, x_B + beta = nu sin phi w_B with w_g = sqrt(K / (k_A k_B)) /
(sqrt(k_g) r_g). What is left,

    nu > 0:  u_A = theta_A sqrt(k_B / K) cos phi,  u_B = theta_B sqrt(k_A / K) sin phi,
    nu = 0:  x_A(u_A) = beta = -x_B(u_B),
    k_A s_A u_A - k_B s_B u_B = lambda_b (k_A k_B / K) beta with a bias (beta = 0 without),

is one monotone equation in phi, or one in beta, or none: a free bias fixes tan phi = sqrt(k_A) r_A
/ (sqrt(k_B) r_B). nu = 0 exactly where the second solution has  sum_g (u_g / theta_g)^2 K / k_{-g}
<= 1.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float

from ufm._support import array_module, is_concrete
from ufm.problems import Problem
from ufm.theory import matrices
from ufm.theory.optimal_factors import float_type
from ufm.theory.roots import root
from ufm.theory.theorem import Condition

__all__ = [
    "Split",
    "Structure",
    "TwoGroups",
    "basis",
    "first_of",
    "split",
    "two_groups",
    "two_sizes",
]

EQUAL = 1e-12  # relative difference below which two counts are one


class Split(NamedTuple):
    """The classes in two groups.

    Attributes:
        members: The classes of each group as zeros and ones, (2, K).
        sizes: k_g, (2,).
        counts: n_g, (2,).
        shares: n_g / N, (2,).
    """

    members: Float[Array, "2 K"]
    sizes: Float[Array, " 2"]
    counts: Float[Array, " 2"]
    shares: Float[Array, " 2"]


class TwoGroups(NamedTuple):
    """The minimiser, group by group.

    Attributes:
        margins: a_g, (2,).
        contrast: nu, ().
        direction: (cos phi, sin phi), (2,).
        gap: beta, ().
        data_term: The weighted cross-entropy, ().
        gauge: The nuclear norm of R Z, ().
        bias_term: The penalty of the bias, ().
        contrast_ratio: At least one exactly where nu is zero, ().
    """

    margins: Float[Array, " 2"]
    contrast: Float[Array, ""]
    direction: Float[Array, " 2"]
    gap: Float[Array, ""]
    data_term: Float[Array, ""]
    gauge: Float[Array, ""]
    bias_term: Float[Array, ""]
    contrast_ratio: Float[Array, ""]


class Structure(NamedTuple):
    """The three parts of R Z, (K, K) each, in the spaces of classifiers and of class means.

    Attributes:
        within: sum_g l_g P_g for the numbers l_g given.
        classifiers: v v^T.
        features: c c^T.
        between: c v^T.
    """

    within: Float[Array, "K K"]
    classifiers: Float[Array, "K K"]
    features: Float[Array, "K K"]
    between: Float[Array, "K K"]


def two_sizes(problem: Problem) -> Condition:
    """There are exactly two different class counts."""
    counts = problem.class_counts.per_class
    smallest, largest = counts.min(), counts.max()
    slack = EQUAL * largest
    holds = (largest - smallest > slack) & (
        (counts <= smallest + slack) | (counts >= largest - slack)
    ).all()
    found = "traced counts"
    if is_concrete(counts):
        # Not every rounding of a count is a count of its own.
        different = int(np.sum(np.diff(np.sort(np.asarray(counts))) > EQUAL * np.max(counts))) + 1
        found = f"{different} different counts"
    return Condition("two different class counts", holds, found)


def split(problem: Problem) -> Split:
    """Return the two groups, as they were stated if there are two, otherwise by the counts."""
    xp = array_module(problem)
    dtype = float_type(xp)
    classes = problem.class_counts
    counts = xp.asarray(classes.per_class, dtype)
    if classes.num_groups == 2:
        large = xp.arange(problem.num_classes) < classes.sizes[0]
    else:
        large = counts > 0.5 * (xp.min(counts) + xp.max(counts))
    members = xp.stack([large, ~large]).astype(dtype)
    sizes = xp.sum(members, axis=1)
    means = members @ counts / sizes
    return Split(members, sizes, means, means / xp.sum(counts))


def two_groups(
    groups: Split, weights: Float[Array, " 2"], log_decay: Any, bias: Any = None
) -> TwoGroups:
    """Return the minimiser.

    Args:
        groups: k_g, s_g.
        weights: (2,), r_g > 0.
        log_decay: Log lambda, of which lambda itself may underflow.
        bias: lambda_b >= 0; None in a model without bias.
    """
    xp = array_module((groups, log_decay))
    model = _Model(groups.sizes, groups.shares, weights, log_decay, bias)
    still = _without_contrast(xp, model)
    squares = 2 * (still.log_u - _log_theta(model)) + xp.log(_total(model) / model.sizes[::-1])
    log_reach = 0.5 * xp.logaddexp(squares[0], squares[1])
    alive = log_reach > 0
    # Where there is no contrast, its equation is solved for a problem that has one, and forgotten.
    less = xp.where(alive, 0, xp.max(_log_theta(model)) + np.log(100.0))
    moving = _with_contrast(xp, model._replace(log_decay=log_decay - less))
    inner = _Inner(*(xp.where(alive, one, other) for one, other in zip(moving, still, strict=True)))
    return _assembled(xp, model, inner, alive, log_reach)


def first_of(members: Float[Array, "2 K"]) -> Bool[Array, "2 K"]:
    """Return whether a class is the first of its group."""
    return (members > 0) & (array_module(members).cumsum(members, axis=1) == 1)


def basis(groups: Split, direction: Float[Array, " 2"], lengths: Float[Array, " 2"]) -> Structure:
    """Return the matrices that R Z consists of, those within the groups multiplied by `lengths`."""
    xp = array_module((groups, direction))
    members, sizes = groups.members, groups.sizes
    total = xp.sum(sizes)
    within = matrices.diagonal_matrix(xp, lengths @ members)
    for length, member, size in zip(lengths, members, sizes, strict=True):
        within = within - matrices.outer(xp, length / size * member, member)
    signed = members * xp.asarray([[1.0], [-1.0]], sizes.dtype)
    v = xp.sqrt(sizes[::-1] / sizes / total) @ signed
    c = (direction / xp.sqrt(sizes)) @ signed
    return Structure(
        within,
        matrices.outer(xp, v, v),
        matrices.outer(xp, c, c),
        matrices.outer(xp, c, v),
    )


class _Model(NamedTuple):
    sizes: Any
    shares: Any
    weights: Any
    log_decay: Any
    bias: Any


class _Inner(NamedTuple):
    """log u_g; log(theta'_g - u_g); (cos phi, sin phi); beta."""

    log_u: Any
    log_rest: Any
    direction: Any
    gap: Any


def _total(model: _Model) -> Any:
    return array_module(model).sum(model.sizes)


def _log_theta(model: _Model) -> Any:
    xp = array_module(model)
    return model.log_decay + xp.log(model.weights) - xp.log(model.shares)


def _log_capped(model: _Model) -> Any:
    """Return log theta'."""
    xp = array_module(model)
    return xp.where(model.sizes > 1, xp.minimum(_log_theta(model), 0), 0)


def _excess(model: _Model, log_u: Any, log_rest: Any) -> Any:
    """Return x_g(u_g), (2,), from log u and log(theta' - u)."""
    xp, k = array_module((model, log_u)), model.sizes
    cap = xp.exp(_log_capped(model))
    log_other = log_rest - xp.log(k)
    merged = cap == 1
    own = xp.where(merged, 1, 1 - cap + xp.exp(log_other))
    log_own = xp.where(merged, log_other, xp.log(own))
    return xp.log(k[::-1]) - log_u + log_own / k + (1 - 1 / k) * log_other


def _log_shares(xp: Any, log_odds: Any) -> tuple[Any, Any]:
    """Return the logarithms of the two shares of one with these log-odds."""
    return -xp.logaddexp(0 * log_odds, -log_odds), -xp.logaddexp(0 * log_odds, log_odds)


def _penalised(xp: Any, model: _Model, term: Any, log_u: Any) -> Any:
    """Return lambda_b term - (k_A s_A u_A - k_B s_B u_B) K / (k_A k_B).

    It is divided by the sum of the sizes of the largest terms.
    """
    k = model.sizes
    flows = xp.log(k * model.shares) + log_u + xp.log(_total(model) / (k[0] * k[1]))
    largest = xp.max(flows)
    free = model.bias == 0
    log_share, log_rest = _log_shares(xp, xp.log(xp.where(free, 1, model.bias)) - largest)
    share, rest = xp.where(free, 0, xp.exp(log_share)), xp.where(free, 1, xp.exp(log_rest))
    return share * term - rest * (xp.exp(flows[0] - largest) - xp.exp(flows[1] - largest))


def _without_contrast(xp: Any, model: _Model) -> _Inner:
    def logs(gap: Any, model: _Model) -> tuple[Any, Any]:
        """Return log u_g and log(theta' - u) where x_A = beta = -x_B."""

        def equation(log_odds: Any, parameters: Any) -> Any:
            model, gap = parameters
            share, rest = _log_shares(xp, log_odds)
            return _excess(model, _log_capped(model) + share, _log_capped(model) + rest) - xp.stack(
                [gap, -gap]
            )

        limit = 50 + 2 * (
            xp.abs(_log_theta(model))
            + xp.log(model.sizes)
            + xp.log(model.sizes[::-1])
            + xp.abs(gap)
        )
        share, rest = _log_shares(xp, root(equation, -limit, limit, (model, gap)))
        return _log_capped(model) + share, _log_capped(model) + rest

    def equation(gap: Any, model: _Model) -> Any:
        return _penalised(xp, model, gap, logs(gap, model)[0])

    gap = 0 * model.log_decay
    if model.bias is not None:
        limit = 20 + 2 * xp.max(xp.abs(xp.log(model.sizes * model.shares)))
        gap = root(equation, -limit, limit, model)
    return _Inner(*logs(gap, model), xp.sqrt(model.sizes / _total(model)), gap)


def _with_contrast(xp: Any, model: _Model) -> _Inner:
    def at(log_tangent: Any, model: _Model) -> tuple[Any, Any, Any]:
        log_direction = 0.5 * xp.stack(_log_shares(xp, -2 * log_tangent))
        log_share = 0.5 * xp.log(model.sizes[::-1] / _total(model)) + log_direction
        log_u, cap = _log_theta(model) + log_share, _log_capped(model)
        # x has no value beyond u = theta'. It is set to a very small number there.
        share = xp.minimum(xp.exp(log_u - cap), 1 - xp.finfo(cap.dtype).eps)
        return xp.exp(log_direction), log_u, cap + xp.log1p(-share)

    def equation(log_tangent: Any, model: _Model) -> Any:
        direction, log_u, log_rest = at(log_tangent, model)
        x = _excess(model, log_u, log_rest)
        pull = xp.sqrt(model.sizes) * model.weights * direction[::-1]
        difference = (pull[0] * x[0] - pull[1] * x[1]) / xp.sum(pull)
        return difference if model.bias is None else _penalised(xp, model, difference, log_u)

    limit = 20 + xp.max(xp.abs(_log_theta(model)))
    direction, log_u, log_rest = at(root(equation, -limit, limit, model), model)
    x = _excess(model, log_u, log_rest)
    along = direction * _slopes(model)
    gap = 0 * model.log_decay
    if model.bias is not None:
        # Where the penalty is large, the gap is small, and has all its digits from the condition of
        # stationarity.
        k = model.sizes
        flows = k * model.shares * xp.exp(log_u) * _total(model) / (k[0] * k[1])
        large = model.bias > xp.max(flows)
        gap = x[0] - xp.sum(x) * along[0] / xp.sum(along)
        gap = xp.where(large, (flows[0] - flows[1]) / xp.where(large, model.bias, 1), gap)
    return _Inner(log_u, log_rest, direction, gap)


def _slopes(model: _Model) -> Any:
    """Return w_g."""
    xp = array_module(model)
    k = model.sizes
    return xp.sqrt(_total(model) / (k[0] * k[1])) / (xp.sqrt(k) * model.weights)


def _assembled(xp: Any, model: _Model, inner: _Inner, alive: Any, log_reach: Any) -> TwoGroups:
    k, cap = model.sizes, xp.exp(_log_capped(model))
    spread = (k > 1) & (cap < 1)
    ratio = xp.log(xp.where(spread, 1 - cap, 1)) + xp.log(k) - inner.log_rest
    margins = xp.where(spread, xp.logaddexp(0 * ratio, ratio), 0)
    x = _excess(model, inner.log_u, inner.log_rest)
    contrast = xp.where(alive, xp.sum(x) / xp.sum(inner.direction * _slopes(model)), 0)
    missing = cap * (1 - 1 / k) + xp.exp(inner.log_u) / k
    bias_term = 0 * model.log_decay
    if model.bias is not None:
        bias_term = 0.5 * model.bias * k[0] * k[1] / _total(model) * inner.gap**2
    return TwoGroups(
        margins=margins,
        contrast=contrast,
        direction=inner.direction,
        gap=inner.gap,
        data_term=-xp.sum(k * model.shares * xp.log1p(-missing)),
        gauge=xp.sum((k - 1) * model.weights * margins) + contrast,
        bias_term=bias_term,
        contrast_ratio=xp.exp(-log_reach),
    )
