"""The scalar equation of symmetric targets: its functions against their definitions."""

import numpy as np
import scipy.special
from tables import for_each

from ufm.theory import soft_row_logits, wright_omega


def test_omega_is_that_of_scipy() -> None:
    t = np.concatenate([np.linspace(-600, 50, 2001), np.geomspace(1, 1e7, 200)])
    np.testing.assert_allclose(wright_omega(t), scipy.special.wrightomega(t), rtol=1e-14)
    assert np.all(wright_omega(np.array([-1e4, -800.0])) > 0)


@for_each("curvature", [1e-6, 1e-2, 1.0, 1e3, 1e9])
def test_row_logits_are_stationary(curvature: float) -> None:
    rows = np.random.default_rng(0).dirichlet([0.3] * 5, 6) * np.arange(6.0)[:, None]
    rows[1, 2:] = 0
    masses = rows.sum(axis=1)
    logits = soft_row_logits(rows, masses, np.full(6, curvature))
    softmax = scipy.special.softmax(logits, axis=1)
    residual = masses[:, None] * softmax + curvature * logits - rows
    assert np.max(np.abs(residual)) < 1e-14 * (masses.max() + curvature * np.max(np.abs(logits)))
    assert np.all(logits[0] == 0)
    np.testing.assert_allclose(logits.mean(axis=1), 0, atol=1e-14 * np.max(np.abs(logits)))
