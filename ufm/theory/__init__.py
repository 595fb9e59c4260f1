"""Theorems about global minimisers, executable: conditions, predictions with scale, references.

Letters of the papers, used throughout: K classes, n_k samples of class k, N samples in all, d
feature dimension, L weight matrices W_1, ..., W_L, H the features, b the bias, Z the logits,
lambda_W, lambda_H, lambda_b the penalties (with halves), q = L + 1.
"""

from ufm.theory.atlas import predict, theorems
from ufm.theory.mode_jumps import Jumps, jumps
from ufm.theory.optimal_factors import (
    Frame,
    Letters,
    centred_frame,
    float_type,
    left_open,
    letters,
    orthogonal_frame,
    predicted,
)
from ufm.theory.roots import root
from ufm.theory.seli import SELI, corrected_margins, seli, seli_angle
from ufm.theory.squared_error_modes import (
    free_bias_prediction,
    no_bias_prediction,
    penalised_bias_prediction,
)
from ufm.theory.theorem import (
    Applicability,
    Condition,
    Example,
    NoPrediction,
    Prediction,
    Theorem,
)
from ufm.theory.two_groups import basis, first_of, split, two_groups, two_sizes

__all__ = [
    "SELI",
    "Applicability",
    "Condition",
    "Example",
    "Frame",
    "Jumps",
    "Letters",
    "NoPrediction",
    "Prediction",
    "Theorem",
    "basis",
    "centred_frame",
    "corrected_margins",
    "first_of",
    "float_type",
    "free_bias_prediction",
    "jumps",
    "left_open",
    "letters",
    "no_bias_prediction",
    "orthogonal_frame",
    "penalised_bias_prediction",
    "predict",
    "predicted",
    "root",
    "seli",
    "seli_angle",
    "split",
    "theorems",
    "two_groups",
    "two_sizes",
]
