"""Solver status codes with their messages."""

import enum

import numpy as np
from jaxtyping import Bool, Float, Int

__all__ = ["Status", "certified_status", "has_converged", "judged", "lowest"]


class Status(enum.IntEnum):
    """How a solve, flow, descent, or chain between minima ended.

    `message` says what happened and what to do. `ok` is True if nothing needs to be done. A status
    does not say what a result means: such answers are a `Literal` beside the type of the result.
    """

    message: str

    def __new__(cls, code: int, message: str = "") -> "Status":
        """Create a member whose value is its code. A look-up, `Status(code)`, has no message."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.message = message
        return member

    NOT_COMPUTED = -1, "not computed: the sweep has not come to this point."
    RUNNING = 0, "still running."
    CONVERGED = (
        1,
        "converged: the gradient is below the tolerance, or global optimality is certified to it.",
    )
    MAX_STEPS = (
        2,
        "out of steps before the gradient fell below the tolerance; raise `max_steps` or loosen "
        "`tol`.",
    )
    STALLED = (
        3,
        "stalled: no step along the search direction lowers the objective in this precision; "
        "the gradient reached is in `relative_gradient`. Loosen `tol`, or use another `key`.",
    )
    NON_FINITE = (
        4,
        "the objective or its gradient became infinite or NaN, and the last finite point is "
        "returned; lower the learning rate, or rescale the problem.",
    )
    NOT_CERTIFIED = (
        6,
        "stationary, but global optimality is not certified to `tol`: neither a direction out nor "
        "one of the starts was found to be lower. The gap reached is in `certificate`; raise "
        "`restarts` or `feature_dim`, or use another `key`.",
    )
    DUPLICATE = (
        7,
        "ended near a minimum to which another start was followed, and was not followed itself.",
    )
    INTERRUPTED = 5, "interrupted from outside; the last point is returned."
    FINISHED = 8, "followed to the last time that was asked for."
    FLOOR = (
        12,
        "converged to the floor of the scale, not relative to the objective: the objective is so "
        "far below its value at zero that rounding or underflow hides what is left to gain, and "
        "margins may be short of the minimiser's.",
    )
    INTEGRATION_FAILED = (
        9,
        "the differential equation could not be integrated further to the tolerances; loosen "
        "`rtol` and `atol`, or use solver='implicit'.",
    )
    CONTRADICTION = (
        10,
        "nothing is certified: the lower bound lies above the objective, or checks refute the "
        "loss. Its conjugate, gradient, convexity or infimum is not what it says: "
        "`print(ufm.losses.check_loss(problem.loss, problem.class_counts))`.",
    )

    @property
    def ok(self) -> bool:
        """Whether the solve converged, if only to the floor, or followed a flow to its end."""
        return self in (Status.CONVERGED, Status.FLOOR, Status.FINISHED)

    def __str__(self) -> str:
        return self.name.lower()


def has_converged(codes: Int[np.ndarray, "*batch"]) -> Bool[np.ndarray, "*batch"]:
    """Return whether solves with these status codes converged, if only to the floor."""
    return np.isin(codes, (Status.CONVERGED, Status.FLOOR))


def judged(
    codes: Int[np.ndarray, " *batch"],
    residuals: Float[np.ndarray, " *batch"],
    tol: float,
    unfinished: Status = Status.MAX_STEPS,
) -> Int[np.ndarray, " *batch"]:
    """Return the codes in view of the tolerance that was asked for.

    The stages of a solve have tolerances of their own.

    Args:
        codes: Codes of solves that ran to the end of their stages, or were stopped.
        residuals: Relative gradients where they ended.
        tol: Relative gradient up to which a solve has converged.
        unfinished: The code of a solve that is still running above the tolerance.
    """
    codes = np.array(codes)
    codes[((codes == Status.STALLED) | (codes == Status.RUNNING)) & (residuals <= tol)] = (
        Status.CONVERGED
    )
    codes[(codes == Status.CONVERGED) & (residuals > tol)] = Status.MAX_STEPS
    codes[codes == Status.RUNNING] = unfinished
    return codes


def certified_status(status: Status, holds: bool, tight: bool) -> Status:
    """Return the status of a point in view of its certificate, however the point was found.

    If the certificate holds, a stalled point counts as converged. If it could hold and does not, a
    converged point counts as not certified.

    Args:
        status: Status of the method that reached the point.
        holds: Whether the certificate holds.
        tight: Whether its bound can be expected to meet the optimal value.
    """
    if status == Status.STALLED and holds:
        return Status.CONVERGED
    if status == Status.CONVERGED and tight and not holds:
        return Status.NOT_CERTIFIED
    return status


def lowest(values: Float[np.ndarray, "*batch R"]) -> Int[np.ndarray | np.integer, " *batch"]:
    """Return the index of the lowest finite objective of R; zero where none is finite."""
    return np.argmin(np.where(np.isfinite(values), values, np.inf), axis=-1)
