"""Minima of the unconstrained features model for targets beyond one-hot, in plain NumPy."""

import itertools
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq


class Optimum(NamedTuple):
    """A minimum: features (N, d), targets (N, n), weights (n, d), bias (n,)."""

    features: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    bias: np.ndarray


def regression_optimum(
    targets: np.ndarray, penalty: float, dim: int, seed: int = 0, bias: bool = True
) -> Optimum:
    """Return the minimum of |WH + b - Y|^2/(2N) + l_H |H|^2/(2N) + l_W |W|^2/2, l_H = l_W.

    `penalty` is sqrt(l_H l_W). Mode i of the centred targets, of singular value s_i, has logits of
    singular value (s_i - sqrt(N) penalty)_+; the d largest modes have room.
    """
    N, n = targets.shape
    b = targets.mean(axis=0) if bias else np.zeros(n)
    V, s, Ut = np.linalg.svd((targets - b).T, full_matrices=False)
    alive = np.maximum(s / np.sqrt(N) - penalty, 0.0)
    alive[dim:] = 0.0
    modes = min(len(s), dim)
    isometry = np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, modes)))[0]
    weights = (V[:, :modes] * np.sqrt(alive[:modes])) @ isometry.T
    features = (isometry * np.sqrt(alive[:modes])) @ Ut[:modes] * np.sqrt(N)
    return Optimum(features.T, targets, weights, b)


def tag_sets(num_tags: int, multiplicity: int) -> np.ndarray:
    """Return all sets of some number of tags as multi-hot rows."""
    rows = [
        [float(k in chosen) for k in range(num_tags)]
        for chosen in itertools.combinations(range(num_tags), multiplicity)
    ]
    return np.array(rows)


class TagOptimum(NamedTuple):
    """A minimum with tags: an `Optimum`, and the coefficient a_m of each multiplicity."""

    optimum: Optimum
    coefficients: dict[int, float]


def pick_all_labels_optimum(
    num_tags: int, multiplicities: tuple[int, ...], penalty: float, dim: int
) -> TagOptimum:
    """Return the minimum of pick-all-labels with every tag set once, z_S = a_m P 1_S.

    a_m (m e^{a_m} + K - m) = rho, and rho solves the equation of the singular values. The weights
    are an ETF; penalties are sqrt(l_W l_H) = `penalty`, with l_W = l_H.
    """
    K = num_tags
    rows = np.concatenate([tag_sets(K, m) for m in multiplicities])
    N = len(rows)
    theta = {m: len(tag_sets(K, m)) * m * (K - m) / (K * (K - 1)) for m in multiplicities}

    def coefficient(m: int, rho: float) -> float:
        return brentq(lambda a: a * (m * np.exp(a) + K - m) - rho, 0.0, 50.0, xtol=1e-15)

    def excess(rho: float) -> float:
        terms = (theta[m] / (m * np.exp(coefficient(m, rho)) + K - m) ** 2 for m in multiplicities)
        return sum(terms) - (N * penalty / K) ** 2

    rho = brentq(excess, 1e-9, 1e6, xtol=1e-14, rtol=1e-14)
    a = {m: coefficient(m, rho) for m in multiplicities}
    kappa = np.sqrt(sum(theta[m] * a[m] ** 2 for m in multiplicities))
    centring = np.eye(K) - 1.0 / K
    isometry = np.linalg.qr(np.random.default_rng(1).normal(size=(dim, K)))[0]
    weights = np.sqrt(kappa) * centring @ isometry.T
    logits = np.array([a[int(row.sum())] * (centring @ row) for row in rows])
    return TagOptimum(Optimum(logits @ weights / kappa, rows, weights, np.zeros(K)), a)
