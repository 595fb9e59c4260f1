"""The decorator that runs a test over a table."""

import pytest
from tables import for_each, slow, slow_but


def test_every_row_is_run_and_those_that_fail_are_named() -> None:
    seen = []

    @for_each("left", [1, 2])
    @for_each(("right", "expected"), [(1, True), (2, False), (3, False)])
    def equal(left: int, right: int, expected: bool) -> None:
        seen.append((left, right))
        assert (left == right) == expected

    with pytest.raises(ExceptionGroup, match="2 of 3 rows fail") as caught:
        equal()
    assert len(seen) == 6
    assert len(caught.value.exceptions) == 2
    assert caught.value.__notes__ == ["in row 1: left=2"]
    assert caught.value.exceptions[0].__notes__ == ["in row 0: right=1, expected=True"]


def test_fixtures_are_given_to_every_row(tmp_path: object) -> None:
    @for_each("number", range(3))
    def same(number: int, folder: object) -> None:
        assert folder is tmp_path

    same(folder=tmp_path)


def test_a_table_has_rows_and_none_with_marks_but_slow() -> None:
    for rows in ([], [slow(1)]):
        with pytest.raises(ValueError, match="needs rows"):
            for_each("number", rows)
    with pytest.raises(ValueError, match="no marks of its own"):
        for_each("number", [1, pytest.param(2, marks=pytest.mark.nightly)])


def test_slow_rows_are_a_slow_test() -> None:
    seen = []

    @for_each("number", slow_but(range(4), keep={1, 2}))
    @for_each(("left", "right"), [(0, 0), slow(0, 1)])
    def equal(number: int, left: int, right: int) -> None:
        seen.append(number)
        assert left == right

    outer, inner = "number_part", "left_and_right_part"
    tables = {mark.args[0]: mark.args[1] for mark in equal.pytestmark}
    assert tables.keys() == {outer, inner}
    for plain, rest in tables.values():
        assert [mark.name for mark in rest.marks] == ["slow"]
        equal(**{outer: plain, inner: plain})
        equal(**{outer: rest.values[0], inner: plain})
        with pytest.raises(ExceptionGroup, match="2 of 2 rows fail"):
            equal(**{outer: plain, inner: rest.values[0]})
        assert seen == [1, 2, 0, 3, 1, 2]
        seen.clear()


def test_a_row_may_skip_and_the_test_does_if_all_do() -> None:
    @for_each("number", range(3))
    def odd(number: int, least: int) -> None:
        if number < least:
            pytest.skip("small")
        assert number % 2 == 1

    with pytest.raises(AssertionError) as caught:
        odd(least=1)
    assert caught.value.__notes__ == ["in row 2: number=2"]
    with pytest.raises(pytest.skip.Exception, match="small"):
        odd(least=3)
