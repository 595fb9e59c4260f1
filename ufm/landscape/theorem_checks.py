"""Claims of papers about the landscape, as checks that run.

Each check makes points at which the objective is stationary, and classifies them.

- One linear layer, weight decay, d > K: every critical point is a global minimum or a strict
  saddle. Cross-entropy: Zhu, Ding, Zhou, Li, You, Sulam & Qu (NeurIPS 2021), arXiv:2105.02375.
  Squared error: Zhou, Li, Ding, You, Qu & Zhu (ICML 2022), arXiv:2203.01238. The critical points
  here are the minimisers with fewer feature dimensions, from none to K - 1. For squared error
  without a bias there are also the minimisers without any subset of their modes.
- Non-negative features: local minima that are not global exist. The example is
  n = (200, 120, 70, 30, 10), both penalties 0.01. Descent from many starts ends at 1.13000113 with
  the fourth class dead. The minimum is 1.12811740, certified.
- q >= 3 factors: the origin is a local minimum for every loss. The data term moves only by the
  product of all factors, and the penalties curve upwards. It is not the global minimum if any
  solution is lower.
- Two layers with a ReLU between: the minimisers form valleys beyond the rotations of the feature
  space. Suppose that the outputs A of the hidden layer have disjoint supports (row k positive on
  its own I_k only). Then the inputs P = H W_1^T matter through A and ||D^{1/2} P||_* alone. By the
  polar decomposition, the P with the same A and norm are D^{1/2} P = S U, with U the normalised
  rows of D^{1/2} A, and S positive semi-definite with given diagonal and other entries at most
  zero. These are K (K - 1) / 2 numbers that are free while negative. The direction of every row
  within its units gives sum_k (|I_k| - 1) more. The rotations of the factors of P give
  K (K - 1) / 2 + K (d - K). So the minimisers have

      K (K - 1) + K (d - K) + sum_k (|I_k| - 1)

  flat directions (derived here; Tirer & Bruna (ICML 2022), arXiv:2202.08087, have the two-layer
  model for squared error). The flat directions of other models are only measured.

A check holds if every point is of the kind that the claim states. A point that is degenerate, or
not critical to the tolerance, never passes.
"""

import itertools
from typing import Any, NamedTuple

import numpy as np

from ufm._support import ArgumentError, holds_text, on_host, printed
from ufm.landscape.critical_points import CriticalPoint, classify
from ufm.problems import CrossEntropy, Parameters, Problem, SquaredError, WeightDecay
from ufm.solving import solve
from ufm.solving.methods import LBFGS, NewtonCG

__all__ = [
    "Checked",
    "LandscapeClaim",
    "Valley",
    "no_spurious_minima",
    "origin_is_a_local_minimum",
    "spurious_minima",
    "valley_dimension",
]

SUBSETS = 64  # most subsets of modes
STARTS = 12  # random starts of the search for spurious minima
VALLEY_STARTS = 4  # random starts of the search for a minimum with disjoint supports
COLLAPSED = 1e-6  # relative size up to which a singular value or an input counts as zero
ABOVE = 1e-6  # relative height above the minimum from which a local minimum is another one


@printed
class Checked(NamedTuple):
    """A point of a claim.

    Attributes:
        name: How the point was made.
        point: What it is.
        passed: Whether that is what the claim says.
    """

    name: str
    point: CriticalPoint
    passed: bool

    def __str__(self) -> str:
        mark = "  " if self.passed else "x "
        return f"{mark}{self.name}: {self.point.kind}, {self.point.objective:.10g}"


@printed
class LandscapeClaim(NamedTuple):
    """A claim, and the points at which it was checked.

    Attributes:
        claim: The claim.
        reference: Where it is from.
        points: The points.
        best: The lowest objective, certified if the problem has a tight bound.
    """

    claim: str
    reference: str
    points: tuple[Checked, ...]
    best: float

    @property
    def holds(self) -> bool:
        """Whether every point is what the claim says; False if there is none."""
        return bool(self.points) and all(checked.passed for checked in self.points)

    def __str__(self) -> str:
        verdict = f"{holds_text(self.holds)} at {len(self.points)} points"
        lines = [f"{self.claim} ({self.reference}): {verdict}"]
        lines += [str(checked) for checked in self.points]
        return "\n".join(lines)


@printed
class Valley(NamedTuple):
    """How flat a minimum is.

    Attributes:
        measured: Number of zero eigenvalues.
        symmetries: Number of symmetries of the model and of the activation cell.
        expected: Number of flat directions by the derivation; None if the structure is another one.
        point: The minimum, classified.
    """

    measured: int
    symmetries: int
    expected: int | None
    point: CriticalPoint

    def __str__(self) -> str:
        expected = "none" if self.expected is None else str(self.expected)
        return (
            f"valley: {holds_text(self.holds)}; {self.measured} flat directions, expected "
            f"{expected}, symmetries {self.symmetries}\n{self.point}"
        )

    @property
    def holds(self) -> bool:
        """Whether as many directions are flat as expected, at a minimum."""
        return (
            self.expected is not None and self.measured == self.expected and self.point.is_minimum
        )


@on_host
def no_spurious_minima(problem: Problem, *, tol: float = 1e-8) -> LandscapeClaim:
    """Check that critical points are global minima or strict saddles, and nothing else.

    Args:
        problem: One linear layer with weight decay, d > K, cross-entropy or squared error.
        tol: Relative gradient up to which a point counts as critical.

    Raises:
        ValueError: If the theorems do not apply.
    """
    names = {
        CrossEntropy: "Zhu et al. 2021, arXiv:2105.02375",
        SquaredError: "Zhou et al. 2022, arXiv:2203.01238",
    }
    reference = names.get(type(problem.loss))
    one_layer = not problem.hidden_dims and problem.feature_cone.rotates
    applies = one_layer and problem.regularizer.halves_squares and reference is not None
    if not applies or not problem.feature_dim > problem.num_classes:
        raise ArgumentError(
            "problem",
            "must have one linear layer, weight decay, cross-entropy or squared error and "
            f"feature_dim > num_classes for these theorems, got {problem}",
        )
    candidates = restricted_minimisers(problem)
    best = candidates[-1][1]
    if type(problem.loss) is SquaredError and not problem.use_bias:
        candidates += _without_modes(best)
    found = []
    for name, parameters in candidates:
        point = classify(problem, parameters, tol=tol)
        found.append(Checked(name, point, point.kind in ("global minimum", "strict saddle")))
    lowest = min(checked.point.objective for checked in found)
    claim = "critical points are global minima or strict saddles"
    return LandscapeClaim(claim, str(reference), tuple(found), lowest)


def restricted_minimisers(problem: Problem) -> list[tuple[str, Parameters]]:
    """Return the minimisers with 0, 1, ..., K feature dimensions, all of them critical points.

    A free or penalised bias is the best one for the logits.

    Args:
        problem: One linear layer.

    Returns:
        (name, parameters) for each number of dimensions.
    """
    draws = np.random.default_rng(0)
    K, d = problem.num_classes, problem.feature_dim
    found = []
    for rank in range(K + 1):
        # Where weights and features are both zero, so are their gradients, and they stay zero.
        used = np.arange(d)[None, :] < rank
        W, H = (np.where(used, draws.standard_normal((K, d)), 0.0) for _ in range(2))
        bias: Any = np.zeros(K) if problem.use_bias else None
        start: Any = Parameters((W,), H, bias)  # type: ignore[arg-type]
        solution = solve(problem, method=NewtonCG(), initial=start, tol=1e-12)
        name = f"a minimiser in {rank} dimensions" if rank else "the origin"
        found.append((name, solution.parameters))
    return found


@on_host
def spurious_minima(
    problem: Problem | None = None, *, starts: int = STARTS, tol: float = 1e-8
) -> LandscapeClaim:
    """Check that a problem has local minima that are not global.

    The points are the ends of descents from random starts, without escapes, that lie above the
    certified minimum and are critical. The claim holds if there are any, and all are local minima.

    Args:
        problem: A problem with non-negative features; the example above in 5 dimensions if not
            given.
        starts: Number of seeds to try.
        tol: Relative gradient up to which a point counts as critical.
    """
    if problem is None:
        problem = Problem(
            class_counts=(200, 120, 70, 30, 10),
            feature_dim=5,
            loss=CrossEntropy(),
            regularizer=WeightDecay(0.01, 0.01),
            nonnegative_features=True,
        )
    best = solve(problem)
    found = []
    for key in range(starts):
        rough = solve(problem, method=LBFGS(), key=key)
        if not rough.objective > best.objective * (1 + ABOVE):
            continue
        fine = solve(problem, method=NewtonCG(), initial=rough.parameters, tol=1e-11)
        point = classify(problem, fine, tol=tol)
        if point.kind != "not critical":
            found.append(Checked(f"start {key}", point, point.kind == "local minimum"))
    proved = best.certificate is not None and best.certificate.holds
    claim = "there are local minima above the minimum"
    claim += "" if proved else " found (not certified)"
    return LandscapeClaim(claim, "ufm, for non-negative features", tuple(found), best.objective)


@on_host
def origin_is_a_local_minimum(problem: Problem) -> LandscapeClaim:
    """Check that the origin is a local minimum, and not the global one if a solution is lower.

    If the model has a bias, the best constant one is taken.

    Args:
        problem: A problem of q >= 3 factors and weight decay.

    Raises:
        ValueError: If the problem has fewer factors, or norm balls.
    """
    if not problem.hidden_dims or not problem.regularizer.halves_squares:
        raise ArgumentError(
            "problem",
            "must have hidden layers and weight decay, got "
            f"hidden_dims={problem.hidden_dims}: with two factors the origin is a saddle or "
            "the global minimum",
        )
    best = solve(problem)
    dims = itertools.pairwise(problem.layer_dims)
    weights: Any = tuple(np.zeros((after, before)) for before, after in dims)
    features: Any = np.zeros((problem.num_classes, problem.feature_dim))
    bias: Any = np.zeros(problem.num_outputs) if problem.use_bias else None
    origin: Any = Parameters(weights, features, bias)
    if problem.use_bias:
        origin = solve(problem, method=NewtonCG(), initial=origin, tol=1e-12).parameters
    point = classify(problem, origin)
    passed = point.kind == "local minimum" and point.objective > best.objective
    claim = "the origin is a local minimum, and not the global one"
    return LandscapeClaim(
        claim, "ufm, for deep models", (Checked("the origin", point, passed),), best.objective
    )


@on_host
def valley_dimension(problem: Problem, parameters: Any = None, *, tol: float = 1e-8) -> Valley:
    """Count the flat directions at a minimum of a model with ReLU layers, measured and expected.

    Args:
        problem: The problem.
        parameters: A minimiser, such as a `Solution`. If not given, the problem is solved from a
            few starts, until the number of flat directions is known.
        tol: Relative gradient up to which a point counts as critical.

    Raises:
        ValueError: If shapes do not fit, or parameters violate the constraints.
    """
    if parameters is None:
        for key in range(VALLEY_STARTS):
            parameters = solve(problem, key=key, restarts=1)
            if _expected(problem, parameters) is not None:
                break
    point = classify(problem, parameters, tol=tol)
    expected = _expected(problem, parameters)
    return Valley(point.num_flat, point.symmetry_dimension, expected, point)


def _expected(problem: Problem, parameters: Any) -> int | None:
    """Return the dimension of the valley by the derivation.

    None unless there are two layers with a ReLU between them, the outputs have disjoint supports,
    and all other inputs are negative.
    """
    K, d = problem.num_classes, problem.feature_dim
    two_layers = (
        problem.activation == "relu"
        and len(problem.hidden_dims) == 1
        and not problem.use_bias
        and problem.feature_cone.rotates
    )
    if not two_layers or np.shape(parameters.features)[0] != K:
        return None
    inputs = np.asarray(parameters.features @ parameters.weights[0].T)
    floor = COLLAPSED * np.max(np.abs(inputs))
    active = inputs > floor
    disjoint = (
        np.all(np.sum(active, axis=0) == 1)
        and np.all(np.any(active, axis=1))
        and np.all(active | (inputs < -floor))
    )
    values = np.linalg.svd(inputs, compute_uv=False)
    if not disjoint or d < K or not values[min(K, values.size) - 1] > COLLAPSED * values[0]:
        return None
    return K * (K - 1) + K * (d - K) + inputs.shape[1] - K


def _without_modes(parameters: Parameters) -> list[tuple[str, Parameters]]:
    """Return the minimiser without any subset of its modes, up to a number of subsets.

    The subsets of none and of all modes are left out.
    """
    _, values, right = np.linalg.svd(parameters.weights[0], full_matrices=False)
    alive = np.flatnonzero(values > COLLAPSED * values[0])
    found = []
    for size in range(1, alive.size):
        for subset in itertools.combinations(alive, size):
            kept = right[list(subset)].T @ right[list(subset)]
            fewer = Parameters(
                (parameters.weights[0] @ kept,), parameters.features @ kept, parameters.bias
            )
            found.append(
                (f"the minimiser with its modes {[int(mode) for mode in subset]} only", fewer)
            )
    return found[:SUBSETS]
