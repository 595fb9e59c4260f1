"""Theorems about global minimisers, executable: conditions, predictions with scale, references.

Letters of the papers, used throughout: K classes, n_k samples of class k, N samples in all, d feature
dimension, L weight matrices W_1, ..., W_L, H the features, b the bias, Z the logits, lambda_W, lambda_H,
lambda_b the penalties (with halves), q = L + 1.
"""

from ufm.theory.atlas import predict, theorems
from ufm.theory.base import Applicability, Condition, Example, NoPrediction, Prediction, Theorem
from ufm.theory.jumps import Jumps, jumps
from ufm.theory.seli import SELI, corrected_margins, seli, seli_angle

__all__ = [
    "SELI",
    "Applicability",
    "Condition",
    "Example",
    "Jumps",
    "NoPrediction",
    "Prediction",
    "Theorem",
    "corrected_margins",
    "jumps",
    "predict",
    "seli",
    "seli_angle",
    "theorems",
]
