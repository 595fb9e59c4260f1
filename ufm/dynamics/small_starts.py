"""Squared error with a bias from small starts: the linearised flow, and where the flow goes then.

Setting: balanced classes of n samples, N = K n, no penalties, and a bias that starts at zero. The
class means give U = sqrt(n) H-bar. Near zero the loss depends on Y - b alone. Then
b = (1 - e^{-t}) / K, and

    W' = (sqrt(n) / N) (I - beta J) U,    U' = (sqrt(n) / N) (I - beta J) W,
    beta = (1 - e^{-t}) / K,

while the deviations of samples from their class mean stand still. Across the ones vector, W + U
grows by exp(sqrt(n) t / N), and W - U shrinks by the same factor. Along the ones vector both stop
at exp(+-(sqrt(n) / N) (1 - e^{-t})). In direction, the linearised flow converges from any start to
the subspace

    within-class variation 0,    mean feature 0,    W = sqrt(n) H-bar,    b = 1 / K.

This is collapse of variability, centring and self-duality; distances within the subspace (the ETF)
come with the later flow. The linearised flow gets there when the growth factor is about one over
the size of the start. Then what stood still is as small, relative to what grew, as the start was.
The subspace is also invariant under the full flow.

Mixon, Parshall & Pi (2020), arXiv:2011.11619, have the linearised flow and this subspace ("strong
neural collapse"); recalled, not read. Derived here: the solution with its transients. Checked here:
the full flow against it, and that the final distance is proportional to the size of the start.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ufm._support import ArgumentError, checked_condition, holds_text, on_host, printed, table_lines
from ufm.dynamics.arguments import gaussian_start, stacked
from ufm.dynamics.flow import gradient_flow
from ufm.dynamics.trajectory import Trajectory
from ufm.problems import Parameters, Problem, SquaredError, lifted

__all__ = ["SmallStartCheck", "linearised_flow", "small_start_check", "strong_collapse_distance"]

# Least exponent of the distance in the size of the start. The derivation gives 1 to leading order;
# the rest is room for higher orders.
EXPONENT = 0.8
FITTED = 1e-3  # of the first objective: a flow that ends below this share has fitted the targets


@on_host
def linearised_flow(problem: Problem, initial: Parameters, times: Any) -> Parameters:
    """Return the flow linearised at zero features and weights, without penalties.

    Args:
        problem: Squared error, one linear layer with bias, balanced classes.
        initial: The start, with a zero bias. Features have one row per class, or one per sample.
        times: Times, shape (T,).

    Returns:
        Parameters with the axis of times first.

    Raises:
        ValueError: If the problem is another one, or the bias is not zero.
    """
    n, K = _checked(problem), problem.num_classes
    if initial.bias is None or np.any(np.asarray(initial.bias) != 0):
        raise ArgumentError(
            "initial", "must have a zero bias, from which the linearised flow is known"
        )
    H, W = np.asarray(initial.features, np.float64), np.asarray(initial.weights[0], np.float64)
    means = _class_means(problem, H)
    U = np.sqrt(n) * means
    rest = H - (means if len(H) == K else np.asarray(lifted(means, problem.class_counts)))
    points = []
    for time in np.atleast_1d(np.asarray(times, np.float64)):
        across, along = np.sqrt(n) / (K * n) * time, np.sqrt(n) / (K * n) * -np.expm1(-time)
        total, difference = (
            _split(part, np.exp(sign * across), np.exp(sign * along))
            for part, sign in ((W + U, 1), (W - U, -1))
        )
        grown = (total - difference) / (2 * np.sqrt(n))
        rows = grown if len(H) == K else np.asarray(lifted(grown, problem.class_counts))
        bias: Any = np.full(K, -np.expm1(-time) / K)
        points.append(Parameters(((total + difference) / 2,), rest + rows, bias))
    return stacked(points)


@on_host
def strong_collapse_distance(problem: Problem, parameters: Parameters) -> float:
    """Return the relative distance of weights and features from the invariant subspace.

    Args:
        problem: A problem as for `linearised_flow`.
        parameters: The point. Features have one row per class, or one per sample.

    Returns:
        The distance over the norm, both in flow coordinates, from 0 to 1.

    Raises:
        ValueError: If the problem is another one.
    """
    n = _checked(problem)
    H, W = (
        np.asarray(parameters.features, np.float64),
        np.asarray(parameters.weights[0], np.float64),
    )
    means = _class_means(problem, H)
    inside = _split((W + np.sqrt(n) * means) / 2, 1, 0)
    rest = H - (means if len(H) == len(means) else np.asarray(lifted(means, problem.class_counts)))
    count = n if len(H) == len(means) else 1.0
    # Sum the parts: a difference of squares would have no digits close to the subspace.
    parts = (W - inside, np.sqrt(n) * means - inside, np.sqrt(count) * rest)
    outside = np.sqrt(sum(np.sum(part**2) for part in parts))
    return float(outside / np.sqrt(np.sum(W**2) + count * np.sum(H**2)))


@printed
class SmallStartCheck(NamedTuple):
    """Flows from one direction at several sizes of the start.

    Attributes:
        scales: Sizes of the starts, shape (S,), descending.
        distances: Relative distances from the invariant subspace at the end of each flow, shape
            (S,).
        exponent: Slope of log distance against log size.
        paths: The trajectories.
    """

    scales: Float[np.ndarray, " S"]
    distances: Float[np.ndarray, " S"]
    exponent: float
    paths: tuple[Trajectory, ...]

    @property
    def holds(self) -> bool:
        """Whether all flows fit, and the distance falls as the start does; False with NaN."""
        fitted = all(path.objective[-1] < FITTED * path.objective[0] for path in self.paths)
        return bool(fitted and self.exponent >= EXPONENT and np.all(np.diff(self.distances) < 0))

    def __str__(self) -> str:
        verdict = f"{holds_text(self.holds)}, exponent {self.exponent:.4g}, at least {EXPONENT:g}"
        rows = [("small starts", verdict), ("size of start", "distance at the end")]
        pairs = zip(self.scales, self.distances, strict=True)
        rows += [(f"{scale:.3g}", f"{distance:.6g}") for scale, distance in pairs]
        return "\n".join(table_lines(rows))


@on_host
def small_start_check(
    problem: Problem,
    scales: Any = (1e-1, 1e-2, 1e-3),
    *,
    key: Any = 0,
    resolution: Any = "samples",
    rtol: float = 1e-9,
) -> SmallStartCheck:
    """Measure how near the invariant subspace flows end, for Gaussian starts of falling size.

    Args:
        problem: A problem as for `linearised_flow`. Its penalties are left out.
        scales: At least two standard deviations of the start, falling.
        key: JAX PRNG key or integer seed of the start.
        resolution: "classes" or "samples".
        rtol: Relative tolerance of one step of the integrator.

    Raises:
        ValueError: If the problem is another one, or there are fewer than two falling sizes.
        ImportError: If diffrax is not installed.
    """
    n = _checked(problem)
    sizes = np.asarray(scales, np.float64)
    if sizes.ndim != 1 or sizes.size < 2 or not np.all(np.diff(sizes) < 0) or not sizes[-1] > 0:
        raise ArgumentError("scales", "must be at least two falling positive numbers", scales)
    N, found = problem.num_classes * n, []
    for size in sizes:
        start = gaussian_start(problem, scale=float(size), key=key, resolution=resolution)
        end = N / np.sqrt(n) * (np.log(1 / size) + 30)
        times: Any = np.linspace(end / 40, end, 40)
        found.append(
            gradient_flow(
                problem,
                times=times,
                initial=start,
                penalty_factor=0.0,
                resolution=resolution,
                rtol=rtol,
            )
        )
    distances = np.array([strong_collapse_distance(problem, path.final) for path in found])
    exponent = float(np.polyfit(np.log(sizes), np.log(np.maximum(distances, 1e-300)), 1)[0])
    return SmallStartCheck(sizes, distances, exponent, tuple(found))


def _split(rows: np.ndarray, across: Any, along: Any) -> np.ndarray:
    """Return the rows with their mean times `along`, and the deviations from it times `across`."""
    mean = np.mean(rows, axis=0, keepdims=True)
    return across * (rows - mean) + along * mean


def _class_means(problem: Problem, H: np.ndarray) -> Any:
    """Return the mean row of each class. Classes are balanced, and their rows in order."""
    return np.mean(H.reshape(problem.num_classes, -1, H.shape[1]), axis=1)


def _checked(problem: Problem) -> float:
    """Return n, the number of samples of each class."""
    counts = np.asarray(problem.class_counts, np.float64)
    needs = {
        "squared error": type(problem.loss) is SquaredError,
        "one layer": problem.num_layers == 1,
        "a bias": problem.use_bias,
        "features of any sign": problem.feature_cone.rotates,
        "balanced classes": bool(np.all(counts == counts[0])),
    }
    checked_condition(needs, "problem", "the linearised flow")
    return float(counts[0])
