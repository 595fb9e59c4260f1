r"""Thresholds of collapse for targets of any kind, in closed form, as the price tau varies.

Rows r with targets y_r, shares pi_r = n_r / N and gauge weights om_r. Let G be the gradient of the
mean loss in the logits, row r of which is pi_r l'(z_r).

Everything vanishes, Z = 0 but for a bias, exactly where

    ||Om^{-1/2} G||_2 <= tau    at zero logits, or at the constant logits b_0 that are best alone,

as the nuclear norm is dual to the spectral one. The condition holds for every convex loss with a
derivative there, every kind of bias and every feature dimension: below it, the logits
-t Om^{-1/2} u v^T of the largest singular pair cost less for small t.

Two outputs c and c' are treated alike if exchanging them permutes the rows (targets, shares and
weights). Then some minimiser is unchanged by the exchange, and the part of Om^{1/2} Z that changes
its sign has one column: its nuclear norm is a 2-norm, and adds to that of the rest. So the
classifiers of c and c' coincide exactly where

    sqrt(sum_r pi_r^2 (l'_rc - l'_rc')^2 / (2 om_r)) <= tau

at logits that are equal in c and c'. That is a number where the difference does not depend on these
logits: it is y_rc' - y_rc for cross-entropy, binary cross-entropy and squared error. In a
hierarchy the outputs of one super-class are treated alike, and this is its coarse collapse.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ufm._support import ArgumentError, compiled, double_precision, rebuilt, to_numpy
from ufm.certificates import certificate_of, has_tight_bound
from ufm.imbalance.threshold import ALL, Threshold, ThresholdStatus
from ufm.problems import Parameters, Problem, Targets, class_samples, price_search

__all__ = ["alike_outputs", "target_thresholds"]

REFERENCE = "the condition is derived here from convex duality"
ASIDE = 1e-2  # relative distance from the threshold at which both sides are seen
MOST_STEPS = 300  # of Newton's method for the constant logits
LISTED = 200  # outputs up to which the curvature of the constant logits is a matrix
MOST_PRODUCTS = 200  # of a step without it
DRAWS = (0.0, 0.3, 1.0, 1.0, 3.0, 3.0)  # sizes of random logits at which differences are compared
SAME = 1e-10  # relative difference of derivatives that counts as rounding
EPSILON = float(np.finfo(float).eps)
GROUPS_NAMED = 4


def target_thresholds(problem: Problem, vary: str, bounds: Any = None) -> tuple[Threshold, ...]:
    """Return where outputs coincide and where everything vanishes, in the order of the values.

    Args:
        problem: One layer, `targets` and a convex loss.
        vary: "weight_decay", "regularizer.weights" or "regularizer.features".
        bounds: The range of values, as for `collapse_thresholds`.

    Returns:
        The thresholds in the range, then those with the status "unknown" or "unresolved".

    Raises:
        ValueError: If the problem is of another kind, or an argument does not fit it.
    """
    _check(problem)
    search = _Search(problem, vary, bounds)
    with double_precision(), jax.numpy_rank_promotion("allow"):
        found = [*search.coincidences(), search.vanishing()]
    listed = [one for one in found if one.status != "none"]
    return tuple(sorted(listed, key=lambda one: math.inf if one.value is None else one.value))


def _check(problem: Problem) -> None:
    regularizer = problem.regularizer
    if problem.num_layers > 1 or not problem.loss.convex or not regularizer.has_gauge:
        raise ArgumentError(
            "problem",
            "must have one layer, a convex loss, and WeightDecay or NormBall, got "
            f"{problem.num_layers} layers, {problem.loss.title}, {type(regularizer).__name__}",
        )


class _Search:
    """The thresholds of one problem along one of its penalties."""

    def __init__(self, problem: Problem, vary: str, bounds: Any):
        self.problem = problem
        self.variable, self.search, self.bounds = price_search(problem, vary, bounds)
        self.price = float(problem.gauge.price)

    def vanishing(self) -> Threshold:
        """Return where everything vanishes."""
        at = "the best constant logits" if self.problem.use_bias else "zero logits"
        condition = f"||G diag(n) Om^(-1/2)||_2 at {at} <= N sqrt(lW lH)"
        if self.problem.gauge.bounded:
            return self._without(ALL, condition, "none", "norm balls are never left empty")
        if not self.problem.feature_cone.rotates:
            why = "non-negative features: no condition in closed form is known"
            return self._without(ALL, condition, "unknown", why)
        point = _constant_logits(self.problem)
        price = point.largest
        if not price > 0:
            return self._without(ALL, condition, "none", "the loss is constant: nothing is learnt")
        why = _objection(self.problem, point)
        if why:
            return self._without(ALL, condition, "unresolved", why)
        return self._at(price, ALL, condition, point.error)

    def coincidences(self) -> Iterator[Threshold]:
        """Yield where the classifiers of outputs that are treated alike coincide."""
        problem = self.problem
        targets: Any = problem.targets
        groups = alike_outputs(targets, np.asarray(problem.gauge_rows))
        groups = [group for group in groups if len(group) > 1]
        if not groups or problem.num_outputs != targets.num_outputs:
            return
        condition = "sqrt(sum_r n_r^2 (l'_rc - l'_rc')^2 / (2 om_r)) <= N sqrt(lW lH)"
        why = ""
        if problem.gauge.bounded:
            why = "the multiplier of norm balls has no closed form"
        elif not problem.feature_cone.rotates:
            why = "non-negative features: no condition in closed form is known"
        elif not has_tight_bound(problem):
            why = "the feature dimension does not hold the minimiser"
        prices = [None if why else _price_of_difference(problem, group) for group in groups]
        by_price: dict[float | None, list[tuple[int, ...]]] = {}
        for price, group in zip(prices, groups, strict=True):
            near = (one for one in by_price if _same(one, price))
            by_price.setdefault(next(near, price), []).append(group)
        for price, members in by_price.items():
            kind = f"classifiers of outputs {_named(members)} coincide"
            if price is None:
                unknown = why or (
                    "the loss does not treat these outputs alike, or its derivative in them "
                    "depends on the other logits"
                )
                yield self._without(kind, condition, "unknown", unknown)
            elif price > 0:
                yield self._at(price, kind, condition, 64 * EPSILON)

    def _at(self, price: float, kind: str, condition: str, error: float) -> Threshold:
        """Return the threshold at a price of the logits."""
        ratio = price / self.price
        both = self.variable.common_factor
        value = price if both else self.search.given * ratio**2
        low, high = self.bounds
        if not low <= value <= high:
            state = "not collapsed" if value > high else "collapsed"
            why = f"{state} throughout {low:.6g} to {high:.6g}"
            return self._without(kind, condition, "none", why)
        return _threshold(
            kind,
            self.variable.name,
            condition,
            value=value,
            side="above",
            bracket=(value, value),
            error=error if both else 2 * error,
            factor=ratio if both else None,
        )

    def _without(
        self, kind: str, condition: str, status: ThresholdStatus, reason: str
    ) -> Threshold:
        return _threshold(kind, self.variable.name, condition, status=status, reason=reason)


def _threshold(
    kind: str, vary: str, condition: str, *, status: ThresholdStatus = "found", **known: Any
) -> Threshold:
    unknown: dict[str, Any] = dict.fromkeys(("value", "side", "bracket", "error", "factor"))
    fields = unknown | {"reason": ""} | known
    return Threshold(
        status=status,
        kind=kind,
        vary=vary,
        condition=condition,
        exact=True,
        evaluations=0,
        relative_gap=0.0,
        first_integer=None,
        reference=REFERENCE,
        **fields,
    )


# Everything vanishes


class _Constant(NamedTuple):
    """What is known at the constant logits that are best alone.

    Attributes:
        logits: (K,).
        largest: ||Om^{-1/2} G||_2.
        direction: (R, K), -Om^{-1/2} u v^T of the largest singular pair.
        residual: Largest entry of the derivative in the bias, over the sum of the sizes of its
            terms; zero without a bias.
        error: Estimated relative error of `largest`.
    """

    logits: np.ndarray
    largest: float
    direction: np.ndarray
    residual: float
    error: float


def _mean_loss(problem: Problem, logits: Any) -> Any:
    return problem.data_term(logits, class_samples(problem, np.float64))


def _of_bias(problem: Problem, bias: Any) -> Any:
    """Return the objective of constant logits: mean loss and penalty of the bias."""
    rows = jnp.zeros((problem.num_rows, 1)) + bias[None, :]
    decay = getattr(problem.regularizer, "bias", 0.0)
    return _mean_loss(problem, rows) + 0.5 * decay * jnp.sum(bias**2)


def _curved(problem: Problem, bias: Any, along: Any) -> Any:
    slope = jax.grad(lambda b: _of_bias(problem, b))
    return jax.jvp(slope, (bias,), (along,))[1]


def _curvature(problem: Problem, bias: Any) -> Any:
    return jax.lax.map(lambda along: _curved(problem, bias, along), jnp.eye(bias.size))


def _by_products(problem: Problem, bias: Any, raised: Any, slope: Any) -> Any:
    def product(along: Any) -> Any:
        return _curved(problem, bias, along) + raised * along

    return jax.scipy.sparse.linalg.cg(product, slope, tol=1e-8, maxiter=MOST_PRODUCTS)[0]


_slopes = compiled(jax.grad(_mean_loss, argnums=1))
_bias_value = compiled(_of_bias)
_bias_slope = compiled(jax.grad(_of_bias, argnums=1))
_bias_product = compiled(_curved)
_bias_curvature = compiled(_curvature)
_bias_step = compiled(_by_products)
_loss_at = compiled(_mean_loss)


def _constant_logits(problem: Problem) -> _Constant:
    """Return the derivative where only the best bias is left."""
    K, rows = problem.num_outputs, np.asarray(problem.gauge_rows)
    bias = _best_bias(problem) if problem.use_bias else np.zeros(K)
    slopes = to_numpy(_slopes(problem, np.zeros((problem.num_rows, K)) + bias))
    scaled = slopes / rows[:, None]
    left, values, right = np.linalg.svd(scaled, full_matrices=False)
    residual = 0.0
    if problem.use_bias:
        sizes = np.max(np.sum(np.abs(slopes), axis=0))
        left_over = np.max(np.abs(to_numpy(_bias_slope(problem, bias))))
        residual = float(left_over / sizes) if sizes > 0 else 0.0
    error = (8 + math.sqrt(scaled.size)) * EPSILON + residual
    direction = -np.outer(left[:, 0] / rows, right[0])
    return _Constant(bias, float(values[0]), direction, residual, error)


def _best_bias(problem: Problem) -> np.ndarray:
    """Return the constant logits of the least objective, by Newton's method.

    The curvature is raised by what is left of the derivative, so that flat directions do no harm.
    Steps are halved until they descend, or doubled while they descend further.
    """
    bias = np.zeros(problem.num_outputs)
    value = float(_bias_value(problem, bias))
    for _ in range(MOST_STEPS):
        slope = to_numpy(_bias_slope(problem, bias))
        size = float(np.linalg.norm(slope))
        if not size > 0:
            break
        step = _newton_step(problem, bias, slope)
        share, trial = 1.0, float(_bias_value(problem, bias + step))
        while not trial <= value and share > 1e-10:
            share /= 2
            trial = float(_bias_value(problem, bias + share * step))
        while share >= 1 and share < 2**60:
            further = float(_bias_value(problem, bias + 2 * share * step))
            if not further < trial:
                break
            share, trial = 2 * share, further
        moved = to_numpy(_bias_slope(problem, bias + share * step))
        # Close to the minimum values tell nothing, and the derivative decides.
        if not (trial < value or float(np.linalg.norm(moved)) < size):
            break
        bias, value = bias + share * step, min(trial, value)
    return bias


def _newton_step(problem: Problem, bias: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Return the step of Newton's method, from the curvature or, if it is large, by products."""
    size = float(np.linalg.norm(slope))
    along = float(slope @ to_numpy(_bias_product(problem, bias, slope))) / size**2
    raised = min(size, 1e-3 * along) if along > 0 else size
    if slope.size > LISTED:
        return -np.asarray(to_numpy(_bias_step(problem, bias, np.asarray(raised), slope)))
    curvature = to_numpy(_bias_curvature(problem, bias)) + raised * np.eye(slope.size)
    return -np.linalg.lstsq(curvature, slope, rcond=1e-13)[0]


def _objection(problem: Problem, point: _Constant) -> str:
    """Return why the threshold is not what it should be, or nothing.

    Beyond it the empty point must have a certificate; before it a point must cost less.
    """
    if not point.residual <= 1e-9:
        return "the constant logits that are best alone were not found to rounding"
    K, R, d = problem.num_outputs, problem.num_rows, problem.feature_dim
    counts, size = np.asarray(problem.row_counts), math.sqrt(R * K)
    dearer = problem.regularizer.with_price((1 + ASIDE) * point.largest, counts, size)
    bias = point.logits if problem.use_bias else None
    blocks: Any = (np.zeros((K, d)),), np.zeros((R, d)), bias
    empty = Parameters(*blocks)
    certificate = certificate_of(rebuilt(problem, regularizer=dearer), empty)
    if certificate is None or not certificate.holds:
        return f"beyond {point.largest:.10g} the empty point is not certified ({certificate})"
    at_zero = float(_loss_at(problem, np.zeros((R, K)) + point.logits))
    reach = 1 / float(np.max(np.abs(point.direction)))
    for length in reach * 2.0 ** np.arange(3, -40, -1):
        logits = point.logits + length * point.direction
        cost = (1 - ASIDE) * point.largest * length
        if float(_loss_at(problem, logits)) + cost < at_zero - 4 * EPSILON * abs(at_zero):
            return ""
    return (
        f"before {point.largest:.10g} no point near the empty one costs less: the loss has a kink "
        "there, and another derivative"
    )


# Outputs coincide


def alike_outputs(targets: Targets, weights: Any) -> list[tuple[int, ...]]:
    """Return the outputs in groups: any two of one group can be exchanged.

    An exchange has to permute the rows, with their counts and the given weights, exactly.

    Args:
        targets: The targets.
        weights: (R,), what rows of equal targets may differ in besides.
    """
    rows = np.asarray(targets.rows, np.float64) + 0.0  # -0.0 becomes 0.0
    pairs = np.column_stack([np.asarray(targets.counts), np.asarray(weights)])
    kinds = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1).astype(np.float64)
    groups: dict[bytes, list[list[int]]] = {}
    for output in range(rows.shape[1]):
        column = rows[:, output]
        order = np.lexsort((kinds, column))
        signature = column[order].tobytes() + kinds[order].tobytes()
        like = groups.setdefault(signature, [])
        for group in like:
            if _exchanges(rows, kinds, group[0], output):
                group.append(output)
                break
        else:
            like.append([output])
    return sorted(tuple(group) for like in groups.values() for group in like)


def _exchanges(rows: np.ndarray, kinds: np.ndarray, one: int, other: int) -> bool:
    """Return whether exchanging two outputs permutes the rows."""
    apart = np.flatnonzero(rows[:, one] != rows[:, other])
    stated = np.ascontiguousarray(np.column_stack([rows[apart], kinds[apart]]))
    exchanged = stated.copy()
    exchanged[:, [one, other]] = stated[:, [other, one]]
    before, after = (
        np.sort(part.view([("", np.void, part.strides[0])]), axis=0) for part in (stated, exchanged)
    )
    return bool(np.array_equal(before, after))


def _of_rows(problem: Problem, logits: Any, targets: Any) -> Any:
    return problem.loss(logits, targets, problem.class_counts)


def _slopes_of_rows(problem: Problem, logits: Any, targets: Any) -> Any:
    return jax.grad(lambda rows: jnp.sum(_of_rows(problem, rows, targets)))(logits)


_losses, _row_slopes = compiled(_of_rows), compiled(_slopes_of_rows)


def _price_of_difference(problem: Problem, group: tuple[int, ...]) -> float | None:
    """Return the price from which the outputs of a group coincide; None without a closed form."""
    one, other = group[0], group[1]
    targets = np.asarray(problem.target_rows(np.float64, np))
    # An exchange and a cycle generate all permutations of the group.
    exchange, cycle = np.arange(targets.shape[1]), np.arange(targets.shape[1])
    exchange[[one, other]] = other, one
    cycle[list(group)] = np.roll(group, 1)
    rng, at_zero = np.random.default_rng(0), np.zeros(len(targets))
    for size in DRAWS:
        logits = size * rng.standard_normal(targets.shape)
        losses = to_numpy(_losses(problem, logits, targets))
        for moved in (exchange, cycle):
            mirrored = to_numpy(_losses(problem, logits[:, moved], targets[:, moved]))
            if not np.allclose(losses, mirrored, rtol=SAME, atol=SAME):
                return None
        logits[:, other] = logits[:, one]
        slopes = to_numpy(_row_slopes(problem, logits, targets))
        difference = slopes[:, one] - slopes[:, other]
        at_zero = at_zero if size else difference
        if not np.all(np.abs(difference - at_zero) <= SAME * (1 + np.max(np.abs(slopes), axis=1))):
            return None
    shares = np.asarray(problem.row_counts) / float(problem.num_samples)
    return float(np.linalg.norm(shares * at_zero / np.asarray(problem.gauge_rows)) / math.sqrt(2))


def _same(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= SAME * max(abs(one), abs(other))


def _named(groups: list[tuple[int, ...]]) -> str:
    """Return the outputs of groups in words, the first few of many."""

    def shown(group: tuple[int, ...]) -> str:
        some = " ".join(map(str, group[:GROUPS_NAMED]))
        return f"({some} ...)" if len(group) > GROUPS_NAMED else f"({some})"

    rest = f" and {len(groups) - GROUPS_NAMED} more" if len(groups) > GROUPS_NAMED else ""
    return ", ".join(map(shown, groups[:GROUPS_NAMED])) + rest
