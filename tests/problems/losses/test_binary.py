"""Binary cross-entropy of balanced classes, with one logit per class: its closed forms."""

import numpy as np
import pytest
from balanced import solved
from tables import for_each

import ufm


def bce_value(K: int, t: float, own: float, other: float, shift: float) -> float:
    """Return the value of logits x P + (shift / K) J + b.

    Args:
        K: The number of classes.
        t: sqrt(n lambda_W lambda_H).
        own: The logit of the own class, bias included.
        other: That of any other class.
        shift: The singular value of the constant mode.
    """
    loss = np.log1p(np.exp(-own)) + (K - 1) * np.log1p(np.exp(other))
    return float(loss + t * ((K - 1) * (own - other) + abs(shift)))


def logits(K: int, c: float, g: float) -> tuple[float, float]:
    """Return the logits at which the gradients are those of the multipliers c = K t and g."""
    p, q = ((K - 1) * c - g) / K, (c + g) / K
    return float(np.log((1 - p) / p)), float(np.log(q / (1 - q)))


@pytest.mark.slow
@for_each(("K", "t"), [(4, 0.1), (3, 0.2)])
def test_a_free_bias_leaves_a_simplex(K: int, t: float) -> None:
    own, other = logits(K, K * t, 0.0)
    found = solved(ufm.BinaryCrossEntropy(), t, K, use_bias=True)
    assert found == pytest.approx(bce_value(K, t, own, other, 0.0), abs=1e-10)


@pytest.mark.slow
@for_each(("K", "t"), [(4, 0.1), (3, 0.1)])
def test_without_a_bias_features_carry_it(K: int, t: float) -> None:
    own, other = logits(K, K * t, K * t)
    shift = own + (K - 1) * other
    assert shift < 0
    found = solved(ufm.BinaryCrossEntropy(), t, K)
    assert found == pytest.approx(bce_value(K, t, own, other, shift), abs=1e-10)


@pytest.mark.slow
def test_classes_collapse_where_the_price_is_one_over_their_number() -> None:
    K = 4
    collapsed = K * np.log(K) - (K - 1) * np.log(K - 1)  # at the bias -log(K - 1)
    found = solved(ufm.BinaryCrossEntropy(), 1.01 / K, K, use_bias=True)
    assert found == pytest.approx(collapsed, abs=1e-10)
    assert solved(ufm.BinaryCrossEntropy(), 0.95 / K, K, use_bias=True) < collapsed - 1e-5
