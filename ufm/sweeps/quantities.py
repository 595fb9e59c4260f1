"""The quantities that a sweep keeps of every minimiser, computed from matrices or from blocks.

At a minimiser all samples of a class have the same features, so within-class variability (NC1) is
zero and not listed.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from ufm._support import ArgumentError, Status, check_one_of
from ufm.certificates import has_tight_bound
from ufm.imbalance import level
from ufm.metrics import (
    MEASURES,
    ClassGeometry,
    centred_bias,
    frame_distances,
    geometry_of,
    geometry_of_matrices,
    logit_rows,
    margins,
    norms,
)
from ufm.problems import VANISHING, GroupProblem, Problem
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
    """A quantity: its dimensions besides those of the sweep, its meaning, and its type."""

    dims: tuple[str, ...]
    text: str
    dtype: str = "float64"


GROUP, PAIR = ("group",), ("group", "other_group")
STATUSES = {int(status): str(status) for status in sorted(Status)}
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
        "cosine between two classifiers, of one group on the diagonal, mean over pairs; NaN where "
        "one vanishes",
    ),
    "feature_cosine": Quantity(
        PAIR,
        "cosine between two class means, of one group on the diagonal, mean over pairs; NaN where "
        "one vanishes",
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
        "log of the price over the one at which the group's classifiers come to coincide, zero on "
        "that threshold; NaN for groups of one class, and "
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
# What is about the rows of one-hot classes, and left out for other targets.
OF_CLASSES = (
    "coincidence_level",
    "accuracy",
    "feature_cosine",
    "feature_cosine_within",
    "feature_norm",
    "margin",
    "nc2_features",
    "nc2_features_frame",
    "nc2_weights",
    "nc2_weights_frame",
    "nc3",
    "predicted_feature_norm",
)
FILL = {"float64": np.nan, "int32": -1, "int8": -1, "bool": False, "object": NO_THEOREM}
PREDICTED = tuple(name for name in QUANTITIES if name.startswith("predicted") or name == "theorem")
DEFAULT = tuple(
    name for name in QUANTITIES if name not in PREDICTED[1:-1] and not name.endswith("_within")
)
ALWAYS = ("objective", "lower_bound", "relative_gap", "certified", "status")


def attributes_of(name: str) -> dict[str, Any]:
    """Return the attributes of a quantity in a Dataset: its meaning, and the codes of a status."""
    meanings = flags(STATUSES) if name == "status" else {}
    return {"long_name": QUANTITIES[name].text, **meanings}


def flags(codes: Mapping[int, str]) -> dict[str, Any]:
    """Return the attributes by which the CF conventions name codes."""
    return {"flag_values": list(codes), "flag_meanings": " ".join(codes.values())}


def checked_quantities(
    names: Any, num_groups: int, use_bias: bool, one_hot: bool = True
) -> tuple[str, ...]:
    """Return the quantities to keep: those asked for and the status of solves, or the usual ones.

    Args:
        names: Of quantities, or None.
        num_groups: The largest number of groups of the sweep.
        use_bias: Whether any of its problems has a bias.
        one_hot: Whether all of them have one-hot classes.

    Raises:
        ValueError: For a name that there is not, or that other targets do not have.
    """
    if names is None:
        chosen = [name for name in DEFAULT if use_bias or name != "bias"]
        chosen = [name for name in chosen if one_hot or name not in OF_CLASSES]
        if num_groups > MATRIX_GROUPS:
            chosen = [
                name + "_within" if name in ("weight_cosine", "feature_cosine") else name
                for name in chosen
            ]
        return tuple(chosen)
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names:
        check_one_of("quantities", name, QUANTITIES)
        if name in OF_CLASSES and not one_hot:
            raise ArgumentError(
                "quantities", f"cannot have {name!r} for `targets`, whose rows are no classes"
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
        problems: Leaves with the batch axis first, one count per class.
        minima: theirs.
        groups: The group of every class.
        num_groups: G.
        tol: Relative gap up to which a minimum counts as certified.
    """
    W, M, bias = minima.parameters.weights[-1], minima.class_features, minima.parameters.bias
    source: Any = problems.class_counts if problems.targets is None else problems.targets
    counts, logits = np.asarray(source.counts), np.asarray(minima.logits)
    stated = getattr(source, "feature_weights", None)
    plain = logits if bias is None else logits - np.asarray(bias)[:, None, :]
    geometry = geometry_of_matrices(W, M, plain, problems.regularizer.gauge_rows(counts, stated))
    shifts = None if bias is None else np.asarray(bias).T
    found = _of_geometry(geometry, counts.T, shifts, problems.one_hot)
    found = _over_groups(found, groups, num_groups)
    return _finished(
        found,
        minima.objective,
        minima.lower_bound,
        minima.relative_gap,
        minima.status,
        minima.steps,
        tol=tol,
        tight=has_tight_bound(problems),
    )


def of_group_minima(
    problems: GroupProblem, minima: GroupMinimum, tol: float
) -> dict[str, np.ndarray]:
    """Return the quantities of a batch of minima over groups.

    The batch axis is last in all leaves, and first in the result.
    """
    # Logits have sizes of order one, and numbers that vanish beside one count as zero.
    geometry = geometry_of(
        problems, minima.logits, floor=np.max(np.asarray(problems.gauge.rows), axis=0)
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
        solution: From `solve`.
        groups: The group of every class; each group's classes are of one group of the solution.
        tol: Relative gap up to which it counts as certified.
    """
    certificate = solution.certificate
    lower = np.nan if certificate is None else certificate.lower_bound
    gap = np.nan if certificate is None else certificate.relative_gap
    numbers = (solution.objective, lower, gap, int(solution.status), solution.steps)
    facts: Any = tuple(np.array([number]) for number in numbers)
    num_groups = int(groups.max()) + 1
    geometry, counts, bias = jax.tree.map(
        lambda leaf: np.asarray(leaf)[..., None],
        (solution.blocks, solution.counts_and_sizes()[0], solution.group_bias),
    )
    found = _of_geometry(geometry, counts, bias, solution.problem.one_hot)
    if solution.resolution != "groups":
        found = _over_groups(found, groups[None], num_groups)
        tight = certificate is not None and certificate.tight
        return _finished(found, *facts, tol=tol, tight=tight)
    # Groups that happen to have equal counts were solved as one.
    stands_for = np.asarray(solution.groups)[np.searchsorted(groups, np.arange(num_groups))]
    for name, value in found.items():
        for axis in range(len(QUANTITIES[name].dims)):
            value = np.take(value, stands_for, axis=1 + axis)
        found[name] = value
    return _finished(found, *facts, tol=tol)


def of_vectors(
    gram: Float[np.ndarray, "B K K"],
    member: Float[np.ndarray, "B K G"],
    rank: Int[np.ndarray, " B"],
) -> tuple[Float[np.ndarray, "B G"], Float[np.ndarray, "B G G"]]:
    """Return the mean norm of each group's vectors, and the mean cosines between groups.

    Args:
        gram: The Gram matrix of the vectors.
        member: Whether a vector is of a group.
        rank: Rank of the logits. Where it is zero, all vectors vanish.
    """
    lengths = np.sqrt(np.einsum("bkk->bk", gram))
    known = np.where((lengths > 0) & (rank > 0)[:, None], lengths, np.nan)
    cosines = np.clip(gram / (known[:, :, None] * known[:, None, :]), -1, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        norms = np.einsum("bk,bkg->bg", lengths, member) / member.sum(axis=1)
    return norms, _mean_over_pairs(cosines, member)


def _over_groups(
    found: dict[str, np.ndarray], groups: Int[np.ndarray, "B K"], num_groups: int
) -> dict[str, np.ndarray]:
    """Return quantities by class as quantities by group: means, and the least of the margins."""
    member = (groups[:, :, None] == np.arange(num_groups)).astype(float)
    sizes = member.sum(axis=1)
    grouped = {}
    if "margin" in found:
        least = np.min(np.where(member > 0, found["margin"][:, :, None], np.inf), axis=1)
        grouped["margin"] = np.where(sizes > 0, least, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        for name in found.keys() & {"bias", "weight_norm", "feature_norm"}:
            grouped[name] = np.einsum("bk,bkg->bg", found[name], member) / sizes
    for name in found.keys() & {"weight_cosine", "feature_cosine"}:
        grouped[name] = _mean_over_pairs(found[name], member)
    return found | grouped


def _mean_over_pairs(
    cosines: Float[np.ndarray, "B K K"], member: Float[np.ndarray, "B K G"]
) -> Float[np.ndarray, "B G G"]:
    """Return the mean over pairs of different classes of two groups.

    A mean over no pairs, or over a pair that is NaN, is NaN.
    """
    transposed, sizes = np.swapaxes(member, 1, 2), member.sum(axis=1)
    same = np.eye(cosines.shape[1], dtype=bool)
    known = np.isfinite(cosines)
    sums = transposed @ np.where(known & ~same, cosines, 0) @ member
    unknown = transposed @ np.where(known | same, 0.0, 1.0) @ member
    pairs = sizes[:, :, None] * sizes[:, None, :] - np.eye(sizes.shape[1]) * sizes[:, :, None]
    return np.where((unknown > 0) | (pairs <= 0), np.nan, sums / np.maximum(pairs, 1))


def _of_geometry(
    geometry: ClassGeometry, counts: Any, bias: Any, one_hot: bool = True
) -> dict[str, np.ndarray]:
    """Return quantities from blocks, counts (G, B), and bias (G, B) or None.

    The batch axis is first in the result. Those of features and margins are left out for targets
    that are not one-hot: their rows are no classes.
    """
    found: dict[str, Any] = {"rank": geometry.rank}
    if bias is not None:
        found["bias"] = bias
    grams = {"weight": geometry.weight_gram}
    if one_hot:
        grams["feature"] = geometry.feature_gram
        found |= frame_distances(geometry) | {"margin": margins(geometry.logits, bias)}
    for name, gram in grams.items():
        found[f"{name}_norm"] = norms(gram)
        found[f"{name}_cosine"] = np.where(geometry.rank > 0, gram.cosines()[1], np.nan)
    found = {name: np.moveaxis(value, -1, 0) for name, value in found.items()}
    if not one_hot:
        return found
    own, others = logit_rows(geometry.logits, bias)
    largest = np.max(np.abs(own), axis=0)
    largest = np.maximum(
        largest, np.max(np.where(np.isneginf(others), 0, np.abs(others)), axis=(0, 1))
    )
    sizes = np.asarray(geometry.logits.sizes)
    return found | {"accuracy": _accuracy(counts.T, found["margin"], largest, sizes.T)}


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
    tight: bool = True,
) -> dict[str, np.ndarray]:
    """Return quantities with the facts of the solves.

    Args:
        found: Quantities by name, batch axis first.
        objective: Of every point, and so are the next four.
        lower: The certified lower bound.
        gap: The relative gap.
        status: How the solve ended.
        steps: Steps made.
        tol: Relative gap up to which a point counts as certified.
        tight: Whether the bound can be expected to meet the optimal value. Only then a gap that
            stays open counts against a point.
    """
    for name in GEOMETRY:
        if name in found:
            found[name] = np.where(found["rank"] > 0, found[name], np.nan)
    for name in ("weight_cosine", "feature_cosine"):
        if name in found:
            found[f"{name}_within"] = np.einsum("bgg->bg", found[name])
    status = np.array(status)
    gap = np.asarray(gap)
    certified = (gap <= tol) & (status != Status.CONTRADICTION)
    status[certified] = Status.CONVERGED
    absolute = ~(np.asarray(objective) - np.asarray(lower) <= tol * np.asarray(lower))
    status[certified & absolute & (np.asarray(lower) >= 0)] = Status.FLOOR
    if tight:
        left_open = ~certified & np.isfinite(np.asarray(lower))
        status[(status == Status.CONVERGED) & left_open] = Status.NOT_CERTIFIED
    found |= {
        "objective": np.asarray(objective),
        "lower_bound": np.asarray(lower),
        "relative_gap": gap,
        "certified": certified,
        "status": status,
        "steps": np.asarray(steps),
    }
    return found
