"""Measurements of heads for targets beyond one-hot: regression, several tags, language."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from numpy.typing import ArrayLike

from ufm._support import ArgumentError, plain, printed
from ufm.metrics import (
    ContextCollapse,
    LinguisticCollapse,
    MultiLabelCollapse,
    NeuralCollapse,
    RegressionCollapse,
    host_array,
)
from ufm.networks.measure.batches import rows_of_targets, rows_that_count
from ufm.networks.measure.class_moments import ClassMoments
from ufm.networks.measure.target_moments import ContextMoments, RegressionMoments, TagMoments

__all__ = [
    "IN_ROWS",
    "ContextTap",
    "LanguageMeasurement",
    "MultiLabelMeasurement",
    "RegressionMeasurement",
    "Targets",
    "check_layers",
    "measure_rows",
    "width_of",
]

Targets = Literal["classes", "regression", "multi-label", "contexts"]
IN_ROWS = ("regression", "multi-label")  # targets with a row of their own, measured in one pass


@printed
class RegressionMeasurement(NamedTuple):
    """How collapsed one layer is before a regression head.

    Attributes:
        collapse: Regression collapse with n directions, about the mean unless the head has no bias;
            `moments.measure` has it otherwise.
        moments: The moments it follows from, for merging and `TrainedNetwork.from_moments`.
    """

    collapse: RegressionCollapse
    moments: RegressionMoments

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain Python."""
        return self.collapse.to_dict()

    def __str__(self) -> str:
        return str(self.collapse)


@printed
class MultiLabelMeasurement(NamedTuple):
    """How collapsed one layer is before a head for several tags.

    Attributes:
        collapse: Collapse of tag sets; `moments.measure` has it with other centres.
        moments: The moments it follows from, for merging and `TrainedNetwork.from_moments`.
    """

    collapse: MultiLabelCollapse
    moments: TagMoments

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain Python."""
        return self.collapse.to_dict()

    def __str__(self) -> str:
        return str(self.collapse)


@printed
class LanguageMeasurement(NamedTuple):
    """How collapsed one layer is before a language-model head.

    Attributes:
        collapse: NC1 to NC4 with next tokens as classes.
        linguistic: What many, unequal classes are measured by.
        contexts: Collapse by context; None where batches do not say which contexts there are.
        moments: The class moments, by next token.
        context_moments: The moments by context, for `TrainedNetwork.from_moments`, or None.
        loss: The mean loss over all samples, or None.
    """

    collapse: NeuralCollapse
    linguistic: LinguisticCollapse
    contexts: ContextCollapse | None
    moments: ClassMoments
    context_moments: ContextMoments | None
    loss: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain Python, by part; what was not measured is absent."""
        parts = {
            "collapse": self.collapse,
            "linguistic": self.linguistic,
            "contexts": self.contexts,
            "loss": self.loss,
        }
        return {name: plain(part) for name, part in parts.items() if part is not None}

    def __str__(self) -> str:
        parts = [str(self.collapse)]
        if self.loss is not None:
            parts.append(f"mean loss {self.loss:.6g}")
        parts.append(str(self.linguistic))
        if self.contexts is not None:
            parts.append(str(self.contexts))
        return "\n\n".join(parts)


def check_layers(features: Any, known: Mapping[str, Any]) -> None:
    """Refuse a batch whose features are not those of the layers of the batches before."""
    if not isinstance(features, Mapping):
        raise ArgumentError(
            "batches",
            f"must hold a mapping from layers to features, got {type(features).__name__}; "
            "`measure` takes the features of one layer",
        )
    if known and features.keys() != known.keys():
        raise ArgumentError(
            "batches", f"must hold the same layers always, got {[*features]} after {[*known]}"
        )


def width_of(features: Any) -> int:
    """Return the number of features of a matrix (N, d); refuse anything else."""
    X = host_array("features", features)
    if X.ndim != 2:
        raise ArgumentError(
            "features",
            f"must be a matrix (N, d), one row for each sample, got shape {X.shape}; flatten or "
            "pool other axes first",
        )
    return X.shape[1]


def _measured_rows(
    targets: Targets, moments: Any, weights: Any, bias: Any, options: Mapping[str, Any]
) -> Any:
    """Return the measurement of one layer."""
    if targets == "regression":
        return RegressionMeasurement(moments.measure(weights, bias, rtol=options["rtol"]), moments)
    return MultiLabelMeasurement(moments.measure(weights, bias, **options), moments)


def measure_rows(
    batches: Iterator[tuple[Any, Any, Any]],
    targets: Targets,
    num_outputs: int | None,
    weights: Mapping[str, ArrayLike],
    bias: Mapping[str, ArrayLike],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the measurement of each layer for targets in rows, in one pass over the batches.

    Args:
        batches: Features by layer, targets, and sample weights or None.
        targets: "regression" or "multi-label".
        num_outputs: The length of a target; found in the first batch if not given.
        weights: The head that follows a layer, by its name.
        bias: Its bias.
        options: `centre` and `rtol`.

    Raises:
        ValueError: A batch does not fit, layers differ between batches, or there is no batch.
    """
    moments: dict[str, Any] = {}
    for layers, given, a in batches:
        check_layers(layers, moments)
        features, y, a = rows_of_targets(layers, given, a)
        y = host_array("targets", y)
        n = num_outputs or (1 if y.ndim == 1 else y.shape[-1])
        for name, X in features.items():
            if name not in moments:
                d = width_of(X)
                regression = targets == "regression"
                moments[name] = RegressionMoments(d, n) if regression else TagMoments(n, d)
            moments[name].update(X, y, a)
    if not moments:
        raise ArgumentError("batches", "must hold at least one batch, got none")
    return {
        name: _measured_rows(targets, one, weights.get(name), bias.get(name), options)
        for name, one in moments.items()
    }


class ContextTap:
    """Batches that pass on unchanged, whose contexts are noted in the first pass over them.

    Args:
        start: Starts a pass: features by layer, labels, sample weights or None, and contexts.
        ignore_index: The label of what does not count, or None.
        noted: Whether to note contexts at all.

    Attributes:
        moments: Those of each layer by context.
    """

    def __init__(
        self,
        start: Callable[[], Iterator[tuple[Any, Any, Any, Any]]],
        ignore_index: int | None,
        noted: bool,
    ):
        self.moments: dict[str, ContextMoments] = {}
        self._start, self._ignore_index, self._noted = start, ignore_index, not noted

    def __call__(self) -> Iterator[tuple[Any, Any, Any]]:
        """Start a pass: features by layer, labels, and sample weights or None."""
        first, self._noted = not self._noted, True
        for features, labels, a, contexts in self._start():
            if first and isinstance(features, Mapping):
                self._note(features, labels, a, contexts)
            yield features, labels, a

    def _note(self, features: Mapping[str, Any], labels: Any, a: Any, contexts: Any) -> None:
        """Add a batch to the moments of every layer."""
        rows, z, weights = rows_that_count(features, labels, a, self._ignore_index)
        ids = rows_that_count(features, labels, contexts, self._ignore_index)[2]
        for name, X in rows.items():
            H = host_array("features", X)
            if name not in self.moments and H.ndim == 2:
                self.moments[name] = ContextMoments(H.shape[1])
            if name in self.moments:
                self.moments[name].update(H, z, ids, weights)
