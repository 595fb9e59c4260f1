"""Problems of the tests of dynamics, and paths with other values."""

from typing import Any

import equinox as eqx
import numpy as np
import pytest

import ufm
from ufm.dynamics import Trajectory

pytest.importorskip("diffrax")


COUNTS = (3, 2, 2)
SIZES = np.array([1e-3, 3e-3, 1e-4])


def stated(loss: Any = None, decay: Any = (1e-2, 1e-2), **others: Any) -> ufm.Problem:
    settings: dict[str, Any] = {
        "class_counts": COUNTS,
        "feature_dim": 4,
        "loss": loss or ufm.SquaredError(),
    }
    settings |= {"regularizer": ufm.WeightDecay(weights=decay[0], features=decay[1])} | others
    return ufm.Problem(**settings)


PROBLEM = stated()
ENTROPY = stated(ufm.CrossEntropy())
BALANCED = stated(ufm.CrossEntropy(), class_counts=(4, 4, 4))


def changed(path: Trajectory, **fields: Any) -> Trajectory:
    """Return the path with other values of its fields, or of its measures."""
    for name, value in fields.items():
        where = (
            (lambda p, n=name: getattr(p, n))
            if name in path.__dict__
            else (lambda p, n=name: getattr(p.measures, n))
        )
        path = eqx.tree_at(where, path, value)
    return path


# Condensation.

X = np.stack([np.linspace(-1, 1, 8), np.ones(8)], axis=1)
Y = np.sin(3 * X[:, 0]) - 0.6 * X[:, 0]
