"""The stored table of the battery: what it must show, and that its rows add up."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest
from tables import for_each

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results.md"
LEAST = 5000  # problems
SHARE = 99.9  # per cent of the ordinary ones with a bound that are certified
GAP = 1.05e-9  # as printed with two digits
NUMBERS = {"ordinary", "extreme", "threshold", "many"}


class Row(NamedTuple):
    """A row of the table; a share is None where nothing has a bound."""

    numbers: str
    what: str
    tries: int
    certified: int
    share: float | None
    gap: float
    left: int
    violations: int


def section(text: str) -> str:
    """Return what stands below the heading of the battery."""
    return text.partition("## `python -m benchmarks.battery`")[2].partition("\n## ")[0]


def rows_of(text: str) -> list[Row]:
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 8 and cells[2].isdigit():
            share = float(cells[4].rstrip(" %")) if cells[4] else None
            counts = int(cells[2]), int(cells[3])
            left = int(cells[6]), int(cells[7])
            found.append(Row(*cells[:2], *counts, share, float(cells[5]), *left))
    return found


def objections(text: str) -> list[str]:
    """Return what the stored table does not show, a line each."""
    rows, found = {(row.numbers, row.what): row for row in rows_of(text)}, []
    total = re.search(r"^(\d+) problems, (\d+) tries, (\d+) violations$", text, re.MULTILINE)
    if total is None or ("all", "all") not in rows:
        return ["there is no table"]
    problems, tries, violations = map(int, total.groups())
    if problems < LEAST:
        found.append(f"{problems} problems")
    if violations or any(row.violations for row in rows.values()):
        found.append("violations")
    if not re.search(r"^seed \d+, commit [0-9a-f]{7,}$", text, re.MULTILINE):
        found.append("no seed, or changes since the commit")
    for (numbers, what), row in rows.items():
        bounded = row.certified + row.left
        share = 100 * row.certified / bounded if bounded else None
        if share is not None and (row.share is None or abs(row.share - share) > 0.005001):
            found.append(f"{numbers}, {what}: {row.share} is not {share}")
        if row.gap > GAP:
            found.append(f"{numbers}, {what}: certified with a gap of {row.gap}")
        if numbers == "ordinary" and share is not None and share < SHARE:
            found.append(f"ordinary, {what}: {share} % certified")
    for numbers in (*sorted(NUMBERS), "all"):
        parts = [row for row in rows.values() if row.numbers == numbers and row.what != "all"]
        if (numbers, "all") not in rows:
            found.append(f"{numbers} is missing")
            continue
        whole = rows[numbers, "all"]
        for name in ("tries", "certified", "left", "violations"):
            if sum(getattr(row, name) for row in parts) != getattr(whole, name):
                found.append(f"{numbers}: {name} do not add up")
    if rows["all", "all"].tries != tries:
        found.append("tries do not add up")
    return found


@pytest.fixture(scope="module")
def stored() -> str:
    if not RESULTS.exists():
        pytest.skip("benchmarks are not part of this copy")
    return section(RESULTS.read_text(encoding="utf-8"))


def test_the_stored_battery_shows_what_it_must(stored: str) -> None:
    assert objections(stored) == []
    rows = rows_of(stored)
    assert {row.numbers for row in rows} == {*NUMBERS, "all"}
    ordinary = {row.what for row in rows if row.numbers == "ordinary"}
    assert ordinary >= {
        f"{resolution}, {features}, {regularizer}"
        for resolution in ("classes", "groups")
        for features in ("signed", "nonnegative")
        for regularizer in ("decay", "ball")
    }
    losses = {row.what for row in rows if row.numbers == "all"}
    assert {"ce", "mse", "smoothing", "adjusted", "cdt", "ldt", "weighted-weighted"} <= losses


ROW = r"(?<=^\| ordinary  \| classes, signed, decay      )(.*)\|(.*)\|(.*)\|(.*)\|(.*)\|(.*)\|$"


@for_each(
    ("pattern", "new", "words"),
    [
        (r"^\d+ problems", "4999 problems", "4999 problems"),
        (r"\d+ violations$", "1 violations", "violations"),
        (ROW, r"\1|\2|\3|\4|\5| 1 |", "violations"),
        (ROW, r"\1|\2|\3|\4| 9 |\6|", "ordinary, classes, signed, decay: 100.0 is not"),
        (ROW, r"\1|\2| 99.80 % |\4|\5|\6|", "ordinary, classes, signed, decay: 99.8 is not"),
        (ROW, r"\1| 1 |\3|\4| 1 |\6|", "ordinary, classes, signed, decay: 50.0 % certified"),
        (ROW, r"\1|\2|\3| 1.1e-09 |\5|\6|", "ordinary, classes, signed, decay: certified with"),
        (ROW, r"\1|\2|\3|\4|\5|\6|" * 2, "ordinary: tries do not add up"),
        (r"^seed \d+, ", "", "no seed"),
        (r"\d+ tries, ", "9 tries, ", "tries do not add up"),
        (r"^\| all +\| all ", "| every | all ", "there is no table"),
    ],
)
def test_a_table_that_shows_less_is_refused(
    pattern: str, new: str, words: str, stored: str
) -> None:
    changed, count = re.subn(pattern, new, stored, count=1, flags=re.MULTILINE)
    assert count == 1
    assert any(line.startswith(words) for line in objections(changed)), objections(changed)
