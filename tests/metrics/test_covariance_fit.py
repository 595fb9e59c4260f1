"""The best gamma in closed form, against a search over a fine grid."""

import numpy as np
from tables import for_each

from ufm.metrics.covariance_fit import covariance_fit


def distance_at(gram: np.ndarray, roots: np.ndarray, shift: float, soft: bool) -> float:
    shape = roots - shift
    shape = np.maximum(shape, 0.0) if soft else shape
    return float(
        np.linalg.norm(gram / np.linalg.norm(gram) - np.diag(shape) / np.linalg.norm(shape))
    )


@for_each(("soft", "seed"), [(soft, seed) for soft in (False, True) for seed in range(6)])
def test_no_gamma_is_better(soft: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 2 + seed % 4
    roots = np.sort(rng.uniform(0.3, 3.0, size=n))[::-1]
    factor = rng.normal(size=(n, n)) * (0.2 if seed % 2 else 1.0) + np.diag(roots**0.5)
    gram = factor @ factor.T
    fit = covariance_fit(gram, roots**2, np.eye(n), soft=soft)
    top = roots[0] if soft else roots[-1]
    shifts = np.linspace(0.0, top * (1 - 1e-9), 4001)
    best = min(distance_at(gram, roots, shift, soft) for shift in shifts)
    assert fit.distance <= best + 1e-12
    assert fit.distance >= best - 1e-4
    assert fit.gamma <= top**2 * (1 + 1e-12)
    np.testing.assert_allclose(
        fit.distance, distance_at(gram, roots, np.sqrt(fit.gamma), soft), atol=1e-9
    )


@for_each("shift", [0.0, 0.5, 1.2, 2.5])
def test_a_matrix_of_the_family_has_distance_zero_at_its_own_gamma(shift: float) -> None:
    roots = np.array([3.0, 2.0, 1.0])
    shape = np.maximum(roots - shift, 0.0)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    gram = 7.0 * turn @ np.diag(shape) @ turn.T
    soft = covariance_fit(gram, roots**2, turn, soft=True)
    plain = covariance_fit(gram, roots**2, turn, soft=False)
    assert soft.distance < 1e-14
    assert soft.alive == np.count_nonzero(shape)
    if soft.alive > 1:  # one mode alone has no shape
        np.testing.assert_allclose(soft.gamma, shift**2, atol=1e-12)
    assert (plain.distance < 1e-14) == (shift < 1.0)


def test_modes_without_room_are_left_out_and_ties_there_may_be_mixed() -> None:
    roots, angle = np.array([3.0, 1.0, 1.0]), 0.7
    mixed = np.array([0.0, np.cos(angle), np.sin(angle)])
    gram = np.diag([2.5, 0.0, 0.0]) + 0.5 * np.outer(mixed, mixed)
    fit = covariance_fit(gram, roots**2, np.eye(3), soft=True, modes=2)
    assert fit.distance < 1e-14
    np.testing.assert_allclose(fit.gamma, 0.25)
    assert covariance_fit(gram, roots**2, np.eye(3), soft=True).distance > 0.1


def test_no_weights_are_the_positive_part_beyond_the_largest_eigenvalue() -> None:
    for soft, expected in ((True, (0.0, 4.0, 0)), (False, (1.0, 0.0, 2))):
        assert covariance_fit(np.zeros((2, 2)), np.array([4.0, 1.0]), np.eye(2), soft=soft) == (
            expected
        )
