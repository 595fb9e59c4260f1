r"""Squared error with a bias from small starts: the linearised flow, and where the flow goes from there.

Balanced classes of n samples, N = K n, no penalties, a bias that starts at zero. U = sqrt(n) H-bar from the class means. Near zero the loss is felt
through Y - b alone: b = (1 - e^{-t}) / K, and

    W' = (sqrt(n) / N) (I - beta J) U,    U' = (sqrt(n) / N) (I - beta J) W,    beta = (1 - e^{-t}) / K,

while what samples differ from their class mean stands still. So W + U grows by exp(sqrt(n) t / N) across the ones vector and W - U shrinks by the
same; along it both stop at exp(+-(sqrt(n) / N) (1 - e^{-t})). In direction the linearised flow converges to the subspace

    within-class variation 0,    mean feature 0,    W = sqrt(n) H-bar,    b = 1 / K :

the collapse of variability, centring and self-duality, from any start (distances in it, the ETF, come with the later flow). It arrives when
e^{theta} is about one over the size of the start, so that what stood still is as small as the start was, relative to what grew; and the subspace
is invariant under the full flow, too.

Mixon, Parshall & Pi (2020), arXiv:2011.11619, have the linearised flow and this subspace ("strong neural collapse"), recalled, not read. Derived
here: the solution with its transients; checked: the full flow against it, and that the distance at the end falls in proportion to the start.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ufm.dynamics.arguments import gaussian_start, stacked
from ufm.dynamics.flow import gradient_flow
from ufm.dynamics.trajectory import Trajectory
from ufm.losses import SquaredError
from ufm.problem import Parameters, Problem
from ufm.resolutions import labels, lifted

__all__ = ["SmallStartCheck", "linearised_flow", "small_start_check", "strong_collapse_distance"]

EXPONENT = 0.8  # of the distance in the size of the start, 1 by the derivation, with room for what is of higher order


def linearised_flow(problem: Problem, initial: Parameters, times: Any) -> Parameters:
    """Return the flow linearised at zero features and weights, without penalties, at `times`: parameters with the axis of times first.

    Args:
        problem: squared error, one linear layer with bias, balanced classes.
        initial: where to start, with a zero bias; features of one row per class, or one per sample.
        times: (T,).

    Raises:
        ValueError: for other problems, or another bias.
    """
    n, K = _checked(problem), problem.num_classes
    if initial.bias is None or np.any(np.asarray(initial.bias) != 0):
        raise ValueError("`initial` must have a zero bias, from which the linearised flow is known.")
    H, W = np.asarray(initial.features, np.float64), np.asarray(initial.weights[0], np.float64)
    means = _class_means(problem, H)
    U = np.sqrt(n) * means
    rest = H - (means if len(H) == K else np.asarray(lifted(means, problem.class_counts)))
    points = []
    for time in np.atleast_1d(np.asarray(times, np.float64)):
        across, along = np.sqrt(n) / (K * n) * time, np.sqrt(n) / (K * n) * -np.expm1(-time)
        total, difference = (
            _split(part, np.exp(sign * across), np.exp(sign * along)) for part, sign in ((W + U, 1), (W - U, -1))
        )
        grown = (total - difference) / (2 * np.sqrt(n))
        features = rest + (grown if len(H) == K else np.asarray(lifted(grown, problem.class_counts)))
        points.append(Parameters(((total + difference) / 2,), features, np.full(K, -np.expm1(-time) / K)))  # type: ignore[arg-type]
    return stacked(points)


def strong_collapse_distance(problem: Problem, parameters: Parameters) -> float:
    """Return the distance of weights and features from the subspace above, over their norm, in the metric of the flow: from 0 to 1.

    Args:
        problem: as for `linearised_flow`.
        parameters: features of one row per class, or one per sample.
    """
    n = _checked(problem)
    H, W = np.asarray(parameters.features, np.float64), np.asarray(parameters.weights[0], np.float64)
    means = _class_means(problem, H)
    inside = _split((W + np.sqrt(n) * means) / 2, 1, 0)
    rest = H - (means if len(H) == len(means) else np.asarray(lifted(means, problem.class_counts)))
    count = n if len(H) == len(means) else 1.0
    # By parts, as a difference of squares would have no digits close to the subspace.
    parts = (W - inside, np.sqrt(n) * means - inside, np.sqrt(count) * rest)
    outside = np.sqrt(sum(np.sum(part**2) for part in parts))
    return float(outside / np.sqrt(np.sum(W**2) + count * np.sum(H**2)))


class SmallStartCheck(NamedTuple):
    """Flows from one direction at several sizes. scales, distances: (S,) size of the start, distance from the subspace at the end of the flow.

    exponent: the slope of their logarithms. paths: the trajectories.
    """

    scales: Float[np.ndarray, " S"]
    distances: Float[np.ndarray, " S"]
    exponent: float
    paths: tuple[Trajectory, ...]

    @property
    def holds(self) -> bool:
        """Whether the distance falls in proportion to the start, all flows fitting the targets; False with NaN."""
        fitted = all(path.objective[-1] < 1e-3 * path.objective[0] for path in self.paths)
        return bool(fitted and self.exponent >= EXPONENT and np.all(np.diff(self.distances) < 0))


def small_start_check(
    problem: Problem, scales: Any = (1e-1, 1e-2, 1e-3), *, key: Any = 0, resolution: Any = "samples", rtol: float = 1e-9
) -> SmallStartCheck:
    """Follow the flow without penalties from Gaussian starts of falling size, and measure how near the subspace it ends.

    Raises:
        ValueError: for other problems than `linearised_flow` has, or fewer than two sizes.
    """
    n = _checked(problem)
    sizes = np.asarray(scales, np.float64)
    if sizes.ndim != 1 or sizes.size < 2 or not np.all(np.diff(sizes) < 0) or not sizes[-1] > 0:
        raise ValueError(f"`scales` must be at least two falling positive numbers, got {scales!r}.")
    N, found = problem.num_classes * n, []
    for size in sizes:
        start = gaussian_start(problem, scale=float(size), key=key, resolution=resolution)
        end = N / np.sqrt(n) * (np.log(1 / size) + 30)
        times: Any = np.linspace(end / 40, end, 40)
        found.append(
            gradient_flow(problem, times=times, initial=start, penalty_factor=0.0, resolution=resolution, rtol=rtol)
        )
    distances = np.array([strong_collapse_distance(problem, path.final) for path in found])
    exponent = float(np.polyfit(np.log(sizes), np.log(np.maximum(distances, 1e-300)), 1)[0])
    return SmallStartCheck(sizes, distances, exponent, tuple(found))


def _split(rows: np.ndarray, across: Any, along: Any) -> np.ndarray:
    """Return the rows with their mean scaled by `along`, and the deviations from it by `across`."""
    mean = np.mean(rows, axis=0, keepdims=True)
    return across * (rows - mean) + along * mean


def _class_means(problem: Problem, H: np.ndarray) -> Any:
    if len(H) == problem.num_classes:
        return H
    return np.stack([np.mean(H[labels(problem.class_counts) == k], axis=0) for k in range(problem.num_classes)])


def _checked(problem: Problem) -> float:
    """Return n."""
    counts = np.asarray(problem.class_counts, np.float64)
    needs = {
        "squared error": type(problem.loss) is SquaredError,
        "one layer": problem.num_layers == 1,
        "a bias": problem.use_bias,
        "features of any sign": not problem.nonnegative_features,
        "balanced classes": bool(np.all(counts == counts[0])),
    }
    missing = [need for need, holds in needs.items() if not holds]
    if missing:
        raise ValueError(f"`problem` must have {', '.join(missing)} for the linearised flow.")
    return float(counts[0])
