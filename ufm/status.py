"""What became of a solve: codes that are data, with the message as part of the member."""

import enum

__all__ = ["Status"]


class Status(enum.IntEnum):
    """How a solve ended. `message` says what happened and what to do; `ok` is True where nothing needs doing."""

    message: str

    def __new__(cls, code: int, message: str) -> "Status":
        """Create a member whose value is its code."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.message = message
        return member

    RUNNING = 0, "still running."
    CONVERGED = 1, "converged: the gradient is below the tolerance."
    MAX_STEPS = 2, "out of steps before the gradient fell below the tolerance; raise `max_steps` or loosen `tol`."
    STALLED = (
        3,
        "stalled: no step along the search direction lowers the objective in this precision; "
        "the gradient reached is in `relative_gradient`. Loosen `tol`, or use another `key`.",
    )
    NON_FINITE = (
        4,
        "the objective or its gradient became infinite or NaN, and the last finite point is returned; "
        "lower the learning rate, or rescale the problem.",
    )
    NOT_CERTIFIED = (
        6,
        "stationary, but global optimality is not certified to `tol`: no direction out was found that lowers the objective. "
        "The gap reached is in `certificate`; raise `feature_dim`, or use another `key`.",
    )
    INTERRUPTED = 5, "interrupted from outside; the last point is returned."

    @property
    def ok(self) -> bool:
        """Whether the solve converged."""
        return self is Status.CONVERGED

    def __str__(self) -> str:
        return self.name.lower()
