"""Code that all frameworks share: names of layers, the last one, and one run of a network."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from ufm._support import ArgumentError, printed
from ufm.metrics import host_array

__all__ = [
    "INPUT",
    "LastLayer",
    "Linear",
    "Pool",
    "Seen",
    "called",
    "check_affine",
    "checked_places",
    "heads_of",
    "host_parameters",
    "last_of",
    "listed",
    "no_linear",
    "not_affine",
    "pooled",
]

Pool = Literal["flatten", "mean", "positions"]
INPUT = ":in"
SHOWN = 30  # layers that an error lists
NORMALISED = (
    "so that its logits are not W h + b; name the layer before it, and for NC3 and NC4 give "
    "`measure` the features and weights "
    "as the head uses them (normalised, for a cosine head)"
)


@printed
class LastLayer(NamedTuple):
    """A linear layer as the metrics take it.

    Attributes:
        name: Its name in the network.
        weights: (K, d), float64.
        bias: (K,), float64, or None.
    """

    name: str
    weights: Float[np.ndarray, "K d"]
    bias: Float[np.ndarray, " K"] | None


class Linear(NamedTuple):
    """A linear layer of a network.

    Attributes:
        name: Its name.
        size_in: Size of its inputs.
        size_out: Size of its outputs.
    """

    name: str
    size_in: int
    size_out: int


def listed(names: Iterable[str]) -> str:
    """Return names for an error message."""
    every = list(names)
    return ", ".join(every[:SHOWN]) + (f", ... ({len(every)} in all)" if len(every) > SHOWN else "")


def heads_of(layers: Sequence[Linear]) -> list[str]:
    """Return the name of the last linear layer, and of others that look like heads beside it."""
    if not layers:
        return []
    last = layers[-1]
    entering = {layer.size_in for layer in layers}
    # A layer that leads to other linear layers has an output of their size. A head beside the last
    # layer has not.
    beside = [
        one.name
        for one in layers[:-1]
        if one.size_in == last.size_in and one.size_out not in entering
    ]
    return [*beside, last.name]


def last_of(layers: Sequence[Linear], names: Iterable[str]) -> str:
    """Return the name of the last linear layer, unless there are several heads."""
    heads = heads_of(layers)
    if not heads:
        shown = listed(names)
        raise ArgumentError(
            "model",
            "must have a linear layer, got one with "
            f"{f'the layers {shown}' if shown.strip(', ') else 'no layers inside it'}; name the "
            "layer, or measure features and weights by `measure`",
        )
    if len(heads) > 1:
        raise ArgumentError(
            "model",
            f"must have one last linear layer, got several that may be it: {listed(heads)}; "
            "name one of them (`layers` or `name`). Its linear layers are "
            f"{listed(layer.name for layer in layers)}",
        )
    return heads[0]


def pooled(
    name: str, features: Any, pool: Pool | Callable[[Any], Any] | None, channels: int | None
) -> Any:
    """Return features as a matrix; `channels` is the axis of the framework's convolutions."""
    if callable(pool):
        return pool(features)
    if not hasattr(features, "ndim"):
        raise ArgumentError(
            "layers",
            f"must give arrays, got {type(features).__name__} at {name!r}; name a layer inside it",
        )
    if features.ndim == 2:
        return features
    if features.ndim < 2:
        raise ArgumentError(
            "layers",
            f"must give one row for each sample, got shape {tuple(features.shape)} at {name!r}",
        )
    if pool == "positions" and features.ndim == 3:
        return features.reshape(-1, features.shape[-1])
    if pool == "flatten":
        return features.reshape(features.shape[0], -1)
    if pool == "mean" and channels == 1 and features.ndim == 3:
        raise ArgumentError(
            "pool",
            f"must be a function for the shape {tuple(features.shape)} at {name!r}, where "
            "either axis may be the sequence: `lambda h: h.mean(dim=1)`, say",
        )
    if pool == "mean":
        kept = {0, 1 if channels == 1 else features.ndim - 1}
        return features.mean(tuple(axis for axis in range(features.ndim) if axis not in kept))
    raise ArgumentError(
        "pool",
        "must be 'flatten', 'mean', 'positions' (of sequences) or a function for features of "
        f"shape {tuple(features.shape)} at {name!r}",
        pool,
    )


def called(model: Callable[..., Any], inputs: Any, keywords: Mapping[str, Any]) -> Any:
    """Call a model on the inputs of a batch: an array, a tuple of arguments, or a mapping."""
    if isinstance(inputs, Mapping):
        return model(**inputs, **keywords)
    return (
        model(*inputs, **keywords)
        if isinstance(inputs, tuple | list)
        else model(inputs, **keywords)
    )


class Seen:
    """What was seen at each place in one run of the network."""

    def __init__(self, places: Sequence[str], read: Callable[[str, Any], Any]):
        self.places, self.read = places, read
        self.seen: dict[str, Any] = {}
        self.ran: set[str] = (
            set()
        )  # modules that were seen to run, those around the places at least

    def add(self, place: str, value: Any) -> None:
        """Note what was seen at a place."""
        if place in self.seen:
            raise ArgumentError(
                "layers",
                f"must be used once in each run of the network, got {place!r}, which is used "
                "several times; name another layer",
            )
        self.seen[place] = self.read(place, value)

    def complete(self) -> dict[str, Any]:
        """Return what was seen, once it was seen everywhere."""
        for place in self.places:
            if place in self.seen:
                continue
            around = ".".join(place.removesuffix(INPUT).split(".")[:-1])
            if around in self.ran:
                raise ArgumentError(
                    "layers",
                    f"must be used when the network runs, got {place!r}, which was not "
                    f"called, although {repr(around) if around else 'the module around it'} "
                    "ran: a cosine head, for one, takes its layer's weights without calling "
                    f"it, {NORMALISED}",
                )
            raise ArgumentError(
                "layers",
                f"must be used when the network runs, got {place!r}, which was not; a "
                "compiled or parallel wrapper hides its layers, so pass what it wraps",
            )
        return {place: self.seen[place] for place in self.places}


def checked_places(places: Sequence[str], names: Iterable[str]) -> tuple[str, ...]:
    """Return the places, each of which is at a layer that there is."""
    known = [name for name in names if name]
    if not places:
        raise ArgumentError(
            "layers", f"must name at least one layer, got none; the layers are {listed(known)}"
        )
    for place in places:
        if not isinstance(place, str) or place.removesuffix(INPUT) not in known:
            raise ArgumentError(
                "layers", "must be names of layers", place, f"the layers are {listed(known)}"
            )
    return tuple(dict.fromkeys(places))


def host_parameters(name: str, value: Any) -> np.ndarray:
    """Return parameters in float64."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return host_array(name, value).astype(np.float64)


def check_affine(
    name: str, layer: Any, kind: type, run: str, linears: Callable[[], Sequence[Linear]]
) -> None:
    """Raise ArgumentError unless a layer is linear, and computes W h + b.

    Args:
        name: The name of the layer.
        layer: The layer.
        kind: The framework's class of linear layers.
        run: The method of this class that computes W h + b.
        linears: Returns the linear layers of the model, for the message.
    """
    if not isinstance(layer, kind):
        raise no_linear(name, type(layer).__name__, linears())
    if getattr(type(layer), run) is not getattr(kind, run):
        raise not_affine(name, type(layer).__name__)


def not_affine(name: str, kind: str) -> ArgumentError:
    """Return the error for a linear layer that does not compute W h + b."""
    return ArgumentError(
        "model",
        f"must have a classifier W h + b, got the layer {name!r}, a {kind} with a computation of "
        f"its own, as a cosine head has, {NORMALISED}",
    )


def no_linear(name: str, kind: str, linears: Sequence[Linear]) -> ArgumentError:
    """Return the error for a name that is not that of a linear layer."""
    return ArgumentError(
        "name",
        f"must be that of a linear layer, got {name!r} ({kind}); they are "
        f"{listed(one.name for one in linears)}",
    )
