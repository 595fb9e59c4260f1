r"""Problems of targets over orbits of rows: a few numbers per orbit, at the cost of the orbits.

A problem that is convex in its logits has a minimiser that every symmetry of its targets and loss
leaves alone. Row r of it is the row of its orbit's representative with the labels moved, and the
representative's logits are equal on the labels that its stabiliser exchanges: o_t numbers for row
orbit t.

Nuclear norm. diag(r) Z commutes with the group, which acts on rows and on labels. In bases adapted
to its irreducible representations rho it consists of blocks B_rho, each dim(rho) times:

    ||diag(r) Z||_* = sum_rho dim(rho) ||B_rho||_*,     ||diag(r) Z|| = max_rho ||B_rho||.

Here R^K splits into the constants of each class of labels, and for each class into parts that occur
once:

    all permutations of n labels: vectors of mean zero, dimension n - 1;
    a blocks of b labels: means of blocks, less the mean of all, a - 1; within blocks, a (b - 1);
    rotations of n labels: every frequency, 2, or 1 for alternating signs.

The constants of all G classes are one representation that occurs G times, so its block is a matrix,
T x G. All others occur once in R^K, and their blocks are vectors. In orthonormal coordinates x_t of
row orbit t, each in one part, the entries of the blocks are r_t sqrt(R_t / dim(rho)) x_t, for R_t
rows in the orbit. Groups of interchangeable classes (`ufm.problems.groups`) are the case of one-hot
rows, and have a method of their own.

Reference: Schur's lemma and isotypic decompositions, any text on representations of finite groups,
such as Serre (1977), "Linear Representations of Finite Groups", sections 2.6 and 2.7.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ufm._support import Module, compiled, double_precision, is_concrete
from ufm.problems.class_sizes import ClassGroups
from ufm.problems.losses import Loss
from ufm.problems.problem import Problem
from ufm.problems.symmetry import LabelClass, RowOrbits, find_orbits, random_moves

__all__ = [
    "BlockNorms",
    "OrbitProblem",
    "block_norms",
    "coordinates_of",
    "find_row_orbits",
    "is_symmetric",
    "orbit_losses",
    "orbit_problem",
    "orbit_rows",
]

SAME = 64  # machine epsilons per label by which the loss may differ within an orbit
SPREADS = (1.0, 10.0)  # of the logits at which the loss is compared
COMPARED = 4  # rows for each label at which the loss is compared, at least
MOST_COMPARED = 200_000  # numbers in these rows, unless that is fewer rows
MOST_AT_ALL = 2 * 10**7  # numbers in these rows


class OrbitProblem(Module):
    """A one-layer problem of signed features over T orbits of rows and G classes of labels.

    Attributes:
        loss: The loss.
        label_counts: The sums of each label's targets, which some losses ask for.
        targets: (T, K), the rows of the representatives.
        shares: (T,), share of all samples of an orbit.
        rows: (T,), r_t sqrt(R_t).
        price: (), of the gauge.
        bias: (), lambda_b; zero where the bias is free.
        basis: (T, o, o), the logits of each label orbit by coordinate; the first G coordinates are
            those of the constants. Rows and columns of zeros fill up.
        places: (T, K), the label orbit of every label.
        owners: (T, o - G), the part of each other coordinate; the number of parts if there is none.
        dims: (m,), the dimension of each part.
        label_classes: (K,), the class of each label.
        class_sizes: (G,), labels of each class.
        bounded: Whether the gauge is bounded, by `price`.
        use_bias: Whether there is a bias.
    """

    loss: Loss
    label_counts: ClassGroups
    targets: Float[Array, "T K"]
    shares: Float[Array, " T"]
    rows: Float[Array, " T"]
    price: Float[Array, ""]
    bias: Float[Array, ""]
    basis: Float[Array, "T o o"]
    places: Int[Array, "T K"]
    owners: Int[Array, "T s"]
    dims: Float[Array, " m"]
    label_classes: Int[Array, " K"]
    class_sizes: Float[Array, " G"]
    bounded: bool = eqx.field(static=True)
    use_bias: bool = eqx.field(static=True)

    @property
    def num_orbits(self) -> int:
        """T."""
        return self.targets.shape[0]

    @property
    def num_classes(self) -> int:
        """G."""
        return self.class_sizes.shape[0]

    @property
    def present(self) -> Any:
        """(T, o), whether there is such a coordinate."""
        return np.any(np.asarray(self.basis) != 0, axis=1)


class BlockNorms(NamedTuple):
    """The singular values of an invariant matrix: `vectors` as often as `dims` says, others once.

    Attributes:
        vectors: (m,), the norm of each part's block.
        matrix: (T, G), the block of the constants.
    """

    vectors: Float[Array, " m"]
    matrix: Float[Array, "T G"]


def find_row_orbits(problem: Problem) -> RowOrbits | None:
    """Return the orbits of target rows under symmetries of the targets and the loss.

    Args:
        problem: The problem, with one count per class, and without equal rows (`merged`).

    Returns:
        The orbits; None where none were found that leave half of the rows or fewer.
    """
    if problem.targets is None or not is_concrete(problem):
        return None
    K = problem.num_classes
    numbers = [leaf for leaf in jax.tree.leaves(problem.loss) if np.shape(leaf) == (K,)]
    orbits = find_orbits(problem.targets, np.stack(numbers, axis=1) if numbers else None)
    return orbits if orbits is not None and is_symmetric(problem, orbits) else None


def is_symmetric(problem: Problem, orbits: RowOrbits) -> bool:
    """Return whether the loss treats the rows of each orbit alike.

    It is evaluated: at random logits for the representatives, and for their images under the moves
    of the rows and under random elements of the group, with the logits moved as well. All rows are
    compared unless there are too many, and at least some for each label.
    """
    T, K = orbits.representatives.shape
    if problem.num_outputs != K:
        return False
    random = np.random.default_rng(0)
    most = min(max(MOST_COMPARED // K, COMPARED * K), max(MOST_AT_ALL // K, 1))
    chosen = np.arange(len(orbits.moves))
    if chosen.size > most:
        chosen = random.choice(chosen, most, replace=False)
    more = max(min(COMPARED * K, most) - chosen.size, 0)
    moves = np.concatenate([orbits.moves[chosen], random_moves(orbits.classes, more, random)])
    owners = np.concatenate([orbits.orbit_of[chosen], np.arange(more) % T])
    targets = _moved(orbits.representatives[owners], moves)
    tolerance = SAME * K * np.finfo(np.float64).eps
    with double_precision():
        at_zero = _losses(problem, np.zeros((T, K)), orbits.representatives)
        for spread in SPREADS:
            logits = spread * random.standard_normal((T, K))
            wanted = _losses(problem, logits, orbits.representatives)
            found = _losses(problem, _moved(logits[owners], moves), targets)
            size = np.abs(wanted) + np.abs(np.nan_to_num(at_zero)) + spread
            if not np.all(np.abs(found - wanted[owners]) <= tolerance * size[owners]):
                return False
    return True


def _moved(rows: np.ndarray, moves: np.ndarray) -> np.ndarray:
    whole = np.empty(rows.shape)
    np.put_along_axis(whole, moves, rows, axis=1)
    return whole


def _losses(problem: Problem, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.asarray(_row_losses(problem.loss, problem.class_counts, logits, targets))


@compiled
def _row_losses(loss: Loss, classes: ClassGroups, logits: Array, targets: Array) -> Array:
    return loss(logits, targets, classes)


def orbit_problem(problem: Problem, orbits: RowOrbits) -> OrbitProblem:
    """Return a problem of one layer over the orbits of its target rows.

    Args:
        problem: The problem, concrete, with one count per class, whose regularizer has a gauge.
        orbits: The orbits of its rows under symmetries of its targets.
    """
    counts = np.asarray(problem.row_counts, np.float64)
    gauge, first = problem.gauge, orbits.first
    sizes = orbits.sizes.astype(np.float64)
    basis, places, owners, dims = _adapted(orbits.classes, orbits.representatives)
    label_classes = np.empty(problem.num_outputs, np.int64)
    for index, one in enumerate(orbits.classes):
        label_classes[one.labels] = index
    fields: dict[str, Any] = {
        "targets": orbits.representatives,
        "shares": counts[first] * sizes / np.sum(counts),
        "rows": np.asarray(gauge.rows, np.float64)[first] * np.sqrt(sizes),
        "price": np.asarray(gauge.price, np.float64),
        "bias": np.zeros(()) + np.asarray(problem.regularizer.bias_penalty, np.float64),
        "class_sizes": np.array([one.labels.size for one in orbits.classes], np.float64),
    }
    return OrbitProblem(
        loss=problem.loss,
        label_counts=problem.class_counts,
        basis=basis,
        places=places,
        owners=owners,
        dims=dims,
        label_classes=label_classes,  # type: ignore[arg-type]
        bounded=gauge.bounded,
        use_bias=problem.use_bias,
        **fields,
    )


def orbit_rows(
    problem: OrbitProblem, x: Float[Array, "T o"], bias: Float[Array, " G"] | None
) -> Float[Array, "T K"]:
    """Return the logits of the representatives; equal numbers on labels of one orbit."""
    values = jnp.sum(problem.basis * x[:, None, :], axis=2)
    rows = jnp.take_along_axis(values, problem.places, axis=1)
    return rows if bias is None else rows + bias[problem.label_classes][None, :]


def coordinates_of(problem: OrbitProblem, rows: Float[Array, "T K"]) -> Float[Array, "T o"]:
    """Return the coordinates of the projection of rows onto those that the stabilisers leave."""
    zero = jnp.zeros(problem.basis.shape[:2], rows.dtype)
    return jax.vjp(lambda x: orbit_rows(problem, x, None), zero)[1](rows)[0]


def orbit_losses(problem: OrbitProblem, logits: Float[Array, "T K"]) -> Float[Array, " T"]:
    """Return the loss of each representative."""
    return problem.loss(logits, jnp.asarray(problem.targets), problem.label_counts)


def block_norms(problem: OrbitProblem, weighted: Float[Array, "T o"]) -> BlockNorms:
    """Return the blocks of coordinates that are multiplied by what a row of the orbits weighs."""
    G, parts = problem.num_classes, problem.dims.shape[0]
    squares = jax.ops.segment_sum(
        (weighted[:, G:] ** 2).ravel(), problem.owners.ravel(), num_segments=parts + 1
    )
    return BlockNorms(jnp.sqrt(squares[:parts] / problem.dims), weighted[:, :G])


# Adapted bases


def _adapted(
    classes: tuple[LabelClass, ...], rows: Float[np.ndarray, "T K"]
) -> tuple[Any, Any, Any, Any]:
    """Return basis, places, owners and dims of an `OrbitProblem`."""
    G, dims = len(classes), list[int]()
    parts: list[list[Any]] = []
    for one in classes:
        offset, own = len(dims), _dimensions(one)
        dims += own
        parts.append([(*_parts(one, row[one.labels]), offset) for row in rows])
    width = max(sum(len(parts[g][t][1]) for g in range(G)) for t in range(len(rows)))
    basis = np.zeros((len(rows), width, width))
    places = np.zeros(rows.shape, np.int64)
    owners = np.full((len(rows), width - G), len(dims), np.int64)
    for t in range(len(rows)):
        row, column = 0, G
        for g, one in enumerate(classes):
            where, vectors, local, offset = parts[g][t]
            o = len(vectors)
            places[t, one.labels] = row + where
            basis[t, row : row + o, g] = vectors[:, 0]
            basis[t, row : row + o, column : column + o - 1] = vectors[:, 1:]
            owners[t, column - G : column - G + o - 1] = local + offset
            row, column = row + o, column + o - 1
    return basis, places, owners, np.array(dims, np.float64)


def _dimensions(one: LabelClass) -> list[int]:
    """Return the dimensions of the parts of a class, besides the constants."""
    n, a = one.labels.size, one.blocks
    if one.cyclic:
        return [2 if 2 * f < n else 1 for f in range(1, n // 2 + 1)]
    if a > 1:
        return [a - 1, a * (n // a - 1)]
    return [n - 1] if n > 1 else []


def _parts(
    one: LabelClass, form: Float[np.ndarray, " n"]
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "o o"], Int[np.ndarray, " s"]]:
    """Return label orbits of the stabiliser of a row, an adapted basis, and its columns' parts.

    The basis has the constants first, and label orbits in rows. It is orthonormal over labels.
    """
    if one.cyclic:
        return _frequencies(form)
    n, a = form.size, one.blocks
    kinds, kind_of, times = np.unique(
        form.reshape(a, -1), axis=0, return_inverse=True, return_counts=True
    )
    kind_of = np.ravel(kind_of)
    found = [np.unique(kind, return_inverse=True, return_counts=True) for kind in kinds]
    starts = np.cumsum([0, *(len(values) for values, _, _ in found)])
    inner = np.stack([start + where for start, (_, where, _) in zip(starts, found, strict=False)])
    o, b = starts[-1], n // a
    basis, owners = np.zeros((o, o)), np.zeros(o - 1, np.int64)
    basis[:, 0] = 1 / np.sqrt(n)
    means, column = _weighted_contrasts(times) / np.sqrt(b), len(kinds)
    for kind, (start, (values, _, numbers)) in enumerate(zip(starts, found, strict=False)):
        here, more = slice(start, start + len(values)), len(values) - 1
        basis[here, 1 : len(kinds)] = means[kind]
        within = _weighted_contrasts(numbers) / np.sqrt(times[kind])
        basis[here, column : column + more] = within
        owners[column - 1 : column - 1 + more] = 1 if a > 1 else 0
        column += more
    return inner[kind_of].ravel(), basis, owners


def _weighted_contrasts(times: Int[np.ndarray, " j"]) -> Float[np.ndarray, "j j-1"]:
    """Return columns u with sum_j n_j u_j = 0 that are orthonormal with the weights n_j."""
    roots = np.sqrt(times)
    unit = roots / np.linalg.norm(roots)
    # The Householder reflection that takes the last axis to the unit vector.
    v = unit + np.eye(len(unit))[-1]
    reflection = np.eye(len(unit)) - np.outer(v, v) / (1 + unit[-1])
    return reflection[:, :-1] / roots[:, None]


def _frequencies(form: Float[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the parts of a row under rotations: the frequencies of its own period."""
    n = form.size
    period = next(
        p for p in range(1, n + 1) if n % p == 0 and np.array_equal(form, np.roll(form, p))
    )
    angles = 2 * np.pi * np.arange(period) / period
    columns, owners = [np.full(period, 1 / np.sqrt(n))], []
    for f in range(1, period // 2 + 1):
        waves = [np.cos(f * angles)] + ([np.sin(f * angles)] if 2 * f < period else [])
        columns += [wave / np.sqrt(n / period * np.sum(wave**2)) for wave in waves]
        owners += [f * (n // period) - 1] * len(waves)
    return np.arange(n) % period, np.stack(columns, axis=1), np.array(owners, np.int64)
