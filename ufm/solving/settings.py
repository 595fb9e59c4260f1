"""The arguments of a single solve, checked and with their defaults."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from ufm._support import (
    ArgumentError,
    check_finite,
    check_instance,
    check_one_of,
    checked_whole,
    to_numpy,
    within_steps,
)
from ufm.certificates import Certificate, certificate_from, has_convex_form
from ufm.problems import (
    FewerRows,
    Parameters,
    Problem,
    Samples,
    checked_parameters,
    fewer_rows,
    narrowed,
    num_rows,
    one_count_per_class,
    samples_of,
)
from ufm.solving.methods import LBFGS, Method, default_steps, made_once
from ufm.solving.programs import HostAnswer, answer
from ufm.solving.starts import default_restarts

__all__ = [
    "Progress",
    "SolveSettings",
    "check_choices",
    "check_own_method",
    "checked_settings",
    "lowered",
]

Progress = Callable[[int, float, float], None]
T = TypeVar("T")

RESOLUTIONS = ("auto", "samples", "classes", "groups")
PRECISIONS = ("float64", "float32")
CONVEX_STEPS = 20_000  # few need them: a certificate says when to go on
SINGLE_FLOOR = 1e-4  # relative gradient that single precision reaches


class SolveSettings(NamedTuple):
    """The arguments of a solve over classes or samples.

    Attributes:
        stated: The problem as it was given.
        problem: The same with one count per class, and without dimensions that cannot be used.
        resolution: "classes" or "samples".
        samples: The rows of features.
        rows: Number of feature rows.
        fewer: How the rows of `problem` are related to those of `stated`.
        method: The method that the caller asked for, or None.
        draws: Generator of the initial points.
        tol: Relative gradient to reach.
        floor: Relative gradient that the precision allows.
        max_steps: Most steps from each start.
        restarts: Most random initial points.
        initial: The point to start from, or None.
        structured: Whether there are initial points near constructions of low objective.
        record_every: Steps from one record to the next; 0 for none.
        dtype: Precision of the descents.
        progress: Called with step, objective and relative gradient, or None.
        answer: Function from unknowns to the answer there.
        certificate: Function from unknowns to the certificate there, without the bracket of deep
            models.
    """

    stated: Problem
    problem: Problem
    resolution: str
    samples: Samples
    rows: int
    fewer: FewerRows
    method: Method | None
    draws: np.random.Generator
    tol: float
    floor: float
    max_steps: int
    restarts: int
    initial: Parameters | None
    structured: bool
    record_every: int
    dtype: np.dtype
    progress: Progress | None
    answer: Callable[[np.ndarray], HostAnswer]
    certificate: Callable[[np.ndarray], Certificate | None]

    @property
    def coordinates(self) -> Method:
        """A method whose unknowns are those of the solve."""
        return self.method or made_once(LBFGS)


def checked_settings(
    problem: Problem,
    method: Method | None,
    resolution: Literal["samples", "classes"],
    draws: np.random.Generator,
    tol: float,
    max_steps: Any,
    restarts: int | None,
    initial: Any,
    record_every: int,
    dtype: np.dtype,
    progress: Progress | None,
) -> SolveSettings:
    """Return the arguments of `ufm.solve` with their defaults.

    Raises:
        ValueError: If an argument is not valid.
    """
    if max_steps is None:
        max_steps = _default_steps(problem, method)
    max_steps = checked_whole("max_steps", max_steps, 0)
    rows = num_rows(problem, resolution)
    initial = _checked_initial(problem, initial, restarts, rows)
    floor = SINGLE_FLOOR if dtype == np.float32 else 0.0
    tol = max(tol, floor)
    fewer = FewerRows(one_count_per_class(problem))
    if method is None and initial is None and resolution == "classes":
        fewer = fewer_rows(fewer.problem)
        rows = fewer.problem.num_rows
    working = fewer.problem
    if method is None and initial is None:
        working = narrowed(working)
    default = initial is None and restarts is None
    if default:
        restarts = default_restarts(working, plain=method is None, rows=rows)
    coordinates = method or made_once(LBFGS)
    samples = samples_of(working, rows)
    at = _remembering(lambda x: to_numpy(answer(working, samples, coordinates, x)))
    return SolveSettings(
        stated=problem,
        problem=working,
        resolution=resolution,
        samples=samples,
        rows=rows,
        fewer=fewer,
        method=method,
        draws=draws,
        tol=tol,
        floor=floor,
        max_steps=within_steps(max_steps),
        restarts=restarts or 1,
        initial=initial,
        structured=default and method is None and resolution == "classes",
        record_every=within_steps(record_every),
        dtype=dtype,
        progress=progress,
        answer=at,
        certificate=_remembering(
            lambda x: lowered(certificate_from(working, at(x).inputs, tol), fewer)
        ),
    )


def lowered(certificate: Certificate | None, fewer: FewerRows) -> Certificate | None:
    """Return a certificate for the rows as they were stated from one for fewer rows."""
    if certificate is None or fewer.lift is None:
        return certificate
    lost = fewer.loss_of(certificate.objective)
    return certificate._replace(
        lower_bound=certificate.lower_bound - lost, rounding=certificate.rounding + lost
    )


def _checked_initial(problem: Problem, initial: Any, restarts: int | None, rows: int) -> Any:
    if initial is None:
        return None
    if restarts not in (None, 1):
        raise ArgumentError(
            "initial", f"is one point, but `restarts` is {restarts}", remedy="give one of the two"
        )
    initial = checked_parameters(problem, initial, "initial", (rows,))
    check_finite("initial", initial)
    return initial


def _default_steps(problem: Problem, method: Method | None) -> int:
    if method is not None and method.default_steps is not None:
        return method.default_steps
    return CONVEX_STEPS if has_convex_form(problem) else default_steps(problem)


def check_choices(problem: Any, method: Any, resolution: Any, dtype: Any) -> None:
    """Raise `ArgumentError` where one of these is not of its kind."""
    check_instance("problem", problem, Problem)
    if method is not None and not isinstance(method, Method):
        known = "ufm.LBFGS(), ufm.NewtonCG(), ufm.GradientDescent(...)"
        raise ArgumentError("method", f"must be {known} or a ufm.Method of your own", method)
    check_one_of("resolution", resolution, RESOLUTIONS)
    check_one_of("dtype", dtype, PRECISIONS)


def check_own_method(resolution: str, plain: bool) -> None:
    """Raise `ArgumentError` where groups are asked for with arguments that they do not take.

    Args:
        resolution: As `solve` takes it.
        plain: Whether no argument of other resolutions is given.
    """
    if resolution == "groups" and not plain:
        raise ArgumentError(
            "resolution",
            "'groups' has its own method: it takes no `method`, `initial`, `max_steps`, "
            "`restarts`, `record_every` or dtype 'float32'",
            remedy="leave them out, or use resolution='classes'",
        )


def _remembering(function: Callable[[np.ndarray], T]) -> Callable[[np.ndarray], T]:
    """Return the function with its last value kept: calls with equal arrays evaluate it once."""
    last: list[tuple[np.ndarray, T]] = []

    def call(x: np.ndarray) -> T:
        if not (last and np.array_equal(last[0][0], x)):
            x = np.array(x)  # a copy, because the array may be written to later
            last[:] = [(x, function(x))]
        return last[0][1]

    return call
