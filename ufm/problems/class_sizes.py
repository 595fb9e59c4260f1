"""Class sizes: how many classes there are, and how many samples each of them has.

Letters: K classes in G groups of equal size; n_k samples of class k; N = sum of n_k. The sizes may
be real numbers, so that an imbalance ratio can be varied continuously: the class-level models
depend on them only through n_k and N.
"""

from collections.abc import Iterator, Sequence
from typing import Any, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm._support import (
    LARGEST,
    SMALLEST,
    ArgumentError,
    Final,
    as_leaf,
    check_numbers,
    checked_whole,
    is_concrete,
    is_numeric,
    written,
)

__all__ = ["ClassGroups"]


@final
class ClassGroups(Final):
    """Class sizes, stored as groups of consecutive classes that share one.

    The counts are leaves of the pytree, so a change of their values never recompiles anything; how
    many classes a group has is static. `ClassGroups(counts=(500, 5), sizes=(5, 5))` is five classes
    of 500 samples followed by five of 5, and `ClassGroups(counts=(7, 4, 1))` is three classes.

    Args:
        counts: samples per class, one number per group, positive and finite, not necessarily whole.
        sizes: classes per group, positive whole numbers; one class per group if not given.

    Raises:
        ValueError: if a count or a size is not positive and finite, the lengths differ, or there
            are fewer than two classes.
    """

    counts: Float[Array, " G"] = eqx.field(converter=as_leaf)
    sizes: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, counts: Any, sizes: Sequence[int] | None = None):
        if isinstance(counts, (str, bytes)):
            raise ArgumentError(
                "class_counts",
                f"must be a sequence of numbers such as (3, 3), got the text {counts!r}",
            )
        converted = as_leaf(counts)
        if is_concrete(counts) and not is_numeric(converted):
            raise ArgumentError(
                "class_counts", "must be a sequence of real numbers such as (3, 3)", counts
            )
        self.counts = np.atleast_1d(converted) if is_concrete(counts) else counts  # type: ignore[assignment]
        if np.ndim(self.counts) != 1:
            raise ArgumentError(
                "counts",
                "must be a flat sequence of numbers, got an array of shape "
                f"{np.shape(self.counts)}",
            )
        if sizes is None:
            sizes = (1,) * np.shape(self.counts)[0]
        if (
            isinstance(sizes, (str, bytes, dict, set))
            or not np.iterable(sizes)
            or np.ma.isMaskedArray(sizes)
        ):
            raise ArgumentError("sizes", "must be a sequence of whole numbers", sizes)
        self.sizes = tuple(checked_whole("sizes", size) for size in sizes)

    def __check_init__(self) -> None:
        if len(self.sizes) != self.counts.shape[0]:
            raise ArgumentError(
                "sizes",
                f"must name one number of classes per count: got {len(self.sizes)} sizes for "
                f"{self.counts.shape[0]} counts",
            )
        if sum(self.sizes) < 2:
            raise ArgumentError(
                "class_counts", f"must describe at least 2 classes, got {sum(self.sizes)}"
            )
        if is_concrete(self.counts):
            bad = [
                float(count)
                for count in np.asarray(self.counts)
                if not (np.isfinite(count) and count >= SMALLEST)
            ]
            if bad:
                raise ArgumentError(
                    "class_counts",
                    "must be positive and finite",
                    bad[0],
                    "leave an empty class out instead",
                )
            if not float(np.sum(np.asarray(self.counts) / LARGEST * np.asarray(self.sizes))) <= 1:
                raise ArgumentError(
                    "class_counts",
                    f"must add up to at most {LARGEST:g}, got {float(np.max(self.counts))!r} "
                    "among them; state them in a larger unit",
                )

    @classmethod
    def balanced(cls, num_classes: int, count: Any) -> "ClassGroups":
        """Return `num_classes` classes of `count` samples each."""
        num_classes = checked_whole("num_classes", num_classes)
        return cls(
            counts=jnp.reshape(count, (1,)) if not is_concrete(count) else (count,),
            sizes=(num_classes,),
        )

    @classmethod
    def step(
        cls, num_classes: int, count: Any, *, imbalance_ratio: Any, num_minority: int | None = None
    ) -> "ClassGroups":
        """Return a step: majority classes of `count` samples, minority classes of `count / ratio`.

        Args:
            num_classes: K, both kinds together.
            count: samples of a majority class.
            imbalance_ratio: R = n_majority / n_minority.
            num_minority: number of minority classes; half of them (rounded down) if not given.
        """
        num_classes = checked_whole("num_classes", num_classes)
        check_numbers("count", count, positive=True)
        num_minority = (
            num_classes // 2
            if num_minority is None
            else checked_whole("num_minority", num_minority)
        )
        if not 0 < num_minority < num_classes:
            raise ArgumentError(
                "num_minority",
                f"must be between 1 and {num_classes - 1} for {num_classes} classes, got "
                f"{num_minority}",
            )
        check_numbers("imbalance_ratio", imbalance_ratio, positive=True)
        concrete = is_concrete(count, imbalance_ratio)
        counts = (
            (count, count / imbalance_ratio)
            if concrete
            else jnp.stack([count, count / imbalance_ratio])
        )
        return cls(counts=counts, sizes=(num_classes - num_minority, num_minority))

    @classmethod
    def long_tail(cls, num_classes: int, count: Any, *, imbalance_ratio: Any) -> "ClassGroups":
        r"""Return the long tail n_k = count * R^{-(k-1)/(K-1)}, from `count` to `count / R`.

        Args:
            num_classes: K.
            count: samples of the largest class.
            imbalance_ratio: R, largest over smallest class.
        """
        num_classes = checked_whole("num_classes", num_classes)
        check_numbers("count", count, positive=True)
        check_numbers("imbalance_ratio", imbalance_ratio, positive=True)
        exponents = -np.arange(num_classes, dtype=np.float64) / max(num_classes - 1, 1)
        return cls(counts=count * imbalance_ratio**exponents)

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return sum(self.sizes)

    @property
    def num_groups(self) -> int:
        """G, the number of groups as stated; two groups may have equal counts."""
        return len(self.sizes)

    @property
    def num_samples(self) -> Float[Array, ""]:
        """N, the sum of all counts, () array."""
        if is_concrete(self.counts):
            return np.sum(self.counts * np.asarray(self.sizes, np.float64))
        return jnp.sum(self.counts * jnp.asarray(self.sizes, self.counts.dtype))

    @property
    def per_class(self) -> Float[Array, " K"]:
        """n_k for every class, (K,) array."""
        return self.expand(self.counts, "class_counts")

    def expand(self, values: Any, name: str) -> Any:
        """Return one value per class from one number for all, one per group, or one per class.

        Args:
            values: array of shape (), (G,) or (K,).
            name: what to call the values in the error message.
        """
        shape = np.shape(values)
        numpy = np if is_concrete(values) else jnp
        if shape == (self.num_classes,):
            return values
        if shape == (self.num_groups,):
            if numpy is np:
                return np.repeat(values, self.sizes)
            return jnp.repeat(values, np.asarray(self.sizes), total_repeat_length=self.num_classes)
        if shape == ():
            return numpy.broadcast_to(values, (self.num_classes,))
        raise ArgumentError(
            name,
            f"must be one number, one per group ({self.num_groups}) or one per class "
            f"({self.num_classes}); got shape {shape}",
        )

    def __repr__(self) -> str:
        return written(self, without=("sizes",) if set(self.sizes) == {1} else ())

    def __len__(self) -> int:
        return self.num_classes

    def __iter__(self) -> Iterator[Any]:
        return iter(self.per_class)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.per_class, dtype=dtype)
