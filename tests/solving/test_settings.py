"""The arguments of `solve`: what is not valid is named, with what to do."""

from typing import Any

import numpy as np
import pytest
from plain import K, a_problem
from tables import for_each

import ufm

PROBLEM = a_problem(use_bias=True)

BAD = [
    ({"method": "lbfgs"}, r"`method` must be ufm.LBFGS\(\), .* got 'lbfgs'"),
    ({"method": ufm.LBFGS}, "`method` must be"),
    ({"resolution": "groupings"}, "`resolution` must be .* got 'groupings'"),
    ({"dtype": "float16"}, "`dtype` must be one of float64, float32, got 'float16'"),
    ({"tol": 0}, "`tol` must be a positive finite number, got 0"),
    ({"tol": -1e-9}, "`tol` must be a positive finite number, got -1e-09"),
    ({"tol": np.nan}, "`tol` must be a positive finite number, got nan"),
    ({"tol": np.inf}, "`tol` must be a positive finite number, got inf"),
    ({"max_steps": -1}, "`max_steps` must be a whole number of at least 0, got -1"),
    ({"max_steps": 2.5}, "`max_steps` must be a whole number of at least 0, got 2.5"),
    ({"record_every": -1}, "`record_every` must be a whole number of at least 0, got -1"),
    ({"restarts": 0}, "`restarts` must be a whole number of at least 1, got 0"),
    ({"restarts": 1.5}, "`restarts` must be a whole number of at least 1, got 1.5"),
    ({"key": -1}, "`key` must be a JAX PRNG key or a non-negative integer, got -1"),
    ({"key": 1.5}, "`key` must be a JAX PRNG key or a non-negative integer, got 1.5"),
    ({"key": "a"}, "`key` must be a JAX PRNG key or a non-negative integer, got 'a'"),
    ({"tol": "a"}, "`tol` must be a positive finite number, got 'a'"),
    ({"max_steps": np.inf}, "`max_steps` must be a whole number of at least 0, got inf"),
    ({"max_steps": np.nan}, "`max_steps` must be a whole number of at least 0, got nan"),
    ({"restarts": None, "initial": np.ones(3)}, "`initial`"),
    ({"initial": ufm.Parameters((np.ones((K, 5)),), np.ones((K, 4)), np.ones(K))}, "`initial`"),
    ({"initial": ufm.Parameters((np.ones((K, 4)),), np.ones((K + 1, 4)), np.ones(K))}, "`initial`"),
    ({"initial": ufm.Parameters((np.ones((K, 4)),), np.ones((K, 4)))}, "`initial`"),
    (
        {"initial": ufm.Parameters((np.full((K, 4), np.inf),), np.ones((K, 4)), np.ones(K))},
        "finite",
    ),
    (
        {"initial": ufm.Parameters((np.ones((K, 4)),), np.ones((K, 4)), np.ones(K)), "restarts": 3},
        "`initial` is one point, but `restarts` is 3; give one of the two",
    ),
]


@for_each(("arguments", "message"), BAD)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ufm.solve(PROBLEM, **arguments)


def test_what_is_solved_is_a_problem() -> None:
    with pytest.raises(ValueError, match=r"`problem` must be a ufm.Problem, got str"):
        ufm.solve("problem")  # type: ignore[arg-type]


def test_real_counts_have_no_samples() -> None:
    problem = a_problem(class_counts=(5, 3, 2.5))
    with pytest.raises(
        ValueError, match=r"`resolution` 'samples' needs whole `class_counts`, got 2.5; use"
    ):
        ufm.solve(problem, resolution="samples")
