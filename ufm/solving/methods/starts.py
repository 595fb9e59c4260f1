"""Initial points of methods: random points, their sizes, and their default number."""

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

# No measurement of these numbers is recorded.
LARGE = 500  # unknowns above which the starts of convex problems are aligned with the classes
SMALLEST_MARGIN = 0.3  # least margin that an aligned start gives a class
NOISE = 0.05  # size of the noise in an aligned start, relative to the start
SMALL_START = 0.05  # size of the last of several starts, relative to the typical size
FEWEST_STARTS, MOST_STARTS = 8, 64  # default numbers of starts if there may be several minima
SEARCHED = 128_000  # default number of unknowns in all starts of a one-layer problem together


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

    The origin is a local minimum of deep models, for each mode separately. The smaller a start is,
    the more of its weak modes end at zero. It is not known beforehand which modes vanish at the
    global minimum, so the starts have different sizes. The last start lies in the basin of the
    origin. ReLU chains (`kinks`) reach the lowest values from starts somewhat smaller than typical,
    so most of their starts are.
    """
    if restarts == 1:
        return np.ones(1)
    largest, smallest = (1, 0.65) if kinks else (1, 0.3)
    return np.append(np.geomspace(largest, smallest, restarts - 1), SMALL_START)


def search_scales(first: int, count: int) -> Float[np.ndarray, " count"]:
    """Return the sizes of the initial points of a one-layer problem, from the `first` on.

    They are relative to the typical size, and periodic. So the starts of a search are the first
    starts of every longer search.
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
    """Return whether a solve of so many unknowns starts close to the minimiser by default.

    Large problems do, if `can_be_aligned` knows such a start.
    """
    return num_unknowns > LARGE and can_be_aligned(problem)


def can_be_aligned(problem: Problem) -> bool:
    """Return whether a start close to the minimiser is known.

    It is for problems that are convex in the product of their factors. Every start leads to the
    same minimum there, so the nearest start is the best.
    """
    return (
        problem.num_layers == 1
        and problem.loss.convex
        and problem.feature_dim >= problem.num_outputs
        and problem.feature_cone.rotates
        and problem.regularizer.has_gauge
        and not problem.regularizer.bounded
    )


def typical_point(
    problem: Problem, samples: Samples, point: Point, scale: Array, aligned: bool
) -> Point:
    """Return a random point of balanced coordinates in which every block has a typical norm.

    Typical is the norm at the problem's minimisers. So the point is neither in the basin of the
    origin, which is a local minimum of deep models, nor far out.

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
        # A product of Gaussian matrices has small singular values, and their modes start in the
        # basin of the origin. Semi-orthogonal factors give all modes the same size.
        blocks = tuple(
            jnp.sqrt(1.0 * max(block.shape)) * _semi_orthogonal(block) for block in blocks
        )
    *weights, features = (
        sized(block, norm)
        for block, norm in zip(blocks, (*norms.weights, norms.features), strict=True)
    )
    if aligned:
        # One layer: every output has its own direction of feature space, and the features of a row
        # point to the mean of its outputs' directions. Noise is added.
        K = problem.num_outputs
        frame = jnp.eye(K, features.shape[1], dtype=features.dtype) - 1.0 / K
        sums = jnp.sum(samples.counts[:, None] * samples.targets**2, axis=0)
        strength = scale * jnp.sqrt(_margins(problem, samples, sums)) * sums**0.25
        weights = [NOISE * weights[0] + strength[:, None] * frame]
        features = NOISE * features + (samples.targets * strength[None, :]) @ frame
    bias = None if point.bias is None else jnp.zeros_like(point.bias)
    slack = None if point.slack is None else jnp.full_like(point.slack, 0.5)
    return point._replace(weights=tuple(weights), features=features, bias=bias, slack=slack)


def _margins(problem: Problem, samples: Samples, sums: Array) -> Array:
    """Return an estimate of the margin of each output at the minimiser, (K,).

    For one-hot classes and squared error it is exact without a bias. For other losses it is the
    closed form for cross-entropy with non-negative features (Dang et al., ICML 2024), where classes
    do not interact.

    Args:
        problem: The problem.
        samples: Its rows.
        sums: (K,), the sum of each output's squared targets: n_k for one-hot classes.
    """
    K, dtype = problem.num_outputs, samples.counts.dtype
    price = jnp.asarray(problem.gauge.price, dtype)
    threshold = jnp.sum(samples.counts) * price / jnp.sqrt(jnp.maximum(sums, 1e-300))
    if type(problem.loss) is SquaredError:
        return jnp.maximum(1 - threshold, SMALLEST_MARGIN)
    odds = jnp.maximum(jnp.sqrt(K / max(K - 1, 1)) / threshold - 1, jnp.finfo(dtype).tiny)
    return jnp.maximum(jnp.log((K - 1) * odds), SMALLEST_MARGIN)


def _semi_orthogonal(block: Array) -> Array:
    tall = block if block.shape[0] >= block.shape[1] else block.T
    q, r = jnp.linalg.qr(tall)
    q = q * jnp.where(jnp.diagonal(r) < 0, -1, 1)[None, :].astype(block.dtype)
    return q if q.shape == block.shape else q.T
