r"""How far quantities can be from their values at a minimiser over groups of classes.

The cost does not depend on the number of classes.

The question is that of `ufm.comparison.accuracy`: the largest eigenvalue of J H^+ J^T, over all
directions, also those that break the symmetry between the classes of a group. Hessian and Jacobian
at a symmetric point commute with the permutations within groups, so an eigenvalue belongs to a
whole irreducible representation, and is found on any vector of it.

Directions are pairs of K x d matrices. In balanced factors of symmetric logits, feature space is
the space of the classes again (classes of a group go with its K_g - 1 within modes), so that only
representations occur in the directions that are found in R^K x R^K: Young diagrams with at most two
boxes below the first row, for every group. Each of them has a vector that is invariant under the
permutations that fix two classes of each group (its Kostka number is not zero). So it is enough to
consider directions that are matrices of `Blocks` over parts: two single classes of each group, and
all others.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm._support import double_precision
from ufm.comparison.accuracy import DENSE, Model, Quantities, measured, reached
from ufm.geometry import AnyArray
from ufm.problems import Blocks, GroupProblem, mean_loss, rows_of

__all__ = ["GroupAccuracy", "group_accuracy"]

# Each costs little here, and the estimate from below is then right to a few per cent.
POWER_ITERATIONS = 12


class GroupAccuracy(NamedTuple):
    """How far quantities can be from those of the minimiser.

    Attributes:
        decrement: The Newton decrement.
        spread: For each quantity, max ||J p|| over <p, H p> <= 1 (Frobenius norm of the K x K
            matrix).
    """

    decrement: float
    spread: Quantities


def group_accuracy(
    data: GroupProblem, logits: Blocks, bias: Float[AnyArray, " G"] | None
) -> GroupAccuracy:
    """Return how far each quantity can move near a minimiser over groups.

    Args:
        data: The problem over its groups, with signed features.
        logits: Blocks of the minimiser's logits, without the bias.
        bias: (G,), or None.
    """
    owners, sizes = _parts(np.asarray(data.sizes))
    parts = _refined(data, owners, sizes)
    x = _point(data, logits, bias, owners, sizes)
    with double_precision():
        x, value, gradient, flat, maps = measured(_OVER_GROUPS, parts, x, x.size <= DENSE)
        R = len(sizes)
        lengths = [R + R * R] * 4 + [R, 2, 1]
        decrement, spread = reached(lengths, x, value, gradient, flat, maps, POWER_ITERATIONS)
    return GroupAccuracy(decrement, Quantities(*spread))


def _parts(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the group and the number of classes of every part.

    The parts of a group are two single classes, and all others.
    """
    pieces = [[1.0] * int(min(size, 2)) + ([size - 2] if size > 2 else []) for size in sizes]
    owners = np.repeat(np.arange(len(sizes)), [len(one) for one in pieces])
    return owners, np.concatenate(pieces)


def _refined(data: GroupProblem, owners: np.ndarray, sizes: np.ndarray) -> GroupProblem:
    """Return the same problem over parts of its groups."""

    def per_part(leaf: Any) -> Any:
        leaf = np.asarray(leaf, np.float64)
        return leaf[owners] if leaf.ndim else leaf

    return eqx.tree_at(lambda one: one.sizes, jax.tree.map(per_part, data), sizes)


def _point(
    data: GroupProblem, logits: Blocks, bias: Any, owners: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
    """Return balanced factors as coordinates: weights, features, bias, slack of the norm balls."""
    weighted = logits.scaled_rows(np.asarray(data.gauge.rows))  # type: ignore[arg-type]
    left, values, right = np.linalg.svd(np.asarray(weighted.between))
    within, roots = np.asarray(weighted.within), np.sqrt(values)
    lengths = np.sqrt(np.abs(within))
    factors = [
        Blocks(np.sign(within) * lengths, right.T * roots, weighted.sizes),
        Blocks(lengths, left * roots, weighted.sizes),
    ]
    blocks = [one.refined(owners, sizes).flattened() for one in factors]
    parts = [np.asarray(block) for block in blocks]
    if data.gauge.bounded:
        parts = [part / np.sqrt(data.gauge.price) for part in parts]
    if data.use_bias:
        parts.append(np.asarray(bias)[owners] * np.sqrt(sizes))
    if data.gauge.bounded:
        parts.append(np.sqrt([max(1 - float(np.sum(part**2)), 0.0) for part in parts[:2]]))
    return np.concatenate(parts)


def _unflattened(flat: Array, sizes: Any) -> Blocks:
    """Return the blocks that `Blocks.flattened` gives these numbers."""
    R = sizes.shape[0]
    others = sizes - 1
    within = flat[:R] / jnp.sqrt(jnp.where(others > 0, others, 1))
    return Blocks(jnp.where(others > 0, within, 0), flat[R:].reshape(R, R), sizes)


class _Model(NamedTuple):
    weights: Blocks
    features: Blocks
    bias: Any
    penalty: Any


def _model(data: GroupProblem, x: Array) -> _Model:
    """Return W, D^{1/2} H, the bias of every part's classes, and the penalties."""
    sizes = jnp.asarray(data.sizes)
    R = sizes.shape[0]
    size = R + R * R
    w, h, rest = x[:size], x[size : 2 * size], x[2 * size :]
    balance, penalty, bias = jnp.sqrt(data.gauge.split), jnp.zeros(()), None
    if data.use_bias:
        bias, rest = rest[:R] / jnp.sqrt(sizes), rest[R:]
        penalty = penalty + 0.5 * data.bias * jnp.sum(sizes * bias**2)
    if data.gauge.bounded:
        price = jnp.sqrt(data.gauge.price)
        w, h = (
            price * one / jnp.sqrt(jnp.sum(one**2) + rest[i] ** 2) for i, one in enumerate((w, h))
        )
    else:
        penalty = penalty + 0.5 * data.gauge.price * (jnp.sum(w**2) + jnp.sum(h**2))
    return _Model(_unflattened(balance * w, sizes), _unflattened(h / balance, sizes), bias, penalty)


def _objective(data: GroupProblem, x: Array) -> Array:
    model = _model(data, x)
    logits = (model.features @ model.weights.transposed).scaled_rows(
        1 / jnp.asarray(data.gauge.rows)
    )
    return mean_loss(data, rows_of(logits, model.bias)) + model.penalty


def _quantities(data: GroupProblem, x: Array) -> Array:
    """Return the flattened fields of `Quantities`, so that norms are Frobenius norms."""
    model, sizes, roots = _model(data, x), jnp.asarray(data.sizes), jnp.asarray(data.gauge.rows)
    counts = jnp.sqrt(jnp.asarray(data.counts))
    features = model.features.scaled_rows(1 / roots)
    plain = features @ model.weights.transposed
    weighted = plain.scaled_rows(counts).flattened()
    bias = jnp.zeros_like(sizes) if model.bias is None else model.bias
    if model.bias is not None and data.loss.shift_invariant:
        bias = bias - jnp.sum(sizes * bias) / jnp.sum(sizes)
    shifted = plain.between + jnp.sqrt(sizes)[:, None] * (jnp.sqrt(sizes) * bias)[None, :]
    norms = [
        jnp.sum(model.weights.flattened() ** 2),
        jnp.sum(features.scaled_rows(counts).flattened() ** 2),
    ]
    return jnp.concatenate(
        [
            Blocks(plain.within, shifted, sizes).flattened(),
            weighted,
            (model.weights @ model.weights.transposed).flattened(),
            (features @ features.transposed).flattened(),
            jnp.sqrt(sizes) * bias,
            jnp.stack(norms),
            jnp.sum(weighted**2)[None],
        ]
    )


_OVER_GROUPS = Model(
    start=lambda data, x: x,
    objective=jax.value_and_grad(_objective, argnums=1),
    quantities=_quantities,
)
