"""Sweeps: many points of a problem solved together, certified, as arrays with named axes."""

from ufm.sweeps.config import example, examples, read_config
from ufm.sweeps.interrupts import SweepInterrupted
from ufm.sweeps.quantities import QUANTITIES
from ufm.sweeps.run import open_sweep, sweep

__all__ = [
    "QUANTITIES",
    "SweepInterrupted",
    "example",
    "examples",
    "open_sweep",
    "read_config",
    "sweep",
]
