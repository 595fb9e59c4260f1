"""Theorems about global minimisers, executable: conditions, predictions with scale, references.

Letters of the papers, used throughout: K classes, n_k samples of class k, N samples in all, d
feature dimension, L weight matrices W_1, ..., W_L, H the features, b the bias, Z the logits,
lambda_W, lambda_H, lambda_b the penalties (with halves), q = L + 1.
"""

from ufm.theory.atlas import predict, theorems
from ufm.theory.mode_jumps import Jumps, jumps
from ufm.theory.next_token import SupportProxy, second_order, support_proxy
from ufm.theory.optimal_factors import (
    Letters,
    letters,
    orthogonal_frame,
    predicted,
)
from ufm.theory.roots import root
from ufm.theory.seli import SELI, corrected_margins, seli, seli_angle
from ufm.theory.symmetric_rows import soft_row_logits, wright_omega
from ufm.theory.theorem import (
    Applicability,
    Condition,
    Example,
    NoPrediction,
    Prediction,
    Theorem,
)
from ufm.theory.theorems.doubly_stochastic import HierarchyThresholds, hierarchy_thresholds
from ufm.theory.two_groups import basis, split, two_groups

__all__ = [
    "SELI",
    "Applicability",
    "Condition",
    "Example",
    "HierarchyThresholds",
    "Jumps",
    "Letters",
    "NoPrediction",
    "Prediction",
    "SupportProxy",
    "Theorem",
    "basis",
    "corrected_margins",
    "hierarchy_thresholds",
    "jumps",
    "letters",
    "orthogonal_frame",
    "predict",
    "predicted",
    "root",
    "second_order",
    "seli",
    "seli_angle",
    "soft_row_logits",
    "split",
    "support_proxy",
    "theorems",
    "two_groups",
    "wright_omega",
]
