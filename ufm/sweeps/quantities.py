"""What a sweep keeps of every minimiser: names, dimensions and meanings, and how each follows from matrices or from blocks.

At a minimiser all samples of a class have the same features, so that within-class variability (NC1)
is zero and not listed.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from ufm._support import ArgumentError, Status, rebuilt
from ufm.imbalance import level
from ufm.metrics import (
    MEASURES,
    ClassGeometry,
    centred,
    centred_bias,
    geometry_of,
    logit_rows,
    norm,
    norms,
    projected_trace,
    trace,
    unit_distance,
)
from ufm.problems import VANISHING, GroupProblem, NormBall, Problem, did_you_mean
from ufm.solving import ClassMinima, GroupMinimum, Solution

__all__ = [
    "DEFAULT",
    "NO_THEOREM",
    "QUANTITIES",
    "Quantity",
    "attributes_of",
    "checked_quantities",
    "flags",
    "of_class_minima",
    "of_group_minima",
    "of_solution",
    "of_vectors",
]

MATRIX_GROUPS = 16  # groups up to which cosines between all pairs of them are kept unless asked for


class Quantity(NamedTuple):
    """A quantity: its dimensions besides those of the sweep, what it is, and its type."""

    dims: tuple[str, ...]
    text: str
    dtype: str = "float64"


GROUP, PAIR = ("group",), ("group", "other_group")
STATUSES = {-1: "not_computed", **{int(status): str(status) for status in sorted(Status)}}
NO_THEOREM = "none"  # the name where no theorem applies

GEOMETRY = ("nc2_weights", "nc2_features", "nc2_weights_frame", "nc2_features_frame", "nc3")

QUANTITIES: dict[str, Quantity] = {
    "objective": Quantity((), "objective at the minimiser found"),
    "lower_bound": Quantity(
        (), "certified lower bound on the minimum; NaN where the model has none"
    ),
    "relative_gap": Quantity((), "objective less lower bound, over the lower bound"),
    "certified": Quantity(
        (), "whether the relative gap is at most the tolerance, and the bound is one", "bool"
    ),
    "status": Quantity(
        (),
        "how the solve ended: " + ", ".join(f"{code} {name}" for code, name in STATUSES.items()),
        "int8",
    ),
    "steps": Quantity((), "steps of the methods, all restarts together", "int32"),
    "rank": Quantity((), "rank of the logits without bias", "int32"),
    "accuracy": Quantity(
        (),
        "share of the samples whose logit of their class is larger than all others; ties are wrong",
    ),
    **{name: Quantity((), MEASURES[name].formula) for name in GEOMETRY},
    "weight_norm": Quantity(GROUP, "norm of the classifiers, mean over the group"),
    "feature_norm": Quantity(
        GROUP, "norm of the class means of the last features, mean over the group"
    ),
    "margin": Quantity(GROUP, "own logit less the largest other one, least of the group"),
    "bias": Quantity(GROUP, "bias, mean over the group"),
    "weight_cosine": Quantity(
        PAIR,
        "cosine between two classifiers, of one group on the diagonal, mean over pairs; NaN where one vanishes",
    ),
    "feature_cosine": Quantity(
        PAIR,
        "cosine between two class means, of one group on the diagonal, mean over pairs; NaN where one vanishes",
    ),
    "weight_cosine_within": Quantity(
        GROUP,
        "cosine between two classifiers of the group, mean over pairs; NaN where one vanishes",
    ),
    "feature_cosine_within": Quantity(
        GROUP,
        "cosine between two class means of the group, mean over pairs; NaN where one vanishes",
    ),
    "coincidence_level": Quantity(
        GROUP,
        "log of the price over the one at which the group's classifiers come to coincide, zero on that threshold; NaN for groups of one class, and "
        "where points were not solved over groups",
    ),
    "predicted_objective": Quantity(
        (), "minimum according to the first theorem that applies; NaN where none does"
    ),
    "predicted_rank": Quantity(
        (),
        "rank of the logits without bias according to that theorem; -1 where there is none",
        "int32",
    ),
    "predicted_weight_norm": Quantity(
        GROUP, "norm of the classifiers according to that theorem, mean over the group"
    ),
    "predicted_feature_norm": Quantity(
        GROUP, "norm of the class means according to that theorem, mean over the group"
    ),
    "predicted_weight_cosine": Quantity(
        PAIR, "cosine between two classifiers according to that theorem"
    ),
    "theorem": Quantity((), f"name of that theorem; {NO_THEOREM!r} where none applies", "object"),
}
FILL = {"float64": np.nan, "int32": -1, "int8": -1, "bool": False, "object": NO_THEOREM}
PREDICTED = tuple(name for name in QUANTITIES if name.startswith("predicted") or name == "theorem")
DEFAULT = tuple(
    name for name in QUANTITIES if name not in PREDICTED[1:-1] and not name.endswith("_within")
)
ALWAYS = ("objective", "lower_bound", "relative_gap", "certified", "status")


def attributes_of(name: str) -> dict[str, Any]:
    """Return what a Dataset says of a quantity: its meaning and, for the status, its codes."""
    meanings = flags(STATUSES) if name == "status" else {}
    return {"long_name": QUANTITIES[name].text, **meanings}


def flags(codes: Mapping[int, str]) -> dict[str, Any]:
    """Return the attributes by which the CF conventions name codes."""
    return {"flag_values": list(codes), "flag_meanings": " ".join(codes.values())}


def checked_quantities(names: Any, num_groups: int, use_bias: bool) -> tuple[str, ...]:
    """Return the quantities that are kept: those asked for, with what says how good they are, or the usual ones.

    Args:
        names: of quantities, or None.
        num_groups: the largest number of groups of the sweep.
        use_bias: whether any of its problems has a bias.

    Raises:
        ValueError: for a name that there is not.
    """
    if names is None:
        chosen = [name for name in DEFAULT if use_bias or name != "bias"]
        if num_groups > MATRIX_GROUPS:
            chosen = [
                name + "_within" if name in ("weight_cosine", "feature_cosine") else name
                for name in chosen
            ]
        return tuple(chosen)
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names:
        if name not in QUANTITIES:
            near = did_you_mean(str(name), QUANTITIES)
            raise ArgumentError(
                "quantities", f"must be among {', '.join(QUANTITIES)}; got {name!r}{near}"
            )
    return tuple(name for name in QUANTITIES if name in ALWAYS or name in names)


def of_class_minima(
    problems: Problem,
    minima: ClassMinima,
    groups: Int[np.ndarray, "B K"],
    num_groups: int,
    tol: float,
) -> dict[str, np.ndarray]:
    """Return the quantities of a batch of minima from their matrices, batch axis first.

    Args:
        problems: leaves with the batch axis first, one count per class.
        minima: theirs.
        groups: the group of every class.
        num_groups: G.
        tol: relative gap up to which a minimum counts as certified.
    """
    W, M, bias = minima.parameters.weights[-1], minima.class_features, minima.parameters.bias
    counts = np.asarray(problems.class_counts.counts)
    roots = np.ones((*counts.shape, 1))
    member = (groups[:, :, None] == np.arange(num_groups)).astype(float)
    sizes = member.sum(axis=1)
    logits = np.asarray(minima.logits)
    plain = logits if bias is None else logits - np.asarray(bias)[:, None, :]
    if not isinstance(problems.regularizer, NormBall):
        roots = np.sqrt(counts)[:, :, None]
    grams = {"weight": W @ np.swapaxes(W, 1, 2), "feature": M @ np.swapaxes(M, 1, 2)}
    K = logits.shape[1]
    own = np.einsum("bkk->bk", logits)
    margins = own - np.max(np.where(np.eye(K, dtype=bool), -np.inf, logits), axis=2)
    values = np.linalg.svd(roots * plain, compute_uv=False)
    found = {
        # Logits have sizes of order one: what is nothing beside that is nothing.
        "rank": np.sum(
            values > VANISHING * np.maximum(values[:, :1], np.max(roots, axis=(1, 2))[:, None]),
            axis=1,
        ),
        "accuracy": _accuracy(counts, margins, np.max(np.abs(logits), axis=(1, 2))),
        "margin": np.min(np.where(member > 0, margins[:, :, None], np.inf), axis=1),
    }
    found["margin"] = np.where(sizes > 0, found["margin"], np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        if bias is not None:
            found["bias"] = np.einsum("bk,bkg->bg", bias, member) / sizes
        for name, gram in grams.items():
            found[f"{name}_norm"], found[f"{name}_cosine"] = of_vectors(gram, member, found["rank"])
        centre = np.eye(K) - 1 / K
        centred = centre @ grams["feature"] @ centre
        traces = [_traces(gram) for gram in (grams["weight"], grams["feature"], centred)]
        found |= _distances(
            traces[0], traces[1], traces[2], _projected(grams["weight"]), _projected(plain), K
        )
    return _finished(
        found,
        minima.objective,
        minima.lower_bound,
        minima.relative_gap,
        minima.status,
        minima.steps,
        tol=tol,
    )


def of_group_minima(
    problems: GroupProblem, minima: GroupMinimum, tol: float
) -> dict[str, np.ndarray]:
    """Return the quantities of a batch of minima over groups, all leaves with the batch axis last; batch axis first in the result."""
    # Logits have sizes of order one: what is nothing beside that is nothing.
    geometry = geometry_of(
        problems, minima.logits, floor=np.max(np.asarray(problems.roots), axis=0)
    )
    sizes = np.asarray(minima.logits.sizes)
    found = _of_geometry(
        geometry, np.asarray(problems.counts), centred_bias(problems, sizes, minima.bias)
    )
    found["coincidence_level"] = np.where(
        sizes > 1, np.asarray(level(problems, minima.price)), np.nan
    ).T
    evidence = minima.evidence
    return _finished(
        found,
        evidence.objective,
        evidence.lower_bound,
        evidence.relative_gap,
        minima.status,
        minima.steps,
        tol=tol,
    )


def of_solution(
    solution: Solution, groups: Int[np.ndarray, " K"], tol: float
) -> dict[str, np.ndarray]:
    """Return the quantities of one solution, as a batch of one.

    Args:
        solution: from `solve`.
        groups: the group of every class; each group's classes are of one group of the solution.
        tol: relative gap up to which it counts as certified.
    """
    certificate = solution.certificate
    lower = np.nan if certificate is None else certificate.lower_bound
    gap = np.nan if certificate is None else certificate.relative_gap
    numbers = (solution.objective, lower, gap, int(solution.status), solution.steps)
    facts: Any = tuple(np.array([number]) for number in numbers)
    problem, num_groups = solution.problem, int(groups.max()) + 1
    if solution.resolution == "groups":
        geometry, counts, bias = jax.tree.map(
            lambda leaf: np.asarray(leaf)[..., None],
            (solution.blocks, solution.by_group()["counts"], solution.group_bias),
        )
        found = _of_geometry(geometry, counts, bias)
        # Groups that happen to have equal counts were solved as one.
        stands_for = np.asarray(solution.groups)[np.searchsorted(groups, np.arange(num_groups))]
        for name, value in found.items():
            for axis in range(len(QUANTITIES[name].dims)):
                value = np.take(value, stands_for, axis=1 + axis)
            found[name] = value
        return _finished(found, *facts, tol=tol)
    parameters = solution.parameters
    batched = parameters._replace(
        weights=tuple(matrix[None] for matrix in parameters.weights),
        features=parameters.features[None],
        bias=None if parameters.bias is None else parameters.bias[None],
    )
    minimum = ClassMinima(
        batched,
        np.asarray(solution.logits)[None],
        np.asarray(solution.class_features)[None],
        facts[0],
        facts[1],
        np.ones(1),  # gaps are those of the certificate
        np.array([solution.relative_gradient]),
        facts[3],
        facts[4],
    )
    counts = np.asarray(problem.class_counts)
    one = rebuilt(
        problem,
        class_counts=rebuilt(problem.class_counts, counts=counts[None], sizes=(1,) * len(counts)),
    )
    found = of_class_minima(one, minimum, groups[None], num_groups, tol)
    return _finished(found, *facts, tol=tol)


def of_vectors(
    gram: Float[np.ndarray, "B K K"],
    member: Float[np.ndarray, "B K G"],
    rank: Int[np.ndarray, " B"],
    vanishing: float = VANISHING,
) -> tuple[Float[np.ndarray, "B G"], Float[np.ndarray, "B G G"]]:
    """Return the mean norm of each group's vectors, and the mean cosine over pairs of different ones of two groups.

    Args:
        gram: the vectors' Gram matrix.
        member: whether a vector is of a group.
        rank: of the logits. Where it is zero, all vectors vanish.
        vanishing: vectors whose square is at most this, relative to the largest, vanish. Means over
            them are NaN, as they are over no pairs.
    """
    sizes, transposed = member.sum(axis=1), np.swapaxes(member, 1, 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        lengths = np.sqrt(np.einsum("bkk->bk", gram))
        there = (lengths**2 > vanishing * np.max(lengths, axis=1, keepdims=True) ** 2) & (rank > 0)[
            :, None
        ]
        cosines = np.clip(gram / (lengths[:, :, None] * lengths[:, None, :]), -1, 1)
        defined = there[:, :, None] & there[:, None, :]
        same = np.eye(gram.shape[1], dtype=bool)
        sums = transposed @ np.where(defined & ~same, cosines, 0) @ member
        undefined = transposed @ np.where(defined | same, 0.0, 1.0) @ member
        pairs = sizes[:, :, None] * sizes[:, None, :] - np.eye(sizes.shape[1]) * sizes[:, :, None]
        means = np.where((undefined > 0) | (pairs <= 0), np.nan, sums / np.maximum(pairs, 1))
        return np.einsum("bk,bkg->bg", lengths, member) / sizes, means


def _of_geometry(geometry: ClassGeometry, counts: Any, bias: Any) -> dict[str, np.ndarray]:
    """Return quantities from blocks, counts (G, B) and bias (G, B) or None, batch axis first in the result."""
    sizes = np.asarray(geometry.logits.sizes)
    own, others = logit_rows(geometry.logits, bias)
    margins = own - np.max(others, axis=1)
    largest = np.max(np.abs(own), axis=0)
    largest = np.maximum(
        largest, np.max(np.where(np.isneginf(others), 0, np.abs(others)), axis=(0, 1))
    )
    found: dict[str, Any] = {"rank": geometry.rank, "margin": margins}
    if bias is not None:
        found["bias"] = bias
    grams = {"weight": geometry.weight_gram, "feature": geometry.feature_gram}
    for name, gram in grams.items():
        found[f"{name}_norm"] = norms(gram)
        found[f"{name}_cosine"] = np.where(geometry.rank > 0, gram.cosines()[1], np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        weights, features, middle = (
            (trace(gram), norm(gram)) for gram in (*grams.values(), centred(geometry.feature_gram))
        )
        inner = projected_trace(geometry.weight_gram), projected_trace(geometry.logits)
        found |= _distances(weights, features, middle, *inner, np.sum(sizes, axis=0))
    found = {name: np.moveaxis(value, -1, 0) for name, value in found.items()}
    return found | {"accuracy": _accuracy(counts.T, found["margin"], largest, sizes.T)}


def _traces(gram: Float[np.ndarray, "B K K"]) -> tuple[np.ndarray, np.ndarray]:
    return np.trace(gram, axis1=1, axis2=2), np.linalg.norm(gram, axis=(1, 2))


def _projected(gram: Float[np.ndarray, "B K K"]) -> np.ndarray:
    """Return the trace of the matrix with its mean over classes taken out."""
    return np.trace(gram, axis1=1, axis2=2) - gram.sum(axis=(1, 2)) / gram.shape[1]


def _distances(
    weights: Any, features: Any, centred: Any, weights_projected: Any, logits_projected: Any, K: Any
) -> dict[str, np.ndarray]:
    """Return the NC2 and NC3 metrics from traces and norms of Gram matrices: distances of unit vectors from their inner products."""
    return {
        "nc2_weights": unit_distance(weights_projected / (weights[1] * np.sqrt(K - 1.0))),
        "nc2_features": unit_distance(centred[0] / (centred[1] * np.sqrt(K - 1.0))),
        "nc2_weights_frame": unit_distance(weights[0] / (weights[1] * np.sqrt(1.0 * K))),
        "nc2_features_frame": unit_distance(features[0] / (features[1] * np.sqrt(1.0 * K))),
        "nc3": 2 - 2 * logits_projected / np.sqrt(weights[0] * centred[0]),
    }


def _accuracy(counts: Any, margins: Any, largest: Any, sizes: Any = 1.0) -> np.ndarray:
    right = margins > VANISHING * np.maximum(largest, 1)[:, None]
    return np.sum(sizes * counts * right, axis=1) / np.sum(sizes * counts, axis=1)


def _finished(
    found: dict[str, np.ndarray],
    objective: Any,
    lower: Any,
    gap: Any,
    status: Any,
    steps: Any,
    *,
    tol: float,
) -> dict[str, np.ndarray]:
    for name in GEOMETRY:
        if name in found:
            found[name] = np.where(found["rank"] > 0, found[name], np.nan)
    for name in ("weight_cosine", "feature_cosine"):
        if name in found:
            found[f"{name}_within"] = np.einsum("bgg->bg", found[name])
    status = np.array(status)
    gap = np.asarray(gap)
    certified = (gap <= tol) & (status != Status.CONTRADICTION)
    # A bound that is met is what counts; where there is one that is not, the solve has not shown
    # what it was asked for.
    status[certified] = Status.CONVERGED
    absolute = ~(np.asarray(objective) - np.asarray(lower) <= tol * np.asarray(lower))
    status[certified & absolute & (np.asarray(lower) >= 0)] = Status.FLOOR
    status[(status == Status.CONVERGED) & ~certified & np.isfinite(np.asarray(lower))] = (
        Status.NOT_CERTIFIED
    )
    found |= {
        "objective": np.asarray(objective),
        "lower_bound": np.asarray(lower),
        "relative_gap": gap,
        "certified": certified,
        "status": status,
        "steps": np.asarray(steps),
    }
    return found
