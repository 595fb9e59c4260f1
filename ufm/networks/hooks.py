"""Features of a network's layers, batch by batch as it runs: PyTorch modules, and Flax modules (linen and nnx).

`collect` runs the network over a data loader and gives what enters or leaves some layers, to `measure_layers` or to accumulators; the features are
never in memory together. `last_linear` finds the classifier; `measure_model` does all of it.

A layer is named as its framework names it, with dots: "encoder.0.fc" is what leaves that layer, "encoder.0.fc:in" what enters it. By default it is
what enters the last linear layer: the features of the unconstrained features model.

Neither PyTorch nor Flax is imported unless a module of theirs is given.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
from jaxtyping import Float

from ufm.losses import Loss
from ufm.metrics import Centre, host_array
from ufm.networks.measurement import Measurement, measure_layers

__all__ = ["Collected", "LastLayer", "collect", "last_linear", "measure_model"]

Pool = Literal["flatten", "mean"]
INPUT = ":in"
SHOWN = 30  # layers that an error lists


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


class _Linear(NamedTuple):
    """A linear layer that a network has: its name, and the sizes of what enters and leaves it."""

    name: str
    size_in: int
    size_out: int


def _listed(names: Iterable[str]) -> str:
    """Return names for an error message."""
    every = list(names)
    return ", ".join(every[:SHOWN]) + (f", ... ({len(every)} in all)" if len(every) > SHOWN else "")


def _heads(layers: Sequence[_Linear]) -> list[str]:
    """Return the name of the last linear layer, and those before it of others that look like heads beside it."""
    if not layers:
        return []
    last = layers[-1]
    entering = {layer.size_in for layer in layers}
    # what leads on to other linear layers has an output of their size; a head beside the last has not
    beside = [one.name for one in layers[:-1] if one.size_in == last.size_in and one.size_out not in entering]
    return [*beside, last.name]


def _last(layers: Sequence[_Linear], names: Iterable[str]) -> str:
    """Return the name of the last linear layer, unless there are several heads."""
    heads = _heads(layers)
    if not heads:
        raise ValueError(f"`model` must have a linear layer, got one with the layers {_listed(names)}; name the layer.")
    if len(heads) > 1:
        raise ValueError(
            f"`model` must have one last linear layer, got several that may be it: {_listed(heads)}; name one of them "
            f"(`layers` or `name`). Its linear layers are {_listed(layer.name for layer in layers)}."
        )
    return heads[0]


def _pooled(name: str, features: Any, pool: Pool | Callable[[Any], Any] | None, channels: int | None) -> Any:
    """Return features as a matrix; `channels` is the axis of the framework's convolutions."""
    if callable(pool):
        return pool(features)
    if not hasattr(features, "ndim"):
        raise ValueError(
            f"`layers` must give arrays, got {type(features).__name__} at {name!r}; name a layer inside it."
        )
    if features.ndim == 2:
        return features
    if features.ndim < 2:
        raise ValueError(f"`layers` must give one row for each sample, got shape {tuple(features.shape)} at {name!r}.")
    if pool == "flatten":
        return features.reshape(features.shape[0], -1)
    if pool == "mean" and channels == 1 and features.ndim == 3:
        raise ValueError(
            f"`pool` must be a function for the shape {tuple(features.shape)} at {name!r}, where either axis may be the "
            "sequence: `lambda h: h.mean(dim=1)`, say."
        )
    if pool == "mean":
        kept = {0, 1 if channels == 1 else features.ndim - 1}
        return features.mean(tuple(axis for axis in range(features.ndim) if axis not in kept))
    raise ValueError(
        f"`pool` must be 'flatten', 'mean' or a function for features of shape {tuple(features.shape)} at {name!r}, got "
        f"{pool!r}."
    )


def _called(model: Callable[..., Any], inputs: Any, keywords: Mapping[str, Any]) -> Any:
    """Call a model on the inputs of a batch: one array, a tuple of arguments, or a mapping of them."""
    if isinstance(inputs, Mapping):
        return model(**inputs, **keywords)
    return model(*inputs, **keywords) if isinstance(inputs, tuple | list) else model(inputs, **keywords)


class _Records:
    """What was seen at each place in one run of the network."""

    def __init__(self, places: Sequence[str], read: Callable[[str, Any], Any]):
        self.places, self.read = places, read
        self.seen: dict[str, Any] = {}

    def add(self, place: str, value: Any) -> None:
        if place in self.seen:
            raise ValueError(
                f"`layers` must be used once in each run of the network, got {place!r}, which is used several times; name "
                "another layer."
            )
        self.seen[place] = self.read(place, value)

    def complete(self) -> dict[str, Any]:
        for place in self.places:
            if place not in self.seen:
                raise ValueError(
                    f"`layers` must be used when the network runs, got {place!r}, which was not; a compiled or parallel "
                    "wrapper hides its layers, so pass what it wraps."
                )
        return {place: self.seen[place] for place in self.places}


def _checked_places(places: Sequence[str], names: Iterable[str]) -> tuple[str, ...]:
    """Return the places, each of which is at a layer that there is."""
    known = [name for name in names if name]
    if not places:
        raise ValueError(f"`layers` must name at least one layer, got none; the layers are {_listed(known)}.")
    for place in places:
        if not isinstance(place, str) or place.removesuffix(INPUT) not in known:
            raise ValueError(f"`layers` must be names of layers, got {place!r}; the layers are {_listed(known)}.")
    return tuple(dict.fromkeys(places))


class _Torch:
    """A PyTorch module."""

    channels = 1

    def __init__(self, model: Any, keywords: Mapping[str, Any]):
        self.model, self.keywords = model, keywords

    def names(self, inputs: Any) -> list[str]:
        return [name for name, _ in self.model.named_modules()]

    def linears(self, inputs: Any) -> list[_Linear]:
        from torch import nn

        modules = self.model.named_modules()
        return [_Linear(name, one.in_features, one.out_features) for name, one in modules if isinstance(one, nn.Linear)]

    def layer(self, name: str, inputs: Any) -> LastLayer:
        from torch import nn

        one = dict(self.model.named_modules()).get(name)
        if not isinstance(one, nn.Linear):
            raise ValueError(_no_linear(name, type(one).__name__, self.linears(inputs)))
        bias = None if one.bias is None else _on_host("bias", one.bias)
        return LastLayer(name, _on_host("weights", one.weight), bias)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluate in evaluation mode without gradients; every module gets its own mode back."""
        import torch

        modes = [(one, one.training) for one in self.model.modules()]
        try:
            self.model.eval()
            with torch.no_grad():
                yield
        finally:
            for one, mode in modes:
                one.training = mode

    def runner(self, places: tuple[str, ...], pool: Any) -> Callable[[Any], dict[str, Any]]:
        modules = dict(self.model.named_modules())

        def read(place: str, value: Any) -> Any:
            if hasattr(value, "detach"):
                # a copy, because the next layer may work in place
                value = value.detach().clone()
            pooled = _pooled(place, value, pool, self.channels)
            return pooled.cpu() if hasattr(pooled, "cpu") else pooled

        def run(inputs: Any) -> dict[str, Any]:
            records = _Records(places, read)

            def hook(place: str) -> Callable[..., None]:
                def entering(_: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
                    records.add(place, (*arguments, *keywords.values())[0])

                def leaving(_: Any, __: Any, output: Any) -> None:
                    records.add(place, output)

                return entering if place.endswith(INPUT) else leaving

            handles = []
            try:
                for place in places:
                    one = modules[place.removesuffix(INPUT)]
                    if place.endswith(INPUT):
                        handles.append(one.register_forward_pre_hook(hook(place), with_kwargs=True))
                    else:
                        handles.append(one.register_forward_hook(hook(place)))
                with self._evaluating():
                    _called(self.model, self._moved(inputs), self.keywords)
            finally:
                for handle in handles:
                    handle.remove()
            return records.complete()

        return run

    def _moved(self, inputs: Any) -> Any:
        """Return the inputs on the device of the model."""
        import torch

        device = next((one.device for one in self.model.parameters()), torch.device("cpu"))

        def moved(value: Any) -> Any:
            if isinstance(value, np.ndarray):
                value = torch.from_numpy(value)
            return value.to(device) if isinstance(value, torch.Tensor) else value

        if isinstance(inputs, Mapping):
            return {name: moved(value) for name, value in inputs.items()}
        return tuple(map(moved, inputs)) if isinstance(inputs, tuple | list) else moved(inputs)


class _Linen:
    """A module of flax.linen and its variables."""

    channels = None

    def __init__(self, model: Any, variables: Any, keywords: Mapping[str, Any]):
        if variables is None:
            raise ValueError(
                "`variables` must be given for a module of flax.linen: what `model.init` returned, trained."
            )
        self.model, self.state, self.keywords = model, variables, keywords
        self._order: list[tuple[str, Any, Any]] | None = None

    def _executed(self, inputs: Any) -> list[tuple[str, Any, Any]]:
        """Return name, module and input of every layer, in the order in which they are used first; nothing is computed."""
        if self._order is None:
            order: dict[str, tuple[str, Any, Any]] = {}

            def see(name: str, module: Any, entering: Any, run: Callable[[], Any]) -> Any:
                order.setdefault(name, (name, type(module), getattr(entering, "shape", None)))
                return run()

            jax.eval_shape(lambda state, given: self._run(state, given, see), self.state, _as_arrays(inputs))
            self._order = list(order.values())
        return self._order

    def _run(self, state: Any, inputs: Any, see: Callable[[str, Any, Any, Callable[[], Any]], Any]) -> Any:
        """Run the module; `see` is called at every layer."""
        from flax import linen

        def interceptor(method: Any, arguments: Any, keywords: Any, context: Any) -> Any:
            if context.method_name != "__call__":
                return method(*arguments, **keywords)
            entering = (*arguments, *keywords.values(), None)[0]
            name = ".".join(context.module.path)
            return see(name, context.module, entering, lambda: method(*arguments, **keywords))

        with linen.intercept_methods(interceptor):
            return _called(lambda *a, **k: self.model.apply(state, *a, **k), inputs, self.keywords)

    def names(self, inputs: Any) -> list[str]:
        return [name for name, _, _ in self._executed(inputs)]

    def _kernel(self, name: str) -> Any:
        """Return the parameters of a layer."""
        place = self.state["params"]
        for part in name.split("."):
            place = place.get(part, {})
        return place

    def linears(self, inputs: Any) -> list[_Linear]:
        from flax import linen

        found = []
        for name, kind, _ in self._executed(inputs):
            if issubclass(kind, linen.Dense) and "kernel" in self._kernel(name):
                found.append(_Linear(name, *self._kernel(name)["kernel"].shape))
        return found

    def layer(self, name: str, inputs: Any) -> LastLayer:
        if name not in {one.name for one in self.linears(inputs)}:
            raise ValueError(_no_linear(name, "another layer or none", self.linears(inputs)))
        parameters = self._kernel(name)
        bias = _on_host("bias", parameters["bias"]) if "bias" in parameters else None
        return LastLayer(name, _on_host("weights", parameters["kernel"]).T, bias)

    def runner(self, places: tuple[str, ...], pool: Any) -> Callable[[Any], dict[str, Any]]:
        return _compiled(self._run, self.state, places, lambda place, value: _pooled(place, value, pool, self.channels))


class _NNX:
    """A module of flax.nnx, of which only copies run."""

    channels = None

    def __init__(self, model: Any, keywords: Mapping[str, Any]):
        from flax import nnx

        (self.graph, self.state), self.keywords = nnx.split(model), keywords

    def _modules(self, model: Any) -> dict[str, Any]:
        from flax import nnx

        found = {".".join(map(str, path)): one for path, one in nnx.iter_graph(model) if isinstance(one, nnx.Module)}
        return {name: one for name, one in found.items() if name}

    def _copy(self, state: Any) -> Any:
        from flax import nnx

        copy = nnx.merge(self.graph, state)
        copy.eval()
        return copy

    def names(self, inputs: Any) -> list[str]:
        return list(self._modules(self._copy(self.state)))

    def linears(self, inputs: Any) -> list[_Linear]:
        from flax import nnx

        order: dict[str, _Linear] = {}

        def see(name: str, module: Any, entering: Any, run: Callable[[], Any]) -> Any:
            if isinstance(module, nnx.Linear):
                order.setdefault(name, _Linear(name, module.in_features, module.out_features))
            return run()

        jax.eval_shape(lambda state, given: self._run(state, given, see), self.state, _as_arrays(inputs))
        return list(order.values())

    def _run(self, state: Any, inputs: Any, see: Callable[[str, Any, Any, Callable[[], Any]], Any]) -> Any:
        """Run a copy of the module; `see` is called at every layer."""
        model = self._copy(state)
        modules = {name: one for name, one in self._modules(model).items() if callable(one)}
        names = {id(one): name for name, one in modules.items()}
        kinds = {type(one): type(one).__call__ for one in modules.values()}
        own = [kind for kind in kinds if "__call__" in vars(kind)]
        inside: set[int] = set()

        def watched(original: Any) -> Any:
            def call(module: Any, *arguments: Any, **keywords: Any) -> Any:
                if id(module) not in names or id(module) in inside:  # not of this model, or called by a subclass
                    return original(module, *arguments, **keywords)
                inside.add(id(module))
                entering = (*arguments, *keywords.values(), None)[0]
                try:
                    return see(names[id(module)], module, entering, lambda: original(module, *arguments, **keywords))
                finally:
                    inside.discard(id(module))

            return call

        try:  # calls are looked up in the class
            for kind, original in kinds.items():
                kind.__call__ = watched(original)
            return _called(model, inputs, self.keywords)
        finally:
            for kind, original in kinds.items():
                if kind in own:
                    kind.__call__ = original
                else:
                    del kind.__call__

    def layer(self, name: str, inputs: Any) -> LastLayer:
        from flax import nnx

        one = self._modules(self._copy(self.state)).get(name)
        if not isinstance(one, nnx.Linear):
            raise ValueError(_no_linear(name, type(one).__name__, self.linears(inputs)))
        bias = None if one.bias is None else _on_host("bias", one.bias[...])
        return LastLayer(name, _on_host("weights", one.kernel[...]).T, bias)

    def runner(self, places: tuple[str, ...], pool: Any) -> Callable[[Any], dict[str, Any]]:
        return _compiled(self._run, self.state, places, lambda place, value: _pooled(place, value, pool, self.channels))


def _compiled(
    run: Callable[..., Any], state: Any, places: tuple[str, ...], read: Callable[[str, Any], Any]
) -> Callable[[Any], dict[str, Any]]:
    """Return a compiled function from inputs to what is seen at the places."""

    @jax.jit
    def features(state: Any, inputs: Any) -> dict[str, Any]:
        records = _Records(places, read)

        def see(name: str, _: Any, entering: Any, run: Callable[[], Any]) -> Any:
            if name + INPUT in places:
                records.add(name + INPUT, entering)
            leaving = run()
            if name in places:
                records.add(name, leaving)
            return leaving

        run(state, inputs, see)
        return records.complete()

    return lambda inputs: features(state, _as_arrays(inputs))


def _as_arrays(inputs: Any) -> Any:
    """Return tensors of other libraries as NumPy arrays."""
    return jax.tree.map(lambda leaf: np.asarray(leaf.detach()) if hasattr(leaf, "detach") else leaf, inputs)


def _on_host(name: str, value: Any) -> np.ndarray:
    """Return parameters in float64."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return host_array(name, value).astype(np.float64)


def _no_linear(name: str, kind: str, linears: Sequence[_Linear]) -> str:
    return f"`name` must be that of a linear layer, got {name!r} ({kind}); they are {_listed(one.name for one in linears)}."


def _backend(model: Any, variables: Any, keywords: Mapping[str, Any] | None) -> Any:
    """Return what knows the model's framework. A framework that was never imported made no model."""
    keywords = keywords or {}
    torch, linen, nnx = (sys.modules.get(name) for name in ("torch", "flax.linen", "flax.nnx"))
    if torch is not None and isinstance(model, torch.nn.Module):
        return _Torch(model, keywords)
    if linen is not None and isinstance(model, linen.Module):
        return _Linen(model, variables, keywords)
    if nnx is not None and isinstance(model, nnx.Module):
        return _NNX(model, keywords)
    raise ValueError(
        f"`model` must be a module of PyTorch, flax.linen or flax.nnx, got {type(model).__name__}; of other networks, give "
        "the features to `measure` batch by batch."
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

    In PyTorch the last is the one that was registered last; in Flax the one that is used last, which needs inputs.

    Args:
        model: A PyTorch module, or a module of flax.linen or flax.nnx.
        name: The layer's name, where the network has several heads.
        variables: The variables of a flax.linen module.
        inputs: The inputs of one batch, for Flax; nothing is computed with them.
        keywords: Further arguments of every call of the model, such as {"train": False}.

    Raises:
        ValueError: There is no linear layer, or several that may be the last (which are listed), or none of that name.
    """
    backend = _backend(model, variables, keywords)
    if inputs is None and not isinstance(backend, _Torch):
        raise ValueError("`inputs` must be given for a Flax module: the inputs of one batch, to see what it uses last.")
    return backend.layer(_last(backend.linears(inputs), backend.names(inputs)) if name is None else name, inputs)


class Collected:
    """Batches ({layer: features}, labels) of a network's layers, computed anew in every iteration; see `collect`.

    Attributes:
        layers: The names under which features come.
    """

    def __init__(
        self, start: Callable[[], Iterator[Any]], layers: tuple[str, ...], run: Callable[[Any], dict[str, Any]]
    ):
        self.layers, self._start, self._run = layers, start, run

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for batch in self._start():
            inputs, *others = _labelled(batch)
            yield self._run(inputs), *others

    def __repr__(self) -> str:
        return f"Collected(layers={self.layers})"


def _labelled(batch: Any) -> Any:
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        what = f"{len(batch)} entries" if isinstance(batch, tuple | list) else type(batch).__name__
        raise ValueError(f"`loader` must hold pairs (inputs, labels), or these and sample weights, got {what}.")
    return batch


def _first_inputs(start: Callable[[], Iterator[Any]]) -> Any:
    """Return the inputs of the first batch."""
    for batch in start():
        return _labelled(batch)[0]
    raise ValueError("`loader` must hold at least one batch, got none.")


def _starter(loader: Any) -> Callable[[], Iterator[Any]]:
    """Return a function that starts a pass over the loader."""
    if callable(loader):
        return loader
    if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
        raise ValueError(f"`loader` must be an iterable of (inputs, labels), got {type(loader).__name__}.")
    if isinstance(loader, Iterator):
        raise ValueError(
            f"`loader` must be iterable more than once, got {type(loader).__name__}, which one pass uses up; give a list, a "
            "data loader, or a function that returns a new iterator."
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
) -> Collected:
    """Return the features of a network's layers as batches for `measure_layers`, computed as they are asked for.

    A PyTorch module runs in evaluation mode and without gradients; between the batches it is as it was, hooks removed
    and every module in its own mode, whatever happens. Of a Flax module nothing changes: linen runs with the given
    variables, nnx as a copy in evaluation mode.

    Args:
        model: A PyTorch module, or a module of flax.linen or flax.nnx.
        loader: Batches (inputs, labels) or (inputs, labels, sample_weights), in something that can be iterated over
            again, or a function that returns an iterator. Inputs are one array, a tuple of arguments of the model, or a
            mapping of named ones.
        layers: Names of layers, one or several: "fc" is what leaves the layer, "fc:in" what enters it. By default what
            enters the last linear layer.
        pool: What to do with features that are no matrix: "flatten"; "mean" over all axes but samples and channels
            (the second axis in PyTorch, the last in Flax); or a function to (n, d). By default an error.
        variables: The variables of a flax.linen module.
        keywords: Further arguments of every call of the model, such as {"train": False}.

    Raises:
        ValueError: There is no such layer, or several may be the last (they are listed); in an iteration, a layer that
            is not used, or used several times, or whose features are no matrix.
    """
    if not (callable(pool) or pool is None or pool in get_args(Pool)):
        raise ValueError(f"`pool` must be one of {get_args(Pool)}, a function or None, got {pool!r}.")
    backend, start = _backend(model, variables, keywords), _starter(loader)
    inputs = None if isinstance(backend, _Torch) else _first_inputs(start)
    names = backend.names(inputs)
    if layers is None:
        layers = _last(backend.linears(inputs), names) + INPUT
    places = _checked_places([layers] if isinstance(layers, str) else list(layers), names)
    return Collected(start, places, backend.runner(places, pool))


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
) -> dict[str, Measurement]:
    """Return how collapsed the layers of a network are over a data loader: `collect`, `last_linear` and `measure_layers` in one.

    Where what enters the last linear layer is among the layers, it is measured with that layer as the classifier.

    Args:
        model: As for `collect`, and so are `loader`, `layers`, `pool`, `variables` and `keywords`.
        loader: Batches of inputs and labels.
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

    Returns:
        The measurement of each layer, by the names in `layers`.

    Raises:
        ValueError: As `collect` and `measure`.
    """
    batches = collect(model, loader, layers, pool=pool, variables=variables, keywords=keywords)
    backend = _backend(model, variables, keywords)
    inputs = None if isinstance(backend, _Torch) else _first_inputs(_starter(loader))
    linears = backend.linears(inputs)
    heads = [one for one in _heads(linears) if one + INPUT in batches.layers]
    weights, bias = {}, {}
    for one in heads:
        head = backend.layer(one, inputs)
        weights[one + INPUT] = head.weights
        if head.bias is not None:
            bias[one + INPUT] = head.bias
    sizes = {len(rows) for rows in weights.values()}
    if num_classes is None and len(sizes) == 1:
        (num_classes,) = sizes
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
    )
