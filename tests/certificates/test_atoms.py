import fifty_digits
import numpy as np
import pytest
from tables import for_each

from ufm.certificates import relaxed_norm, violating_atom
from ufm.problems import Blocks

ROUNDING = 1e-14


def cheap_norm(dual: np.ndarray) -> float:
    gram = dual @ dual.T
    return float(
        np.sqrt(np.linalg.eigvalsh(gram + np.maximum(-gram * (1 - np.eye(len(gram))), 0))[-1])
    )


def duals(size: int, count: int, seed: int = 0) -> list[np.ndarray]:
    """Half noise, half like gradients of cross-entropy.

    The rows of those sum to zero and are negative on the diagonal.
    """
    rng = np.random.default_rng(seed)
    noise = [rng.normal(size=(size, size)) for _ in range(count // 2)]
    rows = [rng.dirichlet(np.ones(size), size) - np.eye(size) for _ in range(count - count // 2)]
    return noise + [np.sqrt(rng.uniform(1, 100, size))[:, None] * row for row in rows]


def with_gram(gram: np.ndarray) -> np.ndarray:
    return np.linalg.cholesky(gram)


def octant(steps: int = 400) -> np.ndarray:
    """(3, steps^2) unit vectors with non-negative entries, all over the octant."""
    theta, phi = np.meshgrid(*2 * (np.linspace(0, np.pi / 2, steps),))
    return np.stack(
        [np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)]
    ).reshape(3, -1)


@for_each("nonnegative", [False, True])
@for_each("size", [2, 3, 5, 8])
def test_an_atom_is_a_pair_of_unit_vectors_with_its_gain(size: int, nonnegative: bool) -> None:
    for dual in duals(size, 6):
        atom = violating_atom(dual, nonnegative)
        assert np.linalg.norm(atom.features) == pytest.approx(1, abs=ROUNDING)
        assert np.linalg.norm(atom.weights) == pytest.approx(1, abs=ROUNDING)
        assert not nonnegative or np.min(atom.features) >= 0
        # Along the atom the objective falls at the rate of the gain: <G, h w^T> = -||G^T h||.
        assert atom.features @ dual @ atom.weights == pytest.approx(-atom.gain, rel=ROUNDING)
        assert atom.gain == pytest.approx(np.linalg.norm(dual.T @ atom.features), rel=ROUNDING)


@for_each("size", [2, 3, 5, 8, 40])
def test_the_gain_of_a_signed_atom_is_the_spectral_norm(size: int) -> None:
    for dual in duals(size, 6):
        assert violating_atom(dual, False).gain == pytest.approx(np.linalg.norm(dual, 2), rel=1e-13)


@for_each("size", [2, 3, 5, 8])
def test_gain_relaxation_and_cheap_bound_are_ordered(size: int) -> None:
    for dual in duals(size, 8):
        gain, relaxed, cheap = violating_atom(dual, True).gain, relaxed_norm(dual), cheap_norm(dual)
        assert gain <= relaxed <= cheap * (1 + 1e-13)
        assert relaxed <= np.linalg.norm(dual, 2) * np.sqrt(size)


def test_against_the_exact_maximum_over_supports() -> None:
    for dual in duals(3, 16, seed=1):
        exact = fifty_digits.dual_norm(fifty_digits.rows_of(dual), True)
        assert relaxed_norm(dual) >= exact
        assert violating_atom(dual, True).gain == pytest.approx(float(exact), rel=1e-12)


def test_against_a_fine_grid() -> None:
    points = octant()
    for dual in duals(3, 12, seed=2):
        best = float(np.max(np.linalg.norm(dual.T @ points, axis=0)))
        assert best <= relaxed_norm(dual)
        assert best <= violating_atom(dual, True).gain * (1 + 1e-12)
        assert violating_atom(dual, True).gain == pytest.approx(best, rel=1e-4)


@for_each("size", [2, 3, 4])
def test_the_relaxation_is_exact_up_to_four_classes(size: int) -> None:
    for dual in duals(size, 10, seed=3):
        assert relaxed_norm(dual) == pytest.approx(violating_atom(dual, True).gain, rel=1e-6)


@for_each("sizes", [(3, 2), (1, 4), (2, 1, 3)])
def test_the_relaxation_over_groups_is_that_over_their_classes(sizes: tuple[int, ...]) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    for dual in duals(len(groups), 6, seed=4):
        blocks = Blocks.average(dual, groups)
        assert relaxed_norm(blocks) == pytest.approx(relaxed_norm(blocks.dense(groups)), rel=1e-9)


@for_each("size", [3, 6])
def test_where_rows_repel_one_class_alone_is_best(size: int) -> None:
    gram = np.diag(np.arange(size) + size + 1.0) - 0.5
    for norm in (
        violating_atom(with_gram(gram), True).gain,
        relaxed_norm(with_gram(gram)),
        cheap_norm(with_gram(gram)),
    ):
        assert norm == pytest.approx(np.sqrt(np.max(np.diag(gram))), rel=1e-12)


@for_each("size", [3, 6])
def test_where_rows_attract_the_perron_vector_is_best(size: int) -> None:
    gram = np.diag(np.arange(size) + 1.0) + 0.5
    dual = with_gram(gram)
    for norm in (violating_atom(dual, True).gain, relaxed_norm(dual), cheap_norm(dual)):
        assert norm == pytest.approx(np.linalg.norm(dual, 2), rel=1e-12)
    assert np.all(violating_atom(dual, True).features > 0)


@for_each("size", [1e-200, 1e-170, 1e-3, 1e6, 1e170])
def test_both_scale_with_the_dual_and_neither_overflows_nor_vanishes(size: float) -> None:
    dual = duals(3, 1)[0]
    assert violating_atom(size * dual, True).gain == pytest.approx(
        size * violating_atom(dual, True).gain, rel=1e-12
    )
    assert violating_atom(size * dual, False).gain == pytest.approx(
        size * violating_atom(dual, False).gain, rel=1e-12
    )
    assert relaxed_norm(size * dual) == pytest.approx(size * relaxed_norm(dual), rel=1e-9)


def test_zero_has_no_gain_and_what_is_not_finite_no_bound() -> None:
    assert relaxed_norm(np.zeros((3, 3))) == 0
    assert (
        violating_atom(np.zeros((3, 3)), True).gain
        == violating_atom(np.zeros((3, 3)), False).gain
        == 0
    )
    for bad in (np.inf, np.nan):
        assert relaxed_norm(np.full((3, 3), bad)) == np.inf
