"""Features of PyTorch modules, by forward hooks."""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from ufm.networks.measure.last_layer import (
    INPUT,
    LastLayer,
    Linear,
    Seen,
    called,
    check_affine,
    host_parameters,
    pooled,
)

__all__ = ["TorchModel"]


class TorchModel:
    """A PyTorch module."""

    channels = 1

    def __init__(self, model: Any, keywords: Mapping[str, Any]):
        self.model, self.keywords = model, keywords

    def names(self, inputs: Any) -> list[str]:
        """Return the names of all layers."""
        return [name for name, _ in self.model.named_modules()]

    def linears(self, inputs: Any) -> list[Linear]:
        """Return the linear layers, in the order of registration."""
        from torch import nn

        modules = self.model.named_modules()
        return [
            Linear(name, one.in_features, one.out_features)
            for name, one in modules
            if isinstance(one, nn.Linear)
        ]

    def layer(self, name: str, inputs: Any) -> LastLayer:
        """Return the linear layer of that name."""
        from torch import nn

        one: Any = dict(self.model.named_modules()).get(name)
        check_affine(name, one, nn.Linear, "forward", lambda: self.linears(inputs))
        bias = None if one.bias is None else host_parameters("bias", one.bias)
        return LastLayer(name, host_parameters("weights", one.weight), bias)

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
        """Return a function from the inputs of a batch to the features at the places."""
        modules = dict(self.model.named_modules())

        def read(place: str, value: Any) -> Any:
            if hasattr(value, "detach"):
                # a copy, because the next layer may work in place
                value = value.detach().clone()
            features = pooled(place, value, pool, self.channels)
            return features.cpu() if hasattr(features, "cpu") else features

        def run(inputs: Any) -> dict[str, Any]:
            records = Seen(places, read)

            def hook(place: str) -> Callable[..., None]:
                def entering(_: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
                    records.add(place, (*arguments, *keywords.values())[0])

                def leaving(_: Any, __: Any, output: Any) -> None:
                    records.add(place, output)

                return entering if place.endswith(INPUT) else leaving

            handles = []
            try:
                for around in {".".join(place.split(".")[:-1]) for place in places}:
                    note = functools.partial(lambda name, *_: records.ran.add(name), around)
                    handles.append(modules[around].register_forward_hook(note))
                for place in places:
                    one = modules[place.removesuffix(INPUT)]
                    if place.endswith(INPUT):
                        handles.append(one.register_forward_pre_hook(hook(place), with_kwargs=True))
                    else:
                        handles.append(one.register_forward_hook(hook(place)))
                with self._evaluating():
                    called(self.model, self._moved(inputs), self.keywords)
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
