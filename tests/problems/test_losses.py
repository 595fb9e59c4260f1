import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import plain
import pytest
import scipy.optimize
from plain import CASES, CONVEX, COUNTS, MULTIPLIERS, OFFSETS, WEIGHTS, Case, K
from tables import for_each, slow

import ufm
from ufm.problems import ClassGroups, Loss

pytestmark = pytest.mark.usefixtures("float64")

CLASSES = ClassGroups(COUNTS)
LABELS = np.array([0, 1, 2, 1])
TARGETS = np.eye(K)[LABELS]
LOGITS = 2 * np.random.default_rng(0).normal(size=(4, K))
OTHERS = 2 * np.random.default_rng(1).normal(size=(4, K))
SHARES = np.array([0.4, 0.1, 0.2, 0.3])

each_loss = for_each("case", CASES)
each_convex_loss = for_each("case", CONVEX)
# One of every kind by default, for what all losses have from the same few lines.
KINDS = ("cross-entropy", "squared-error", "focal", "class-weighted", "crammer-singer", "binary")
one_of_each_kind = for_each("case", [case if case.name in KINDS else slow(case) for case in CASES])
one_convex_of_each_kind = for_each(
    "case", [case if case.name in KINDS else slow(case) for case in CONVEX]
)


# Compiled: one program per kind of loss and shape takes a fraction of one per operation.
compiled_values = jax.jit(lambda loss, z, y: loss(z, y, CLASSES))
compiled_gradients = jax.jit(jax.grad(lambda z, loss, y: jnp.sum(loss(z, y, CLASSES))))


@jax.jit
def compiled_dual(loss: Loss, dual: Any, targets: Any, shares: Any) -> tuple[Any, Any, Any]:
    """The conjugate, its domain, and a constant point of it."""
    return (
        loss.conjugate(dual, targets, CLASSES),
        loss.domain(dual, targets, CLASSES),
        loss.constant_dual(targets, shares, CLASSES),
    )


def values(loss: Loss, logits: Any = LOGITS, targets: Any = TARGETS) -> Any:
    return compiled_values(loss, jnp.asarray(logits), jnp.asarray(targets))


def gradients(loss: Loss, logits: Any = LOGITS, targets: Any = TARGETS) -> Any:
    rows = jnp.asarray(logits)
    return compiled_gradients(rows, loss, jnp.asarray(targets, rows.dtype))


def formula(case: Case, logits: np.ndarray = LOGITS) -> np.ndarray:
    counts = np.array(COUNTS)
    return np.array([case.formula(z, k, counts) for z, k in zip(logits, LABELS, strict=True)])


# Conformance


@each_loss
def test_value_is_the_formula(case: Case) -> None:
    np.testing.assert_allclose(values(case.loss), formula(case), rtol=1e-13)


@each_loss
def test_gradient_is_that_of_the_formula(case: Case) -> None:
    expected = plain.gradient(lambda z: float(np.sum(formula(case, z))), LOGITS)
    np.testing.assert_allclose(gradients(case.loss), expected, atol=1e-8)


@one_of_each_kind
def test_second_derivative_is_that_of_the_formula(case: Case) -> None:
    _, curved = jax.jvp(lambda z: gradients(case.loss, z), (LOGITS,), (OTHERS,))
    step = 1e-4
    ahead, behind = formula(case, LOGITS + step * OTHERS), formula(case, LOGITS - step * OTHERS)
    expected = (ahead - 2 * formula(case) + behind) / step**2
    np.testing.assert_allclose(np.sum(curved * OTHERS, axis=1), expected, atol=1e-5)


@one_of_each_kind
def test_jit_is_eager_and_vmap_over_parameters_and_counts_is_a_loop(case: Case) -> None:
    factors = (1.0, 0.8, 0.3)

    def scaled(factor: float) -> tuple[Loss, ClassGroups]:
        return jax.tree.map(lambda leaf: factor * leaf, case.loss), ClassGroups(
            np.array(COUNTS) ** factor
        )

    def evaluated(loss: Loss, classes: ClassGroups) -> Any:
        return loss(jnp.asarray(LOGITS), jnp.asarray(TARGETS), classes)

    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *(scaled(factor) for factor in factors))
    batched = jax.jit(jax.vmap(evaluated))(*batch)
    looped = np.stack([evaluated(*scaled(factor)) for factor in factors])
    np.testing.assert_allclose(batched, looped, rtol=1e-13)


@one_of_each_kind
def test_dtype_in_is_dtype_out(case: Case) -> None:
    logits, targets = jnp.asarray(LOGITS, jnp.float32), jnp.asarray(TARGETS, jnp.float32)
    value, gradient = values(case.loss, logits, targets), gradients(case.loss, logits, targets)
    assert (value.dtype, gradient.dtype) == (jnp.float32, jnp.float32)
    np.testing.assert_allclose(value, formula(case), rtol=1e-5)
    if case.loss.convex:
        shares = jnp.asarray(SHARES, jnp.float32)
        for result in compiled_dual(case.loss, gradient, targets, shares):
            assert result.dtype == jnp.float32


def test_a_change_of_parameters_does_not_retrace() -> None:
    traces = []

    @jax.jit
    def evaluated(loss: Loss, classes: ClassGroups) -> Any:
        traces.append(loss)
        return loss(jnp.asarray(LOGITS), jnp.asarray(TARGETS), classes)

    for gamma in (0, 1.0, np.float32(2.0), jnp.asarray(3.0)):
        evaluated(ufm.Focal(gamma), CLASSES)
    assert len(traces) == 1
    for offsets in (OFFSETS, np.zeros(K), [1, 2, 3]):
        evaluated(ufm.LogitAdjusted(offsets=offsets), ClassGroups(np.array(COUNTS) + offsets[0]))
    assert len(traces) == 2


# Convex conjugates

UNBOUNDED = (  # domains
    "squared-error",
    "class-weighted-squared",
    "exponential",
    "squared-hinge",
    "poisson",
)


@each_convex_loss
def test_fenchel_young_inequality_with_equality_at_the_gradient(case: Case) -> None:
    dual = gradients(case.loss)
    conjugate = case.loss.conjugate(dual, jnp.asarray(TARGETS), CLASSES)
    for logits in (LOGITS, OTHERS, 10 * OTHERS, 0 * OTHERS):
        slack = formula(case, logits) + conjugate - np.sum(dual * logits, axis=1)
        assert np.all(slack >= -1e-13)
    np.testing.assert_allclose(formula(case) + conjugate, np.sum(dual * LOGITS, axis=1), atol=1e-13)
    assert np.all(case.loss.domain(dual, jnp.asarray(TARGETS), CLASSES) >= -1e-15)


@one_convex_of_each_kind
def test_conjugate_is_infinite_outside_its_domain_and_never_nan(case: Case) -> None:
    targets, dual = jnp.asarray(TARGETS), gradients(case.loss)
    for stretch in (-0.2, 0.0, 0.5, 1.0, 1.5, 4.0, 1e12):
        conjugate = np.asarray(case.loss.conjugate(stretch * dual, targets, CLASSES))
        outside = np.any(np.asarray(case.loss.domain(stretch * dual, targets, CLASSES)) < 0, axis=1)
        np.testing.assert_array_equal(conjugate == np.inf, outside)
        assert not np.any(np.isnan(conjugate))
    if case.name not in UNBOUNDED:
        assert np.all(outside | ~np.any(np.asarray(dual), axis=1))


@for_each("size", [1e-12, 1e-30])
def test_conjugate_is_accurate_where_the_dual_is_tiny(size: float) -> None:
    # sum_c q_c log q_c with q_y = 1 - (sum of the others) is, to first order, the sum of q log q -
    # q over others.
    dual = size * gradients(ufm.CrossEntropy())
    others = np.where(TARGETS == 1, 0, dual)
    expected = np.sum(others * np.log(np.where(others > 0, others, 1)) - others, axis=1)
    conjugate = ufm.CrossEntropy().conjugate(dual, jnp.asarray(TARGETS), CLASSES)
    np.testing.assert_allclose(conjugate, expected, rtol=1e-11)


@for_each("alpha", [1e-14, 1e-10, 1e-6, 0.3])
def test_label_smoothing_and_its_conjugate_keep_their_digits(alpha: float) -> None:
    loss, logits = ufm.LabelSmoothing(alpha), margin_logits(25.0)
    targets = jnp.asarray(np.eye(K)[:1])
    dual = gradients(loss, logits, targets)
    with mpmath.workdps(50):
        share = mpmath.mpf(alpha) / K
        powers = [mpmath.exp(z) for z in logits[0]]
        exact = [-mpmath.log(power / mpmath.fsum(powers)) for power in powers]
        value = (1 - mpmath.mpf(alpha)) * exact[0] + share * mpmath.fsum(exact)
        # The conjugate is taken at the dual rows as they are, the own entry being less the sum of
        # the others.
        others = [share + mpmath.mpf(float(u)) for u in dual[0, 1:]]
        entropy = mpmath.fsum(q * mpmath.log(q) for q in [1 - mpmath.fsum(others), *others])
        assert math.isclose(float(values(loss, logits, targets)[0]), float(value), rel_tol=1e-14)
        conjugate, size = (
            loss.conjugate(dual, targets, CLASSES)[0],
            loss.conjugate_size(dual, targets, CLASSES)[0],
        )
        assert abs(float(conjugate) - float(entropy)) <= 8 * np.finfo(float).eps * float(size)
        assert float(size) <= 1e2 * (alpha + abs(float(entropy)))
        # At zero it is less the infimum of the loss, the entropy of the smoothed targets.
        infimum = -(1 - 2 * share) * mpmath.log(1 - 2 * share) - 2 * share * mpmath.log(share)
        assert math.isclose(
            float(loss.conjugate(0 * dual, targets, CLASSES)[0]), float(-infimum), rel_tol=1e-14
        )


@one_convex_of_each_kind
def test_the_size_of_the_conjugate_is_at_least_its_magnitude(case: Case) -> None:
    targets, dual = jnp.asarray(TARGETS), gradients(case.loss)
    for share in (1.0, 1e-3, 0.0):
        size = case.loss.conjugate_size(share * dual, targets, CLASSES)
        assert np.all(
            size >= (1 - 1e-12) * np.abs(case.loss.conjugate(share * dual, targets, CLASSES))
        )


@each_convex_loss
def test_constant_dual_lies_in_the_domain_and_has_mean_zero(case: Case) -> None:
    targets = jnp.asarray(TARGETS)
    dual = case.loss.constant_dual(targets, jnp.asarray(SHARES), CLASSES)
    np.testing.assert_allclose(SHARES @ np.asarray(dual), 0, atol=np.finfo(float).eps)
    assert np.all(case.loss.domain(dual, targets, CLASSES) > 0)
    assert np.all(np.isfinite(case.loss.conjugate(dual, targets, CLASSES)))


# The others have another one: the best constant logits have no closed form, or lie at kinks.
OPEN = ("ldt", "ldam", "huber", "weston-watkins", "crammer-singer")
CLOSED = [case for case in CONVEX if not any(name in case.name for name in OPEN)]


def test_constant_dual_sums_to_zero_to_its_last_digit_where_a_class_has_nearly_all_shares() -> None:
    shares = np.array([1e-15, 1e-9, 1.0])
    for loss in (
        ufm.CrossEntropy(),
        ufm.LogitAdjusted(1.0),
        ufm.LDT(multipliers=(2.0, 1.0, 3.0)),
        ufm.LabelSmoothing(0.1),
        ufm.LabelSmoothing(1e-10),
        ufm.ClassWeighted(1.0, loss=ufm.LabelSmoothing(0.9)),
    ):
        dual = np.asarray(
            loss.constant_dual(jnp.eye(3), jnp.asarray(shares), ufm.ClassGroups(shares))
        )
        assert np.all(np.abs(dual.sum(axis=1)) <= 1e-15 * np.abs(dual).max(axis=1))
        assert np.all(np.abs(shares @ dual) <= 1e-15 * (shares @ np.abs(dual)))


@for_each("case", CLOSED)
def test_constant_dual_is_the_gradient_at_the_best_constant_logits(case: Case) -> None:
    dual = case.loss.constant_dual(jnp.asarray(TARGETS), jnp.asarray(SHARES), CLASSES)

    def mean(z: np.ndarray) -> float:
        return float(SHARES @ formula(case, np.tile(z, (4, 1))))

    best = scipy.optimize.minimize(mean, np.zeros(K), tol=1e-10).x
    np.testing.assert_allclose(gradients(case.loss, np.tile(best, (4, 1))), dual, atol=1e-5)


def test_the_focal_loss_has_no_conjugate() -> None:
    loss, targets = ufm.Focal(2.0), jnp.asarray(TARGETS)
    for call in (
        lambda: loss.conjugate(targets, targets, CLASSES),
        lambda: loss.domain(targets, targets, CLASSES),
        lambda: loss.constant_dual(targets, jnp.asarray(SHARES), CLASSES),
    ):
        with pytest.raises(ValueError, match="not convex"):
            call()


# Flags


@each_loss
def test_shift_invariance_flag(case: Case) -> None:
    moved = np.asarray(values(case.loss, LOGITS + 1.7) - values(case.loss))
    assert case.loss.shift_invariant == np.allclose(moved, 0, atol=1e-12)


@one_of_each_kind
def test_convexity_flag(case: Case) -> None:
    rng = np.random.default_rng(3)
    left, right = 4 * rng.normal(size=(2, 400, K))
    targets = np.eye(K)[rng.integers(K, size=400)]
    middle = values(case.loss, (left + right) / 2, targets)
    excess = middle - (values(case.loss, left, targets) + values(case.loss, right, targets)) / 2
    assert case.loss.convex == bool(np.all(excess <= 1e-12))


# Accuracy


def margin_logits(gap: float) -> np.ndarray:
    """A right class `gap` above one wrong class and `gap + 1` above the other."""
    return np.array([[gap, 0.0, -1.0]])


@for_each("gap", [0.5, 5.0, 40.0, 300.0, 700.0])
def test_cross_entropy_keeps_all_digits_of_a_tiny_loss(gap: float) -> None:
    targets = np.eye(K)[:1]
    with mpmath.workdps(400):
        others = mpmath.exp(-mpmath.mpf(gap)) * (1 + mpmath.exp(-1))
        exact_value = float(mpmath.log1p(others))
        exact_slope = float(-others / (1 + others))
    value = float(values(ufm.CrossEntropy(), margin_logits(gap), targets)[0])
    assert math.isclose(value, exact_value, rel_tol=4e-16)
    slope = float(gradients(ufm.CrossEntropy(), margin_logits(gap), targets)[0, 0])
    assert math.isclose(slope, exact_slope, rel_tol=1e-15)
    if gap < 200:  # the square of the loss is still a normal number
        focal = float(values(ufm.Focal(1.0), margin_logits(gap), targets)[0])
        assert math.isclose(focal, -exact_slope * exact_value, rel_tol=1e-15)


def test_the_focal_loss_is_right_where_its_probabilities_underflow() -> None:
    # Below the square root of the smallest normal number.
    gap, gamma = 360.0, 0.01
    focal, plain_one = (
        values(ufm.Focal(g), margin_logits(gap), np.eye(K)[:1])[0] for g in (gamma, 0.0)
    )
    with mpmath.workdps(400):
        others = mpmath.exp(-mpmath.mpf(gap)) * (1 + mpmath.exp(-1))
        expected = float((others / (1 + others)) ** gamma)
    assert math.isclose(float(focal / plain_one), expected, rel_tol=1e-13)


def test_cross_entropy_keeps_all_digits_in_single_precision() -> None:
    logits, targets = (
        jnp.asarray(margin_logits(60.0), jnp.float32),
        jnp.eye(K, dtype=jnp.float32)[:1],
    )
    exact = math.log1p(math.exp(-60) + math.exp(-61))
    assert math.isclose(float(ufm.CrossEntropy()(logits, targets, CLASSES)[0]), exact, rel_tol=5e-6)


OVERFLOWING = ("exponential", "poisson")


@for_each("case", [case for case in CASES if case.name not in OVERFLOWING])
@for_each("size", [1e-300, 800.0, 1e4])
def test_extreme_logits_give_finite_values_and_gradients(case: Case, size: float) -> None:
    for logits in (size * TARGETS, -size * TARGETS, np.full((4, K), size)):
        assert np.all(np.isfinite(values(case.loss, logits)))
        assert np.all(np.isfinite(gradients(case.loss, logits)))


@for_each("loss", [ufm.Exponential(), ufm.Poisson()])
def test_losses_that_grow_like_exponentials_overflow_to_infinity(loss: Loss) -> None:
    for size in (1e-300, 700.0):
        for logits in (size * TARGETS, -size * TARGETS, np.full((4, K), size)):
            assert np.all(np.isfinite(values(loss, logits)))
            assert np.all(np.isfinite(gradients(loss, logits)))
    assert np.all(values(loss, 800 * (1 - TARGETS)) == np.inf)


# Special cases


def same(first: Loss, second: Loss, classes: ClassGroups = CLASSES) -> None:
    logits, targets = jnp.asarray(LOGITS), jnp.asarray(TARGETS)
    np.testing.assert_allclose(
        first(logits, targets, classes), second(logits, targets, classes), rtol=1e-14
    )


@for_each(
    "loss",
    [
        ufm.Focal(0),
        ufm.LabelSmoothing(0),
        ufm.LogitAdjusted(0),
        ufm.LogitAdjusted(offsets=(2.0, 2.0, 2.0)),
        ufm.CDT(0),
        ufm.CDT(multipliers=1.0),
        ufm.LDT(0),
        ufm.LDT(multipliers=(1.0, 1.0, 1.0)),
        ufm.ClassWeighted(0),
        ufm.ClassWeighted(weights=1.0),
        ufm.ClassWeighted(weights=(1.0, 1.0, 1.0), loss=ufm.CDT(multipliers=(1, 1, 1))),
    ],
)
def test_special_cases_are_the_cross_entropy(loss: Loss) -> None:
    same(loss, ufm.CrossEntropy())


@for_each("loss", [ufm.LogitAdjusted(1.3), ufm.CDT(0.7), ufm.LDT(0.7), ufm.ClassWeighted(1.0)])
def test_balanced_classes_leave_nothing_to_adjust(loss: Loss) -> None:
    same(loss, ufm.CrossEntropy(), ClassGroups.balanced(K, 7))


def test_exponent_one_gives_every_class_the_same_total_weight() -> None:
    weights = ufm.ClassWeighted(1.0).of_classes(CLASSES)
    np.testing.assert_allclose(weights * np.array(COUNTS), sum(COUNTS) / K, rtol=1e-15)


@for_each("loss", [ufm.CDT(0.5), ufm.LDT(0.5)])
def test_the_largest_class_has_temperature_one(loss: Any) -> None:
    np.testing.assert_allclose(
        loss.of_classes(CLASSES), [1, math.sqrt(0.6), math.sqrt(0.4)], rtol=1e-15
    )


def test_one_temperature_for_all_is_the_same_for_logits_and_labels() -> None:
    same(ufm.LDT(multipliers=0.3), ufm.CDT(multipliers=0.3))


@for_each(
    "make",
    [
        lambda v: ufm.LogitAdjusted(offsets=v),
        lambda v: ufm.CDT(multipliers=v),
        lambda v: ufm.LDT(multipliers=v),
        lambda v: ufm.ClassWeighted(weights=v),
        lambda v: ufm.ClassWeighted(0.5, loss=ufm.CDT(multipliers=v)),
    ],
)
def test_parameters_per_group_are_those_of_its_classes(make: Callable[[Any], Loss]) -> None:
    groups = ClassGroups((7, 2), sizes=(2, 1))
    same(make((0.5, 2.0)), make((0.5, 0.5, 2.0)), groups)
    expanded = make((0.5, 2.0)).per_class(groups)
    for got, expected in zip(
        jax.tree.leaves(expanded), jax.tree.leaves(make((0.5, 0.5, 2.0))), strict=True
    ):
        np.testing.assert_array_equal(got, expected)
        assert isinstance(got, np.ndarray)
    traced = jax.jit(lambda loss: loss.per_class(groups))(make((0.5, 2.0)))
    assert jax.tree.map(jnp.shape, traced) == jax.tree.map(jnp.shape, expanded)


@each_loss
def test_per_class_form_is_the_same_loss(case: Case) -> None:
    same(case.loss, case.loss.per_class(CLASSES))


# What a loss says of itself


class OneAgainstRest(Loss):
    """A loss from outside the package: a logistic loss for each class against all others."""

    convex = True

    def __call__(self, logits: Any, targets: Any, classes: Any) -> Any:
        return jnp.sum(jnp.logaddexp(0, logits) - targets * logits, axis=1)

    def conjugate(self, dual: Any, targets: Any, classes: Any) -> Any:
        p = targets + dual
        return jnp.sum(jax.scipy.special.xlogy(p, p) + jax.scipy.special.xlog1py(1 - p, -p), axis=1)

    def domain(self, dual: Any, targets: Any, classes: Any) -> Any:
        return jnp.concatenate([targets + dual, 1 - targets - dual], axis=1)

    def constant_dual(self, targets: Any, shares: Any, classes: Any) -> Any:
        return (shares @ targets / jnp.sum(shares))[None, :] - targets


class Saturating(Loss):
    """A loss from outside the package of which nothing is known but its values."""

    def __call__(self, logits: Any, targets: Any, classes: Any) -> Any:
        return 1 - jnp.sum(targets * jax.nn.softmax(logits, axis=1), axis=1)


def test_a_loss_in_one_class_from_outside_is_solved_and_certified() -> None:
    fields: dict[str, Any] = {
        "class_counts": (9, 5, 4),
        "feature_dim": 3,
        "regularizer": ufm.WeightDecay(weights=1e-2, features=1e-3),
    }
    solution = ufm.solve(ufm.Problem(loss=OneAgainstRest(), **fields))
    assert solution.certificate is not None
    assert solution.certificate.holds
    assert solution.resolution == "classes"
    unknown = ufm.solve(ufm.Problem(loss=Saturating(), **fields), restarts=1)
    assert unknown.status.ok
    assert unknown.certificate is None


def test_a_conjugate_is_stated_whole_or_not_at_all() -> None:
    whole = type("Convex", (Saturating,), {"convex": True})()
    assert not whole.has_conjugate
    assert ufm.ClassWeighted(1.0).has_conjugate
    assert not ufm.ClassWeighted(1.0, loss=whole).has_conjugate
    in_part = type("InPart", (Saturating,), {"convex": True, "domain": lambda *_: None})
    message = "`InPart` states `domain` and lacks the method `conjugate`; state all of conjugate, "
    with pytest.raises(ValueError, match=message):
        in_part()


def test_infima_of_rows_are_those_of_the_loss_times_the_weights() -> None:
    lowered = type("Lowered", (Saturating,), {"infimum": -2.0})()
    weighted = ufm.ClassWeighted(weights=(1.0, 3.0, 0.5), loss=lowered)
    infima = weighted.infima(jnp.eye(3), CLASSES)
    np.testing.assert_array_equal(infima, [-2.0, -6.0, -1.0])


def test_every_loss_of_the_library_is_tried() -> None:
    assert {type(case.loss) for case in CASES} == set(ufm.losses.LIBRARY.values())


@each_loss
def test_a_loss_describes_itself(case: Case) -> None:
    kind = type(case.loss)
    assert ufm.losses.LIBRARY[kind.name] is kind
    assert case.loss.label.partition("(")[0] == kind.__name__
    for parameter in kind.parameters:
        assert parameter.meaning
        assert {parameter.name, parameter.per_class or parameter.name} <= vars(case.loss).keys()
        assert parameter.lower <= parameter.searched[0] < parameter.searched[1] < parameter.below
        kind(sum(parameter.searched) / 2)


def test_labels_have_the_numbers_in_six_digits() -> None:
    assert ufm.CrossEntropy().label == "CrossEntropy"
    assert ufm.LabelSmoothing(1 / 3).label == "LabelSmoothing(alpha=0.333333)"
    assert ufm.ClassWeighted(0.5).label == "ClassWeighted(exponent=0.5)"
    nested = ufm.ClassWeighted(weights=WEIGHTS, loss=ufm.Focal(2))
    assert nested.label == "ClassWeighted(weights=..., loss=Focal(gamma=2))"


# Validation


BAD = [
    (
        lambda: ufm.LabelSmoothing(-0.1),
        "`alpha` must be a finite number >= 0 and below 1, got -0.1",
    ),
    (lambda: ufm.LabelSmoothing(1.0), "`alpha` must be .* got 1.0"),
    (lambda: ufm.LabelSmoothing(np.nan), "`alpha` must be .* got nan"),
    (lambda: ufm.LabelSmoothing(np.inf), "`alpha` must be .* got inf"),
    (
        lambda: ufm.LabelSmoothing((0.1, 0.2)),
        "`alpha` must be a finite number >= 0 and below 1, got",
    ),
    (lambda: ufm.LabelSmoothing("a"), "`alpha` must be a finite number .* got 'a'"),
    (lambda: ufm.LabelSmoothing(None), "`alpha` must be a finite number .* got None"),
    (lambda: ufm.Focal(-1), "`gamma` must be a finite number >= 0, got -1.0"),
    (lambda: ufm.Focal(np.nan), "`gamma` must be .* got nan"),
    (lambda: ufm.Focal(np.inf), "`gamma` must be .* got inf"),
    (lambda: ufm.LogitAdjusted(), "exactly one of `strength` or `offsets`; got neither"),
    (
        lambda: ufm.LogitAdjusted(1.0, offsets=OFFSETS),
        "`strength` or `offsets`; got strength and offsets",
    ),
    (lambda: ufm.LogitAdjusted(np.nan), "`strength` must be a finite number, got nan"),
    (
        lambda: ufm.LogitAdjusted(offsets=(0, np.inf, 0)),
        "`offsets` must be finite numbers, got inf",
    ),
    (lambda: ufm.LogitAdjusted(offsets="abc"), "`offsets` must be finite numbers, got 'abc'"),
    (lambda: ufm.CDT(), "exactly one of `exponent` or `multipliers`; got neither"),
    (lambda: ufm.CDT(np.inf), "`exponent` must be a finite number, got inf"),
    (lambda: ufm.CDT(multipliers=(1, 0, 1)), "`multipliers` must be positive and finite, got 0.0"),
    (
        lambda: ufm.CDT(multipliers=(1, -2, 1)),
        "`multipliers` must be positive and finite, got -2.0",
    ),
    (
        lambda: ufm.CDT(multipliers=(1, np.nan, 1)),
        "`multipliers` must be positive and finite, got nan",
    ),
    (lambda: ufm.LDT(), "exactly one of `exponent` or `multipliers`; got neither"),
    (lambda: ufm.LDT(np.inf), "`exponent` must be a finite number, got inf"),
    (lambda: ufm.LDT(multipliers=(1, 0, 1)), "`multipliers` must be positive and finite, got 0.0"),
    (lambda: ufm.ClassWeighted(), "exactly one of `exponent` or `weights`; got neither"),
    (
        lambda: ufm.ClassWeighted(1.0, weights=WEIGHTS),
        "`exponent` or `weights`; got exponent and weights",
    ),
    (
        lambda: ufm.ClassWeighted(weights=(1, 0, 1)),
        "`weights` must be positive and finite, got 0.0",
    ),
    (lambda: ufm.ClassWeighted((1.0, 2.0)), "`exponent` must be a finite number"),
    (lambda: ufm.ClassWeighted(1.0, loss="ce"), "`loss` must be a ufm loss such as .*, got 'ce'"),
    (lambda: ufm.ClassWeighted(1.0, loss=ufm.CrossEntropy), "`loss` must be a ufm loss"),
]


@for_each(("construct", "message"), BAD)
def test_bad_parameters_are_named(construct: Callable[[], Loss], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        construct()


@for_each(
    ("loss", "name"),
    [
        (ufm.LogitAdjusted(offsets=(1.0, 2.0)), "offsets"),
        (ufm.CDT(multipliers=(1.0,) * 4), "multipliers"),
        (ufm.LDT(multipliers=(1.0,) * 4), "multipliers"),
        (ufm.ClassWeighted(weights=(1.0, 2.0)), "weights"),
        (ufm.ClassWeighted(1.0, loss=ufm.CDT(multipliers=MULTIPLIERS[:2])), "multipliers"),
        (ufm.LogitAdjusted(offsets=np.ones((K, 1))), "offsets"),
    ],
)
def test_parameters_that_do_not_fit_the_classes_are_named(loss: Loss, name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"`{name}` must be one number, one per group \(3\) or one per"
    ):
        loss.check(CLASSES)


def test_traced_parameters_pass_the_checks() -> None:
    @eqx.filter_jit
    def evaluated(x: Any) -> Any:
        losses = [ufm.Focal(x), ufm.LabelSmoothing(x), ufm.LogitAdjusted(x), ufm.CDT(x), ufm.LDT(x)]
        losses.append(ufm.ClassWeighted(x))
        return sum(
            jnp.sum(loss(jnp.asarray(LOGITS), jnp.asarray(TARGETS), CLASSES)) for loss in losses
        )

    assert np.isfinite(evaluated(jnp.asarray(0.3)))
