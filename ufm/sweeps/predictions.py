"""Predictions for a batch of problems, by the first theorem that applies to each of them.

There is one compiled program for each theorem.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm._support import chunks, compiled, double_precision, to_numpy
from ufm.problems import Problem
from ufm.sweeps.quantities import NO_THEOREM, of_vectors
from ufm.theory import Theorem, theorems

__all__ = ["LARGEST", "predictions"]

# Classes up to which predictions, which are matrices over classes, are made in batches.
LARGEST = 100
PIECE = 1024
NUMBERS = 3e6  # in the matrices of a piece

SCALARS = ("predicted_objective", "predicted_rank", "theorem")


def predictions(
    problems: Problem, member: Float[np.ndarray, "B K G"], names: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Return predicted quantities, by name, batch axis first.

    Args:
        problems: Leaves with the batch axis first, one count per class.
        member: Whether a class is of a group.
        names: Which quantities, of those that are predicted.
    """
    length, K, G = member.shape
    geometry = any(name not in SCALARS for name in names)
    found: dict[str, Any] = {
        "predicted_objective": np.full(length, np.nan),
        "predicted_rank": np.full(length, -1),
        "theorem": np.full(length, NO_THEOREM, object),
        "predicted_weight_norm": np.full((length, G), np.nan),
        "predicted_feature_norm": np.full((length, G), np.nan),
        "predicted_weight_cosine": np.full((length, G, G), np.nan),
    }
    piece = int(min(PIECE, max(NUMBERS // (K * K), 16)))
    leaves, structure = jax.tree.flatten(problems)
    for name in _candidates(structure, tuple((leaf.shape[1:], leaf.dtype) for leaf in leaves)):
        for part in chunks(length, piece):
            start, stop = part.start, part.stop
            uncovered = found["theorem"][start:stop] == NO_THEOREM
            if not np.any(uncovered):
                continue
            rows = np.minimum(np.arange(start, start + piece), length - 1)
            some = jax.tree.map(lambda leaf, rows=rows: np.ascontiguousarray(leaf[rows]), problems)
            with double_precision():
                there = np.asarray(_applies(some, name))[: stop - start] & uncovered
                if not np.any(there):
                    continue
                objective, rank, *grams = to_numpy(_of_theorem(some, name, geometry))
            new = np.flatnonzero(there)
            where = start + new
            found["theorem"][where] = name
            found["predicted_objective"][where], found["predicted_rank"][where] = (
                objective[new],
                rank[new],
            )
            for side, gram in zip(("weight", "feature"), grams, strict=True):
                if gram is None or not any(f"predicted_{side}" in name for name in names):
                    continue
                norms, cosines = of_vectors(gram[new], member[where], rank[new])
                found[f"predicted_{side}_norm"][where] = norms
                if side == "weight":
                    found["predicted_weight_cosine"][where] = cosines
    return {name: found[name] for name in names}


@functools.lru_cache(maxsize=64)
def _candidates(structure: Any, leaves: tuple[tuple[tuple[int, ...], Any], ...]) -> tuple[str, ...]:
    """Return the theorems that can apply to problems of a structure, for some of their numbers.

    Args:
        structure: Of the problems.
        leaves: Shape and type of every leaf.
    """
    problem = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*leaf) for leaf in leaves])

    def possible(theorem: Theorem) -> bool:
        static: list[bool] = []

        def look(problem: Problem) -> Array:
            static.extend(
                bool(c.holds)
                for c in theorem.checked(problem)
                if not isinstance(c.holds, jax.Array)
            )
            return jnp.zeros(())

        jax.eval_shape(look, problem)
        return all(static)

    with double_precision():
        return tuple(theorem.name for theorem in theorems.predictive if possible(theorem))


@functools.partial(compiled, once=True)
def _applies(problems: Problem, name: str) -> Array:
    """Return at which problems all conditions of a theorem hold."""

    def one(problem: Problem) -> Array:
        holds = jnp.bool_(True)
        for condition in theorems[name].checked(problem):
            holds = holds & condition.holds
        return holds

    return jax.vmap(one)(problems)


@compiled
def _of_theorem(
    problems: Problem, name: str, geometry: bool
) -> tuple[Array, Array, Array | None, Array | None]:
    """Return objective, rank and Gram matrices according to a theorem.

    They mean something where its conditions hold. Gram matrices are None if not wanted.
    """
    formula = theorems[name].formula
    assert formula is not None

    def one(problem: Problem) -> tuple[Array, Array, Array | None, Array | None]:
        prediction = formula(problem)
        grams = (prediction.weight_gram, prediction.feature_gram) if geometry else (None, None)
        return prediction.objective, jnp.asarray(prediction.rank), *grams

    return jax.vmap(one)(problems)
