"""Balanced one-hot problems with a closed form, solved."""

import numpy as np

import ufm
from ufm.problems import Loss


def solved(loss: Loss, price: float, K: int = 4, count: float = 5.0, **changes: object) -> float:
    """Return the certified optimal value of K balanced classes.

    Args:
        loss: The loss.
        price: t = sqrt(n lambda_W lambda_H) for n samples per class.
        K: The number of classes.
        count: n.
        **changes: Other arguments of `ufm.Problem`.
    """
    decay = float(price / np.sqrt(count))
    fields: dict[str, object] = {
        "class_counts": ufm.ClassGroups.balanced(K, count),
        "feature_dim": K,
        "loss": loss,
        "regularizer": ufm.WeightDecay(weights=decay, features=decay),
    }
    solution = ufm.solve(ufm.Problem(**(fields | changes)))  # type: ignore[arg-type]
    assert solution.certificate is not None
    assert solution.certificate.holds, solution.certificate
    return float(solution.objective)
