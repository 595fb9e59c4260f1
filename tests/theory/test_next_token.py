"""The centred supports and their test, and the second derivative of the nuclear norm."""

import numpy as np
import pytest
from tables import for_each

import ufm
from ufm.theory import second_order, support_proxy


def contexts(num_tokens, supports):
    rows = np.zeros((len(supports), num_tokens))
    for row, support in zip(rows, supports, strict=True):
        row[list(support)] = 1
    return ufm.Targets.contexts(rows)


FANO = ((0, 1, 2), (0, 3, 4), (0, 5, 6), (1, 3, 5), (1, 4, 6), (2, 3, 6), (2, 4, 5))


@for_each(
    ("num_tokens", "supports", "value", "verdict"),
    [
        (5, ((0, 1, 4), (0, 3, 4), (1, 2, 3)), 2.965937706049545, (True, True)),
        (4, ((0,), (0, 1), (0, 1, 2)), 2.554865846209121, (True, True)),
        (7, FANO, 6 * np.sqrt(2), (True, True)),
        (4, ((0, 1), (0, 1), (0, 1), (0, 2), (3,)), 3.366300080, (False, True)),
    ],
)
def test_centred_supports(num_tokens, supports, value, verdict):
    targets = contexts(num_tokens, supports)
    proxy = support_proxy(targets)
    inside = np.asarray(targets.rows) > 0
    np.testing.assert_allclose(proxy.value, value, atol=1e-9)
    np.testing.assert_allclose(proxy.logits.sum(axis=1), 0, atol=1e-14)
    own = np.where(inside, proxy.logits, 0).sum(axis=1) / inside.sum(axis=1)
    np.testing.assert_allclose((own[:, None] - proxy.logits)[~inside], 1, rtol=1e-14)
    np.testing.assert_allclose(np.sum(proxy.dual * proxy.logits), value, atol=1e-9)
    assert (bool(proxy.exact), bool(proxy.decided)) == verdict
    np.testing.assert_allclose(np.trace(proxy.weight_gram), proxy.value, rtol=1e-12)
    np.testing.assert_allclose(np.trace(proxy.feature_gram), proxy.value, rtol=1e-12)


def test_the_test_may_leave_it_open():
    # Two supports in a row each, of four rows: rank two of at most three.
    proxy = support_proxy(contexts(4, ((0, 1), (0, 1), (2,), (2,))))
    assert not proxy.decided


@for_each("rows", [[[0.5, -0.5]], [[0.0, 0.0]], [[0.5, 0.5]]])
def test_bad_targets(rows):
    with pytest.raises(ufm.ArgumentError, match="must have"):
        support_proxy(ufm.Targets(rows))


@for_each("shape", [(3, 3), (5, 3), (2, 4)])
def test_second_derivative_of_the_nuclear_norm(shape):
    rng = np.random.default_rng(list(shape))
    matrix, change = rng.normal(size=(2, *shape))
    h = 1e-4
    values = [np.linalg.norm(matrix + t * change, "nuc") for t in (-h, 0, h)]
    expected = (values[0] - 2 * values[1] + values[2]) / h**2
    np.testing.assert_allclose(second_order(matrix, change), expected, rtol=1e-5)
