"""One root finder for numbers and for traced arrays."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tables import for_each

from ufm._support import double_precision
from ufm.theory import root


@for_each("traced", [False, True])
@for_each("target", [1e-300, 1e-3, 0.5, 7.0])
def test_it_is_found_to_rounding(traced, target):
    with double_precision():
        low, high = (jnp.asarray(end) if traced else np.float64(end) for end in (-800.0, 30.0))
        found = root(lambda x, y: (jnp if traced else np).exp(x) - y, low, high, target)
    np.testing.assert_allclose(float(found), math.log(target), rtol=1e-12 if traced else 1e-15)


@pytest.mark.nightly
def test_elementwise_with_derivatives_in_both_modes():
    def roots(c):
        ends = jnp.zeros(2), 3 * jnp.ones(2)
        return root(lambda x, c: x**3 + x - c, *ends, c)

    with double_precision():
        c = jnp.asarray([2.0, 10.0])
        np.testing.assert_allclose(roots(c), [1.0, 2.0], rtol=1e-15)
        for jacobian in (jax.jacfwd, jax.jacrev):
            np.testing.assert_allclose(jacobian(roots)(c), np.diag([1 / 4, 1 / 13]), rtol=1e-14)


@for_each(("low", "high"), [(1.0, 2.0), (0.0, 1.0), (1.0, 1.0)])
def test_a_root_at_an_end(low, high):
    assert root(lambda x, c: x - c, np.float64(low), np.float64(high), 1.0) == 1


def test_without_a_sign_change_it_stays_inside():
    assert 0 <= root(lambda x, _: 1 + x, np.float64(0), np.float64(1), ()) <= 1
