"""Exact solutions of the flow from balanced, aligned starts: one linear layer, no bias, d >= K.

Write U = sqrt(n) H, class by class. If U = diag(a) R and W = diag(a) R at the start, with R
semi-orthogonal, then U and W keep this form.

Squared error, equal penalties lambda on weights and features. Here U W^T = diag(s) with
s_k = a_k^2, and

    s_k' = (2 / N) s_k (sqrt(n_k) - N lambda - s_k).

This is a logistic curve to the capacity c_k = sqrt(n_k) - N lambda, the value at the minimum (to
zero if the capacity is not positive):

    s_k(t) = c_k / (1 + (c_k / s_k(0) - 1) exp(-2 c_k t / N)),
    s_k(t) = s_k(0) / (1 + 2 s_k(0) t / N)    for c_k = 0.

Large classes are learnt first, each at the time (N / 2 c_k) log(c_k / s_k(0) - 1). Saxe, McClelland
& Ganguli (ICLR 2014), arXiv:1312.6120, have this solution for these targets (recalled). Weight
decay and counts are derived here.

Cross-entropy, n samples in each of the K classes, no penalties. The start is the aligned simplex
ETF U = W, with U W^T = s (I - J/K), and this form stays. The margin m = z_y - z_c = s / sqrt(n) has
m' = (2 / sqrt(n)) m / (e^m + K - 1). Hence

    Ei(m) + (K - 1) log m = 2 t / sqrt(n) + constant,

with Ei the exponential integral. So m = log t + log log t + O(1), and the loss is
(K - 1) e^{-m} (1 + o(1)) ~ 1 / (t log t), a logarithm below 1/t. This is derived here. Lyu & Li
(ICLR 2020), arXiv:1906.05890, have this rate for homogeneous networks of two factors (recalled).
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import expi

from ufm._support import ArgumentError, checked_condition, holds_text, on_host, printed, table_lines
from ufm.dynamics.trajectory import Trajectory
from ufm.problems import CrossEntropy, Parameters, Problem, SquaredError
from ufm.theory import root

__all__ = ["ExactFlowCheck", "aligned_start", "entropy_clock", "exact_flow_check", "logistic_modes"]

ALIGNED = 1e-12  # relative deviation up to which a start counts as balanced and aligned


@printed
class ExactFlowCheck(NamedTuple):
    """A path compared with its closed form, at the kept times.

    Logits here have rows multiplied by the square roots of the counts.

    Attributes:
        times: Kept times, shape (M,).
        found: Logits of the classes, shape (M, K, K).
        expected: Logits by the closed form, shape (M, K, K).
        error: Largest entry of the difference, relative to the largest entry of the path, shape
            (M,).
        tolerance: What errors of the integrator explain.
    """

    times: Float[np.ndarray, " M"]
    found: Float[np.ndarray, "M K K"]
    expected: Float[np.ndarray, "M K K"]
    error: Float[np.ndarray, " M"]
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether there is a later time, and all errors are within tolerance; False with NaN."""
        return bool(self.times.size > 1 and np.all(self.error <= self.tolerance))

    def __str__(self) -> str:
        error = f"{np.max(self.error):.3g}, tolerance {self.tolerance:.3g}"
        found, expected = (np.max(np.abs(logits[-1])) for logits in (self.found, self.expected))
        rows = [
            ("exact flow", f"{holds_text(self.holds)} at {self.times.size} times"),
            ("largest error", error),
            ("last logits", f"largest entry {found:.6g}, expected {expected:.6g}"),
        ]
        return "\n".join(table_lines(rows))


@on_host
def aligned_start(problem: Problem, sizes: Any, *, key: int = 0) -> Parameters:
    """Return a balanced, aligned start: U = W = diag(sqrt(s)) R with random semi-orthogonal R.

    For cross-entropy it is centred, so that U W^T = s (I - J/K).

    Args:
        problem: One linear layer, no bias, d >= K.
        sizes: s, the singular values at the start: one positive number, or one per class for
            squared error.
        key: Integer seed of R.

    Raises:
        ValueError: If the problem or the sizes are other ones.
    """
    _checked(problem)
    K = problem.num_classes
    given = np.asarray(sizes, np.float64)
    per_class = type(problem.loss) is SquaredError and given.shape == (K,)
    if not ((given.shape == () or per_class) and np.all(np.isfinite(given)) and np.all(given > 0)):
        raise ArgumentError(
            "sizes",
            f"must be one positive number (or one per class, {K}, for squared error)",
            sizes,
        )
    rotation = np.linalg.qr(np.random.default_rng(key).standard_normal((problem.feature_dim, K)))[
        0
    ].T
    a = np.sqrt(np.broadcast_to(given, (K,)))[:, None] * rotation
    if type(problem.loss) is CrossEntropy:
        a = a - np.mean(a, axis=0, keepdims=True)
    return Parameters((a,), a / np.sqrt(np.asarray(problem.class_counts))[:, None], None)


@on_host
def logistic_modes(
    problem: Problem, sizes: Any, times: Any, *, penalty_factor: float = 1.0
) -> Float[np.ndarray, "T K"]:
    """Return s_k(t), the singular values of the logits, in the order of the classes.

    The logits have rows multiplied by sqrt(n_k).

    Args:
        problem: Squared error, one linear layer, no bias, d >= K, equal penalties.
        sizes: s(0): one positive number, or one per class.
        times: Times, shape (T,).
        penalty_factor: Factor of the penalties.

    Raises:
        ValueError: If the problem is another one.
    """
    _checked(problem)
    if type(problem.loss) is not SquaredError:
        raise ArgumentError(
            "problem",
            f"must have squared error for logistic modes, got {type(problem.loss).__name__}",
        )
    n = np.asarray(problem.class_counts, np.float64)
    decay = penalty_factor * problem.regularizer.decays(1)
    if not np.isclose(decay[0], decay[1], rtol=1e-12, atol=0):
        raise ArgumentError(
            "problem", f"must have equal penalties on weights and features, got {decay.tolist()}"
        )
    start = np.broadcast_to(np.asarray(sizes, np.float64), n.shape)
    capacity = (np.sqrt(n) - np.sum(n) * decay[0])[None, :]
    pace = 2 * np.asarray(times, np.float64)[:, None] / np.sum(n)
    # c / (1 + (c / s - 1) exp(-c p)) = s e^{c p} / (1 + s (e^{c p} - 1) / c). Of e^{c p} and
    # e^{-c p}, use the one that is below one.
    shrink = np.exp(-np.abs(capacity) * pace)
    span = np.where(
        capacity == 0,
        pace,
        -np.expm1(-np.abs(capacity) * pace) / np.where(capacity == 0, 1, np.abs(capacity)),
    )
    return np.where(
        capacity > 0, start / (shrink + start * span), start * shrink / (1 + start * span)
    )


@on_host
def entropy_clock(margins: Any, num_classes: int) -> Float[np.ndarray, " *T"]:
    """Return Ei(m) + (K - 1) log m, the clock of the margin.

    It grows as 2 t / sqrt(n) along the flow of balanced cross-entropy from an aligned ETF.

    Args:
        margins: m, positive, of any shape.
        num_classes: K.
    """
    return _clock(np.asarray(margins, np.float64), num_classes)


def _clock(m: Any, K: int) -> Any:
    return expi(m) + (K - 1) * np.log(m)


@on_host
def exact_flow_check(trajectory: Trajectory) -> ExactFlowCheck:
    """Check a path from an aligned start against the closed form of the whole logits.

    Args:
        trajectory: A path at class resolution.

    Raises:
        ValueError: If there is no closed form: the problem is another one, or the start is not
            balanced and aligned.
    """
    problem = trajectory.problem
    _checked(problem)
    n = np.asarray(problem.class_counts, np.float64)
    K, first = problem.num_classes, trajectory.point(0)
    if trajectory.resolution != "classes":
        raise ArgumentError(
            "trajectory", "must be at class resolution, got samples; the flow is the same"
        )
    roots = np.sqrt(n)[:, None]
    found = roots * np.einsum(
        "mkd,mjd->mkj", trajectory.points.features, trajectory.points.weights[0]
    )
    U, W = roots * first.features, np.asarray(first.weights[0])
    shape = np.eye(K) if type(problem.loss) is SquaredError else np.eye(K) - 1 / K
    sizes = np.diagonal(found[0]) / np.diagonal(shape)
    aligned = np.abs(found[0] - sizes[:, None] * shape)
    if np.max(np.abs(U - W)) > ALIGNED * np.max(np.abs(W)) or np.max(aligned) > ALIGNED * np.max(
        np.abs(found[0])
    ):
        raise ArgumentError(
            "trajectory", "must start balanced and aligned, as from `aligned_start`; it does not"
        )
    times = trajectory.kept_times
    if type(problem.loss) is SquaredError:
        modes = logistic_modes(problem, sizes, times, penalty_factor=trajectory.penalty_factor)
        expected = modes[:, :, None] * np.eye(K)
    else:
        if trajectory.penalty_factor != 0 or not np.all(n == n[0]):
            raise ArgumentError(
                "trajectory",
                "must have balanced classes and no penalties (penalty_factor=0) for cross-entropy",
            )
        margins = _margins_at(sizes[0] / np.sqrt(n[0]), 2 * times / np.sqrt(n[0]), K)
        expected = (np.sqrt(n[0]) * margins)[:, None, None] * shape
    error = np.max(np.abs(found - expected), axis=(1, 2)) / np.max(np.abs(expected))
    # Errors of single steps add up, and grow as the point grows.
    growth = np.max(np.abs(expected)) / np.max(np.abs(expected[0]))
    slip = trajectory.rtol + trajectory.atol / np.sqrt(np.max(np.abs(expected[0])))
    tolerance = float(2 * trajectory.steps[-1] * slip * min(growth, 2.0) + 1e-13)
    return ExactFlowCheck(
        times, found, expected, error, tolerance if trajectory.kind == "flow" else 1e-13
    )


def _margins_at(start: float, elapsed: np.ndarray, K: int) -> np.ndarray:
    """Return the margins at which the clock has advanced by `elapsed`."""
    goal = _clock(start, K) + elapsed
    logs = 2 + np.log1p(elapsed)
    # Over the last unit of the interval the clock advances by e^(h - 1) / h > elapsed or more.
    high = start + logs + np.log(logs)
    low = np.full_like(high, start)
    return np.asarray(root(lambda m, goal: _clock(m, K) - goal, low, high, goal))


def _checked(problem: Problem) -> None:
    needs = {
        "squared error or cross-entropy": type(problem.loss) in (SquaredError, CrossEntropy),
        "weight decay": problem.regularizer.halves_squares,
        "one layer": problem.num_layers == 1,
        "no bias": not problem.use_bias,
        "features of any sign": problem.feature_cone.rotates,
        "feature_dim >= num_classes": problem.feature_dim >= problem.num_classes,
    }
    checked_condition(needs, "problem", "an exact flow")
