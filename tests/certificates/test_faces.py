"""The exact dual norm of few rows of non-negative features."""

import mpmath
import numpy as np
import pytest
from scipy.optimize import minimize

import ufm
from ufm.certificates import relaxed_norm, violating_atom
from ufm.certificates.faces import norm_is_at_most

# Horn's matrix: copositive, and no sum of a positive semidefinite and a non-negative matrix.
HORN = np.array(
    [
        [1, -1, 1, 1, -1],
        [-1, 1, -1, 1, 1],
        [1, -1, 1, -1, 1],
        [1, 1, -1, 1, -1],
        [-1, 1, 1, -1, 1],
    ],
    float,
)


def test_the_norm_of_random_rows_lies_between_the_limits() -> None:
    rng = np.random.default_rng(0)
    for R, K in ((1, 3), (2, 2), (4, 6), (7, 3), (9, 5)):
        G = rng.normal(size=(R, K))
        gain = violating_atom(G, True).gain
        assert norm_is_at_most(G, gain * (1 + 1e-10))
        assert not norm_is_at_most(G, gain * (1 - 1e-8))


def test_no_unit_vector_gains_more_than_a_limit_that_is_proved() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        G = rng.normal(size=(5, 3))
        starts = np.abs(rng.normal(size=(20, 5)))

        def loss(x: np.ndarray, G: np.ndarray = G) -> float:
            return -float(np.linalg.norm(G.T @ x**2) / np.linalg.norm(x**2))

        best = -min(minimize(loss, np.sqrt(start)).fun for start in starts)
        for factor in (0.9, 0.999, 1.001, 1.1):
            assert norm_is_at_most(G, factor * best) == (factor > 1)


def test_it_is_exact_where_the_relaxation_is_not() -> None:
    values, vectors = np.linalg.eigh(4 * np.eye(5) - HORN)
    G = vectors * np.sqrt(np.maximum(values, 0))
    assert norm_is_at_most(G, 2 * (1 + 1e-10))
    assert not norm_is_at_most(G, 2 * (1 - 1e-8))
    assert relaxed_norm(G) > 2 * (1 + 1e-3)


def test_spaces_of_several_equal_eigenvalues() -> None:
    # All of the plane of mean zero has the eigenvalue 1, and no positive vector is in it.
    G = np.eye(3) - 1 / 3
    assert norm_is_at_most(G, np.sqrt(2 / 3) * (1 + 1e-10))
    assert not norm_is_at_most(G, np.sqrt(2 / 3) * (1 - 1e-8))
    # Rows of an orthogonal frame: any vector has the gain 1.
    assert norm_is_at_most(np.eye(4), 1 + 1e-10)
    assert not norm_is_at_most(np.eye(4), 1 - 1e-10)


def test_nothing_is_proved_of_what_is_not_finite() -> None:
    assert not norm_is_at_most(np.array([[1.0, np.nan]]), 10.0)
    assert norm_is_at_most(np.zeros((3, 2)), 1e-300)


@pytest.mark.slow
def test_soft_rows_with_nonnegative_features_are_certified() -> None:
    rng = np.random.default_rng(0)
    for R, K, bias in ((7, 4, True), (5, 3, True), (6, 4, False)):
        rows = rng.dirichlet(np.full(K, 0.5), R)
        problem = ufm.Problem(
            targets=ufm.Targets(rows),
            feature_dim=R,
            loss=ufm.CrossEntropy(),
            regularizer=ufm.WeightDecay(0.02, 0.02),
            use_bias=bias,
            nonnegative_features=True,
        )
        solution = ufm.solve(problem).check()
        assert solution.certificate.holds
        # In fifty digits the bound lies below the objective.
        with mpmath.workdps(50):
            logits = [[mpmath.mpf(float(x)) for x in row] for row in solution.logits]
            data = mpmath.fsum(
                mpmath.log(mpmath.fsum(map(mpmath.exp, z))) - mpmath.fdot(map(float, y), z)
                for z, y in zip(logits, rows, strict=True)
            )
            squares = sum(np.sum(block**2) for block in (*solution.weights, solution.features))
            assert solution.certificate.lower_bound <= data / R + 0.01 * squares
