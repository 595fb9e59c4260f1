"""Features of a network's layers, batch by batch as it runs.

Networks are PyTorch modules, or Flax modules (linen and nnx).

`collect` runs the network over a data loader and gives what enters or leaves some layers, to
`measure_layers` or to accumulators; the features are never in memory together. `last_linear` finds
the classifier; `measure_model` does all of it. `ufm.networks.measure.batches` reads the loader's
batches.

A layer is named as its framework names it, with dots: "encoder.0.fc" is what leaves that layer,
"encoder.0.fc:in" what enters it. By default it is what enters the last linear layer: the features
of the unconstrained features model.

Neither PyTorch nor Flax is imported unless a module of theirs is given.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, overload

from ufm._support import ArgumentError
from ufm.metrics import Absent, Centre, TagCentre
from ufm.networks.measure.batches import Entries, Entry, rows_of_targets, rows_that_count
from ufm.networks.measure.flax_model import LinenModel, NNXModel
from ufm.networks.measure.last_layer import (
    INPUT,
    LastLayer,
    Pool,
    checked_places,
    heads_of,
    last_of,
)
from ufm.networks.measure.measurement import Measurement, measure_layers
from ufm.networks.measure.target_measurement import IN_ROWS, Targets
from ufm.networks.measure.torch_model import TorchModel
from ufm.problems import Loss

__all__ = ["Collected", "collect", "last_linear", "measure_model"]


def _backend(model: Any, variables: Any, keywords: Mapping[str, Any] | None) -> Any:
    """Return the module for the model's framework. One that was never imported made no model."""
    keywords = keywords or {}
    torch, linen, nnx = (sys.modules.get(name) for name in ("torch", "flax.linen", "flax.nnx"))
    if torch is not None and isinstance(model, torch.nn.Module):
        return TorchModel(model, keywords)
    if linen is not None and isinstance(model, linen.Module):
        return LinenModel(model, variables, keywords)
    if nnx is not None and isinstance(model, nnx.Module):
        return NNXModel(model, keywords)
    raise ArgumentError(
        "model",
        f"must be a module of PyTorch, flax.linen or flax.nnx, got {type(model).__name__}; of "
        "other networks, give the features to `measure` batch by batch",
    )


def last_linear(
    model: Any,
    *,
    name: str | None = None,
    variables: Any = None,
    inputs: Any = None,
    keywords: Mapping[str, Any] | None = None,
) -> LastLayer:
    """Return the last linear layer of a network, with its weights and bias.

    In PyTorch the last is the one that was registered last; in Flax the one that is used last,
    which needs inputs.

    Args:
        model: A PyTorch module, or a module of flax.linen or flax.nnx.
        name: The layer's name, where the network has several heads.
        variables: The variables of a flax.linen module.
        inputs: The inputs of one batch, for Flax; nothing is computed with them.
        keywords: Further arguments of every call of the model, such as {"train": False}.

    Raises:
        ValueError: There is no linear layer, or several that may be the last (which are listed), or
            none of that name.
    """
    backend = _backend(model, variables, keywords)
    if inputs is None and not isinstance(backend, TorchModel):
        raise ArgumentError(
            "inputs",
            "must be given for a Flax module: the inputs of one batch, to find the layer used last",
        )
    return backend.layer(
        last_of(backend.linears(inputs), backend.names(inputs)) if name is None else name, inputs
    )


class Collected:
    """Batches ({layer: features}, labels) of a network's layers; see `collect`.

    They are computed anew in every iteration.

    With sample weights, if these are asked for, as a third entry, and contexts as a fourth.

    Attributes:
        layers: The names under which features come.
    """

    def __init__(
        self,
        start: Callable[[], Iterator[Any]],
        layers: tuple[str, ...],
        run: Callable[[Any], dict[str, Any]],
        entries: Entries,
        ignore_index: int | None,
        flat: bool,
        targets: Targets,
    ):
        self._targets = targets
        self.layers, self._start, self._run = layers, start, run
        self._entries, self._ignore_index, self._flat = entries, ignore_index, flat

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for batch in self._start():
            inputs, labels, a, contexts = self._entries.read_with_contexts(batch)
            features = self._run(inputs)
            if self._targets in IN_ROWS:
                rows, labels, a = rows_of_targets(features, labels, a)
            else:
                counted, y = (self._ignore_index, self._flat), labels
                rows, labels, a = rows_that_count(features, y, a, *counted)
                if contexts is not None:
                    contexts = rows_that_count(features, y, contexts, *counted)[2]
            if contexts is not None:
                yield rows, labels, a, contexts
            else:
                yield (rows, labels) if a is None else (rows, labels, a)

    def __repr__(self) -> str:
        return f"Collected(layers={self.layers})"


def _first_inputs(start: Callable[[], Iterator[Any]], entries: Entries) -> Any:
    """Return the inputs of the first batch."""
    for batch in start():
        return entries.read(batch)[0]
    raise ArgumentError("loader", "must hold at least one batch, got none")


def _starter(loader: Any) -> Callable[[], Iterator[Any]]:
    """Return a function that starts a pass over the loader."""
    if callable(loader):
        return loader
    if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
        raise ArgumentError(
            "loader", f"must be an iterable of (inputs, labels), got {type(loader).__name__}"
        )
    if isinstance(loader, Iterator):
        raise ArgumentError(
            "loader",
            f"must be iterable more than once, got {type(loader).__name__}, which one pass "
            "uses up; give a list, a data loader, or a function that returns a new iterator",
        )
    return lambda: iter(loader)


def collect(
    model: Any,
    loader: Any,
    layers: str | Sequence[str] | None = None,
    *,
    pool: Pool | Callable[[Any], Any] | None = None,
    variables: Any = None,
    keywords: Mapping[str, Any] | None = None,
    inputs: Entry | Sequence[str] | None = None,
    labels: Entry | None = None,
    sample_weights: Entry | None = None,
    ignore_index: int | None = None,
    targets: Targets = "classes",
    contexts: Entry | None = None,
) -> Collected:
    """Return the features of a network's layers as batches for `measure_layers`.

    The features are computed batch by batch, on request.

    A PyTorch module runs in evaluation mode and without gradients. After every batch it is as it
    was before, also after an error: hooks are removed, and every submodule is in its own mode. A
    Flax module does not change: linen runs with the given variables, nnx as a copy in evaluation
    mode.

    Args:
        model: A PyTorch module, or a module of flax.linen or flax.nnx.
        loader: Batches in something that can be iterated over again, or a function that returns an
            iterator: tuples (inputs, labels, ...), of which the rest is not read unless it is asked
            for, or mappings. Inputs are one array, a tuple of arguments of the model, or a mapping
            of named ones.
        layers: Names of layers, one or several: "fc" is what leaves the layer, "fc:in" what enters
            it. By default what enters the last linear layer.
        pool: What to do with features that are no matrix: "flatten"; "mean" over all axes but
            samples and channels (the second axis in PyTorch, the last in Flax); "positions" for (B,
            T, d) and labels (B, T), where every position of a sequence is a sample; or a function
            to (n, d). By default an error.
        variables: The variables of a flax.linen module.
        keywords: Further arguments of every call of the model, such as {"train": False}.
        inputs: Where in a batch to find the inputs: an index of a tuple, a key or several keys of a
            mapping, or a function of the batch. By default entry 0 of a tuple, and all of a mapping
            but labels and weights.
        labels: The same for labels, by default entry 1 or "labels". Labels of a language model are
            the tokens that follow: where the loader has the tokens themselves, a function can shift
            them.
        sample_weights: The same for the weight of each sample; None weights all alike.
        ignore_index: The label of samples or positions that do not count, such as -100; None where
            all do.
        targets: What the labels are; see `measure`.
        contexts: The same as `labels` for the context of each position, integers of the shape of
            the labels, such as `lambda batch: prefix_contexts(batch["input_ids"])`.

    Raises:
        ValueError: There is no such layer, or several may be the last (they are listed); in an
            iteration, a layer that is not used, or used several times, or whose features are no
            matrix.
    """
    if not (callable(pool) or pool is None or pool in get_args(Pool)):
        raise ArgumentError(
            "pool", f"must be one of {', '.join(get_args(Pool))}, a function or None", pool
        )
    backend, start = _backend(model, variables, keywords), _starter(loader)
    entries = Entries(inputs, labels, sample_weights, contexts=contexts)
    first = None if isinstance(backend, TorchModel) else _first_inputs(start, entries)
    names = backend.names(first)
    if layers is None:
        layers = last_of(backend.linears(first), names) + INPUT
    places = checked_places([layers] if isinstance(layers, str) else list(layers), names)
    return Collected(
        start,
        places,
        backend.runner(places, pool),
        entries,
        ignore_index,
        flat=pool == "positions",
        targets=targets,
    )


@overload
def measure_model(
    model: Any,
    loader: Any,
    layers: str | Sequence[str] | None = None,
    *,
    num_classes: int | None = None,
    pool: Pool | Callable[[Any], Any] | None = None,
    variables: Any = None,
    keywords: Mapping[str, Any] | None = None,
    groups: Any = None,
    centre: Centre = "classes",
    rtol: float | None = None,
    loss: Loss | None = None,
    passes: int = 2,
    scatter: bool = False,
    inputs: Entry | Sequence[str] | None = None,
    labels: Entry | None = None,
    sample_weights: Entry | None = None,
    ignore_index: int | None = None,
    absent: Absent = "refuse",
    targets: Literal["classes"] = "classes",
    contexts: Entry | None = None,
) -> dict[str, Measurement]: ...


@overload
def measure_model(
    model: Any,
    loader: Any,
    layers: str | Sequence[str] | None = None,
    *,
    num_classes: int | None = None,
    pool: Pool | Callable[[Any], Any] | None = None,
    variables: Any = None,
    keywords: Mapping[str, Any] | None = None,
    groups: Any = None,
    centre: TagCentre = "classes",
    rtol: float | None = None,
    loss: Loss | None = None,
    passes: int = 2,
    scatter: bool = False,
    inputs: Entry | Sequence[str] | None = None,
    labels: Entry | None = None,
    sample_weights: Entry | None = None,
    ignore_index: int | None = None,
    absent: Absent = "refuse",
    targets: Literal["regression", "multi-label", "contexts"],
    contexts: Entry | None = None,
) -> Any: ...


def measure_model(
    model: Any,
    loader: Any,
    layers: str | Sequence[str] | None = None,
    *,
    num_classes: int | None = None,
    pool: Pool | Callable[[Any], Any] | None = None,
    variables: Any = None,
    keywords: Mapping[str, Any] | None = None,
    groups: Any = None,
    centre: TagCentre = "classes",
    rtol: float | None = None,
    loss: Loss | None = None,
    passes: int = 2,
    scatter: bool = False,
    inputs: Entry | Sequence[str] | None = None,
    labels: Entry | None = None,
    sample_weights: Entry | None = None,
    ignore_index: int | None = None,
    absent: Absent = "refuse",
    targets: Targets = "classes",
    contexts: Entry | None = None,
) -> Any:
    """Return how collapsed the layers of a network are over a data loader.

    This is `collect`, `last_linear` and `measure_layers` in one.

    Where what enters the last linear layer is among the layers, it is measured with that layer as
    the classifier.

    Args:
        model: As for `collect`, and so are `loader`, `layers`, `pool`, `variables` and `keywords`.
        loader: Batches of inputs and labels, in tuples or mappings.
        layers: Names of layers; by default what enters the last linear layer.
        num_classes: K; the number of rows of the classifier by default.
        pool: What to do with features that are no matrix.
        variables: The variables of a flax.linen module.
        keywords: Further arguments of every call of the model.
        groups: As for `measure`, and so are the following.
        centre: What means are centred at.
        rtol: What counts as rounding error.
        loss: A loss, for the layer before the classifier.
        passes: 2 for everything, 1 for what moments tell.
        scatter: Whether to gather scatter matrices in two passes as well.
        inputs: Where in a batch to find the inputs; as for `collect`, and so are the next three.
        labels: Where to find the labels.
        sample_weights: Where to find the samples' weights; None weights all alike, even if a
            batch has more entries.
        ignore_index: The label of what does not count.
        absent: What to do with classes that have no samples: "refuse" them, or "leave out", which a
            classifier with more rows than there are classes in the data needs; see
            `ufm.metrics.neural_collapse`.
        targets: What the labels are: "classes"; "regression" and "multi-label", rows of real or
            multi-hot targets; "contexts", the tokens that follow. See `measure`.
        contexts: Where to find the context of each position; see `collect`.

    Returns:
        The measurement of each layer, by the names in `layers`, of the type that `measure` gives
        for such targets.

    Raises:
        ValueError: As `collect` and `measure`.
    """
    batches = collect(
        model,
        loader,
        layers,
        pool=pool,
        variables=variables,
        keywords=keywords,
        inputs=inputs,
        labels=labels,
        sample_weights=sample_weights,
        ignore_index=ignore_index,
        targets=targets,
        contexts=contexts,
    )
    if targets in IN_ROWS and ignore_index is not None:
        raise ArgumentError(
            "ignore_index",
            f"says nothing about targets={targets!r}, got {ignore_index!r}; weigh such samples "
            "with zero by `sample_weights`",
        )
    backend, first = _backend(model, variables, keywords), None
    if not isinstance(backend, TorchModel):
        first = _first_inputs(_starter(loader), Entries(inputs, labels, sample_weights))
    heads = {
        one + INPUT: backend.layer(one, first)
        for one in heads_of(backend.linears(first))
        if one + INPUT in batches.layers
    }
    weights = {layer: head.weights for layer, head in heads.items()}
    bias = {layer: head.bias for layer, head in heads.items() if head.bias is not None}
    sizes = {len(rows) for rows in weights.values()}
    if num_classes is None and len(sizes) == 1:
        (num_classes,) = sizes
    same_for_all: Any = {"targets": targets}  # the overloads are of one kind each
    return measure_layers(
        batches,
        num_classes,
        weights,
        bias,
        groups=groups,
        centre=centre,
        rtol=rtol,
        loss=loss,
        passes=passes,
        scatter=scatter,
        sample_weights=None if sample_weights is None else 2,
        absent=absent,
        contexts=None if contexts is None else 3,
        **same_for_all,
    )
