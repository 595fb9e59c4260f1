"""Results as plain Python: what JSON takes, by the names of their fields."""

import dataclasses
import json
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ufm._support import as_dict, field_names, plain


class Inner(NamedTuple):
    row: Any
    number: Any


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Any
    listed: Any
    text: str = "text"


class Special(NamedTuple):
    value: float

    def to_dict(self) -> dict[str, Any]:
        return {"twice": 2 * self.value}


def test_results_become_dictionaries_by_name() -> None:
    inner = Inner(np.arange(3), np.float32(0.5))
    outer = Outer(inner, (jnp.ones(2, jnp.float32), {"a": np.int64(1)}, Special(1.0), None))
    expected = {
        "inner": {"row": [0, 1, 2], "number": 0.5},
        "listed": [[1.0, 1.0], {"a": 1}, {"twice": 2.0}, None],
        "text": "text",
    }
    assert plain(outer) == as_dict(outer) == expected
    assert json.loads(json.dumps(plain(outer))) == expected
    assert (field_names(outer), field_names(inner)) == (
        ("inner", "listed", "text"),
        ("row", "number"),
    )
    # Its fields, where a result is asked for them and not for its own dictionary.
    assert as_dict(Special(1.0)) == {"value": 1.0}
