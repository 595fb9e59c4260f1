"""What the theorems say about a batch of problems: for each problem, the first theorem that applies, in one compiled program per theorem."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm.compilation import compiled
from ufm.precision import double_precision, to_numpy
from ufm.problem import Problem
from ufm.theory import theorems
from ufm.theory.base import Theorem

__all__ = ["LARGEST", "predictions"]

LARGEST = 100  # classes up to which predictions, which are matrices over classes, are made in batches
PIECE = 1024
NUMBERS = 3e6  # in the matrices of a piece

SCALARS = ("predicted_objective", "predicted_rank", "theorem")


def predictions(problems: Problem, member: Float[np.ndarray, "B K G"], names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return predicted quantities, by name, batch axis first.

    Args:
        problems: leaves with the batch axis first, one count per class.
        member: whether a class is of a group.
        names: which quantities, of those that are predicted.
    """
    length, K, G = member.shape
    geometry = any(name not in SCALARS for name in names)
    found: dict[str, Any] = {
        "predicted_objective": np.full(length, np.nan),
        "predicted_rank": np.full(length, -1),
        "theorem": np.full(length, -1),
        "predicted_weight_norm": np.full((length, G), np.nan),
        "predicted_feature_norm": np.full((length, G), np.nan),
        "predicted_weight_cosine": np.full((length, G, G), np.nan),
    }
    piece = int(min(PIECE, max(NUMBERS // (K * K), 16)))
    first = jax.tree.map(lambda leaf: leaf[0], problems)
    for index, theorem in enumerate(theorems):
        if not theorem.predictive or _ruled_out(theorem, first):
            continue
        for start in range(0, length, piece):
            stop = min(start + piece, length)
            if np.all(found["theorem"][start:stop] >= 0):
                continue
            rows = np.minimum(np.arange(start, start + piece), length - 1)
            part = jax.tree.map(lambda leaf, rows=rows: np.ascontiguousarray(leaf[rows]), problems)
            with double_precision():
                there = np.asarray(_applies(part, index))[: stop - start] & (found["theorem"][start:stop] < 0)
                if not np.any(there):
                    continue
                values = to_numpy(_of_theorem(part, np.ascontiguousarray(member[rows]), index, geometry))
            new = np.flatnonzero(there)
            for name, value in values.items():
                found[name][start + new] = value[new]
            found["theorem"][start + new] = index
    return {name: found[name] for name in names}


def _ruled_out(theorem: Theorem, problem: Problem) -> bool:
    """Whether the theorem cannot apply to any problem that differs from this one in numbers only."""
    static: list[bool] = []

    def look(problem: Problem) -> Array:
        static.extend(not c.holds for c in theorem.conditions(problem) if not isinstance(c.holds, jax.Array))
        return jnp.zeros(())

    jax.eval_shape(look, problem)
    return any(static)


@functools.partial(compiled, once=True)
def _applies(problems: Problem, index: int) -> Array:
    """Return at which problems all conditions of a theorem hold."""

    def one(problem: Problem) -> Array:
        holds = jnp.bool_(True)
        for condition in list(theorems)[index].conditions(problem):
            holds = holds & condition.holds
        return holds

    return jax.vmap(one)(problems)


@compiled
def _of_theorem(problems: Problem, member: Array, index: int, geometry: bool) -> dict[str, Array]:
    """Return the predictions of a theorem for problems at which its conditions hold."""
    theorem = list(theorems)[index]

    def one(problem: Problem, member: Array) -> dict[str, Array]:
        prediction = theorem.formula(problem)
        found = {"predicted_objective": prediction.objective, "predicted_rank": jnp.asarray(prediction.rank)}
        if geometry:
            sizes = jnp.sum(member, axis=0)
            blank = jnp.full((member.shape[0], member.shape[0]), jnp.nan)
            weight = blank if prediction.weight_gram is None else prediction.weight_gram
            feature = blank if prediction.feature_gram is None else prediction.feature_gram
            norms = jnp.sqrt(jnp.diagonal(weight))
            lengths = norms[:, None] * norms[None, :]
            cosines = jnp.where(lengths > 0, weight / jnp.where(lengths > 0, lengths, 1), jnp.nan)
            apart = jnp.where(jnp.eye(len(norms), dtype=bool), 0, cosines)
            pairs = sizes[:, None] * sizes[None, :] - jnp.diag(sizes)
            # Zero times an undefined cosine of another group is not undefined.
            sums = jnp.sum(
                jnp.where((member.T[:, None, :, None] * member.T[None, :, None, :]) > 0, apart[None, None], 0),
                axis=(2, 3),
            )
            found["predicted_weight_norm"] = jnp.sum(member * norms[:, None], axis=0) / sizes
            found["predicted_feature_norm"] = jnp.sum(member * jnp.sqrt(jnp.diagonal(feature))[:, None], axis=0) / sizes
            found["predicted_weight_cosine"] = jnp.where(pairs > 0, sums / jnp.where(pairs > 0, pairs, 1), jnp.nan)
        return found

    return jax.vmap(one)(problems, member)
