"""What results with formulas have in common."""

import dataclasses
from typing import ClassVar, NamedTuple

import numpy as np

from ufm.metrics.explained import Explained


class Inner(NamedTuple):
    number: float
    matrix: np.ndarray


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Found(Explained):
    CONVENTIONS: ClassVar[dict[str, str]] = {"one": "1", "missing": "never < shown"}

    one: float
    missing: float | None
    vector: np.ndarray
    matrix: np.ndarray
    inner: Inner


def test_what_was_not_measured_is_neither_printed_nor_exported() -> None:
    found = Found(1.25, None, np.arange(2.0), np.eye(2), Inner(3.0, np.eye(2)))
    assert found.to_dict() == {"one": 1.25, "vector": [0.0, 1.0], "inner": {"number": 3.0}}
    assert str(found).splitlines() == ["Found", "", "name  value  convention", "one   1.25   1"]
    shown = dataclasses.replace(found, missing=2.0)
    assert shown.to_dict()["missing"] == 2.0
    assert "never &lt; shown" in shown._repr_html_()
