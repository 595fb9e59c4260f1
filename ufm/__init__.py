"""Unconstrained features and layer-peeled models of neural collapse, solved and certified."""

import importlib
from typing import TYPE_CHECKING, Any

from ufm import interruption

interruption.watch_command()  # first, because the imports below take a second

from ufm import geometry, metrics
from ufm._support import ArgumentError, Status
from ufm._support import __version__ as __version__
from ufm.certificates import Certificate
from ufm.comparison import Comparison, Verdict, compare, verdict, verify
from ufm.imbalance import (
    Mitigations,
    PhaseDiagram,
    Threshold,
    collapse_thresholds,
    minority_collapse_threshold,
    mitigations,
    phase_diagram,
)
from ufm.imbalance.hard_margin import HardMargin, solve_hard_margin
from ufm.metrics import Layerwise, layerwise
from ufm.problems import (
    CDT,
    LDAM,
    LDT,
    BinaryCrossEntropy,
    ClassGroups,
    ClassWeighted,
    CrammerSinger,
    CrossEntropy,
    Distillation,
    Exponential,
    Focal,
    Huber,
    LabelSmoothing,
    LogitAdjusted,
    Loss,
    NormBall,
    Ordinal,
    PairwiseLogistic,
    Parameters,
    Poisson,
    Problem,
    Regularizer,
    SquaredError,
    SquaredHinge,
    Targets,
    WeightDecay,
    WestonWatkins,
    constructions,
    losses,
)
from ufm.solving import Solution, SolveError, SolveInterrupted, certify, solve
from ufm.solving.methods import LBFGS, GradientDescent, Method, NewtonCG
from ufm.theory import NoPrediction, Prediction, predict, theorems

if TYPE_CHECKING:
    from ufm import dynamics, landscape, networks, plots, sweeps
    from ufm.sweeps import SweepInterrupted, open_sweep, sweep

__all__ = [
    "CDT",
    "LBFGS",
    "LDAM",
    "LDT",
    "ArgumentError",
    "BinaryCrossEntropy",
    "Certificate",
    "ClassGroups",
    "ClassWeighted",
    "Comparison",
    "CrammerSinger",
    "CrossEntropy",
    "Distillation",
    "Exponential",
    "Focal",
    "GradientDescent",
    "HardMargin",
    "Huber",
    "LabelSmoothing",
    "Layerwise",
    "LogitAdjusted",
    "Loss",
    "Method",
    "Mitigations",
    "NewtonCG",
    "NoPrediction",
    "NormBall",
    "Ordinal",
    "PairwiseLogistic",
    "Parameters",
    "PhaseDiagram",
    "Poisson",
    "Prediction",
    "Problem",
    "Regularizer",
    "Solution",
    "SolveError",
    "SolveInterrupted",
    "SquaredError",
    "SquaredHinge",
    "Status",
    "SweepInterrupted",
    "Targets",
    "Threshold",
    "Verdict",
    "WeightDecay",
    "WestonWatkins",
    "certify",
    "collapse_thresholds",
    "compare",
    "constructions",
    "dynamics",
    "geometry",
    "landscape",
    "layerwise",
    "losses",
    "metrics",
    "minority_collapse_threshold",
    "mitigations",
    "networks",
    "open_sweep",
    "phase_diagram",
    "plots",
    "predict",
    "solve",
    "solve_hard_margin",
    "sweep",
    "sweeps",
    "theorems",
    "verdict",
    "verify",
]

# Loaded on first use, so that `import ufm` costs little: the name, and the room that has it.
_ON_FIRST_USE = {
    **dict.fromkeys(("dynamics", "landscape", "networks", "plots", "sweeps")),
    **dict.fromkeys(("SweepInterrupted", "open_sweep", "sweep"), "sweeps"),
}


def __getattr__(name: str) -> Any:
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module 'ufm' has no attribute {name!r}.")
    room = _ON_FIRST_USE[name]
    module = importlib.import_module(f"ufm.{room or name}")
    return module if room is None else getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
