"""Unconstrained features models and layer-peeled models of neural collapse: solved, certified, compared with theory."""

from ufm import interruption

interruption.watch_command()  # first, for the imports below take a second

from ufm import dynamics, geometry, landscape, metrics, networks
from ufm.certificates import Certificate
from ufm.classes import ClassGroups
from ufm.comparison import Comparison, compare
from ufm.group_solution import GroupSolution
from ufm.hard_margin import HardMargin, solve_hard_margin
from ufm.layerwise import Layerwise, layerwise
from ufm.losses import CDT, LDT, ClassWeighted, CrossEntropy, Focal, LabelSmoothing, LogitAdjusted, SquaredError
from ufm.mitigation import Mitigations, mitigations
from ufm.phase import PhaseDiagram, phase_diagram
from ufm.pipeline import certify, solve
from ufm.problem import Parameters, Problem
from ufm.regularizers import NormBall, WeightDecay
from ufm.solution import Solution, SolveError, SolveInterrupted
from ufm.solvers import LBFGS, GradientDescent, NewtonCG
from ufm.status import Status
from ufm.sweeps import SweepInterrupted, open_sweep, sweep
from ufm.theory import NoPrediction, Prediction, predict, theorems
from ufm.thresholds import Threshold, collapse_thresholds, minority_collapse_threshold
from ufm.verdict import Verdict, verdict
from ufm.verify import verify
from ufm.version import __version__ as __version__

__all__ = [
    "CDT",
    "LBFGS",
    "LDT",
    "Certificate",
    "ClassGroups",
    "ClassWeighted",
    "Comparison",
    "CrossEntropy",
    "Focal",
    "GradientDescent",
    "GroupSolution",
    "HardMargin",
    "LabelSmoothing",
    "Layerwise",
    "LogitAdjusted",
    "Mitigations",
    "NewtonCG",
    "NoPrediction",
    "NormBall",
    "Parameters",
    "PhaseDiagram",
    "Prediction",
    "Problem",
    "Solution",
    "SolveError",
    "SolveInterrupted",
    "SquaredError",
    "Status",
    "SweepInterrupted",
    "Threshold",
    "Verdict",
    "WeightDecay",
    "certify",
    "collapse_thresholds",
    "compare",
    "dynamics",
    "geometry",
    "landscape",
    "layerwise",
    "metrics",
    "minority_collapse_threshold",
    "mitigations",
    "networks",
    "open_sweep",
    "phase_diagram",
    "predict",
    "solve",
    "solve_hard_margin",
    "sweep",
    "theorems",
    "verdict",
    "verify",
]
