"""Checks of arguments: the error has the argument, the value and the remedy as data and text."""

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain import a_problem

import ufm
from ufm._support import (
    ArgumentError,
    by_name,
    check_finite,
    check_instance,
    check_numbers,
    check_one_of,
    checked_key,
    checked_nonnegative,
    checked_positive,
    checked_whole,
    is_whole,
)


def test_the_error_is_data_and_text() -> None:
    error = ArgumentError("tol", "must be positive", np.float64(-1.0), "raise it")
    assert str(error) == "`tol` must be positive, got -1.0; raise it."
    assert (error.argument, error.value, error.remedy) == ("tol", -1.0, "raise it")
    assert str(ArgumentError("tol", "is missing")) == "`tol` is missing."
    assert str(ArgumentError("tol", "is no number", None)) == "`tol` is no number, got None."
    again = pickle.loads(pickle.dumps(ArgumentError("x", "must be 1", lambda: 2, "say 1")))
    assert (again.argument, again.remedy) == ("x", "say 1")
    assert "got <function" in str(again)
    assert isinstance(error, ValueError)
    with pytest.raises(ufm.ArgumentError) as caught:
        ufm.ClassGroups.step(4, -1.0, imbalance_ratio=2)
    assert (caught.value.argument, caught.value.value) == ("count", -1.0)


@pytest.mark.parametrize("value", [3, 3.0, np.int64(3), np.float32(3), np.array(3), np.uint8(3)])
def test_whole_numbers(value: Any) -> None:
    assert is_whole(value, 3)
    assert not is_whole(value, 4)
    assert type(checked_whole("steps", value, 3)) is int
    with pytest.raises(
        ArgumentError, match=r"`steps` must be a whole number of at least 4, got .*3"
    ):
        checked_whole("steps", value, 4)
    with pytest.raises(ArgumentError, match="`steps` must be at most 2, got"):
        checked_whole("steps", value, upper=2)


@pytest.mark.parametrize(
    "value", [2.5, np.nan, np.inf, -np.inf, "3", None, True, np.True_, (3,), 3j, object()]
)
def test_not_whole_numbers(value: Any) -> None:
    assert not is_whole(value, -100)
    with pytest.raises(ArgumentError, match="`steps` must be a whole number of at least -100, got"):
        checked_whole("steps", value, -100)


@pytest.mark.parametrize("value", [1, 1e-9, np.float32(0.5), np.int64(2)])
def test_positive_numbers(value: Any) -> None:
    assert checked_positive("tol", value) == checked_nonnegative("tol", value) == value
    assert checked_nonnegative("tol", 0) == 0
    for check in (checked_positive, checked_nonnegative):
        with pytest.raises(ArgumentError, match=r"`tol` must be a .*finite number.*, got -"):
            check("tol", -value)


@pytest.mark.parametrize("value", [0, np.nan, np.inf, "1", None, (1.0,), True])
def test_not_positive_numbers(value: Any) -> None:
    with pytest.raises(ArgumentError, match="`tol` must be a positive finite number, got"):
        checked_positive("tol", value)


@pytest.mark.parametrize(
    ("value", "limits", "message"),
    [
        ([1.0, -2.0], {"positive": True, "several": True}, "positive and finite, got -2.0."),
        ([1.0, np.nan], {"several": True}, "finite numbers, got nan."),
        ([0.5, -0.5], {"several": True, "lower": 0.0}, "finite numbers >= 0, got -0.5."),
        ([1.0], {}, r"a finite number, got \[1.0\]."),
        (1.0, {"lower": 0.0, "below": 1.0}, "a finite number >= 0 and below 1, got 1.0."),
        (
            1e-310,
            {"positive": True},
            r"a positive finite number, from 2.23e-308 to 1e\+300, got 1e-310.",
        ),
        ("a", {"remedy": "leave it out"}, "a finite number, got 'a'; leave it out."),
        (np.ma.masked_array([1.0, 2.0], [True, False]), {"several": True}, "finite numbers, got"),
    ],
)
def test_numbers_out_of_range(value: Any, limits: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=f"`x` must be {message}"):
        check_numbers("x", value, **limits)


def test_traced_numbers_pass_only_where_they_may_be_traced() -> None:
    jax.jit(lambda x: check_numbers("x", x, positive=True))(jnp.ones(()))
    with pytest.raises(ArgumentError, match="`tol` must be a positive finite number, got"):
        jax.jit(lambda x: checked_positive("tol", x))(1.0)


def test_names_are_looked_up_and_misspelt_ones_guessed() -> None:
    table = {"cosine": 1, "rank": 2}
    assert checked_key("quantity", "rank", table) == 2
    check_one_of("quantity", "cosine", table)
    message = r"`quantity` must be one of cosine, rank, got 'cosin' \(did you mean cosine\?\)\."
    with pytest.raises(ArgumentError, match=message) as caught:
        checked_key("quantity", "cosin", table)
    assert caught.value.value == "cosin"
    for value in (None, 3, ["rank"], "colour"):
        with pytest.raises(ArgumentError, match=r"must be one of cosine, rank, got [^(]*\.$"):
            check_one_of("quantity", value, table)


def test_entries_that_are_not_finite_are_found_anywhere_in_a_tree() -> None:
    check_finite("point", {"weights": (np.ones(2), 3.0), "bias": None})
    for bad in (np.nan, np.inf):
        with pytest.raises(ArgumentError, match=r"`point` must be finite, .*; leave it out\.$"):
            check_finite("point", (np.ones(2), (None, np.array([1.0, bad]))), "leave it out")


def test_instances_are_told_from_other_things() -> None:
    problem = a_problem()
    check_instance("problem", problem, ufm.Problem)
    with pytest.raises(ArgumentError, match=r"^`problem` must be a ufm\.Problem, got str\.$"):
        check_instance("problem", "this", ufm.Problem)
    with pytest.raises(ArgumentError, match=r"^`found` must be what `solve` returns, got Problem"):
        check_instance("found", problem, ufm.Solution, "what `solve` returns")


def test_parts_are_found_by_name_and_fields_by_index() -> None:
    parts = {"cosine": 1.0, "rank": 2.0}
    assert by_name((3, 4), "quantity", "rank", parts) == 2.0
    assert by_name((3, 4), "quantity", -1, parts) == 4
    assert by_name((3, 4), "quantity", slice(1), parts) == (3,)
    with pytest.raises(ArgumentError, match="`quantity` must be one of cosine, rank, got 'size'"):
        by_name((3, 4), "quantity", "size", parts)
