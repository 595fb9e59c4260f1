"""The atlas: all theorems, and the prediction of the first that covers a problem.

Of two theorems that cover a problem, the more specific one comes first. Upper bounds, disputed
claims, and theorems about the landscape, dynamics or hard margins never answer for a prediction.

Every file of `ufm.theory.theorems` has its theorems in a tuple `THEOREMS`; the atlas finds them
there. Where theorems of two files cover the same problem, the order of the names of the files
decides, which for those that are there is right.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import final, get_args

import numpy as np

from ufm._support import checked_key, html_table, on_host, table_lines
from ufm.problems import Problem, check_dense
from ufm.theory.theorem import NoPrediction, Prediction, Standing, Theorem

__all__ = ["Atlas", "predict", "theorems"]


@final
class Atlas:
    """An ordered collection of theorems, looked up by name.

    Args:
        members: The theorems, or a function that returns them, which is called on first use.
    """

    def __init__(self, members: tuple[Theorem, ...] | Callable[[], tuple[Theorem, ...]]):
        self._given = members

    @property
    def _members(self) -> tuple[Theorem, ...]:
        if callable(self._given):
            self._given = self._given()
        return self._given

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in the order of the atlas."""
        return tuple(theorem.name for theorem in self)

    @property
    def predictive(self) -> tuple[Theorem, ...]:
        """Those that answer for predictions: no upper bounds, nothing disputed."""
        return tuple(theorem for theorem in self if theorem.predictive)

    def predict(self, problem: Problem) -> Prediction:
        """Return the prediction of the first theorem that covers `problem`.

        Only theorems that say what the minimiser is are asked. An upper bound, or a disputed claim,
        is to be asked by its name: `theorems[name].predict(problem)`.

        Raises:
            NoPrediction: If none does; it lists for each the conditions that do not hold.
        """
        if isinstance(problem, Problem):
            check_dense(problem.num_classes)
        return self._first_that_covers(problem).predict(problem)

    def predict_groups(self, problem: Problem, groups: np.ndarray) -> Prediction:
        """Return what `predict` does, over groups of interchangeable classes.

        K x K matrices are `Blocks` where the formula allows it.

        Args:
            problem: The problem.
            groups: (K,), the group 0, ..., G - 1 of every class, as `Solution.groups` has it.

        Raises:
            NoPrediction: If none does; it lists for each the conditions that do not hold.
            ValueError: The formula needs explicit matrices, and K is too large for them.
        """
        return self._first_that_covers(problem).predict_groups(problem, groups)

    def _first_that_covers(self, problem: Problem) -> Theorem:
        failures = {}
        for theorem in (theorem for theorem in self if theorem.about == "minimum"):
            applicability = theorem.applies(problem)
            if applicability and theorem.predictive:
                return theorem
            failures[theorem.name] = applicability.failing or (theorem.no_minimiser,)
        raise NoPrediction(failures)

    def __iter__(self) -> Iterator[Theorem]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, name: object) -> bool:
        return name in self.names or name in self._members

    def __getitem__(self, name: str) -> Theorem:
        return checked_key("name", name, {theorem.name: theorem for theorem in self})

    def __str__(self) -> str:
        cells = [(one.name, f"{one.mark}{one.title} ({one.reference})") for one in self]
        return "\n".join(table_lines(cells))

    def __repr__(self) -> str:
        return f"<atlas of {len(self)} theorems>\n{self}"

    def _repr_html_(self) -> str:
        head = ("name", "title", "reference", "statement")
        rows = ((one.name, one.mark + one.title, one.reference, one.statement) for one in self)
        return html_table([head, *rows])


# Imported here and not on first use, when it would take the name of the atlas in the room.
families = importlib.import_module("ufm.theory.theorems")


def _collected() -> tuple[Theorem, ...]:
    files = pkgutil.iter_modules(families.__path__, f"{families.__name__}.")
    found = [one for file in files for one in importlib.import_module(file.name).THEOREMS]
    return tuple(sorted(found, key=lambda theorem: get_args(Standing).index(theorem.status)))


theorems = Atlas(_collected)  # on first use, so that `import ufm` costs little


@on_host
def predict(problem: Problem) -> Prediction:
    """Return what the first theorem that covers `problem` says about its global minimiser.

    All arrays are NumPy float64. Quantities that the theorem does not determine are None.

    Raises:
        NoPrediction: If none does; it lists for each the conditions that do not hold.
    """
    return theorems.predict(problem)
