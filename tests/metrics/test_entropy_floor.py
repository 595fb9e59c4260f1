"""The floor of the cross-entropy, against a direct minimisation."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp
from tables import for_each

from ufm._support import ArgumentError
from ufm.metrics import entropy_floor


def test_no_logits_are_below_the_floor_and_some_come_close() -> None:
    rng = np.random.default_rng(0)
    Y = rng.uniform(0.1, 1.0, size=(3, 4)) * np.array([[1.0], [2.0], [0.3]])
    n = np.array([1.0, 5.0, 2.0])

    def loss(z: np.ndarray) -> float:
        Z = z.reshape(Y.shape)
        each = Y.sum(axis=1) * logsumexp(Z, axis=1) - np.sum(Y * Z, axis=1)
        return float(n @ each / n.sum())

    found = minimize(loss, np.zeros(12), tol=1e-12).fun
    np.testing.assert_allclose(entropy_floor(Y, n), found, rtol=1e-9)


def test_known_floors() -> None:
    assert entropy_floor(np.eye(3)) == 0
    assert entropy_floor(np.zeros((2, 2))) == 0
    np.testing.assert_allclose(entropy_floor([[1, 1, 0]]), 2 * np.log(2))  # pick-all-labels
    np.testing.assert_allclose(entropy_floor([[0.5, 0.5, 0]]), np.log(2))


@for_each(
    ("rows", "counts", "named"),
    [
        ([0.5, 0.5], None, "rows"),
        ([[-0.5, 1.5]], None, "rows"),
        ([[0.5, 0.5]], [1.0, 2.0], "counts"),
        ([[0.5, 0.5]], [0.0], "counts"),
    ],
)
def test_bad_input_is_named(rows: object, counts: object, named: str) -> None:
    with pytest.raises(ArgumentError, match=f"^`{named}`"):
        entropy_floor(rows, counts)  # type: ignore[arg-type]
