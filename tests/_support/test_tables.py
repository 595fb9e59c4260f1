"""Tables of texts: lines of equal columns, and HTML whose texts are escaped."""

from typing import NamedTuple

from ufm._support import counted, holds_text, html_table, printed, table_lines


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert table_lines([("a", "long head"), ("longer", "b")]) == ["a       long head", "longer  b"]
    assert table_lines([("a", "long"), ("bcd", "e")], str.rjust) == ["  a  long", "bcd     e"]


def test_html_has_a_head_and_escapes_its_texts() -> None:
    assert html_table([("a<b", "c"), ("1", "&")]) == (
        "<table><tr><th>a&lt;b</th><th>c</th></tr><tr><td>1</td><td>&amp;</td></tr></table>"
    )


def test_printed_results_have_one_text_in_every_place() -> None:
    @printed
    class Result(NamedTuple):
        value: float

        def __str__(self) -> str:
            return f"value < {self.value:g}"

    result = Result(2.0)
    assert str(result) == repr(result) == "value < 2"
    assert result._repr_html_() == "<pre>value &lt; 2</pre>"  # type: ignore[attr-defined]
    assert (holds_text(True), holds_text(False)) == ("holds", "DOES NOT HOLD")


def test_one_of_a_thing_is_not_many() -> None:
    assert [counted(number, "group") for number in (0, 1, 2, 1_000_000)] == [
        "0 groups",
        "1 group",
        "2 groups",
        "1000000 groups",
    ]
