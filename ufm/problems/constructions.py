r"""Explicit points of deep models whose value is known.

They are deep neural collapse, graphs on the classes, and pairs of classes.

Each is given by factors up to their sizes. Let Z_1 be the class-level logits of factors H, W_1,
..., W_L. The factors are scaled to

    a_H H, a_1 W_1, ..., a_L W_L,
    lambda_H a_H^2 ||D^{1/2} H||^2 = lambda_l a_l^2 ||W_l||^2 for all l.

Then the logits are x Z_1 and the cost is (q/2) Lambda G x^{2/q}, with q = L + 1, Lambda the
geometric mean of all penalties, and G that of the squared norms. One number remains: the x at which
the sum of loss and cost is least. For squared error and Z_1 = I,

    min_x  (x - 1)^2 / 2 + (q/2) Lambda G x^{2/q}.

Deep neural collapse. All factors are (semi-)orthogonal, and G = K n^{1/q} for n samples per class.
For losses that are invariant under shifts of the logits the last factor is centred.

Graphs (ReLU between layers, L >= 3). Classes are the edges of the complete graph on r vertices, K =
r (r - 1) / 2. The first features are the edge-vertex incidence matrix B, which has rank r only. The
weights of the last hidden layer have the rows 1 - 2 b_e, so after the ReLU an edge is active if it
does not meet edge e. This is the Kneser graph. Its adjacency matrix C is invertible for all r >= 4,
and W_L is its inverse. With ||B||_* = sqrt(2 (r - 1)) + (r - 1) sqrt(r - 2) and
||C^{-1}||^2 = 1 / C(r - 2, 2)^2 + (r - 1) / (r - 3)^2 + r (r - 3) / 2,

    G^q = n ||B||_*^2 r^{L-3} (K r / 4) ||C^{-1}||^2.

It is below that of deep neural collapse for K >= 10 at L = 3, and for K >= 6 at L >= 4. Classes
beyond the largest r (r - 1) / 2 have an orthogonal block of their own, whose G is added.

Pairs (linear layers, a loss that is invariant under shifts). Two classes share a direction, with
opposite signs, so the rank is K / 2 instead of K - 1.

References: Sukenik, Mondelli & Lampert (NeurIPS 2024), arXiv:2405.14468 (low-rank solutions of deep
ReLU models; the matrices here are reconstructed); Garrod & Keating (NeurIPS 2025), arXiv:2410.23169
(pairs).
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm._support import ArgumentError, compiled, double_precision, on_host
from ufm.problems.losses import SquaredError
from ufm.problems.parameters import Parameters
from ufm.problems.problem import Problem
from ufm.problems.reductions import zero_padded
from ufm.problems.regularizers import WeightDecay
from ufm.problems.samples import class_samples

__all__ = [
    "Construction",
    "class_pairs",
    "constructions_for",
    "deep_neural_collapse",
    "graph_size",
    "has_structures",
    "squared_error_value",
    "starts_of",
    "strongly_regular",
    "truncations",
    "zoomed",
]

# `benchmarks.depth` compares starts from codes, and noise of 0.3 and 1 around constructions. No
# measurement of the other numbers is recorded.
GRID = 200  # points of each grid of scales
ROUNDS = 6  # grids, each around the best point of the one before
NOISE = (0.0, 0.3, 1.0)  # sizes of the noise around a construction, relative to its entries
CODE_STARTS = 8  # starts with codes
CODE_NOISE = 0.2  # size of their noise
CODE_SIZE = 0.8  # norm of their factors, over the typical norm
MOST_TRUNCATIONS = 16
MOST_RANKED = 5000  # choices of modes that are sorted before the first ones are taken


class Construction(NamedTuple):
    """A point whose value is known.

    Attributes:
        name: Its name.
        parameters: The point, with one feature row per class.
        objective: Its objective.
        rank: The rank of its logits without the bias.
    """

    name: str
    parameters: Parameters
    objective: float
    rank: int


@on_host
def constructions_for(problem: Problem) -> tuple[Construction, ...]:
    """Return the constructions that the problem has room for, the lowest objective first.

    There are none without weight decay.

    Args:
        problem: A problem of any depth and class sizes.
    """
    found = []
    for make in (deep_neural_collapse, strongly_regular, class_pairs):
        try:
            found.append(make(problem))
        except ValueError:
            continue
    return tuple(sorted(found, key=lambda construction: construction.objective))


@on_host
def deep_neural_collapse(problem: Problem) -> Construction:
    """Return orthogonal class means at every layer, at the best scale.

    Raises:
        ValueError: If a layer is too narrow, or the regularizer is not weight decay.
    """
    K, dims = problem.num_classes, problem.layer_dims
    _check(
        problem,
        "deep neural collapse",
        min(dims) >= K,
        f"widths of at least K = {K}",
        f"{dims[:-1]}",
    )
    centre = np.eye(K) - (1.0 / K if problem.loss.shift_invariant else 0.0)
    linear = problem.activation == "linear" and not problem.nonnegative_features
    features = zero_padded(centre if linear else np.eye(K), (K, dims[0]))
    weights = [
        zero_padded(centre if linear else np.eye(K), (rows, columns))
        for columns, rows in itertools.pairwise(dims[:-1])
    ]
    return _scaled(
        problem, "deep neural collapse", features, [*weights, zero_padded(centre, (K, dims[-2]))]
    )


@on_host
def strongly_regular(problem: Problem) -> Construction:
    """Return the low-rank point of a deep ReLU model with classes as edges of a complete graph.

    Raises:
        ValueError: If there are fewer than three layers or six classes, layers have no ReLU or are
            too narrow, or the regularizer is not weight decay.
    """
    K, L, dims = problem.num_classes, problem.num_layers, problem.layer_dims
    vertices = graph_size(K)
    fits = (
        problem.activation == "relu"
        and L >= 3
        and vertices >= 4
        and not problem.nonnegative_features
    )
    _check(
        problem,
        "the graph",
        fits,
        "ReLU between at least 3 layers and at least 6 classes",
        f"L = {L}, K = {K}, {problem.activation}",
    )
    edges = np.array(list(itertools.combinations(range(vertices), 2)))
    rest = K - len(edges)
    width = vertices + rest
    wide = min(dims[:-2]) >= width and dims[-2] >= K
    _check(
        problem, "the graph", wide, f"widths of at least {width}, the last one {K}", f"{dims[:-1]}"
    )
    incidence = np.zeros((len(edges), vertices))
    incidence[np.arange(len(edges))[:, None], edges] = 1
    signs = 1 - 2 * incidence
    active = np.maximum(incidence @ signs.T, 0)
    left, values, right = np.linalg.svd(incidence, full_matrices=False)
    factors = [left * np.sqrt(values), right.T * np.sqrt(values)]
    factors += [np.eye(vertices)] * (L - 3) + [signs, np.linalg.inv(active).T]
    from scipy.linalg import block_diag  # here, because scipy is slow to import

    # Each block is balanced by itself: all of its factors have the same norm.
    norms = np.array([np.linalg.norm(factor) for factor in factors])
    common = np.exp(np.mean(np.log(norms)))
    features, *weights = (
        block_diag(factor * (common / norm), np.eye(rest))
        for factor, norm in zip(factors, norms, strict=True)
    )
    shapes = [(rows, columns) for columns, rows in itertools.pairwise(dims)]
    return _scaled(
        problem,
        f"graph of {vertices} vertices",
        zero_padded(features, (K, dims[0])),
        [zero_padded(matrix, shape) for matrix, shape in zip(weights, shapes, strict=True)],
    )


@on_host
def class_pairs(problem: Problem) -> Construction:
    """Return the point of a deep linear model in which two classes share a direction.

    They have opposite signs. An odd class has a direction of its own.

    Raises:
        ValueError: If the loss is not invariant under shifts, layers are not linear or too narrow,
            or the regularizer is not weight decay.
    """
    K, dims = problem.num_classes, problem.layer_dims
    linear = (
        problem.activation == "linear"
        and not problem.nonnegative_features
        and problem.loss.shift_invariant
    )
    _check(
        problem,
        "pairs",
        linear,
        "linear layers and a loss that is invariant under shifts",
        problem.activation,
    )
    rank = (K + 1) // 2
    _check(problem, "pairs", min(dims) >= rank, f"widths of at least {rank}", f"{dims[:-1]}")
    directions = np.zeros((K, rank))
    directions[np.arange(K), np.arange(K) // 2] = np.where(np.arange(K) % 2 == 0, 1, -1)
    # Every factor has its share of a direction's singular value, 2 of a pair and 1 of an odd class.
    lengths = np.linalg.norm(directions, axis=0)
    shares = lengths ** (2 / (problem.num_layers + 1))
    directions = directions / lengths * shares
    weights = [
        zero_padded(np.diag(shares), (rows, columns))
        for columns, rows in itertools.pairwise(dims[:-1])
    ]
    return _scaled(
        problem,
        "pairs",
        zero_padded(directions, (K, dims[0])),
        [*weights, zero_padded(directions, (K, dims[-2]))],
    )


def has_structures(problem: Problem) -> bool:
    """Return whether descent from random points may miss known points of lower objective.

    It may for deep models of classes with weight decay whose minimum is not known.
    """
    known = type(problem.loss) is SquaredError and problem.activation == "linear"
    deep = problem.one_hot and problem.num_layers > 1
    return deep and problem.regularizer.halves_squares and not known


def starts_of(
    problem: Problem, generator: np.random.Generator, noise: tuple[float, ...] = NOISE
) -> Float[np.ndarray, "starts n"]:
    """Return starts near known points of low objective, in balanced coordinates.

    They are every construction, points around it, and codes.

    Codes (ReLU, L >= 3): every class is a set of a few of r directions, with r (r + 1) / 2 >= K
    (one or two of them) or 2^r > K (any number). The last two layers are random, and all others
    pass the directions on. The lowest minima known of deep models with few classes have such
    features.

    Args:
        problem: A problem with weight decay and one count per class.
        generator: Generator of the noise.
        noise: Sizes of the noise around the constructions, relative to the root mean square of each
            factor's entries.
    """
    found = []
    counts = np.asarray(problem.class_counts)
    scales = problem.regularizer.block_sizes(problem.layer_dims[1:])

    def add(blocks: list[np.ndarray], size: float) -> None:
        moved = [
            block + size * np.sqrt(np.mean(block**2)) * generator.standard_normal(block.shape)
            for block in blocks
        ]
        cone = problem.feature_cone
        moved[-1] = cone.to_coordinates(cone.reflected(moved[-1]))
        tail = [np.zeros(problem.num_outputs)] if problem.use_bias else []
        found.append(np.concatenate([block.ravel() for block in (*moved, *tail)]))

    for construction in constructions_for(problem):
        weights, features, _ = construction.parameters
        blocks = [
            np.asarray(matrix) / scale for matrix, scale in zip(weights, scales[:-1], strict=True)
        ]
        blocks.append(np.sqrt(counts)[:, None] * np.asarray(features) / scales[-1])
        for size in noise:
            add(blocks, size)
    for index in range(CODE_STARTS):
        coded = _coded(problem, generator, 2 if index % 2 == 0 else None)
        if coded is not None:
            add(coded, CODE_NOISE)
    return np.stack(found) if found else np.zeros((0, 0))


def truncations(problem: Problem, wide: Parameters) -> list[Parameters]:
    """Return the convex minimiser of a one-layer problem, cut to d of its modes.

    They are starts if the dimension d is too small for the convex minimiser.

    For signed features the modes are the singular modes of the logits, weighted by D^{1/2} under
    weight decay. For non-negative features they are the minimiser's own atoms. The truncations are
    the choices of d modes with the largest sums of sizes, at most 16.

    Args:
        problem: A problem of one layer.
        wide: A minimiser of the same problem with more feature dimensions.
    """
    weights, features = (np.asarray(block, float) for block in (wide.weights[0], wide.features))
    if not problem.nonnegative_features:
        roots = problem.gauge.rows[:, None]
        left, values, right = np.linalg.svd((roots * features) @ weights.T, full_matrices=False)
        total = float(np.sum(values))
        split = np.linalg.norm(weights) / np.sqrt(total) if total > 0 else 1.0
        weights, features = (
            right.T * np.sqrt(values) * split,
            left * np.sqrt(values) / (roots * split),
        )
    sizes = np.linalg.norm(weights, axis=0) * np.linalg.norm(features, axis=0)
    order = np.argsort(-sizes, kind="stable")
    choices = list(
        itertools.islice(itertools.combinations(order, problem.feature_dim), MOST_RANKED)
    )
    choices.sort(key=lambda choice: -float(np.sum(sizes[list(choice)])))
    found: list[Any] = [
        (weights[:, list(choice)], features[:, list(choice)])
        for choice in choices[:MOST_TRUNCATIONS]
    ]
    return [Parameters((W,), H, wide.bias) for W, H in found]


def _coded(
    problem: Problem, generator: np.random.Generator, largest: int | None
) -> list[np.ndarray] | None:
    """Return factors that give every class a set of r directions; the last two are random.

    A set has at most `largest` directions. None if the widths leave no room.

    The factors are in balanced coordinates. Each has CODE_SIZE times the typical norm
    (`ufm.solving.methods.balanced_coordinates.reference_norms`).
    """
    K, L, dims = problem.num_classes, problem.num_layers, problem.layer_dims
    sets: list[tuple[int, ...]] = []
    r = 1
    while len(sets) < K:
        r += 1
        sizes = range(1, min(r, largest or r) + 1)
        sets = [chosen for size in sizes for chosen in itertools.combinations(range(r), size)]
    if problem.activation != "relu" or L < 3 or min(dims[:-2]) < r:
        return None
    shares = np.asarray(problem.class_counts) ** (1 / (L + 1))
    codes = np.zeros((K, r))
    for row, which in zip(codes, generator.permutation(len(sets))[:K], strict=True):
        row[list(sets[which])] = 1
    codes *= np.sqrt(shares)[:, None]
    left, values, right = np.linalg.svd(codes, full_matrices=False)
    shapes = [(rows, columns) for columns, rows in itertools.pairwise(dims)]
    blocks = [zero_padded(right.T * np.sqrt(values), shapes[0])]
    blocks += [zero_padded(np.eye(r), shape) for shape in shapes[1:-2]]
    mixing = zero_padded(np.ones((dims[-2], r)), shapes[-2]) * generator.standard_normal(shapes[-2])
    blocks += [
        mixing,
        generator.standard_normal(shapes[-1]),
        zero_padded(left * np.sqrt(values), (K, dims[0])),
    ]
    typical = CODE_SIZE * np.sqrt(np.sum(shares))
    return [block * (typical / np.linalg.norm(block)) for block in blocks]


def graph_size(num_classes: int) -> int:
    """Return r, the most vertices whose complete graph has at most that many edges."""
    return int((1 + np.sqrt(1 + 8 * num_classes)) // 2)


@on_host
def squared_error_value(problem: Problem, vertices: int | None = None) -> float:
    """Return the value of deep neural collapse, or of the graph on so many vertices.

    It is in closed form for balanced squared error with weight decay and no bias.

    Args:
        problem: A problem of at least two layers (three for a graph).
        vertices: r >= 4, with r (r - 1) / 2 <= K; None for deep neural collapse.
    """
    K, L, q = problem.num_classes, problem.num_layers, problem.num_layers + 1
    n = float(problem.num_samples) / K
    gauge = float(K)
    if vertices is not None:
        r = vertices
        edges = r * (r - 1) // 2
        nuclear = np.sqrt(2 * (r - 1)) + (r - 1) * np.sqrt(r - 2)
        inverse = 1 / (0.5 * (r - 2) * (r - 3)) ** 2 + (r - 1) / (r - 3) ** 2 + 0.5 * r * (r - 3)
        gauge = (nuclear**2 * r ** (L - 3) * 0.25 * edges * r * inverse) ** (1 / q) + K - edges
    price = 0.5 * q * problem.gauge.price * n ** (1 / q) * gauge
    # The unknown is e = 1 - x, which keeps its digits, and the value e^2 / 2 + price (1 - e)^{2/q}.
    # The minimum is at the largest x at which the slope vanishes, or at zero.
    low, high = 0.0, 1.0 - (price * (2 / q) * (1 - 2 / q)) ** (1 / (2 - 2 / q))
    if high <= 0 or high < price * (2 / q) * (1 - high) ** (2 / q - 1):
        return 0.5
    for _ in range(200):
        middle = 0.5 * (low + high)
        below = middle < price * (2 / q) * (1 - middle) ** (2 / q - 1)
        low, high = (middle, high) if below else (low, middle)
    return float(min(0.5 * low**2 + price * (1 - low) ** (2 / q), 0.5))


def _check(problem: Problem, name: str, holds: bool, needed: str, found: str) -> None:
    if not problem.regularizer.halves_squares:
        raise ArgumentError(
            "problem", f"must have weight decay for {name}, got {problem.regularizer.words}"
        )
    if not holds:
        raise ArgumentError("problem", f"must have {needed} for {name}, got {found}")


def _scaled(
    problem: Problem, name: str, features: np.ndarray, weights: list[np.ndarray]
) -> Construction:
    """Return the point at the scale at which the objective is least, all penalties balanced."""
    penalties = problem.regularizer.decays(problem.num_layers)
    counts = np.asarray(problem.class_counts)
    norms = np.array(
        [
            *(np.linalg.norm(matrix) for matrix in weights),
            np.linalg.norm(np.sqrt(counts)[:, None] * features),
        ]
    )
    q = len(penalties)
    common = np.exp(np.mean(np.log(np.sqrt(penalties) * norms)))
    sizes = common / (np.sqrt(penalties) * norms)
    hidden = features
    for matrix in weights[:-1]:
        hidden = hidden @ matrix.T
        hidden = np.maximum(hidden, 0) if problem.activation == "relu" else hidden
    logits = hidden @ weights[-1].T
    bias: Any = np.zeros(problem.num_outputs) if problem.use_bias else None
    # In the power t = x^{1/q} the cost is smooth, and so is the loss near its minimum. Zero is
    # always a candidate.
    reach = np.abs(np.mean(np.diag(logits)))
    # A problem of one layer reads the logits, so that all depths share one compiled program.
    unit: Any = 1.0
    plain = WeightDecay(weights=unit, features=unit)
    reading = Problem(
        class_counts=problem.class_counts, feature_dim=1, loss=problem.loss, regularizer=plain
    )
    with double_precision():
        place, least = zoomed(
            lambda grid: (
                np.asarray(_along(reading, logits, np.exp(grid)))
                + 0.5 * q * common**2 * np.exp(2 * grid / q)
            ),
            -12.0,
            np.log(1e4 / reach),
            GRID,
            ROUNDS,
        )
        zero = float(_along(reading, logits, np.zeros(GRID))[0])
    strength = float(np.exp(place / q)) if least < zero else 0.0
    parameters = Parameters(
        tuple(matrix * (size * strength) for matrix, size in zip(weights, sizes[:-1], strict=True)),
        features * (sizes[-1] * strength),
        bias,
    )
    rank = int(np.linalg.matrix_rank(logits)) if strength > 0 else 0
    return Construction(name, parameters, min(least, zero), rank)


def zoomed(
    function: Callable[[np.ndarray], np.ndarray], low: float, high: float, points: int, rounds: int
) -> tuple[float, float]:
    """Return where a function of one variable is least between two ends, and its value there.

    There are `rounds` grids of `points` points. Each lies between the neighbours of the best point
    of the grid before.
    """
    for _ in range(rounds):
        grid = np.linspace(low, high, points)
        values = function(grid)
        best = int(np.argmin(values))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, points - 1)]
    return float(grid[best]), float(values[best])


@compiled
def _along(problem: Problem, logits: Float[Array, "K K"], scales: Float[Array, " m"]) -> Any:
    samples = class_samples(problem, jnp.float64)
    return jax.vmap(lambda scale: problem.data_term(scale * jnp.asarray(logits), samples))(
        jnp.asarray(scales)
    )
