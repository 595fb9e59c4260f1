"""Where methods begin: random points, how large they are and how many there are by default."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ufm._support import ArgumentError
from ufm.problems import Problem, Samples, SquaredError
from ufm.solving.methods.balanced_coordinates import Point, reference_norms

__all__ = [
    "Start",
    "can_be_aligned",
    "generator",
    "has_aligned_start",
    "most_starts",
    "search_scales",
    "start_scales",
    "typical_point",
]

LARGE = 500  # unknowns above which the starts of convex problems are aligned with the classes
SMALLEST_MARGIN = 0.3  # that an aligned start gives a class
NOISE = 0.05  # of an aligned start, relative to its size
SMALL_START = 0.05  # of the typical size
FEWEST_STARTS, MOST_STARTS = 8, 64  # by default where there may be several minima
SEARCHED = 128_000  # unknowns in all starts of a one-layer problem together, by default


class Start(NamedTuple):
    """Where a method begins, and what was spent before.

    Attributes:
        numbers: Standard normal numbers, shape (n,), n as `num_unknowns` says; or, where scale is
            0, the unknowns themselves.
        scale: Size of a random point, relative to the typical one.
        step: Number of steps made before.
        evaluations: Number of evaluations made before.
    """

    numbers: Float[Array, " n"] | Float[np.ndarray, " n"]
    scale: Float[Array, ""] | Float[np.ndarray, ""]
    step: Int[Array, ""] | Int[np.ndarray, ""]
    evaluations: Int[Array, ""] | Int[np.ndarray, ""]


def start_scales(restarts: int, kinks: bool = False) -> Float[np.ndarray, " R"]:
    """Return the sizes of the initial points, relative to the typical one.

    The origin is a local minimum of deep models, mode by mode: the smaller a start, the more of the
    weak modes end there. Which of them do at the global minimum is not known beforehand, so the
    starts spread; the last one is in the basin of the origin. Chains of ReLUs (`kinks`) end lowest
    from starts somewhat smaller than typical; most of them are.
    """
    if restarts == 1:
        return np.ones(1)
    largest, smallest = (1, 0.65) if kinks else (1, 0.3)
    return np.append(np.geomspace(largest, smallest, restarts - 1), SMALL_START)


def search_scales(first: int, count: int) -> Float[np.ndarray, " count"]:
    """Return the sizes of the initial points of a one-layer problem, from the `first` on.

    They are relative to the typical size. They repeat after a few, so that the starts of a search
    are the first ones of a longer search.
    """
    return start_scales(FEWEST_STARTS)[np.arange(first, first + count) % FEWEST_STARTS]


def most_starts(num_unknowns: int) -> int:
    """Return how many initial points a one-layer problem with several minima gets by default.

    Large problems get fewer.
    """
    return int(np.clip(SEARCHED // max(num_unknowns, 1), FEWEST_STARTS, MOST_STARTS))


def generator(key: Any) -> np.random.Generator:
    """Return the generator of the initial points for a JAX key, an integer seed, or None.

    Raises:
        ValueError: For anything else.
    """
    if key is None:
        return np.random.default_rng(0)
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool) and key >= 0:
        return np.random.default_rng(int(key))
    try:
        data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
        return np.random.default_rng(np.asarray(data).astype(np.uint32).ravel().tolist())
    except (AttributeError, TypeError):
        raise ArgumentError(
            "key", "must be a JAX PRNG key or a non-negative integer", key
        ) from None


def has_aligned_start(problem: Problem, num_unknowns: int) -> bool:
    """Whether solves of so many unknowns start close to the minimiser: large problems that can."""
    return num_unknowns > LARGE and can_be_aligned(problem)


def can_be_aligned(problem: Problem) -> bool:
    """Whether a start close to the minimiser is known, for problems convex up to their factors.

    Any start leads to the same minimum there, so the nearest is the best.
    """
    return (
        problem.num_layers == 1
        and problem.loss.convex
        and problem.feature_dim >= problem.num_classes
        and problem.feature_cone.rotates
        and problem.regularizer.has_gauge
        and not problem.regularizer.bounded
    )


def typical_point(
    problem: Problem, samples: Samples, point: Point, scale: Array, aligned: bool
) -> Point:
    """Return a random point of balanced coordinates in which every block has a typical norm.

    The norm is that of the problem's minimisers, so that the point is neither in the basin of the
    origin (a local minimum of deep models) nor far out.

    Args:
        problem: The problem.
        samples: Its rows.
        point: Standard normal numbers.
        scale: Size relative to the typical one.
        aligned: Whether to start close to the minimiser of a problem that `can_be_aligned`.
    """
    norms = reference_norms(problem, samples)

    def sized(block: Array, norm: Array) -> Array:
        norm = jnp.where(norm > 0, scale * norm, 1.0)
        return block * (norm / jnp.sqrt(1.0 * block.size))

    blocks = (*point.weights, point.features)
    if problem.num_layers > 1 and problem.activation == "linear" and problem.feature_cone.rotates:
        # A product of Gaussian matrices has small singular values, which start in the basin of the
        # origin; semi-orthogonal factors give all modes the same chance.
        blocks = tuple(
            jnp.sqrt(1.0 * max(block.shape)) * _semi_orthogonal(block) for block in blocks
        )
    *weights, features = (
        sized(block, norm)
        for block, norm in zip(blocks, (*norms.weights, norms.features), strict=True)
    )
    if aligned:
        # One layer: every class has its own direction of feature space, in weights and features
        # alike, plus the noise.
        K = problem.num_classes
        frame = jnp.eye(K, features.shape[1], dtype=features.dtype) - 1.0 / K
        strength = (
            scale * jnp.sqrt(_margins(problem, samples))[:, None] * samples.counts[:, None] ** 0.25
        )
        weights = [NOISE * weights[0] + strength * frame]
        features = NOISE * features + strength * frame
    bias = None if point.bias is None else jnp.zeros_like(point.bias)
    slack = None if point.slack is None else jnp.full_like(point.slack, 0.5)
    return point._replace(weights=tuple(weights), features=features, bias=bias, slack=slack)


def _margins(problem: Problem, samples: Samples) -> Array:
    """Return about how far the logit of each class stands out at the minimiser, (K,).

    Squared error: exact without a bias. Otherwise the closed form for cross-entropy with
    non-negative features (Dang et al., ICML 2024), where classes do not interact.
    """
    K, dtype = problem.num_classes, samples.counts.dtype
    price = jnp.asarray(problem.gauge.price, dtype)
    threshold = jnp.sum(samples.counts) * price / jnp.sqrt(samples.counts)
    if type(problem.loss) is SquaredError:
        return jnp.maximum(1 - threshold, SMALLEST_MARGIN)
    odds = jnp.maximum(jnp.sqrt(K / (K - 1)) / threshold - 1, jnp.finfo(dtype).tiny)
    return jnp.maximum(jnp.log((K - 1) * odds), SMALLEST_MARGIN)


def _semi_orthogonal(block: Array) -> Array:
    tall = block if block.shape[0] >= block.shape[1] else block.T
    q, r = jnp.linalg.qr(tall)
    q = q * jnp.where(jnp.diagonal(r) < 0, -1, 1)[None, :].astype(block.dtype)
    return q if q.shape == block.shape else q.T
