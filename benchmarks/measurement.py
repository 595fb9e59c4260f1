"""What is measured: when a method's objective first came within each target of the optimum."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["TARGETS", "Clock", "Measurement"]

TARGETS = (1e-4, 1e-8)

# A lower bound that is met to rounding may be undercut by rounding; anything more is a wrong
# objective.
ROUNDING = 1e-12


@dataclass
class Measurement:
    """One method on one problem.

    label: row of the table. optimum: certified lower bound on the optimal value, which gaps are
    relative to. arrivals: seconds to each target that was reached. gap: the smallest one reached.
    seconds: when that was. timed_out: whether the time limit ended the run. trouble: why there is
    no result, if so. note: a remark.
    """

    label: str
    optimum: float
    arrivals: dict[float, float] = field(default_factory=dict)
    gap: float = float("inf")
    seconds: float = 0.0
    timed_out: bool = False
    trouble: str = ""
    note: str = ""

    @property
    def done(self) -> bool:
        """Whether every target was reached."""
        return len(self.arrivals) == len(TARGETS)

    def report(self, seconds: float, objective: float) -> None:
        """Take note of an objective that was reached after so many seconds.

        Raises:
            ValueError: if the objective lies below the certified bound: it is another problem then.
        """
        gap = (objective - self.optimum) / self.optimum
        if gap < -ROUNDING:
            raise ValueError(
                f"objective {objective!r} is below the certified bound {self.optimum!r}"
            )
        self.reach(seconds, max(gap, 0.0))

    def reach(self, seconds: float, gap: float) -> None:
        """Take note of a relative gap that was reached after so many seconds."""
        if gap < self.gap:
            self.gap, self.seconds = gap, seconds
        for target in TARGETS:
            if gap <= target:
                self.arrivals[target] = min(seconds, self.arrivals.get(target, float("inf")))

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        arrivals = {repr(target): seconds for target, seconds in self.arrivals.items()}
        return asdict(self) | {"arrivals": arrivals}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Measurement":
        """Return the measurement that `to_json` wrote."""
        arrivals = {float(target): seconds for target, seconds in data["arrivals"].items()}
        return cls(**(data | {"arrivals": arrivals}))


class Clock:
    """A stop-watch that does not count the time spent on looking at the objective."""

    def __init__(self) -> None:
        self.started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time since the start, less the pauses."""
        return time.perf_counter() - self.started

    @contextmanager
    def paused(self) -> Iterator[float]:
        """Stop counting inside the context, which is given the seconds so far."""
        began = time.perf_counter()
        try:
            yield began - self.started
        finally:
            self.started += time.perf_counter() - began
