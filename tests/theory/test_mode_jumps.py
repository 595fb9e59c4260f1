"""Where modes jump: closed forms against the ranks of the predictions, and the solver.

Local minima are compared with descent.
"""

import dataclasses

import numpy as np
import pytest
import scipy.optimize
from numpy_models import Model
from tables import for_each

import ufm
from ufm.theory import jumps, predict
from ufm.theory.mode_jumps import spinodal
from ufm.theory.squared_error_modes import threshold


def problem(counts, L, decay=0.02, *, bias=None, width=5, **changes):
    return ufm.Problem(
        class_counts=counts,
        feature_dim=5,
        loss=ufm.SquaredError(),
        regularizer=ufm.WeightDecay(weights=decay, features=0.5 * decay, bias=bias or 0.0),
        use_bias=bias is not None,
        hidden_dims=(width,) * (L - 1),
        **changes,
    )


def scaled(one, factor):
    """The problem with the penalties of weights and features times a factor."""
    old = one.regularizer
    changes = {"weights": old.weights * factor, "features": old.features * factor}
    return dataclasses.replace(one, regularizer=dataclasses.replace(old, **changes))


BALANCED, IMBALANCED = (6.0,) * 4, (20.0, 9.0, 5.0, 2.0)
KINDS = [(BALANCED, None), (IMBALANCED, None), (IMBALANCED, 0.0), (BALANCED, 0.0), (BALANCED, 0.7)]


@for_each("L", [1, 2, 3])
@for_each("bias", [None, 0.0])
def test_the_modes_of_target_rows_jump_where_the_rank_of_the_predictions_falls(L, bias):
    rows = np.random.default_rng(0).normal(size=(9, 3)) * [3.0, 1.5, 0.5]
    found = jumps(problem(None, L, bias=bias, targets=ufm.Targets(rows)))
    assert found.targets.size == 3
    for m, factor in enumerate(found.jump_factor):
        for side, rank in ((0.999, m + 1), (1.001, m)):
            decay = 0.02 * side * factor
            one = problem(None, L, decay, bias=bias, targets=ufm.Targets(rows))
            prediction = predict(one)
            assert prediction.rank == rank
            assert jumps(one).objective == pytest.approx(float(prediction.objective), rel=1e-12)


@for_each("L", [1, 2, 3, 6])
@for_each(("counts", "bias"), KINDS)
def test_every_jump_is_where_the_rank_of_the_predictions_falls(L, counts, bias):
    one = problem(counts, L, bias=bias)
    found = jumps(one)
    assert found.targets.size == len(counts) - (bias == 0)
    for m, factor in enumerate(found.jump_factor):
        # Which modes of equal size are counted first does not matter: the rank falls below m + 1 at
        # the m-th.
        for below in (0.5, 0.9, 1 - 1e-7):
            assert predict(scaled(one, below * factor)).rank > m
        for above in (1 + 1e-7, 1.1, 2.0):
            assert predict(scaled(one, above * factor)).rank <= m
    # The height of the last jump, in the largest mode.
    before = (
        predict(scaled(one, found.jump_factor[0] * (1 - 1e-9))).singular_values[0]
        / found.targets[0]
    )
    after = predict(scaled(one, found.jump_factor[0] * (1 + 1e-9))).singular_values[0]
    assert before == pytest.approx(found.share_at_jump, abs=1e-7)
    assert after == 0
    assert found.share_at_jump == (L - 1) / L


@for_each("L", range(2, 7))
@for_each(("counts", "bias"), KINDS[1:])
def test_the_scalar_problems_of_a_mode_agree(L, counts, bias):
    """Minima of (1 - y)^2 + q beta y^{2/q} found by search, on both sides of jump and spinodal."""
    q = L + 1

    def value(y, beta):
        return (1 - y) ** 2 + q * beta * y ** (2 / q)

    def inner(beta):
        """The local minimum with y > 0, or None: the largest y at which the slope changes sign."""
        # A single minimum of the slope lies between the share at the spinodal and one.
        slope = lambda y: 2 * (y - 1) + 2 * beta * y ** (2 / q - 1)  # noqa: E731
        lowest = scipy.optimize.minimize_scalar(
            slope, bounds=(1e-6, 1), method="bounded", options={"xatol": 1e-12}
        )
        return (
            None
            if slope(lowest.x) >= 0
            else scipy.optimize.brentq(slope, lowest.x, 1.0, xtol=1e-15)
        )

    end, jump = spinodal(L), threshold(L)
    assert jump < end
    assert inner(end * (1 + 1e-6)) is None
    assert inner(end * (1 - 1e-6)) == pytest.approx((L - 1) / (2 * L), abs=2e-3)
    assert inner(jump) == pytest.approx((L - 1) / L, rel=1e-10)
    assert value(inner(jump), jump) == pytest.approx(1, rel=1e-12)
    one = problem(counts, L, bias=bias)
    found = jumps(one)
    for factor in (0.3, 0.999, 1.001):
        there = jumps(scaled(one, factor * found.jump_factor[0]))
        assert there.shares[0] == pytest.approx(inner(factor * jump), rel=1e-9)
        assert there.kept[0] == (factor < 1)


@pytest.mark.slow
@for_each("L", [1, 2, 3, 6])
@for_each(("counts", "bias"), KINDS)
@for_each("width", [5, 2])
def test_the_least_local_minimum_is_the_prediction(L, counts, bias, width):
    for factor in np.geomspace(0.1, 10, 7):
        one = scaled(problem(counts, L, bias=bias, width=width), factor)
        found, prediction = jumps(one), predict(one)
        assert found.objective == pytest.approx(float(prediction.objective), rel=1e-12)
        assert int(np.nanargmin(found.local_minima)) == np.sum(found.kept) == prediction.rank
        if L == 1:
            assert np.sum(np.isfinite(found.local_minima)) == 1
            assert found.share_at_jump == found.share_at_spinodal == 0
            np.testing.assert_array_equal(found.jump_decay, found.spinodal_decay)


def start(one, keep):
    """Factors, as one vector, in which only the classes `keep` have their shares."""
    model, shares = Model(one), jumps(one).shares
    order = np.argsort(-model.counts, kind="stable")
    s = np.zeros(model.K)
    for class_, share in zip(order, shares, strict=True):
        s[class_] = np.sqrt(model.counts[class_]) * share if class_ in keep else 0.0
    decays = np.array([*model.weights, model.features])
    sizes = np.exp(np.mean(np.log(decays)) / 2) / np.sqrt(decays)
    root = np.diag(s ** (1 / model.num_factors))
    blocks = []
    for size, (rows, columns) in zip(sizes, model.shapes, strict=False):
        block = np.zeros((rows, columns))
        block[: model.K, : model.K] = size * root[:rows, :columns]
        blocks.append(block.ravel())
    H = np.zeros((model.K, model.dims[0]))
    H[:, : model.K] = sizes[-1] * root / np.sqrt(model.counts)[:, None]
    return model, np.concatenate([*blocks, H.ravel()])


def descended(model, x, size):
    x = x + size * np.random.default_rng(0).normal(size=x.size)
    result = scipy.optimize.minimize(
        model.value_and_gradient,
        x,
        jac=True,
        method="BFGS",
        options={"gtol": 1e-10, "maxiter": 3000},
    )
    return float(result.fun)


@for_each("L", [2, 3])
def test_local_minima_coexist_and_descent_stays_in_them(L):
    one = problem(IMBALANCED, L)
    # Between jump and spinodal of the second mode: zero, one and two classes kept are local minima,
    # three are not.
    found = jumps(one)
    one = scaled(one, 0.5 * (found.jump_factor[1] + found.spinodal_factor[1]))
    found = jumps(one)
    assert list(np.isfinite(found.local_minima)) == [True, True, True, False, False]
    assert list(found.kept) == [True, False, False, False]
    for m, keep in enumerate([set(), {0}, {0, 1}]):
        model, x = start(one, keep)
        value, slope = model.value_and_gradient(x)
        assert value == pytest.approx(found.local_minima[m], rel=1e-12)
        assert np.linalg.norm(slope) < 1e-11
        assert descended(model, x, 1e-3) == pytest.approx(found.local_minima[m], rel=1e-9)
    # The second class kept without the first is stationary too, and no minimum.
    model, x = start(one, {1})
    value, slope = model.value_and_gradient(x)
    assert np.linalg.norm(slope) < 1e-11
    assert descended(model, x, 1e-3) < value - 1e-3


def test_beyond_the_spinodal_descent_leaves():
    one = problem(BALANCED, 2)
    inside = scaled(one, 0.999 * jumps(one).spinodal_factor[0])
    model, x = start(inside, {0, 1, 2, 3})
    outside = Model(scaled(one, 1.01 * jumps(one).spinodal_factor[0]))
    assert descended(model, x, 1e-4) > 0.5 + 1e-3
    assert descended(outside, x, 1e-4) == pytest.approx(0.5, abs=1e-9)


def test_the_published_balanced_form():
    """K^{L+1} n lH l1...lL = (L-1)^{L-1} / L^{2L} at the jump."""
    for L in range(1, 7):
        found = jumps(problem(BALANCED, L))
        assert 4 ** (L + 1) * 6 * found.jump_decay[0] ** (L + 1) == pytest.approx(
            (L - 1) ** (L - 1) / L ** (2 * L)
        )


def test_it_prints_and_refuses():
    text = str(jumps(problem(IMBALANCED, 3, 0.04)))
    assert "jumps from 0.6667 to 0" in text
    assert "(not kept)" in text
    with pytest.raises(ValueError, match="linear layers"):
        jumps(problem(BALANCED, 2, activation="relu"))
    with pytest.raises(ValueError, match="equal class counts"):
        jumps(problem(IMBALANCED, 2, bias=0.3))


@pytest.mark.slow
@for_each("L", range(1, 7))
@for_each("counts", [BALANCED, IMBALANCED])
def test_the_solver_agrees_on_both_sides_of_every_jump(L, counts):
    base = problem(counts, L)
    for factor in sorted({*jumps(base).jump_factor.round(12)}):
        for side in (0.6, 1 - 1e-6, 1 + 1e-6, 1.7):
            one = scaled(base, factor * side)
            solution, prediction = ufm.solve(one), predict(one)
            assert solution.objective == pytest.approx(float(prediction.objective), rel=1e-9)
            if abs(side - 1) > 1e-3:
                assert ufm.compare(solution, prediction).passed
