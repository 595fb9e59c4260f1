"""Imbalanced classes: conditions and thresholds of collapse, phase diagrams, mitigations."""

from ufm.imbalance.conditions import level
from ufm.imbalance.mitigations import Mitigations, mitigations
from ufm.imbalance.phase_diagram import PhaseDiagram, phase_diagram
from ufm.imbalance.threshold import Threshold
from ufm.imbalance.thresholds import collapse_thresholds, minority_collapse_threshold

__all__ = [
    "Mitigations",
    "PhaseDiagram",
    "Threshold",
    "collapse_thresholds",
    "level",
    "minority_collapse_threshold",
    "mitigations",
    "phase_diagram",
]
