"""Measure whole networks: passes over batches that end in one measurement for each layer."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args, overload

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from ufm._support import ArgumentError, check_one_of, printed
from ufm.metrics import (
    Absent,
    Centre,
    NeuralCollapse,
    TagCentre,
    class_labels,
    host_array,
    linguistic_collapse,
)
from ufm.networks.measure.batches import Entries, Entry, rows_that_count
from ufm.networks.measure.by_group import GroupCollapse, by_group
from ufm.networks.measure.class_moments import ClassMoments
from ufm.networks.measure.second_pass import SecondPass
from ufm.networks.measure.target_measurement import (
    IN_ROWS,
    ContextTap,
    LanguageMeasurement,
    Targets,
    check_layers,
    measure_rows,
    width_of,
)
from ufm.networks.measure.target_moments import ContextMoments
from ufm.problems import Loss

__all__ = ["Batches", "Measurement", "measure", "measure_layers"]

Batches = Iterable[tuple[Any, ...]] | Callable[[], Iterator[tuple[Any, ...]]]

OF_CLASSES = ("groups", "loss", "scatter", "ignore_index", "absent", "contexts")
SAY_NOTHING: dict[str, tuple[str, ...]] = {
    "classes": ("contexts",),
    "contexts": (),
    "regression": (*OF_CLASSES, "centre"),
    "multi-label": OF_CLASSES,
}

ONLY = ""  # the name of the layer where there is but one


@printed
class Measurement(NamedTuple):
    """How collapsed one layer is.

    Attributes:
        collapse: NC1 to NC4.
        moments: The class moments, for `TrainedNetwork.from_moments` and for merging; with a
            scatter matrix where asked for.
        groups: Aggregates over groups of classes, or None.
        loss: The mean loss over all samples, or None.
        loss_per_class: The mean loss over each class, (K,), or None.
    """

    collapse: NeuralCollapse
    moments: ClassMoments
    groups: GroupCollapse | None = None
    loss: float | None = None
    loss_per_class: Float[np.ndarray, " K"] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return scalars, and values per class and per group, as plain Python.

        What was not measured is absent.
        """
        flat = self.collapse.to_dict()
        if self.loss is not None and self.loss_per_class is not None:
            flat |= {"loss": self.loss, "loss_per_class": self.loss_per_class.tolist()}
        return flat if self.groups is None else flat | {"groups": self.groups.to_dict()}

    def __str__(self) -> str:
        parts = [str(self.collapse)]
        if self.loss is not None:
            parts.append(f"mean loss {self.loss:.6g}")
        if self.groups is not None:
            parts.append(str(self.groups))
        return "\n\n".join(parts)


def _passes(batches: Batches, passes: int) -> Callable[[], Iterator[tuple[Any, ...]]]:
    """Return a function that starts a pass over the batches."""
    if passes not in (1, 2):
        raise ArgumentError("passes", "must be 1 or 2", passes)
    if callable(batches):
        return batches
    if not isinstance(batches, Iterable):
        raise ArgumentError(
            "batches",
            "must be an iterable of (features, labels), or a function that returns one, got "
            f"{type(batches).__name__}",
        )
    if passes == 2 and iter(batches) is batches:
        raise ArgumentError(
            "batches",
            f"must be iterable twice, got {type(batches).__name__}, which one pass uses up; "
            "give a list, a loader or a function that returns a new iterator, or take "
            "`passes=1`",
        )
    return lambda: iter(batches)


@overload
def measure_layers(
    batches: Batches,
    num_classes: int | None = None,
    weights: Mapping[str, ArrayLike] | None = None,
    bias: Mapping[str, ArrayLike] | None = None,
    *,
    groups: Any = None,
    centre: Centre = "classes",
    rtol: float | None = None,
    loss: Loss | None = None,
    passes: int = 2,
    scatter: bool = False,
    sample_weights: Entry | None = None,
    ignore_index: int | None = None,
    absent: Absent = "refuse",
    targets: Literal["classes"] = "classes",
    contexts: Entry | None = None,
) -> dict[str, Measurement]: ...


@overload
def measure_layers(
    batches: Batches,
    num_classes: int | None = None,
    weights: Mapping[str, ArrayLike] | None = None,
    bias: Mapping[str, ArrayLike] | None = None,
    *,
    groups: Any = None,
    centre: TagCentre = "classes",
    rtol: float | None = None,
    loss: Loss | None = None,
    passes: int = 2,
    scatter: bool = False,
    sample_weights: Entry | None = None,
    ignore_index: int | None = None,
    absent: Absent = "refuse",
    targets: Literal["regression", "multi-label", "contexts"],
    contexts: Entry | None = None,
) -> Any: ...


def measure_layers(
    batches: Batches,
    num_classes: int | None = None,
    weights: Mapping[str, ArrayLike] | None = None,
    bias: Mapping[str, ArrayLike] | None = None,
    *,
    groups: Any = None,
    centre: TagCentre = "classes",
    rtol: float | None = None,
    loss: Loss | None = None,
    passes: int = 2,
    scatter: bool = False,
    sample_weights: Entry | None = None,
    ignore_index: int | None = None,
    absent: Absent = "refuse",
    targets: Targets = "classes",
    contexts: Entry | None = None,
) -> Any:
    """Return the measurement of each of several layers, in the same passes over the batches.

    Args:
        batches: As for `measure`, except that the features are a mapping from the name of each
            layer to its own, (n, d_layer).
        num_classes: K; found from the labels by default.
        weights: The classifier that follows a layer, (K, d_layer), by the layer's name; others have
            no NC3 and NC4.
        bias: Its bias, (K,), by the layer's name.
        groups: As for `measure`, and so are the following.
        centre: What means are centred at.
        rtol: What counts as rounding error.
        loss: A loss, for the layers with a classifier.
        passes: 2 for everything, 1 for what moments tell.
        scatter: Whether to gather scatter matrices in two passes as well.
        sample_weights: Where to find the samples' weights.
        ignore_index: The label of what does not count.
        absent: What to do with classes that have no samples.
        targets: What the labels are.
        contexts: Where to find the contexts of positions.

    Raises:
        ValueError: As `measure`; layers differ between batches, or weights are those of no layer.
    """
    given = {
        "groups": groups,
        "loss": loss,
        "scatter": scatter or None,
        "ignore_index": ignore_index,
        "absent": None if absent == "refuse" else absent,
        "contexts": contexts,
        "centre": None if centre == "classes" else centre,
    }
    _check_options(targets, given)
    start = _passes(batches, 1 if targets in IN_ROWS and passes == 2 else passes)
    weights, bias = weights or {}, bias or {}
    entries = Entries(sample_weights=sample_weights, contexts=contexts, name="batches")
    if targets in IN_ROWS:
        found = map(entries.read, start())
        return measure_rows(
            found, targets, num_classes, weights, bias, {"centre": centre, "rtol": rtol}
        )
    tap = ContextTap(
        lambda: map(entries.read_with_contexts, start()), ignore_index, noted=contexts is not None
    )
    results = _class_layers(
        tap,
        num_classes,
        weights,
        bias,
        passes=passes,
        scatter=scatter,
        ignore_index=ignore_index,
        loss=loss,
        alike={"centre": centre, "rtol": rtol, "absent": absent},
    )
    if groups is not None:
        for name, result in results.items():
            results[name] = result._replace(groups=by_group(result.collapse, groups))
    if targets == "classes":
        return results
    return {
        name: _of_language(result, tap.moments.get(name), weights.get(name), bias.get(name), rtol)
        for name, result in results.items()
    }


def _check_options(targets: Targets, given: Mapping[str, Any]) -> None:
    """Refuse options that say nothing about targets of a kind; None is not given."""
    check_one_of("targets", targets, get_args(Targets))
    for name in SAY_NOTHING[targets]:
        if given[name] is not None:
            raise ArgumentError(
                name, f"says nothing about targets={targets!r}, got {given[name]!r}; leave it out"
            )


def _of_language(
    result: Measurement, moments: ContextMoments | None, weights: Any, bias: Any, rtol: float | None
) -> LanguageMeasurement:
    """Return the measurement of a layer before a language-model head."""
    classes = result.moments.num_classes
    return LanguageMeasurement(
        collapse=result.collapse,
        linguistic=linguistic_collapse(result.collapse),
        contexts=None
        if moments is None
        else moments.measure(weights, bias, num_tokens=classes, rtol=rtol),
        moments=result.moments,
        context_moments=moments,
        loss=result.loss,
    )


def _class_layers(
    read: Callable[[], Iterator[tuple[Any, Any, Any]]],
    num_classes: int | None,
    weights: Mapping[str, ArrayLike],
    bias: Mapping[str, ArrayLike],
    *,
    passes: int,
    scatter: bool,
    ignore_index: int | None,
    loss: Loss | None,
    alike: Mapping[str, Any],
) -> dict[str, Measurement]:
    """Return the measurement of each layer by class; `alike` is the same in both passes."""
    moments = _moments(read(), num_classes, scatter or passes == 1, ignore_index)
    for given in (weights, bias):
        unknown = [name for name in given if name not in moments]
        if unknown:
            raise ArgumentError(
                "weights", f"and `bias` must be of the layers {[*moments]}", unknown[0]
            )
    results, second = {}, {}
    for name, one in moments.items():
        classifier = weights.get(name), bias.get(name)
        if passes == 1:
            results[name] = Measurement(one.measure(*classifier, **alike), one)
        else:
            of_layer = loss if name in weights else None
            second[name] = SecondPass(one, *classifier, loss=of_layer, **alike)
    if second:
        for batch in read():
            features, labels, a = rows_that_count(*batch, ignore_index)
            for name, accumulator in second.items():
                accumulator.update(features[name], labels, a)
        results = {name: _measured(moments[name], after) for name, after in second.items()}
    return results


def _moments(
    batches: Iterator[tuple[Any, Any, Any]],
    num_classes: int | None,
    scatter: bool,
    ignore_index: int | None,
) -> dict[str, ClassMoments]:
    """Return the moments of every layer from one pass over batches of features by layer.

    Raises:
        ValueError: Batches are none, or do not hold the same layers.
    """
    moments: dict[str, ClassMoments] = {}
    for features, labels, a in batches:
        check_layers(features, moments)
        K = num_classes
        features, labels, a = rows_that_count(features, labels, a, ignore_index)
        for name, given in features.items():
            X = host_array("features", given)
            if K is None:
                y = class_labels(labels, len(X), None)
                K = max(
                    int(y.max(initial=0)) + 1, 2, *(other.num_classes for other in moments.values())
                )
            if name not in moments:
                moments[name] = ClassMoments(K, width_of(X), scatter=scatter)
            elif moments[name].num_classes < K:
                moments[name] = moments[name].widened(K)
            moments[name].update(X, labels, a)
    if not moments:
        raise ArgumentError("batches", "must hold at least one batch, got none")
    return moments


def _measured(moments: ClassMoments, second: SecondPass) -> Measurement:
    """Return the measurement at the end of two passes."""
    result = Measurement(second.measure(), moments)
    if not second.has_loss:
        return result
    losses = second.loss_per_class()
    return result._replace(loss=float(moments.shares @ losses), loss_per_class=losses)


@overload
def measure(
    batches: Batches,
    num_classes: int | None = None,
    weights: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    groups: Any = None,
    centre: Centre = "classes",
    rtol: float | None = None,
    loss: Loss | None = None,
    passes: int = 2,
    scatter: bool = False,
    sample_weights: Entry | None = None,
    ignore_index: int | None = None,
    absent: Absent = "refuse",
    targets: Literal["classes"] = "classes",
    contexts: Entry | None = None,
) -> Measurement: ...


@overload
def measure(
    batches: Batches,
    num_classes: int | None = None,
    weights: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    groups: Any = None,
    centre: TagCentre = "classes",
    rtol: float | None = None,
    loss: Loss | None = None,
    passes: int = 2,
    scatter: bool = False,
    sample_weights: Entry | None = None,
    ignore_index: int | None = None,
    absent: Absent = "refuse",
    targets: Literal["regression", "multi-label", "contexts"],
    contexts: Entry | None = None,
) -> Any: ...


def measure(
    batches: Batches,
    num_classes: int | None = None,
    weights: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    groups: Any = None,
    centre: TagCentre = "classes",
    rtol: float | None = None,
    loss: Loss | None = None,
    passes: int = 2,
    scatter: bool = False,
    sample_weights: Entry | None = None,
    ignore_index: int | None = None,
    absent: Absent = "refuse",
    targets: Targets = "classes",
    contexts: Entry | None = None,
) -> Any:
    """Return how collapsed a layer is, from batches of its features.

    The batches are never in memory together.

    Two passes give `ufm.metrics.neural_collapse` of all samples, exactly.

    Args:
        batches: Tuples (features, labels, ...) as `ClassMoments.update` takes them, in something
            that can be iterated over again (a list, a data loader that does not shuffle its
            augmentations), or a function that returns a new iterator every time. What is behind the
            labels is not read unless it is asked for. Where every position of a sequence is a
            sample, features are (B, T, d) and labels (B, T).
        num_classes: K; by default the number of rows of `weights`, or else the highest label plus
            one.
        weights: The classifier's rows, (K, d); None leaves out NC3, NC4 and NC2 of weights.
        bias: The classifier's bias, (K,); zero by default.
        groups: The group of each class, integers (K,), or a `ClassGroups`: adds aggregates over
            groups.
        centre: What means are centred at, "classes" or "samples"; see
            `ufm.metrics.neural_collapse`.
        rtol: What counts as rounding error; see `ufm.metrics.collapse_metrics`.
        loss: A loss of `ufm.losses`, whose mean is taken in the second pass; needs `weights`.
        passes: 2 for everything; 1 leaves out NC1 of each class by pseudo-inverse, NC4 and the
            loss.
        scatter: Whether to gather the scatter matrix (d, d) in two passes as well; one pass always
            does.
        sample_weights: Where in a batch to find the weight of each sample, such as 2 for the third
            entry; None weights all alike.
        ignore_index: The label of samples that do not count, such as -100; None where all do.
        absent: What to do with classes that have no samples: "refuse" them, or "leave out", which a
            large vocabulary needs; see `ufm.metrics.neural_collapse`.
        targets: What the labels are. "classes"; "regression", real targets (n, m) or (n,), of
            positions (B, T, m); "multi-label", multi-hot rows (n, K); "contexts", next tokens,
            which are classes too. Regression and multi-label take one pass, and none of the
            options about classes.
        contexts: With targets="contexts", where in a batch to find the context of each position,
            integers shaped as the labels, such as 2 for the third entry; see `prefix_contexts`.
            None leaves out what depends on contexts.

    Returns:
        A `Measurement`, or a `RegressionMeasurement`, `MultiLabelMeasurement` or
        `LanguageMeasurement`, as `targets` says.

    Raises:
        ValueError: A batch does not fit, as with `ClassMoments.update`; a class has no samples and
            is not left out; the batches can be iterated over once only, or differ between the
            passes.
    """

    def named() -> Iterator[tuple[Any, ...]]:
        for batch in start():
            features, labels, a, found = entries.read_with_contexts(batch)
            if isinstance(features, Mapping):
                raise ArgumentError(
                    "batches",
                    "must hold the features of one layer; `measure_layers` takes a mapping "
                    "of several",
                )
            yield {ONLY: features}, labels, a, found

    start, entries = (
        _passes(batches, 1 if targets in IN_ROWS else passes),
        Entries(sample_weights=sample_weights, contexts=contexts, name="batches"),
    )
    if num_classes is None and weights is not None:
        num_classes = len(host_array("weights", weights))
    same_for_all: Any = {"targets": targets}  # the overloads are of one kind each
    return measure_layers(
        named,
        num_classes,
        None if weights is None else {ONLY: weights},
        None if bias is None else {ONLY: bias},
        groups=groups,
        centre=centre,
        rtol=rtol,
        loss=loss,
        passes=passes,
        scatter=scatter,
        sample_weights=None if sample_weights is None else 2,
        ignore_index=ignore_index,
        absent=absent,
        contexts=None if contexts is None else 3,
        **same_for_all,
    )[ONLY]
