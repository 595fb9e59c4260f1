"""The second pass over mini-batches: what single samples add once the class means are known."""

import os
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from ufm import metrics
from ufm._support import ArgumentError, check_instance, double_precision
from ufm.metrics import Absent, Centre, NeuralCollapse, WithinClasses
from ufm.networks.measure.class_moments import (
    ClassMoments,
    as_numbers,
    checked,
    load_arrays,
    offsets,
    save_arrays,
)
from ufm.problems import ClassGroups, Loss

__all__ = ["SecondPass"]


class SecondPass:
    """What single samples add once the class means are known: NC1 of each class, NC4, the loss.

    An accumulator.

    Give it the same samples again, in any batches and order. With `ClassMoments` of the first pass,

        second = SecondPass(moments, weights, bias)
        for features, labels in batches:
            second.update(features, labels)
        result = second.measure()

    is `ufm.metrics.neural_collapse` of all samples.

    Args:
        moments: The first pass, complete; a scatter matrix is not needed.
        weights: The classifier's rows, (K, d); None leaves out NC3, NC4 and NC2 of weights.
        bias: The classifier's bias, (K,); zero by default.
        centre: What means are centred at, "classes" or "samples"; see
            `ufm.metrics.neural_collapse`.
        rtol: What counts as rounding error; see `ufm.metrics.collapse_metrics`.
        loss: A loss of `ufm.losses`, whose mean over the samples of each class is taken as well;
            needs `weights`, and samples of every class.
        absent: Whether to refuse classes without samples; see `ufm.metrics.neural_collapse`.

    Raises:
        ValueError: A class has no samples and is not left out, the classifier does not fit, or a
            loss comes without one.
    """

    def __init__(
        self,
        moments: ClassMoments,
        weights: ArrayLike | None = None,
        bias: ArrayLike | None = None,
        *,
        centre: Centre = "classes",
        rtol: float | None = None,
        loss: Loss | None = None,
        absent: Absent = "refuse",
    ):
        check_instance("moments", moments, ClassMoments, "a ClassMoments")
        if loss is not None and weights is None:
            raise ArgumentError(
                "loss", "needs `weights`: pass the classifier's matrix of shape (K, d) as well"
            )
        self._yard = moments.yardstick(weights, bias, centre=centre, rtol=rtol, absent=absent)
        self._first = moments.widened(moments.num_classes)
        self._first._scatter = None
        self._bias = (
            np.zeros(moments.num_classes)
            if bias is None
            else np.array(metrics.host_array("bias", bias), float)
        )
        self._rtol = np.array(np.nan if rtol is None else rtol)
        self._absent, self._present = absent, np.flatnonzero(self._first._counts)
        self._places = np.full(moments.num_classes, -1)  # of each class among those present
        self._places[self._present] = np.arange(len(self._present))
        self._loss, self._classes = loss, ClassGroups(counts=self._first._counts[self._present])
        if loss is not None:
            missing = np.flatnonzero(self._places < 0)
            if len(missing):
                raise ArgumentError(
                    "loss",
                    f"must be None if classes are left out, {len(missing)} here, such as class "
                    f"{missing[0]}: a loss over all rows of the classifier depends on them",
                )
            loss.check(self._classes)
        self._counts = np.zeros(len(self._present))
        self._sums = np.zeros((len(self._present), 6))  # those of WithinClasses, and the loss

    def update(
        self, features: ArrayLike, labels: ArrayLike, sample_weights: ArrayLike | None = None
    ) -> None:
        """Add a batch. It is checked first: after an error nothing has changed.

        Arguments and errors as `ClassMoments.update`.
        """
        first = self._first
        batch = checked(features, labels, sample_weights, first.num_classes, first.dim)
        if len(self._present) < first.num_classes and np.any(self._places[batch.labels] < 0):
            unseen = batch.labels[self._places[batch.labels] < 0]
            raise ArgumentError(
                "batches",
                f"must hold the same samples in both passes, got none of class {unseen[0]} in "
                "the first; stop the loader from dropping or drawing samples",
            )
        for part in batch.slices(max(first.dim, first.num_classes), least=16):
            y = part.labels
            residuals = np.empty((len(y), first.dim))
            offsets(part.features, first._means, y, residuals)
            residuals -= first._means_low[y]
            y = self._places[y]
            samples, logits = metrics.sample_measures(self._yard, residuals, y)
            values: list[Any] = [*samples[:-1], self._losses(logits, y)]
            sums = metrics.indicator(y, part.sample_weights, len(self._present))
            self._sums += sums @ np.stack(values, axis=1)
            self._counts += sums.sum(axis=1)

    def _losses(self, logits: Any, labels: np.ndarray) -> np.ndarray:
        """Return the loss of every sample; zero without one."""
        if self._loss is None:
            return np.zeros(len(labels))
        with double_precision():
            targets = np.zeros(logits.shape)
            targets[np.arange(len(labels)), labels] = 1.0
            return np.asarray(self._loss(jnp.asarray(logits), jnp.asarray(targets), self._classes))

    def merge(self, other: "SecondPass") -> "SecondPass":
        """Return the second pass over both accumulators' samples; neither changes.

        Raises:
            ValueError: `other` is something else, or was made with other means, another classifier
                or loss.
        """
        check_instance("other", other, SecondPass, "a SecondPass")
        mine, theirs = self._settings(), other._settings()
        different = [
            name for name, value in mine.items() if not np.array_equal(value, theirs[name])
        ]
        if different:
            raise ArgumentError(
                "other",
                f"must measure against the same {different[0]}; make every SecondPass from "
                "the merged moments of the first pass, with one classifier",
            )
        merged = object.__new__(SecondPass)
        merged.__dict__.update(self.__dict__)
        merged._counts, merged._sums = self._counts + other._counts, self._sums + other._sums
        return merged

    def _settings(self) -> dict[str, Any]:
        """Return what two accumulators must have in common."""
        return {
            "counts": self._first._counts,
            "means": self._first._means,
            "weights": self._yard.head,
            "bias": self._bias,
            "centre": self._yard.centre,
            "rtol": self._yard.floor,
            "loss": repr(self._loss),
        }

    def _class_means(self) -> np.ndarray:
        """Return the sums over the counts, (K, 6), if they are of the samples of the first pass."""
        n, first = self._counts, self._first._counts[self._present]
        wrong = np.flatnonzero(~np.isclose(n, first, rtol=1e-9, atol=0.0))
        if len(wrong):
            k = wrong[0]
            raise ArgumentError(
                "batches",
                f"must hold the same samples in both passes, got {first[k]:g} of class "
                f"{self._present[k]} in the first and {n[k]:g} in the second; stop the loader "
                "from dropping or drawing samples",
            )
        means = self._sums / n[:, None]
        before, after = self._first.within_trace[self._present], means[:, 0] * self._yard.scale**2
        # a network in float32 need not give the same digits twice
        slack = 1e-2 * before + np.sum((1e-5 * self._first._means[self._present]) ** 2, axis=1)
        k = int(np.argmax(np.abs(after - before) - slack))
        if np.abs(after[k] - before[k]) > slack[k]:
            name = self._present[k]
            raise ArgumentError(
                "batches",
                f"must hold the same features in both passes, got a variance of {before[k]:g} "
                f"within class {name} in the first and of {after[k]:g} in the second; turn "
                "off augmentation and dropout",
            )
        return means

    def measure(self) -> NeuralCollapse:
        """Return NC1 to NC4 of all samples.

        Raises:
            ValueError: The two passes did not see the same samples.
        """
        means, numbers = self._class_means()[:, :3], self._sums[:, 3:5]
        result = as_numbers(
            metrics.collapse_from(self._yard, WithinClasses._make([*means.T, *numbers.T, True]))
        )
        return metrics.absent_left_out(result, self._present, self._first.num_classes)

    @property
    def has_loss(self) -> bool:
        """Whether a loss is taken."""
        return self._loss is not None

    def loss_per_class(self) -> Float[np.ndarray, " K"]:
        """Return the mean loss over each class, (K,).

        Weighted by n_k / N they sum to the mean over all samples.

        Raises:
            ValueError: There is no loss, or the two passes did not see the same samples.
        """
        if self._loss is None:
            raise ArgumentError("loss", "must be given when the SecondPass is made, got None")
        return self._class_means()[:, 5]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything but the loss into an .npz file, as a whole or not at all."""
        yard = self._yard
        classifier = {"weights": yard.head, "bias": self._bias} if yard.classifies else {}
        own = {
            "second_counts": self._counts,
            "sums": self._sums,
            "rtol": self._rtol,
            "centre": np.array(yard.centre),
            "absent": np.array(self._absent),
        }
        save_arrays(path, "SecondPass", self._first.arrays() | classifier | own)

    @classmethod
    def load(cls, path: str | os.PathLike[str], loss: Loss | None = None) -> "SecondPass":
        """Return the accumulator that `save` wrote; nothing in the file is unpickled.

        Args:
            path: The file.
            loss: The loss it was made with, if any.

        Raises:
            ValueError: There is no such file, it is damaged, or it holds something else.
        """
        keys = (
            "counts",
            "means",
            "means_low",
            "squares",
            "second_counts",
            "sums",
            "rtol",
            "centre",
            "absent",
        )
        arrays = load_arrays(path, "SecondPass", keys, ("weights", "bias"))
        moments = ClassMoments.restored(arrays, path)
        centre: Any = str(arrays["centre"])
        absent: Any = str(arrays["absent"])
        rtol = None if np.all(np.isnan(arrays["rtol"])) else float(arrays["rtol"])
        second = cls(
            moments,
            arrays["weights"],
            arrays["bias"],
            centre=centre,
            rtol=rtol,
            loss=loss,
            absent=absent,
        )
        for name, own in (("second_counts", "_counts"), ("sums", "_sums")):
            array = arrays[name]
            if (
                array is None
                or array.shape != getattr(second, own).shape
                or not np.isfinite(array).all()
            ):
                raise ArgumentError(
                    "path",
                    f"must hold what `save` wrote, got a bad {name!r} in {os.fspath(path)!r}",
                )
            setattr(second, own, array)
        return second
