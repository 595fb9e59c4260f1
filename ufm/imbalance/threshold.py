"""A threshold of collapse: its value, what collapses there, and on what evidence."""

import dataclasses
from typing import Any, Literal

from ufm._support import as_dict, printed
from ufm.problems import variable_of

__all__ = ["ALL", "COINCIDE", "VANISH", "Threshold", "ThresholdStatus"]

# Whether a search for a threshold has found one. It is no `Status`: there may be none to find, and
# the many solves behind it have each their own.
ThresholdStatus = Literal["found", "none", "unresolved", "unknown"]
COINCIDE, VANISH, ALL = "classifiers coincide", "features vanish", "everything vanishes"


@printed
@dataclasses.dataclass(frozen=True)
class Threshold:
    """The value of a number of a problem at which a collapse begins.

    Attributes:
        status: "found"; "none" if the range has no threshold; "unresolved" if solves show one but
            do not pin it down to the tolerance; "unknown" if no condition for this collapse is
            known, or no solve is certified.
        value: The threshold; None if there is none in the range.
        kind: What collapses, such as "minority classifiers coincide".
        vary: Which number varies.
        side: On which side of the threshold the collapse is, "above" or "below".
        condition: The condition of the collapse.
        exact: Whether it is the root of a condition in closed form.
        bracket: Values that are on the two sides of the threshold for certain; for an exact one the
            threshold itself, twice.
        error: Estimated relative error of the value.
        evaluations: Number of certified solves.
        relative_gap: The largest certified gap among them; zero without any.
        first_integer: For a number of classes, the first whole number that is collapsed.
        factor: For a common factor of penalties, what to multiply the given ones by.
        reference: Who found the condition.
        reason: Why there is no value; otherwise empty.
    """

    status: ThresholdStatus
    value: float | None
    kind: str
    vary: str
    side: str | None
    condition: str
    exact: bool
    bracket: tuple[float, float] | None
    error: float | None
    evaluations: int
    relative_gap: float
    first_integer: int | None
    factor: float | None
    reference: str
    reason: str

    @property
    def found(self) -> bool:
        """Whether the range has a threshold."""
        return self.status == "found"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary of plain values."""
        return as_dict(self)

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.kind}: no threshold in {self.vary} ({self.reason})"
        how = (
            "exact"
            if self.exact
            else f"{self.evaluations} certified solves, gaps <= {self.relative_gap:.0e}"
        )
        sign = ">=" if self.side == "above" else "<="
        variable = variable_of(self.vary)
        name = variable.short if variable is not None else self.vary
        extra = (
            f", {self.first_integer} as a whole number" if self.first_integer is not None else ""
        )
        extra += (
            f", {self.factor:.10g} times the penalties given" if self.factor is not None else ""
        )
        return f"{self.kind} at {name} {sign} {self.value:.10g}{extra} ({how}; {self.condition})"
