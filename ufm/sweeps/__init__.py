"""Sweeps: many points of one problem, solved together and certified, kept as they go, as an array with named axes."""

from ufm.sweeps.quantities import QUANTITIES
from ufm.sweeps.running import SweepInterrupted, open_sweep, sweep

__all__ = ["QUANTITIES", "SweepInterrupted", "open_sweep", "sweep"]
