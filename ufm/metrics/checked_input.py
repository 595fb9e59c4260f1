"""Arrays and labels from any library, converted to NumPy and checked."""

from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np

from ufm import geometry
from ufm._support import ArgumentError, check_numbers, check_one_of, double_precision

__all__ = [
    "Absent",
    "check_present",
    "check_size",
    "checked_rtol",
    "class_labels",
    "first_missing",
    "head_of",
    "host_array",
    "real_array",
    "weight_array",
]


Absent = Literal["refuse", "leave out"]
LARGEST_SIZE = 1e130  # squares and their sums stay within float64


def host_array(
    name: str,
    value: Any,
    remedy: str = "convert it, for instance with `np.asarray(..., dtype=np.float64)`",
) -> np.ndarray:
    """Convert anything that NumPy or DLPack understands; refuse what does not hold real numbers."""
    geometry.check_not_masked(name, *(value if isinstance(value, list | tuple) else [value]))
    if hasattr(value, "detach"):
        value = value.detach()  # a tensor that records gradients gives its values only then
    try:
        array = np.asarray(value)
    except Exception as error:
        array, reason = None, str(error)
    foreign = not isinstance(value, np.ndarray) and hasattr(value, "__dlpack__")
    if foreign and (array is None or array.dtype == object):
        try:
            with double_precision():  # JAX knows types that NumPy lacks, such as bfloat16
                array = np.asarray(jnp.from_dlpack(value))
        except Exception as error:
            array, reason = None, str(error)
    if array is None:
        kind = type(value).__name__
        reason = reason.partition("\n")[0]
        raise ArgumentError(
            name, f"must be an array in the memory of the host, got {kind}: {reason}"
        )
    if not (jnp.issubdtype(array.dtype, np.floating) or array.dtype.kind in "iub"):
        raise ArgumentError(name, f"must hold real numbers, got dtype {array.dtype}; {remedy}")
    return array


def real_array(name: str, value: Any, shape: tuple[int | None, ...], meaning: str) -> np.ndarray:
    """Convert to a finite float64 array of a given shape; None stands for any size but zero."""
    array = host_array(name, value)
    fits = array.ndim == len(shape) and all(
        size == expected or (expected is None and size > 0)
        for size, expected in zip(array.shape, shape, strict=True)
    )
    if not fits:
        raise ArgumentError(name, f"must be {meaning}, got shape {array.shape}")
    array = array.astype(np.float64)
    if not np.all(np.isfinite(array)):
        bad = np.argwhere(~np.isfinite(array))
        place = tuple(bad[0].tolist())
        of_samples = name in ("features", "sample_weights")
        remedy = "leave such samples out" if of_samples else "what has diverged cannot be measured"
        raise ArgumentError(
            name,
            f"must be finite, got {array[place]} at index {place}, one of {len(bad)} such "
            f"values; {remedy}",
        )
    return array


def check_size(name: str, array: np.ndarray) -> None:
    """Refuse finite numbers of a size whose squares float64 cannot hold."""
    size = float(np.max(np.abs(array), initial=0.0))
    if size > LARGEST_SIZE or 0 < size < 1 / LARGEST_SIZE:
        raise ArgumentError(
            name,
            f"must be of a size whose square float64 can hold, got {size:g}; multiply all by a "
            "constant",
        )


def weight_array(name: str, value: Any, size: int, each: str) -> np.ndarray:
    """Convert to weights, (size,), that are not negative and have a positive sum; None is ones.

    Args:
        name: The argument that error messages name.
        value: What was given.
        size: How many weights there must be.
        each: What each of them belongs to, such as "sample".
    """
    if value is None:
        return np.ones(size)
    array = real_array(name, value, (size,), f"of shape ({size},), one number for each {each}")
    if np.any(array < 0) or not array.sum() > 0:
        raise ArgumentError(
            name,
            "must not be negative and must have a positive sum, got "
            f"{array.min():g} as the least weight and {array.sum():g} as the sum",
        )
    return array


def _reshaped(labels: np.ndarray, num_samples: int) -> str:
    """Return the remedy for labels of another shape, if one is known."""
    if labels.ndim == 2 and labels.shape == (num_samples, 1):
        return "; drop the second axis with `labels.squeeze(1)`"
    if labels.ndim == 2 and len(labels) == num_samples:
        return "; one-hot labels are converted with `labels.argmax(axis=1)`"
    if labels.ndim > 1 and labels.size == num_samples:
        return "; where every position is a sample, flatten them with `labels.reshape(-1)`"
    return ""


def class_labels(labels: Any, num_samples: int, num_classes: int | None) -> np.ndarray:
    """Return integer labels in 0, ..., K - 1, one for each sample; without K, not negative."""
    y = host_array(
        "labels", labels, "number classes by name with `np.unique(labels, return_inverse=True)[1]`"
    )
    if y.ndim == 1 and y.dtype.kind not in "iu":
        parts = y[y != np.floor(y)] if y.dtype.kind == "f" else y[:0]
        remedy = "convert indices with `labels.astype(int)`"
        if parts.size:
            remedy = f"{parts.ravel()[0]} is no index of a class"
        raise ArgumentError("labels", f"must be integers, got dtype {y.dtype}; {remedy}")
    if y.shape != (num_samples,):
        raise ArgumentError(
            "labels",
            f"must have shape ({num_samples},), one class index for each row of `features`, "
            f"got shape {y.shape}{_reshaped(y, num_samples)}",
        )
    if not isinstance(num_classes, int | np.integer | None):
        raise ArgumentError("num_classes", "must be an integer", num_classes)
    low, high = (int(y.min()), int(y.max())) if len(y) else (0, 0)
    if low < 0 or (num_classes is not None and len(y) and high >= num_classes):
        row = int(np.argmin(y) if low < 0 else np.argmax(y))
        many = (
            "not be negative"
            if num_classes is None
            else f"be in 0, ..., {num_classes - 1} for {num_classes} classes"
        )
        raise ArgumentError(
            "labels",
            f"must {many}, got {y[row]} at index {row}; leave such samples out "
            "(`ufm.networks` does with `ignore_index`), or correct `num_classes`",
        )
    return y.astype(np.int64, copy=False)


def first_missing(present: Any, num_classes: int, most: int = 10) -> str:
    """Return the first classes that are not among those present, as text."""
    first = np.setdiff1d(np.arange(min(num_classes, len(present) + most)), present)[:most]
    return ", ".join(map(str, first)) + (", ..." if num_classes - len(present) > len(first) else "")


def check_present(
    name: str, present: np.ndarray, num_classes: int, absent: Absent = "refuse"
) -> None:
    """Refuse fewer than two classes, and, unless they are left out, classes without samples.

    Args:
        name: The argument that error messages name.
        present: The classes that have samples, ascending.
        num_classes: K.
        absent: Whether to refuse classes without samples, or to leave them out.

    Raises:
        ValueError: There are fewer than two classes to compare, or classes without samples that are
            refused.
    """
    check_one_of("absent", absent, get_args(Absent))
    fewest = len(present) if absent == "leave out" else num_classes
    if fewest < 2:
        raise ArgumentError(name, f"must hold at least 2 classes to compare, got {fewest}")
    if len(present) < num_classes and absent == "refuse":
        raise ArgumentError(
            name,
            f"must have a sample of each of the {num_classes} classes, got none of class "
            f"{first_missing(present, num_classes)}; a class without samples has no mean, so "
            "leave it out: with `absent='leave out'`, or by numbering the others 0, 1, ..",
        )


def checked_rtol(rtol: Any, size: int) -> float:
    """Return the share of the largest number up to which others are rounding error.

    Args:
        rtol: The share that the caller gives; None for `size` machine epsilons.
        size: The larger side of the arrays that are measured.

    Raises:
        ArgumentError: If it is not a number from 0 to below 1.
    """
    if rtol is None:
        return size * float(np.finfo(float).eps)
    check_numbers("rtol", rtol, lower=0.0, below=1.0)
    return float(rtol)


def head_of(
    weights: Any, bias: Any, shape: tuple[int, int], output: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the matrix and the bias of a linear head; None without a matrix.

    Args:
        weights: The matrix, or None.
        bias: The bias; None for zeros.
        shape: The shape that the matrix must have.
        output: What a row of the matrix stands for, such as "class".

    Raises:
        ArgumentError: If an array does not fit, or there is a bias without a matrix.
    """
    rows = shape[:1]
    if weights is None and bias is not None:
        raise ArgumentError(
            "bias", f"needs `weights`: pass the last layer's matrix {shape} as well"
        )
    if weights is None:
        return None
    W = real_array("weights", weights, shape, f"the last layer's matrix, of shape {shape}")
    if bias is None:
        return W, np.zeros(rows)
    return W, real_array("bias", bias, rows, f"of shape {rows}, one number for each {output}")
