"""Batches over all devices of this host.

Arrays are divided along their batch axis, and compiled programs run where their inputs are. With
one device nothing happens. With several, one chunk at a time runs on all of them: two programs at a
time that both exchange data could wait for each other.
"""

from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

T = TypeVar("T")

__all__ = ["accelerators", "devices", "divisible", "shard"]


def devices() -> int:
    """Return the number of devices of this host."""
    return jax.local_device_count()


def accelerators() -> int:
    """Return the number of devices of this host that are not a CPU."""
    return 0 if jax.default_backend() == "cpu" else devices()


def divisible(size: int) -> int:
    """Return the size of a chunk rounded up to as many problems on every device."""
    return -(-size // devices()) * devices()


def shard(tree: T, axis: int, *, decompositions: bool = False) -> T:
    """Return arrays divided over the devices along an axis; unchanged if there is one device.

    Args:
        tree: NumPy arrays that all have the axis, of a length that is a multiple of the number of
            devices.
        axis: The batch axis.
        decompositions: Whether the program that takes them decomposes matrices. A CPU that stands
            for several devices runs such a program on one of them, because XLA's decompositions
            share a pool of threads there, and those of several devices would deadlock.
    """
    if devices() == 1 or (decompositions and not accelerators()):
        return tree
    mesh = Mesh(np.array(jax.local_devices()), ("batch",))

    def divided(leaf: np.ndarray) -> jax.Array:
        names: list[str | None] = [None] * np.ndim(leaf)
        names[axis] = "batch"
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*names)))

    return jax.tree.map(divided, tree)
