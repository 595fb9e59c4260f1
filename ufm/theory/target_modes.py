r"""Squared error with target rows of any kind: which of their singular values survive weight decay.

    (1/2N) sum_r n_r ||z_r - y_r||^2 + sum_l (lambda_l/2) ||W_l||^2 + (lambda_H/2) sum_r om_r
    ||h_r||^2 (+ (lambda_b/2) ||b||^2),

with feature weights om_r = rho n_r. A free bias is the mean target ybar = sum_r n_r y_r / N, and
the fit of the rest is ||M - T||^2 / (2N) with T = D^{1/2} (Y - 1 ybar^T), D = diag(n), M = D^{1/2}
(Z - 1 b^T); T = D^{1/2} Y without a bias. So each mode of T has the scalar problem of
`squared_error_modes`. For one layer, s_i = (sigma_i - N tau)_+ with tau = sqrt(lambda_W rho
lambda_H): soft-thresholding (Eckart and Young).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from ufm.problems import Problem
from ufm.theory.optimal_factors import (
    Frame,
    Letters,
    feature_share,
    left_open,
    letters,
    predicted,
    weight_share,
)
from ufm.theory.squared_error_modes import (
    Spectrum,
    deviations_frame,
    modes,
    over_power,
    smallest_square,
    spectrum,
)
from ufm.theory.theorem import Prediction

__all__ = [
    "CentredTargets",
    "centred_targets",
    "penalised_target_modes",
    "rows_frame",
    "target_modes",
    "target_spectrum",
]


class CentredTargets(NamedTuple):
    """Target rows and their mean over all samples.

    Attributes:
        mean: ybar, (K,).
        deviations: The rows less their mean, (R, K).
        scaled: T, the deviations with row r times sqrt(n_r), (R, K).
    """

    mean: Float[Array, " K"]
    deviations: Float[Array, "R K"]
    scaled: Float[Array, "R K"]


def centred_targets(numbers: Letters, problem: Problem, centred: bool = True) -> CentredTargets:
    """Return the targets of a problem; with the mean zero if they are not to be `centred`."""
    xp, n = numbers.xp, numbers.counts
    rows = problem.target_rows(n.dtype, xp)
    mean = n @ rows / numbers.total if centred else xp.zeros_like(rows[0])
    deviations = rows - mean[None, :]
    return CentredTargets(mean, deviations, xp.sqrt(n)[:, None] * deviations)


def target_spectrum(scaled: Float[Array, "R K"]) -> Spectrum:
    """Return the spectrum of T^T T, or that of T T^T where there are fewer rows than outputs."""
    fewer_rows = scaled.shape[0] < scaled.shape[1]
    if isinstance(scaled, np.ndarray):
        left, values, right = np.linalg.svd(scaled, full_matrices=False)
        return Spectrum(values**2, left if fewer_rows else right.T, None)
    return spectrum(scaled @ scaled.T if fewer_rows else scaled.T @ scaled)


def rows_frame(
    numbers: Letters,
    targets: CentredTargets,
    found: Spectrum,
    values: Callable[[Array], Array],
) -> Frame:
    """Return the frame of what is left of the modes of target rows.

    Args:
        numbers: The problem.
        targets: Its targets.
        found: `target_spectrum` of them.
        values: s, as a function of all eigenvalues.
    """
    if numbers.num_rows >= numbers.num_classes:
        return deviations_frame(numbers, targets.deviations, found, values)
    roots, scaled = numbers.xp.sqrt(numbers.counts), targets.scaled
    weights = found.function(
        lambda x: over_power(numbers, weight_share(numbers, values(x)), x, 1.0)
    )
    features = found.function(lambda x: feature_share(numbers, values(x)))
    logits = found.function(lambda x: over_power(numbers, values(x), x, 0.5)) @ scaled
    return Frame(
        scaled.T @ weights @ scaled,
        features / (roots[:, None] * roots[None, :]),
        logits / roots[:, None],
    )


def target_modes(name: str, problem: Problem) -> Prediction:
    r"""Return the prediction without a bias, or with a free one.

    With T = sum_i sigma_i u_i v_i^T and one layer,

        Z - 1 b^T = D^{-1/2} sum_i s_i u_i v_i^T,  s_i = (sigma_i - N tau)_+,    b = ybar,
        W W^T = sqrt(rho lambda_H / lambda_W) sum_i s_i v_i v_i^T,
        H H^T = sqrt(lambda_W / (rho lambda_H)) D^{-1/2} sum_i s_i u_i u_i^T D^{-1/2},
        objective = (1/2N) sum_i [ sigma_i^2 - s_i^2 ].

    A width d below the rank keeps the d modes of largest sigma_i. The constant `smallest_mode` is
    the sigma^2 that a mode must exceed to survive, and `largest_mode` that of the largest, so that
    all is zero where the first reaches the second.
    """
    numbers = letters(problem)
    targets = centred_targets(numbers, problem, centred=problem.use_bias)
    found = target_spectrum(targets.scaled)
    rank = min(numbers.width, numbers.num_rows, numbers.num_classes)

    def values(squares: Array) -> Array:
        return modes(numbers, squares, rank).values

    kept = modes(numbers, found.eigenvalues, rank)
    frame = rows_frame(numbers, targets, found, values)
    return predicted(
        name,
        numbers,
        objective=numbers.xp.sum(kept.costs),
        values=kept.values,
        frame=left_open(numbers, frame, kept.determined),
        bias=targets.mean if problem.use_bias else None,
        constants={
            "smallest_mode": smallest_square(numbers),
            "largest_mode": numbers.xp.max(found.eigenvalues),
        },
    )


def penalised_target_modes(name: str, problem: Problem) -> Prediction:
    r"""Return the prediction with a penalised bias, for one layer and T^T ybar = 0.

    With theta = lambda_b / (1 + lambda_b), the modes of T are those without the bias, and the mean
    target has a mode of its own,

        s_0 = (sqrt(N) |ybar| - N tau / theta)_+ at u = D^{1/2} 1 / sqrt(N), v = ybar / |ybar|,
        b = (|ybar| - s_0 / sqrt(N)) / (1 + lambda_b) v.

    For the features carry the mean m = s_0 v / sqrt(N), and the best bias for it leaves (theta / 2)
    ||ybar - m||^2 of the fit.
    """
    numbers = letters(problem)
    xp, total = numbers.xp, numbers.total
    targets = centred_targets(numbers, problem)
    found = target_spectrum(targets.scaled)
    size = found.eigenvalues.shape[0]

    def values(squares: Array) -> Array:
        return modes(numbers, squares, size).values

    kept = modes(numbers, found.eigenvalues, size)
    theta = numbers.bias / (1 + numbers.bias)
    length = xp.sqrt(xp.sum(targets.mean**2))
    unit = targets.mean / xp.where(length > 0, length, 1)
    common = xp.maximum(xp.sqrt(total) * length - total * numbers.decay / theta, 0)
    rest = length - common / xp.sqrt(total)
    frame = rows_frame(numbers, targets, found, values)
    both = Frame(
        frame.weight_gram + weight_share(numbers, common) * unit[:, None] * unit[None, :],
        None
        if frame.feature_gram is None
        else frame.feature_gram + feature_share(numbers, common) / total,
        frame.logits + common / xp.sqrt(total) * unit[None, :],
    )
    return predicted(
        name,
        numbers,
        objective=xp.sum(kept.costs) + 0.5 * theta * rest**2 + numbers.decay * common,
        # T has a mode of zero, as ybar or D^{1/2} 1 is one.
        values=xp.append(xp.sort(kept.values)[1:], common),
        frame=both,
        bias=rest / (1 + numbers.bias) * unit,
        constants={"smallest_mode": smallest_square(numbers), "theta": theta},
    )
