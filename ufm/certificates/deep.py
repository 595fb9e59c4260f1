r"""Lower bounds for models of several layers, where no dual certificate exists.

Let Z be the class-level logits without the bias, D = diag(n_k), q = L + 1 factors, and Lambda the
geometric mean of all q penalties.

Squared error, linear layers, no bias or a free one: the exact minimum. The cheapest factors of
D^{1/2} Z cost (q/2) Lambda sum_i s_i^{2/q}, s_i its singular values, and both this cost and the fit
are invariant under rotations, so the problem falls apart into one scalar problem for each singular
value t_i of the targets, D^{1/2} (less their mean, where a bias is free),

    min_{s >= 0}  (t_i - s)^2 / (2N) + (q/2) Lambda s^{2/q},

of which the min(widths) largest count and the others stay at t_i^2 / (2N). With a penalised bias
and balanced classes the fit counts the common mode 1 with the weight theta = lambda_b / (1 +
lambda_b) only, as ||A (D^{1/2} Z - sqrt(n) I)||^2 with A multiplying the mode by sqrt(theta). The
inequalities of von Neumann for the singular values of X = A D^{1/2} Z, and of Gel'fand and Naimark
for those of A^{-1} X, pair the mode with the least of them, and so the problem falls apart in the
same way, the term of the mode 1 with theta before its square, and the mode the first to be lost.

Anything else with a loss that is convex in the logits: a bracket. ||relu(A)|| <= ||A|| and ||A B||
<= ||A|| ||B|| give, with the gauge of the one-layer problem (the nuclear norm, or after a ReLU the
gauge of non-negative features), gauge(D^{1/2} Z) <= ||W_L|| ... ||W_1|| ||D^{1/2} H||, and with the
inequality of the means

    objective >= min_t  phi(t) + (q/2) Lambda t^{2/q},
    phi(t) = min { loss(Z, b) : gauge(D^{1/2} Z) <= t }.

Any certified lower bound B of the one-layer problem with penalty tau on the gauge is a line below
phi: phi(t) >= B - tau t. The maximum of lines is piecewise linear, the other term concave, so the
minimum over t of their sum lies at t = 0 or where two lines cross: finitely many values. Lines are
added where the minimum is until it does not rise any more. Under the norm balls t is bounded
itself, by the product of the radii, and one problem of one layer with that bound is all. The
bracket is exact where the best logits are a single atom (two classes with cross-entropy and linear
layers, say) or zero, and loose for many classes.

References: singular values, Dang et al. (ICML 2023), Liu (2024); the Schatten quasi-norm of a
product, quoted in Garrod & Keating (NeurIPS 2025). The bracket is derived here.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ufm._support import double_precision, rebuilt
from ufm.certificates.dual import mean_infimum
from ufm.problems import Problem, SquaredError

__all__ = [
    "OneLayerBound",
    "bracket",
    "has_bracket",
    "has_singular_value_form",
    "one_layer",
    "singular_value_bound",
]

EPSILON = float(np.finfo(np.float64).eps)
MAX_LINES = 80
SETTLED = 0.02  # of the gap that more lines could close
BISECTIONS = 200


def has_singular_value_form(problem: Problem) -> bool:
    """Whether the exact minimum of a deep problem follows from singular values.

    It does for squared error, linear layers, weight decay, and no bias or a free one. For balanced
    classes the bias may be penalised.
    """
    regularizer = problem.regularizer
    linear = (
        problem.num_layers > 1
        and type(problem.loss) is SquaredError
        and problem.activation == "linear"
    )
    if not linear or not regularizer.halves_squares:
        return False
    if not np.array_equal(problem.row_weights, problem.row_counts):
        return False  # the fit and the penalty are not invariant under the same rotations
    if not problem.use_bias:
        return True
    balanced = problem.one_hot and len(set(np.asarray(problem.class_counts).tolist())) == 1
    return (regularizer.has_free_bias or balanced) and problem.feature_cone.rotates


def has_bracket(problem: Problem) -> bool:
    """Whether a deep problem can be bracketed: a convex loss, and a regularizer with a gauge."""
    return problem.num_layers > 1 and problem.loss.convex and problem.regularizer.has_gauge


def singular_value_bound(problem: Problem) -> float:
    """Return the optimal value of a problem with a singular-value form, lowered by its rounding."""
    counts = np.asarray(problem.row_counts)
    samples, q = float(np.sum(counts)), problem.num_layers + 1
    root = np.sqrt(counts)
    bias = float(problem.regularizer.bias_penalty) if problem.use_bias else 0.0
    rows: Any = problem.target_rows(np.float64, np)
    mean = counts / samples @ rows if problem.use_bias and bias == 0 else 0
    targets = root[:, None] * (rows - mean)
    modes = np.linalg.svd(targets, compute_uv=False)
    weights = np.ones(modes.size)
    if bias > 0:
        weights[-1] = bias / (1 + bias)
    coefficient = 0.5 * q * float(problem.gauge.price)
    bounds = [
        mode_bound(float(mode), samples, coefficient / weight, 2 / q)
        for mode, weight in zip(modes[: problem.width], weights, strict=False)
    ]
    kept = [
        (weight * value, weight * rest)
        for (value, rest), weight in zip(bounds, weights, strict=False)
    ]
    lost = (weights * modes**2)[problem.width :] / (2 * samples)
    total = float(np.sum([value for value, _ in kept]) + np.sum(lost))
    # The singular values are off by rounding of the largest; the value of a mode moves by (target -
    # s) / N times that.
    residuals = np.concatenate(
        [modes[: problem.width] * [rest for _, rest in kept], modes[problem.width :]]
    )
    rounding = float(np.sum(residuals)) * float(modes[0]) / samples + total
    return max(total - 4 * (max(targets.shape) + 16) * EPSILON * rounding, 0.0)


def mode_bound(target: float, samples: float, penalty: float, power: float) -> tuple[float, float]:
    """Return a lower bound on min_{s >= 0} (target - s)^2 / (2 N) + penalty s^power, 0 < power < 1.

    It is lowered by its rounding. The second number is 1 - s / target.

    The function is concave up to an inflection and convex from there on. On the concave part the
    minimum is at an end, on the convex part any tangent is a bound: the lesser of the value at zero
    and of a tangent near the second minimum.
    """
    if target == 0:
        return 0.0, 1.0
    # Relative to the target, as a function of the rest y = 1 - s / target, which keeps its digits
    # where it is small: y^2 / 2 + c (1 - y)^power.
    unit = target**2 / samples
    c = penalty * target**power / unit
    zero = 0.5 * unit * (1 - 64 * EPSILON), 1.0
    inflection = (c * power * (1 - power)) ** (1 / (2 - power))

    def slope(y: float) -> float:
        return y - c * power * (1 - y) ** (power - 1)

    if inflection >= 1 or (inflection > 0 and slope(1 - inflection) <= 0):
        # Increasing in s, or concave on all of [0, target] and larger at the target (c >= 4).
        return zero
    low, high = 0.0, 1 - inflection
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    y = 0.5 * (low + high)
    value = 0.5 * y**2 + c * (1 - y) ** power
    tangent = unit * (value * (1 - 64 * EPSILON) - abs(slope(y)) - 4 * EPSILON * y)
    return min((tangent, y), zero)


def one_layer(problem: Problem, price: float) -> Problem:
    """Return the convex problem of one layer that bounds a deep one.

    Args:
        problem: of several layers, with a convex loss and a regularizer with a gauge.
        price: of the gauge, tau or its bound.
    """
    return rebuilt(
        problem,
        feature_dim=max(problem.num_rows, problem.num_outputs),
        hidden_dims=(),
        regularizer=problem.regularizer.with_price(
            price, np.asarray(problem.row_counts), math.sqrt(problem.num_rows * problem.num_outputs)
        ),
        activation="linear",
        nonnegative_features=problem.activation == "relu",
    )


class OneLayerBound(NamedTuple):
    """What a certified solve of one layer with price tau says: phi(t) >= bound - tau t.

    Attributes:
        bound: Certified lower bound.
        gauge: The gauge of the minimiser.
        ratio: Dual norm of the gradient there over the allowed one.
    """

    bound: float
    gauge: float
    ratio: float


def bracket(
    problem: Problem,
    objective: float,
    solve_one_layer: Callable[[Problem], OneLayerBound],
    tolerance: float,
) -> float:
    """Return a lower bound on the optimal value of a deep problem.

    Args:
        problem: of several layers, with a convex loss.
        objective: of a candidate. Lines are added until more of them could close little of its gap.
        solve_one_layer: solves and certifies a problem of one layer.
        tolerance: relative, to which the bound is refined where it comes close to the objective.
    """
    gauge = problem.gauge
    if gauge.bounded:
        return solve_one_layer(one_layer(problem, float(gauge.price))).bound
    q = problem.num_layers + 1
    power, coefficient = 2 / q, 0.5 * q * float(gauge.price)
    with double_precision():
        least = float(mean_infimum(problem))
    if not np.isfinite(least):
        return least
    lines = {0.0: least}
    best, upper = least, np.inf

    def add(penalty: float) -> OneLayerBound:
        nonlocal upper
        new = solve_one_layer(one_layer(problem, penalty))
        lines[penalty] = new.bound if np.isfinite(new.bound) else least
        upper = min(upper, new.bound - penalty * new.gauge + coefficient * new.gauge**power)
        return new

    # Penalties descend from one at which the one-layer problem collapses to its bias.
    penalty = float(10 * np.sqrt(2 / problem.num_samples))
    for _ in range(10):
        if (first := add(penalty)).gauge == 0 or not np.isfinite(first.ratio):
            break
        penalty *= 10
    if 0 < first.ratio < 1:
        add(first.ratio * penalty)
    for _ in range(MAX_LINES):
        best, steeper, flatter = _lowest_crossing(lines, coefficient, power)
        remaining = upper - best
        if remaining <= max(SETTLED * (objective - best), 0.1 * tolerance * abs(best)):
            break
        middle = float(np.sqrt(steeper * flatter)) if flatter > 0 else 0.1 * steeper
        if not flatter < middle < steeper:
            break
        add(middle)
    return max(best - 64 * EPSILON * abs(best), least)


def _lowest_crossing(
    lines: dict[float, float], coefficient: float, power: float
) -> tuple[float, float, float]:
    """Return the minimum over t >= 0 of max_j (height_j - tau_j t) + coefficient t^power.

    With it come the taus of the lines that meet there.
    """
    taus = np.array(sorted(lines))
    # A bound for one penalty is one for every larger penalty too.
    heights = np.maximum.accumulate(np.array([lines[tau] for tau in taus]))
    # Where neighbours of the upper envelope cross: among the crossings of all pairs.
    i, j = np.triu_indices(taus.size, 1)
    t = np.concatenate([[0.0], (heights[j] - heights[i]) / (taus[j] - taus[i])])
    envelope = heights[:, None] - taus[:, None] * t[None, :]
    values = np.max(envelope, axis=0) + coefficient * t**power
    index = int(np.argmin(values))
    active = np.flatnonzero(
        envelope[:, index] >= np.max(envelope[:, index]) - 1e-12 * np.max(np.abs(heights))
    )
    return float(values[index]), float(taus[active[-1]]), float(taus[active[0]])
