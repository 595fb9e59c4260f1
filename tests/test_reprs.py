"""What public objects print: the call that makes them, or their numbers in a few lines."""

import enum
import importlib
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import numpy as np
import pytest

import ufm
from ufm._support import Module, printed, shown

ROOMS = (
    "comparison",
    "dynamics",
    "imbalance",
    "landscape",
    "metrics",
    "networks",
    "plots",
    "sweeps",
)


def public_classes() -> Iterator[type]:
    for room in ("ufm", "ufm.problems.losses", *(f"ufm.{room}" for room in ROOMS)):
        module = importlib.import_module(room)
        for name in module.__all__:
            found = getattr(module, name)
            if inspect.isclass(found) and found.__module__.startswith("ufm"):
                yield found


def prints_arrays_in_full(kind: type) -> bool:
    """Whether the `repr` of a class is the one that Python or Equinox gives, and shows arrays."""
    if issubclass(kind, (BaseException, enum.Enum)) or inspect.isabstract(kind):
        return False
    given = kind.__repr__
    plain = given in (object.__repr__, eqx.Module.__repr__, tuple.__repr__)
    named = getattr(given, "__module__", "") == "collections"
    arrays = any(
        "ndarray" in str(note) or "Array" in str(note)
        for note in vars(kind).get("__annotations__", {}).values()
    )
    return plain or (named and (arrays or kind.__str__ is not object.__str__))


def test_no_public_object_prints_its_arrays_in_full() -> None:
    # A pass over samples in progress is no result.
    found = {kind.__name__ for kind in public_classes() if prints_arrays_in_full(kind)}
    assert found - {"SecondPass"} == set()


class Found(NamedTuple):
    small: Any
    large: Any


def test_a_result_without_a_text_of_its_own_shows_its_fields_in_short() -> None:
    kind = printed(Found)
    found = kind(np.array([1.0, 1 / 3]), np.linspace(0, 2, 100).reshape(4, 25))
    assert repr(found) == str(found) == (
        "Found\n  small  [1.      , 0.333333]\n  large  float64 of shape (4, 25), 0 to 2"
    )  # fmt: skip
    assert found._repr_html_().startswith("<pre>Found\n")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1 / 3, "0.333333"),
        (3, "3"),
        (None, "None"),
        ("text", "text"),
        ((1.5, None), "(1.5, None)"),
        (list(range(20)), "(0, 1, 2, 3, 4, 5, 6, 7, ...)"),
        ({"a": 1}, "(a)"),
        (np.full((3, 4), np.nan), "float64 of shape (3, 4)"),
        (np.array(["a"]), "<U1 of shape (1,)"),
    ],
)
def test_values_in_short(value: Any, text: str) -> None:
    assert shown(value) == text


class Made(Module):
    """A module from outside."""

    rate: float = 0.5


def test_modules_print_the_call_that_makes_them() -> None:
    assert repr(Made(0.25)) == "Made(rate=0.25)"
    for made in (ufm.LBFGS(), ufm.NewtonCG(), ufm.GradientDescent(0.3), ufm.ClassGroups((3, 2))):
        again = eval(repr(made), vars(ufm).copy())
        assert eqx.tree_equal(made, again)
    solution = ufm.solve(
        ufm.Problem(
            class_counts=(5, 3),
            feature_dim=2,
            loss=ufm.SquaredError(),
            regularizer=ufm.WeightDecay(0.01, 0.01),
        )
    )
    prediction = ufm.predict(solution.problem)
    for result in (solution, solution.certificate, prediction, ufm.compare(solution, prediction)):
        assert repr(result) == str(result)
        assert len(repr(result).splitlines()) < 20
