"""Features of Flax modules, linen and nnx, by watching the calls of their layers."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from ufm._support import ArgumentError
from ufm.networks.measure.last_layer import (
    INPUT,
    LastLayer,
    Linear,
    Seen,
    called,
    check_affine,
    host_parameters,
    no_linear,
    not_affine,
    pooled,
)

__all__ = ["LinenModel", "NNXModel"]


class LinenModel:
    """A module of flax.linen and its variables."""

    channels = None

    def __init__(self, model: Any, variables: Any, keywords: Mapping[str, Any]):
        if variables is None:
            raise ArgumentError(
                "variables",
                "must be given for a module of flax.linen: what `model.init` returned, trained",
            )
        self.model, self.state, self.keywords = model, variables, keywords
        self._order: list[tuple[str, Any, Any]] | None = None

    def _executed(self, inputs: Any) -> list[tuple[str, Any, Any]]:
        """Return name, module and input of every layer in order of first use, computing nothing."""
        if self._order is None:
            order: dict[str, tuple[str, Any, Any]] = {}

            def see(name: str, module: Any, entering: Any, run: Callable[[], Any]) -> Any:
                order.setdefault(name, (name, type(module), getattr(entering, "shape", None)))
                return run()

            jax.eval_shape(
                lambda state, given: self._run(state, given, see), self.state, _as_arrays(inputs)
            )
            self._order = list(order.values())
        return self._order

    def _run(
        self, state: Any, inputs: Any, see: Callable[[str, Any, Any, Callable[[], Any]], Any]
    ) -> Any:
        """Run the module; `see` is called at every layer."""
        from flax import linen

        def interceptor(method: Any, arguments: Any, keywords: Any, context: Any) -> Any:
            if context.method_name != "__call__":
                return method(*arguments, **keywords)
            entering = (*arguments, *keywords.values(), None)[0]
            name = ".".join(context.module.path)
            return see(name, context.module, entering, lambda: method(*arguments, **keywords))

        with linen.intercept_methods(interceptor):
            return called(lambda *a, **k: self.model.apply(state, *a, **k), inputs, self.keywords)

    def names(self, inputs: Any) -> list[str]:
        """Return the names of all layers."""
        return [name for name, _, _ in self._executed(inputs)]

    def _kernel(self, name: str) -> Any:
        """Return the parameters of a layer."""
        place = self.state["params"]
        for part in name.split("."):
            place = place.get(part, {})
        return place

    def linears(self, inputs: Any) -> list[Linear]:
        """Return the linear layers, in the order of use."""
        from flax import linen

        found = []
        for name, kind, _ in self._executed(inputs):
            if issubclass(kind, linen.Dense) and "kernel" in self._kernel(name):
                found.append(Linear(name, *self._kernel(name)["kernel"].shape))
        return found

    def layer(self, name: str, inputs: Any) -> LastLayer:
        """Return the linear layer of that name."""
        if name not in {one.name for one in self.linears(inputs)}:
            raise no_linear(name, "another layer or none", self.linears(inputs))
        from flax import linen

        kind = next(kind for found, kind, _ in self._executed(inputs) if found == name)
        if kind is not linen.Dense and "__call__" in vars(kind):
            raise not_affine(name, kind.__name__)
        parameters = self._kernel(name)
        bias = host_parameters("bias", parameters["bias"]) if "bias" in parameters else None
        return LastLayer(name, host_parameters("weights", parameters["kernel"]).T, bias)

    def runner(self, places: tuple[str, ...], pool: Any) -> Callable[[Any], dict[str, Any]]:
        """Return a function from the inputs of a batch to the features at the places."""
        return _compiled(self, places, pool)


class NNXModel:
    """A module of flax.nnx, of which only copies run."""

    channels = None

    def __init__(self, model: Any, keywords: Mapping[str, Any]):
        from flax import nnx

        (self.graph, self.state), self.keywords = nnx.split(model), keywords

    def _modules(self, model: Any) -> dict[str, Any]:
        from flax import nnx

        found = {
            ".".join(map(str, path)): one
            for path, one in nnx.iter_graph(model)
            if isinstance(one, nnx.Module)
        }
        return {name: one for name, one in found.items() if name}

    def _copy(self, state: Any) -> Any:
        from flax import nnx

        copy = nnx.merge(self.graph, state)
        copy.eval()
        return copy

    def names(self, inputs: Any) -> list[str]:
        """Return the names of all layers."""
        return list(self._modules(self._copy(self.state)))

    def linears(self, inputs: Any) -> list[Linear]:
        """Return the linear layers, in the order of use."""
        from flax import nnx

        order: dict[str, Linear] = {}

        def see(name: str, module: Any, entering: Any, run: Callable[[], Any]) -> Any:
            if isinstance(module, nnx.Linear):
                order.setdefault(name, Linear(name, module.in_features, module.out_features))
            return run()

        jax.eval_shape(
            lambda state, given: self._run(state, given, see), self.state, _as_arrays(inputs)
        )
        return list(order.values())

    def _run(
        self, state: Any, inputs: Any, see: Callable[[str, Any, Any, Callable[[], Any]], Any]
    ) -> Any:
        """Run a copy of the module; `see` is called at every layer."""
        model = self._copy(state)
        modules = {name: one for name, one in self._modules(model).items() if callable(one)}
        names = {id(one): name for name, one in modules.items()}
        kinds = {type(one): type(one).__call__ for one in modules.values()}
        own = [kind for kind in kinds if "__call__" in vars(kind)]
        inside: set[int] = set()

        def watched(original: Any) -> Any:
            def call(module: Any, *arguments: Any, **keywords: Any) -> Any:
                if (
                    id(module) not in names or id(module) in inside
                ):  # not of this model, or called by a subclass
                    return original(module, *arguments, **keywords)
                inside.add(id(module))
                entering = (*arguments, *keywords.values(), None)[0]
                try:
                    return see(
                        names[id(module)],
                        module,
                        entering,
                        lambda: original(module, *arguments, **keywords),
                    )
                finally:
                    inside.discard(id(module))

            return call

        try:  # calls are looked up in the class
            for kind, original in kinds.items():
                kind.__call__ = watched(original)
            return called(model, inputs, self.keywords)
        finally:
            for kind, original in kinds.items():
                if kind in own:
                    kind.__call__ = original
                else:
                    del kind.__call__

    def layer(self, name: str, inputs: Any) -> LastLayer:
        """Return the linear layer of that name."""
        from flax import nnx

        one: Any = self._modules(self._copy(self.state)).get(name)
        check_affine(name, one, nnx.Linear, "__call__", lambda: self.linears(inputs))
        bias = None if one.bias is None else host_parameters("bias", one.bias[...])
        return LastLayer(name, host_parameters("weights", one.kernel[...]).T, bias)

    def runner(self, places: tuple[str, ...], pool: Any) -> Callable[[Any], dict[str, Any]]:
        """Return a function from the inputs of a batch to the features at the places."""
        return _compiled(self, places, pool)


def _compiled(model: Any, places: tuple[str, ...], pool: Any) -> Callable[[Any], dict[str, Any]]:
    """Return a compiled function from the inputs of a batch to the features at the places."""

    @jax.jit
    def features(state: Any, inputs: Any) -> dict[str, Any]:
        records = Seen(places, lambda place, value: pooled(place, value, pool, model.channels))

        def see(name: str, _: Any, entering: Any, run: Callable[[], Any]) -> Any:
            records.ran.add(name)
            if name + INPUT in places:
                records.add(name + INPUT, entering)
            leaving = run()
            if name in places:
                records.add(name, leaving)
            return leaving

        model._run(state, inputs, see)
        return records.complete()

    return lambda inputs: features(model.state, _as_arrays(inputs))


def _as_arrays(inputs: Any) -> Any:
    """Return tensors of other libraries as NumPy arrays."""
    return jax.tree.map(
        lambda leaf: np.asarray(leaf.detach()) if hasattr(leaf, "detach") else leaf, inputs
    )
