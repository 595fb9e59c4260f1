"""Tables of texts: lines of equal columns, and HTML whose texts are escaped."""

from ufm.tables import html_table, table_lines


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert table_lines([("a", "long head"), ("longer", "b")]) == ["a       long head", "longer  b"]
    assert table_lines([("a", "long"), ("bcd", "e")], str.rjust) == ["  a  long", "bcd     e"]


def test_html_has_a_head_and_escapes_its_texts() -> None:
    assert html_table([("a<b", "c"), ("1", "&")]) == (
        "<table><tr><th>a&lt;b</th><th>c</th></tr><tr><td>1</td><td>&amp;</td></tr></table>"
    )
