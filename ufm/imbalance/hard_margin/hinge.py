r"""Hinge losses reach the hard-margin solution at finite weight decay: a check by duality.

    min (1/N) sum_i l(z_i, y_i) + tau ||D^{1/2} Z||_*,    D = diag(n_k),

l the hinge of Weston and Watkins or of Crammer and Singer. For any u_k in the domain of the
conjugate l* of a row of class k, with the spectral norm of U = ((n_k / N) u_k / sqrt(n_k)) at most
tau, the minimum is at least -(1/N) sum_k n_k l*(u_k). At Z = P = I - J/K all hinges are zero, and
the polar factor of D^{1/2} P gives such u if N tau times its entries over sqrt(n_k) are slopes of
the loss.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ufm._support import (
    ArgumentError,
    check_instance,
    double_precision,
    holds_text,
    on_host,
    printed,
)
from ufm.problems import Problem, check_dense, class_samples
from ufm.solving import solve
from ufm.theory import seli

__all__ = ["HingeCheck", "hinge_check"]

CERTIFIED = 1e-10  # relative gap up to which a point is the minimum
GEOMETRY = 1e-6  # distance up to which the solution is the expected one
SHRUNK = 1e-14  # share by which a dual is scaled down, for rounding


@printed
class HingeCheck(NamedTuple):
    """Whether a hinge loss is minimal at the hard-margin solution, or at zero.

    Attributes:
        at_solution: The objective at the hard-margin solution, unit margins.
        at_zero: The objective at zero.
        lower_bound: Of the minimum, from a dual.
        expected: Which of the two is to be the minimum, "hard margins" or "zero".
        distance: Of the logits of a certified solution from the expected ones, relative to the
            hard-margin solution; infinite if it is not certified, NaN if none was asked for.
    """

    at_solution: float
    at_zero: float
    lower_bound: float
    expected: str
    distance: float

    @property
    def relative_gap(self) -> float:
        """What the expected point is above the lower bound, over it."""
        value = self.at_solution if self.expected == "hard margins" else self.at_zero
        return (value - self.lower_bound) / self.lower_bound

    @property
    def holds(self) -> bool:
        """Whether the expected point meets the bound, and the solution, if any, is that point."""
        return abs(self.relative_gap) <= CERTIFIED and not self.distance > GEOMETRY

    def __str__(self) -> str:
        return (
            f"hinge loss at {self.expected}: {holds_text(self.holds)}; objective "
            f"{self.at_solution:.12g} at hard margins, {self.at_zero:.12g} at zero, at least "
            f"{self.lower_bound:.12g}; distance of the solution {self.distance:.1e}"
        )


@on_host
def hinge_check(problem: Problem, *, solved: bool = False) -> HingeCheck:
    """Check that a hinge loss is minimal at the hard-margin solution with unit margins, or at zero.

    At zero is expected where the slopes that the solution needs are more than the loss has.

    Args:
        problem: One layer with weight decay, of classes; the loss with a conjugate.
        solved: Whether to solve the problem, too, and measure how far the solution is.

    Raises:
        ValueError: If the problem has target rows, or several layers.
    """
    check_instance("problem", problem, Problem)
    if not problem.one_hot or problem.num_layers != 1:
        raise ArgumentError("problem", "must have classes and one layer")
    check_dense(problem.num_classes)
    exact = seli(problem.class_counts)
    counts = np.asarray(problem.class_counts.per_class, np.float64)
    total = counts.sum()
    shares, roots = counts / total, np.sqrt(counts)
    tau = float(np.sqrt(np.prod(problem.regularizer.decays(1))))
    # (n_k / N) u_k = -tau sqrt(n_k) (polar factor)_k
    dual = -total * tau * np.asarray(exact.dual) / roots[:, None]
    with double_precision():
        samples = class_samples(problem, jnp.float64)
        loss, classes = problem.loss, problem.class_counts
        room = 1.0
        if np.min(loss.domain(jnp.asarray(dual), samples.targets, classes)) < 0:
            room = _largest_share(problem, dual, samples.targets)
        scaled = dual * room * (1 - SHRUNK)
        norm = np.linalg.norm(shares[:, None] * scaled / roots[:, None], 2)
        scaled = scaled * min(1.0, tau / norm) * (1 - SHRUNK)
        conjugate = np.asarray(loss.conjugate(jnp.asarray(scaled), samples.targets, classes))
        data = [
            float(problem.data_term(jnp.asarray(logits), samples))
            for logits in (np.asarray(exact.logits), np.zeros_like(dual))
        ]
    expected = "hard margins" if room == 1 else "zero"
    goal = np.asarray(exact.logits) if room == 1 else np.zeros_like(dual)
    return HingeCheck(
        at_solution=data[0] + tau * float(exact.value),
        at_zero=data[1],
        lower_bound=float(-shares @ conjugate),
        expected=expected,
        distance=_distance(problem, goal) if solved else float("nan"),
    )


def _distance(problem: Problem, logits: np.ndarray) -> float:
    """Return how far the logits of the certified solution are from these."""
    solution = solve(problem)
    certificate = solution.certificate
    if certificate is None or not certificate.holds:
        return float("inf")
    K = problem.num_classes
    return float(np.linalg.norm(np.asarray(solution.logits) - logits) / np.sqrt(K - 1))


def _largest_share(problem: Problem, dual: np.ndarray, targets: object) -> float:
    """Return the largest share of a dual that is in the domain of the conjugate, by its numbers.

    They are affine in the dual.
    """

    def numbers(share: float) -> np.ndarray:
        found = problem.loss.domain(jnp.asarray(share * dual), targets, problem.class_counts)  # type: ignore[arg-type]
        return np.asarray(found)

    none, whole = numbers(0.0), numbers(1.0)
    falling = whole < 0
    return float(np.min((none / np.where(falling, none - whole, 1))[falling]))
