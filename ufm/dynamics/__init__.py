"""Gradient flow and gradient descent in time, and theorems about them as checks.

The flow is that of all N samples, at class or at sample resolution (`ufm.dynamics.flow_metric`).
Everything but `descent` needs the extra `dynamics`.
"""

from ufm.dynamics.arguments import gaussian_start
from ufm.dynamics.central_path import (
    CentralPath,
    CentralPathCheck,
    central_path,
    central_path_check,
    path_clock,
)
from ufm.dynamics.condensation import ANGLE, Condensation, condensation, predicted_directions
from ufm.dynamics.conservation_laws import (
    ConservationCheck,
    EnergyCheck,
    conservation_check,
    energy_check,
)
from ufm.dynamics.descent import descent
from ufm.dynamics.exact_modes import (
    ExactFlowCheck,
    aligned_start,
    entropy_clock,
    exact_flow_check,
    logistic_modes,
)
from ufm.dynamics.flow import gradient_flow
from ufm.dynamics.margin_direction import DirectionCheck, direction_check
from ufm.dynamics.small_starts import (
    SmallStartCheck,
    linearised_flow,
    small_start_check,
    strong_collapse_distance,
)
from ufm.dynamics.trajectory import DynamicsInterrupted, Observation, Trajectory, load_trajectory

__all__ = [
    "ANGLE",
    "CentralPath",
    "CentralPathCheck",
    "Condensation",
    "ConservationCheck",
    "DirectionCheck",
    "DynamicsInterrupted",
    "EnergyCheck",
    "ExactFlowCheck",
    "Observation",
    "SmallStartCheck",
    "Trajectory",
    "aligned_start",
    "central_path",
    "central_path_check",
    "condensation",
    "conservation_check",
    "descent",
    "direction_check",
    "energy_check",
    "entropy_clock",
    "exact_flow_check",
    "gaussian_start",
    "gradient_flow",
    "linearised_flow",
    "load_trajectory",
    "logistic_modes",
    "path_clock",
    "predicted_directions",
    "small_start_check",
    "strong_collapse_distance",
]
