"""The landscape of the objective: critical points, curvature, and theorems as checks."""

from ufm.landscape.census import Census, CensusInterrupted, EndPoint, Runs, census
from ufm.landscape.critical_points import CriticalPoint, Escape, Kinks, classify
from ufm.landscape.dead_units import DeadUnits, Revival, dead_units, revive
from ufm.landscape.mode_connectivity import MinimaPath, connect
from ufm.landscape.spectrum import HessianSpectrum, gradient, hessian_product, hessian_spectrum
from ufm.landscape.symmetries import symmetry_dimension
from ufm.landscape.theorem_checks import (
    LandscapeClaim,
    Valley,
    no_spurious_minima,
    origin_is_a_local_minimum,
    spurious_minima,
    valley_dimension,
)

__all__ = [
    "Census",
    "CensusInterrupted",
    "CriticalPoint",
    "DeadUnits",
    "EndPoint",
    "Escape",
    "HessianSpectrum",
    "Kinks",
    "LandscapeClaim",
    "MinimaPath",
    "Revival",
    "Runs",
    "Valley",
    "census",
    "classify",
    "connect",
    "dead_units",
    "gradient",
    "hessian_product",
    "hessian_spectrum",
    "no_spurious_minima",
    "origin_is_a_local_minimum",
    "revive",
    "spurious_minima",
    "symmetry_dimension",
    "valley_dimension",
]
