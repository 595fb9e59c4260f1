r"""Matrices over classes in interchangeable groups: K x K, two numbers per group, one per pair.

Classes of one group are interchangeable, so the matrix is invariant under their permutations.
Within group g it is

    own_g on the diagonal and same_g off it, and across groups g != h it is the constant across_gh.

Such matrices are closed under sums, products and transposes. With u_g = 1_g / sqrt(K_g) the unit
vector of group g, they have two kinds of invariant subspaces. On the span of u_1, ..., u_G they act
as a G x G matrix (`between`). On the K_g - 1 dimensions of every group's vectors of mean zero they
act as a number (`within`). Singular values, norms and products follow from these at a cost that
does not depend on K. Letters: G groups, K_g classes in group g, K classes.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm._support import Module, array_module

__all__ = ["VANISHING", "Blocks", "check_dense", "diagonal", "fits_dense", "identity"]

# Share of the largest below which singular values and squared norms count as zero.
VANISHING = 1e-9
DENSE_LIMIT = 20_000  # classes up to which a K x K matrix (3 GB there) is formed on demand


class Blocks(Module):
    """A K x K matrix that is invariant under permutations within groups of classes.

    Batches of matrices have their axes last, (G, ..., B), so that operations on all of them run
    over contiguous memory.

    Attributes:
        within: The factor of vectors of mean zero of each group, (G,); without effect in a group of
            one class.
        between: The matrix in the basis of the groups' unit vectors, (G, G).
        sizes: Classes per group, (G,).
    """

    within: Float[Array, "G *#batch"]
    between: Float[Array, "G G *#batch"]
    sizes: Float[Array, "G *#batch"]

    @property
    def own(self) -> Float[Array, "G *#batch"]:
        """The diagonal entry of each group."""
        return self.within * (1 - 1 / self.sizes) + diagonal(self.between) / self.sizes

    @property
    def same(self) -> Float[Array, "G *#batch"]:
        """The entry between two classes of each group; without meaning for one class."""
        return (diagonal(self.between) - self.within) / self.sizes

    @property
    def across(self) -> Float[Array, "G G *#batch"]:
        """The entry between a class of group g and one of group h (the diagonal repeats `same`)."""
        xp = array_module(self)
        roots = xp.sqrt(self.sizes)
        constant = self.between / (roots[:, None] * roots[None, :])
        return xp.where(identity(constant) > 0, self.same[:, None], constant)

    @property
    def transposed(self) -> "Blocks":
        """The transposed matrix."""
        return Blocks(self.within, self.between.swapaxes(0, 1), self.sizes)

    def __add__(self, other: "Blocks") -> "Blocks":
        return Blocks(self.within + other.within, self.between + other.between, self.sizes)

    def __sub__(self, other: "Blocks") -> "Blocks":
        return Blocks(self.within - other.within, self.between - other.between, self.sizes)

    def __mul__(self, factor: Float[Array, "*#batch"]) -> "Blocks":
        return Blocks(factor * self.within, factor * self.between, self.sizes)

    __rmul__ = __mul__
    __array_ufunc__ = None  # so that a NumPy number times blocks comes here

    def __matmul__(self, other: "Blocks") -> "Blocks":
        return Blocks(self.within * other.within, self.between @ other.between, self.sizes)

    @classmethod
    def single(
        cls, matrix: Float[Array, "*batch K K"] | Float[np.ndarray, "*batch K K"]
    ) -> "Blocks":
        """Return a matrix in blocks, with every row a group of its own."""
        between = np.moveaxis(np.asarray(matrix), (-2, -1), (0, 1))
        one = np.ones(between.shape[:1] + between.shape[2:])
        return cls(0 * one, between, one)  # type: ignore[arg-type]

    @classmethod
    def average(cls, matrix: Float[np.ndarray, "K K"], groups: np.ndarray) -> "Blocks":
        """Return the nearest matrix that is invariant under permutations within groups.

        Args:
            matrix: (K, K).
            groups: (K,), the group 0, ..., G - 1 of every class.
        """
        order = np.argsort(groups, kind="stable")
        sizes = np.bincount(groups).astype(np.float64)
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(int)
        rows = np.add.reduceat(np.asarray(matrix, np.float64)[order], starts, axis=0)
        sums = np.add.reduceat(rows[:, order], starts, axis=1)
        between = sums / np.sqrt(sizes[:, None] * sizes[None, :])
        traces = np.bincount(groups, np.diagonal(matrix))
        within = (traces - np.diagonal(between)) / np.maximum(sizes - 1, 1)
        return cls(np.where(sizes > 1, within, 0.0), between, sizes)  # type: ignore[arg-type]

    def flattened(self) -> Array:
        """Return the numbers of the matrix, (G + G^2,), with its Frobenius inner products."""
        xp = array_module(self)
        return xp.concatenate([xp.sqrt(self.sizes - 1) * self.within, self.between.reshape(-1)])

    def refined(self, owners: np.ndarray, sizes: np.ndarray) -> "Blocks":
        """Return the same matrix over parts of the groups.

        Args:
            owners: (R,), the group of every part.
            sizes: (R,), classes of every part; those of a group's parts sum to its size.
        """
        entries = np.asarray(self.between) / np.sqrt(
            np.asarray(self.sizes)[:, None] * np.asarray(self.sizes)[None, :]
        )
        within = np.where(np.asarray(self.sizes) > 1, self.within, 0.0)
        # The matrix is `within` times the identity plus these entries.
        entries = entries - np.diag(within / np.asarray(self.sizes))
        roots = np.sqrt(sizes)
        between = (
            np.diag(within[owners])
            + entries[np.ix_(owners, owners)] * roots[:, None] * roots[None, :]
        )
        return Blocks(np.where(sizes > 1, within[owners], 0.0), between, sizes)  # type: ignore[arg-type]

    def scaled_rows(self, factors: Float[Array, "G *#batch"]) -> "Blocks":
        """Return the matrix with the rows of each group multiplied by a factor."""
        return Blocks(self.within * factors, self.between * factors[:, None], self.sizes)

    def singular_values(self) -> tuple[Float[np.ndarray, " m"], np.ndarray]:
        """Return the singular values in descending order, and how often each occurs.

        There is a value per group, and one per mode between groups.
        """
        values = np.concatenate(
            [np.abs(self.within), np.linalg.svd(np.asarray(self.between), compute_uv=False)]
        )
        times = np.concatenate([np.asarray(self.sizes) - 1, np.ones(len(self.sizes))])
        order = np.argsort(-values, kind="stable")
        order = order[times[order] > 0]
        return values[order], times[order]

    def moduli(self) -> tuple["Blocks", "Blocks", Float[Array, "G *#batch"]]:
        """Return (M M')^{1/2}, (M' M)^{1/2} and the singular values of `between`, (G,), descending.

        They are the Gram matrices of balanced factors of the matrix, of its rows and of its
        columns.
        """
        xp = array_module(self)
        left, values, right = xp.linalg.svd(xp.moveaxis(self.between, (0, 1), (-2, -1)))
        within, modes = xp.abs(self.within), values[..., None, :]
        grams = (left * modes) @ left.swapaxes(-1, -2), (right.swapaxes(-1, -2) * modes) @ right
        rows, columns = (
            Blocks(within, xp.moveaxis(gram, (-2, -1), (0, 1)), self.sizes) for gram in grams
        )
        return rows, columns, xp.moveaxis(values, -1, 0)

    def rank(self, tolerance: float = VANISHING) -> int:
        """Return how many singular values exceed `tolerance` times the largest."""
        values, times = self.singular_values()
        return int(np.sum(times[values > tolerance * values[0]])) if values[0] > 0 else 0

    def cosines(self) -> tuple[Float[np.ndarray, "G *#batch"], Float[np.ndarray, "G G *#batch"]]:
        """Return, for a Gram matrix, the cosines within each group and between two groups.

        They are NaN for vectors that vanish (squared norms below 1e-9 of the largest), and within a
        group of one class.
        """
        own = np.asarray(self.own)
        with np.errstate(invalid="ignore", divide="ignore"):
            lengths = np.sqrt(np.where(own > VANISHING * np.max(own, axis=0), own, np.nan))
            across = np.clip(np.asarray(self.across) / (lengths[:, None] * lengths[None, :]), -1, 1)
        within = np.where(np.asarray(self.sizes) > 1, diagonal(across), np.nan)
        return within, np.where(identity(across) > 0, within[:, None], across)

    def dense(self, groups: np.ndarray | None = None) -> Float[np.ndarray, "K K"]:
        """Return the K x K matrix.

        Args:
            groups: (K,), the group of every class; group after group if not given.

        Raises:
            ValueError: If K is too large for a K x K matrix.
        """
        sizes = np.asarray(self.sizes).round().astype(int)
        check_dense(int(sizes.sum()))
        groups = np.repeat(np.arange(sizes.size), sizes) if groups is None else np.asarray(groups)
        matrix = np.asarray(self.across)[np.ix_(groups, groups)]
        np.fill_diagonal(matrix, np.asarray(self.own)[groups])
        return matrix


def fits_dense(num_classes: int) -> bool:
    """Return whether K is small enough for explicit matrices."""
    return num_classes <= DENSE_LIMIT


def check_dense(num_classes: int) -> None:
    """Raise ValueError if K is too large for explicit matrices."""
    if not fits_dense(num_classes):
        raise ValueError(
            f"explicit matrices of {num_classes} classes would take "
            f"{8e-9 * num_classes**2:.3g} GB; use resolution='groups' and the block answers "
            f"of its solution instead (explicit ones are formed up to {DENSE_LIMIT} classes)."
        )


def identity(matrix: Array) -> Float[np.ndarray, "G H *#batch"]:
    """Return the identity, (G, H), with axes of length one for the batch axes of `matrix`."""
    return np.eye(*matrix.shape[:2], dtype=matrix.dtype).reshape(
        *matrix.shape[:2], *(1,) * (matrix.ndim - 2)
    )


def diagonal(matrix: Array) -> Array:
    """Return the diagonal of the first two axes, (G, ...)."""
    xp = np if isinstance(matrix, np.ndarray) else jnp
    return xp.stack([matrix[index, index] for index in range(matrix.shape[0])])
