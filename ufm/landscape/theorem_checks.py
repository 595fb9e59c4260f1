r"""What the literature says of the landscape, as checks that run: points at which the objective is stationary are made, and each is classified.

- One linear layer, weight decay, d > K: every critical point is a global minimum or a strict saddle. Cross-entropy: Zhu, Ding, Zhou, Li, You, Sulam &
  Qu (NeurIPS 2021), arXiv:2105.02375; squared error: Zhou, Li, Ding, You, Qu & Zhu (ICML 2022), arXiv:2203.01238. The critical points here are the
  minimisers with fewer feature dimensions, from none to K - 1, and for squared error without a bias the minimiser less any subset of its modes.
- Non-negative features: local minima that are not global exist. The example is n = (200, 120, 70, 30, 10), both penalties 0.01, where descent from
  many starts ends at 1.13000113 with the fourth class dead, and the minimum is 1.12811740, certified.
- q >= 3 factors: the origin is a local minimum, whatever the loss (its data term moves by the product of all factors only, and the penalties curve
  upwards), and not the global one where any solution is lower.
- Two layers with a ReLU between: the minimisers form valleys beyond the rotations of the feature space. If the outputs A of the hidden layer have
  disjoint supports (row k positive on its own I_k only), the inputs P = H W_1^T matter through A and ||D^{1/2} P||_* alone, and by the polar
  decomposition the P with the same A and norm are D^{1/2} P = S U with U the normalised rows of D^{1/2} A and S positive semi-definite, its diagonal
  given and the rest at most zero: K (K - 1) / 2 numbers that are free while negative. With sum_k (|I_k| - 1) for the direction of every row within
  its units, and the rotations K (K - 1) / 2 + K (d - K) of the factors of P, the minimisers have

      K (K - 1) + K (d - K) + sum_k (|I_k| - 1)

  flat directions (derived here; Tirer & Bruna (ICML 2022), arXiv:2202.08087, have the two-layer model for squared error). Those of other models are
  only measured.

A check holds where every point is what it should be; a point that is not critical to the tolerance, or degenerate, does not pass for anything.
"""

import itertools
from typing import Any, NamedTuple

import numpy as np

from ufm.landscape.critical_points import CriticalPoint, classify
from ufm.losses import CrossEntropy, SquaredError
from ufm.pipeline import solve
from ufm.problem import Parameters, Problem
from ufm.regularizers import WeightDecay
from ufm.solvers import LBFGS, NewtonCG

__all__ = [
    "Checked",
    "LandscapeClaim",
    "Valley",
    "no_spurious_minima",
    "origin_is_a_local_minimum",
    "spurious_minima",
    "valley_dimension",
]

SUBSETS = 64
STARTS = 12
COLLAPSED = 1e-6


class Checked(NamedTuple):
    """A point: how it was made, what it was found to be, and whether that is what the claim says."""

    name: str
    point: CriticalPoint
    passed: bool


class LandscapeClaim(NamedTuple):
    """A claim and the points at which it was checked. best: the lowest objective, certified where the problem has a tight bound."""

    claim: str
    reference: str
    points: tuple[Checked, ...]
    best: float

    @property
    def holds(self) -> bool:
        """Whether every point is what the claim says; False if there is none."""
        return bool(self.points) and all(checked.passed for checked in self.points)

    def __str__(self) -> str:
        verdict = "holds" if self.holds else "DOES NOT HOLD"
        lines = [f"{self.claim} ({self.reference}): {verdict} at {len(self.points)} points"]
        lines += [
            f"{'  ' if passed else 'x '}{name}: {point.kind}, {point.objective:.10g}"
            for name, point, passed in self.points
        ]
        return "\n".join(lines)


class Valley(NamedTuple):
    """How flat a minimum is.

    measured: zero eigenvalues. symmetries: those of the model and of the activation cell. expected: see above; None where the structure is not
    that of the derivation. point: the minimum, classified.
    """

    measured: int
    symmetries: int
    expected: int | None
    point: CriticalPoint

    @property
    def holds(self) -> bool:
        """Whether as many directions are flat as expected, at a minimum; False where nothing is expected."""
        return self.expected is not None and self.measured == self.expected and self.point.is_minimum


def no_spurious_minima(problem: Problem, *, tol: float = 1e-8) -> LandscapeClaim:
    """Check that critical points are global minima or strict saddles, and nothing else.

    Args:
        problem: one linear layer with weight decay, d > K, cross-entropy or squared error.
        tol: relative gradient up to which a point counts as critical.

    Raises:
        ValueError: where the theorems do not apply.
    """
    names = {CrossEntropy: "Zhu et al. 2021, arXiv:2105.02375", SquaredError: "Zhou et al. 2022, arXiv:2203.01238"}
    reference = names.get(type(problem.loss))
    one_layer = not problem.hidden_dims and not problem.nonnegative_features
    applies = one_layer and isinstance(problem.regularizer, WeightDecay) and reference is not None
    if not applies or not problem.feature_dim > problem.num_classes:
        raise ValueError(
            "`problem` must have one linear layer, weight decay, cross-entropy or squared error and feature_dim > num_classes for these "
            f"theorems, got {problem}."
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
    """Return the minimisers with 0, 1, ..., K feature dimensions as points of a problem of one linear layer: all of them are critical there.

    Where a bias is free or penalised, it is the best one for the logits.
    """
    draws = np.random.default_rng(0)
    K, d = problem.num_classes, problem.feature_dim
    found = []
    for rank in range(K + 1):
        # Dimensions in which weights and features are zero stay so: their gradients are.
        used = np.arange(d)[None, :] < rank
        W, H = (np.where(used, draws.standard_normal((K, d)), 0.0) for _ in range(2))
        start: Any = Parameters((W,), H, np.zeros(K) if problem.use_bias else None)  # type: ignore[arg-type]
        solution = solve(problem, method=NewtonCG(), initial=start, tol=1e-12)
        name = f"a minimiser in {rank} dimensions" if rank else "the origin"
        found.append((name, solution.parameters))
    return found


def spurious_minima(problem: Problem | None = None, *, starts: int = STARTS, tol: float = 1e-8) -> LandscapeClaim:
    """Check that a problem has local minima that are not global: descents from random starts, without escapes.

    The points are the ends that lie above the certified minimum and are critical; the claim holds if there are any and all are local minima.

    Args:
        problem: of non-negative features; the example above in 5 dimensions if not given.
        starts: seeds to try.
        tol: relative gradient up to which a point counts as critical.
    """
    if problem is None:
        problem = Problem(
            class_counts=(200, 120, 70, 30, 10),
            feature_dim=5,
            loss=CrossEntropy(),
            regularizer=WeightDecay(0.01, 0.01),  # type: ignore[arg-type]
            nonnegative_features=True,
        )
    best = solve(problem)
    found = []
    for key in range(starts):
        rough = solve(problem, method=LBFGS(), key=key)
        if not rough.objective > best.objective * (1 + 1e-6):
            continue
        fine = solve(problem, method=NewtonCG(), initial=rough.parameters, tol=1e-11)
        point = classify(problem, fine, tol=tol)
        if point.kind != "not critical":
            found.append(Checked(f"start {key}", point, point.kind == "local minimum"))
    proved = best.certificate is not None and best.certificate.holds
    claim = "there are local minima above the minimum" + ("" if proved else " found (not certified)")
    return LandscapeClaim(claim, "ufm, for non-negative features", tuple(found), best.objective)


def origin_is_a_local_minimum(problem: Problem) -> LandscapeClaim:
    """Check that the origin is a local minimum, and not the global one if a solution is lower. For q >= 3 factors and weight decay.

    The best constant bias is taken where the model has one.

    Raises:
        ValueError: for fewer factors, or norm balls.
    """
    if not problem.hidden_dims or not isinstance(problem.regularizer, WeightDecay):
        raise ValueError(
            f"`problem` must have hidden layers and weight decay, got hidden_dims={problem.hidden_dims}: with two factors the origin is a saddle "
            "or the global minimum."
        )
    best = solve(problem)
    weights = tuple(np.zeros((after, before)) for before, after in itertools.pairwise(problem.layer_dims))
    features = np.zeros((problem.num_classes, problem.feature_dim))
    origin: Any = Parameters(weights, features, np.zeros(problem.num_classes) if problem.use_bias else None)  # type: ignore[arg-type]
    if problem.use_bias:
        origin = solve(problem, method=NewtonCG(), initial=origin, tol=1e-12).parameters
    point = classify(problem, origin)
    passed = point.kind == "local minimum" and point.objective > best.objective
    claim = "the origin is a local minimum, and not the global one"
    return LandscapeClaim(claim, "ufm, for deep models", (Checked("the origin", point, passed),), best.objective)


def valley_dimension(problem: Problem, parameters: Any, *, tol: float = 1e-8) -> Valley:
    """Return how many directions are flat at a minimum of a model with ReLU layers, and how many should be.

    Args:
        problem: the problem.
        parameters: a minimiser, such as a `Solution`.
        tol: relative gradient up to which a point counts as critical.
    """
    point = classify(problem, parameters, tol=tol)
    expected = None
    two_layers = problem.activation == "relu" and len(problem.hidden_dims) == 1 and not problem.nonnegative_features
    if two_layers and np.shape(parameters.features)[0] == problem.num_classes and not problem.use_bias:
        expected = _expected(problem, parameters)
    return Valley(point.num_flat, point.symmetry_dimension, expected, point)


def _expected(problem: Problem, parameters: Any) -> int | None:
    """Return the dimension of the valley where outputs have disjoint supports and all other inputs are negative; None elsewhere."""
    K, d = problem.num_classes, problem.feature_dim
    inputs = np.asarray(parameters.features @ parameters.weights[0].T)
    floor = COLLAPSED * np.max(np.abs(inputs))
    active = inputs > floor
    disjoint = (
        np.all(np.sum(active, axis=0) == 1) and np.all(np.any(active, axis=1)) and np.all(active | (inputs < -floor))
    )
    values = np.linalg.svd(inputs, compute_uv=False)
    if not disjoint or d < K or not values[min(K, values.size) - 1] > COLLAPSED * values[0]:
        return None
    return K * (K - 1) + K * (d - K) + inputs.shape[1] - K


def _without_modes(parameters: Parameters) -> list[tuple[str, Parameters]]:
    """Return the minimiser less every proper subset of its modes but none and all, up to a number of them."""
    _, values, right = np.linalg.svd(parameters.weights[0], full_matrices=False)
    alive = np.flatnonzero(values > COLLAPSED * values[0])
    found = []
    for size in range(1, alive.size):
        for subset in itertools.combinations(alive, size):
            kept = right[list(subset)].T @ right[list(subset)]
            fewer = Parameters((parameters.weights[0] @ kept,), parameters.features @ kept, parameters.bias)
            found.append((f"the minimiser with its modes {[int(mode) for mode in subset]} only", fewer))
    return found[:SUBSETS]
