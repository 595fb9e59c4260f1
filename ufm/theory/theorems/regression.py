r"""Squared error with target rows of any kind: regression, tags, soft labels.

    (1/2N) sum_r n_r ||z_r - y_r||^2 + sum_l (lambda_l/2) ||W_l||^2 + (lambda_H/2) sum_r om_r
    ||h_r||^2 (+ (lambda_b/2) ||b||^2),

feature weights in proportion to the counts, om_r = rho n_r. Andriopoulos et al. write it for M
samples of n responses as

    (1/2M) ||W H + b 1^T - Y||^2 + (lambda_H'/2M) ||H||^2 + (lambda_W/2) ||W||^2,

so that lambda_H' = M lambda_H, and c = lambda_H' lambda_W = (N tau)^2 / N is compared with
eigenvalues of the covariance Sigma of the targets. See `ufm.theory.target_modes` for the modes.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from ufm.problems import Problem, SquaredError, Targets, WeightDecay
from ufm.theory import conditions as needs
from ufm.theory.optimal_factors import letters
from ufm.theory.squared_error_modes import smallest_square
from ufm.theory.target_modes import centred_targets, penalised_target_modes, target_modes
from ufm.theory.theorem import Condition, Example, Prediction, Theorem

__all__ = ["THEOREMS"]

ORTHOGONAL = 1e-12  # cosine of the mean target with the others, below which it counts as zero


def _rows(problem: Problem) -> tuple[Condition, ...]:
    return (
        needs.target_rows(problem),
        needs.loss_is(problem, SquaredError),
        needs.weight_decay(problem),
        needs.linear(problem),
        needs.signed_features(problem),
        needs.proportional_weights(problem),
    )


def _modes_conditions(problem: Problem) -> tuple[Condition, ...]:
    return (
        *_rows(problem),
        needs.num_layers(problem, exactly=1),
        needs.no_penalised_bias(problem),
    )


def _deep_conditions(problem: Problem) -> tuple[Condition, ...]:
    return (
        *_rows(problem),
        needs.num_layers(problem, at_least=2),
        needs.no_penalised_bias(problem),
    )


def _regression_conditions(problem: Problem) -> tuple[Condition, ...]:
    d, n = problem.feature_dim, problem.num_outputs
    return (
        *_rows(problem),
        needs.num_layers(problem, exactly=1),
        needs.free_bias(problem),
        needs.balanced(problem),
        Condition("d >= n", d >= n, f"d = {d}, n = {n}"),
    )


def _penalised_conditions(problem: Problem) -> tuple[Condition, ...]:
    rows = _rows(problem)
    d, most = problem.feature_dim, min(problem.num_rows, problem.num_outputs)
    return (
        *rows,
        needs.num_layers(problem, exactly=1),
        needs.penalised_bias(problem),
        Condition("d >= min(R, K)", d >= most, f"d = {d}, min(R, K) = {most}"),
        _mean_apart(problem),
    )


def _mean_apart(problem: Problem) -> Condition:
    """The mean target is orthogonal to the deviations of all targets from it."""
    statement = "targets less their mean orthogonal to it"
    if not (needs.target_rows(problem).holds and needs.weight_decay(problem).holds):
        return Condition(statement, False, "another model")
    numbers = letters(problem)
    xp = numbers.xp
    targets = centred_targets(numbers, problem)
    size = xp.sqrt(xp.sum(targets.scaled**2) * xp.sum(targets.mean**2))
    along = xp.sqrt(xp.sum((targets.scaled @ targets.mean) ** 2))
    cosine = along / xp.where(size > 0, size, 1)
    return Condition(statement, cosine <= ORTHOGONAL, f"a cosine of {needs.number(cosine)}")


def _regression_formula(problem: Problem) -> Prediction:
    r"""Return the modes of the covariance Sigma = (1/N) sum_r n_r (y_r - ybar)(y_r - ybar)^T.

    With c = N rho lambda_H lambda_W the modes of T are sigma_i = sqrt(N eig_i(Sigma)), so that

        W W^T = sqrt(N rho lambda_H / lambda_W) [Sigma^{1/2} - sqrt(c) I]_+,
        (1/N) sum_r n_r ||z_r - y_r||^2 = sum_i min(eig_i(Sigma^{1/2}), sqrt(c))^2.

    The last is the constant `training_error`, n c while all modes are alive; the objective is then
    sqrt(c) tr Sigma^{1/2} - n c / 2. That is where c is below the constant `smallest_eigenvalue` of
    Sigma. From `largest_eigenvalue` on all is zero.
    """
    numbers = letters(problem)
    xp = numbers.xp
    scaled = centred_targets(numbers, problem).scaled
    covariance = scaled.T @ scaled / numbers.total
    eigenvalues = xp.maximum(xp.linalg.eigvalsh(covariance), 0)
    c = smallest_square(numbers) / numbers.total
    return dataclasses.replace(
        target_modes("regression-collapse", problem),
        constants={
            "c": c,
            "smallest_eigenvalue": eigenvalues[0],
            "largest_eigenvalue": eigenvalues[-1],
            "training_error": xp.sum(xp.minimum(eigenvalues, c)),
        },
    )


# Examples


def _responses(outputs: int = 3) -> np.ndarray:
    """Return 12 responses of different variances, which are correlated."""
    angles = np.arange(12.0)[:, None] * np.array([1.0, 2.3, 0.7, 1.9, 3.1])[:outputs]
    return np.sin(angles) @ (np.eye(outputs) + 0.4) * np.array([2.0, 1.0, 0.5, 1.5, 0.3])[:outputs]


def _problem(
    targets: Targets,
    weights: Any,
    features: float,
    dims: int | tuple[int, ...],
    bias: float | None = None,
) -> Problem:
    feature_dim, *hidden_dims = (dims,) if isinstance(dims, int) else dims
    return Problem(
        targets=targets,
        feature_dim=feature_dim,
        loss=SquaredError(),
        regularizer=WeightDecay(weights, features, bias or 0.0),
        use_bias=bias is not None,
        hidden_dims=hidden_dims,
    )


def _regression_examples() -> tuple[Example, ...]:
    rows = Targets.regression(_responses())
    once = Targets(_responses(), feature_weights=np.full(12, 1 / 12))
    return (
        Example("12 samples, 3 responses, c = 0.06", _problem(rows, 5e-2, 1e-1, 4, bias=0.0)),
        Example("features averaged: 5e-2, 1.2", _problem(once, 5e-2, 1.2, 4, bias=0.0)),
        Example("modes dropped: c = 0.5", _problem(rows, 0.5, 1 / 12, 4, bias=0.0)),
        Example("collapsed: 3, 1", _problem(rows, 3.0, 1.0, 4, bias=0.0)),
    )


def _modes_examples() -> tuple[Example, ...]:
    rows, wide = Targets.regression(_responses()), Targets(_responses(5)[:3], (4.0, 2.0, 1.0))
    tags = Targets.multi_label(4, {1: 20, 2: 12})
    noisy = Targets.noisy(0.3, (30.0, 20.0, 10.0))
    return (
        Example("regression without a bias", _problem(rows, 5e-2, 1e-1, 4)),
        Example("3 rows, 5 responses", _problem(wide, 5e-2, 1e-1, 5, bias=0.0)),
        Example("tags, modes dropped", _problem(tags, 1e-1, 1e-1, 6)),
        Example("label noise of 0.3, three sizes", _problem(noisy, 1e-2, 1e-2, 3, bias=0.0)),
        Example("d=1", _problem(rows, 5e-2, 1e-1, 1, bias=0.0)),
        Example("collapsed: 3, 1", _problem(rows, 3.0, 1.0, 4)),
    )


def _penalised_examples() -> tuple[Example, ...]:
    tags, ones = Targets.multi_label(4, {2: 24}), Targets.one_hot((8.0, 8.0, 8.0))
    return (
        Example("pairs of 4 tags, bias 0.5", _problem(tags, 2e-2, 2e-2, 6, bias=0.5)),
        Example("mean in the bias: 1e-3", _problem(tags, 5e-2, 5e-2, 6, bias=1e-3)),
        Example("one-hot rows, bias 2", _problem(ones, 2e-2, 2e-2, 3, bias=2.0)),
        Example("collapsed: 1, 1", _problem(tags, 1.0, 1.0, 6, bias=0.5)),
    )


def _deep_examples() -> tuple[Example, ...]:
    rows, tags = Targets.regression(_responses()), Targets.multi_label(4, {1: 20, 2: 12})
    return (
        Example("regression, L=2", _problem(rows, 5e-2, 5e-2, (4, 4), bias=0.0)),
        Example("unequal: L=3", _problem(rows, (5e-2, 2e-2, 1e-2), 5e-2, (4, 4, 4))),
        Example("tags, L=2", _problem(tags, 2e-2, 2e-2, (5, 5), bias=0.0)),
        Example("collapsed: 1, L=2", _problem(rows, 1.0, 1.0, (4, 4), bias=0.0)),
    )


regression_collapse = Theorem(
    name="regression-collapse",
    title="regression with a free bias: weights are the root of the covariance, less a constant",
    reference=(
        "Andriopoulos, Dong, Guo, Zhao & Ross (NeurIPS 2024), arXiv:2409.04180; with modes that "
        "vanish derived here"
    ),
    statement=(
        "(1/2M)||WH + b1' - Y||^2 + (lH'/2M)||H||^2 + (lW/2)||W||^2, n responses, d >= n, c = lH' "
        "lW, Sigma the covariance of Y: b is the mean response, W W' = sqrt(lH'/lW) [Sigma^(1/2) "
        "- sqrt(c) I]_+, and the training error (1/M)||residual||^2 is the sum of "
        "min(eig_i(Sigma), c). While c is below the smallest eigenvalue of Sigma, which the "
        "paper assumes, nothing is cut off, the error is n c, and the minimum sqrt(c) tr "
        "Sigma^(1/2) - n c/2; all is zero from the largest eigenvalue on. Here lH = lH'/M."
    ),
    conditions=_regression_conditions,
    formula=_regression_formula,
    make_examples=_regression_examples,
    any_targets=True,
)

squared_error_rows = Theorem(
    name="squared-error-target-rows",
    title="squared error, targets of any kind: singular values soft-thresholded",
    reference=(
        "derived here from Eckart & Young; for regression Andriopoulos et al. (NeurIPS 2024), "
        "arXiv:2409.04180"
    ),
    statement=(
        "(1/2N) sum n_r ||z_r - y_r||^2 + (lW/2)||W||^2 + (lH/2) rho sum n_r ||h_r||^2, no bias "
        "or b = ybar free: with T = D^(1/2)(Y - 1 b') = sum_i s_i u_i v_i', D = diag(n), tau = "
        "sqrt(lW rho lH), D^(1/2)(Z - 1 b') = sum_(i <= d) (s_i - N tau)_+ u_i v_i', and the "
        "minimum is (1/2N) sum_i [s_i^2 - (s_i - N tau)_+^2]; mode i vanishes from N tau = s_i "
        "on. A width below the rank keeps the largest modes."
    ),
    conditions=_modes_conditions,
    formula=functools.partial(target_modes, "squared-error-target-rows"),
    make_examples=_modes_examples,
    any_targets=True,
)

squared_error_rows_penalised = Theorem(
    name="squared-error-target-rows-penalised-bias",
    title="squared error, targets orthogonal to their mean, a penalised bias: one mode more",
    reference="derived here, after Andriopoulos et al. (NeurIPS 2024), arXiv:2409.04180",
    statement=(
        "(1/2N) sum n_r ||z_r - y_r||^2 + (lW/2)||W||^2 + (lH/2) rho sum n_r ||h_r||^2 + "
        "(lb/2)||b||^2 with (y_r - ybar)'ybar = 0 for all r, d >= min(R, K): the modes of the "
        "centred targets as with a free bias, and the mode ybar/|ybar| with the singular value "
        "s = (sqrt(N)|ybar| - N tau (1+lb)/lb)_+; b = (1 - s/(sqrt(N)|ybar|)) ybar/(1+lb)."
    ),
    conditions=_penalised_conditions,
    formula=functools.partial(penalised_target_modes, "squared-error-target-rows-penalised-bias"),
    make_examples=_penalised_examples,
    any_targets=True,
)

deep_rows = Theorem(
    name="deep-linear-target-rows",
    title="squared error, several linear layers, targets of any kind: modes jump one by one",
    reference="derived here, after Dang et al. (ICML 2023), arXiv:2301.00437",
    statement=(
        "(1/2N) sum n_r ||z_r - y_r||^2 + sum_l (ll/2)||Wl||^2 + (lH/2) rho sum n_r ||h_r||^2, no "
        "bias or b = ybar free: each singular value s of T = D^(1/2)(Y - 1 b') shrinks to s "
        "(1-e), e (1-e)^((L-1)/(L+1)) = N Lam / s^(2L/(L+1)), Lam the geometric mean of l1, ..., "
        "lL, rho lH, while the right-hand side is below (1/L)((L-1)/L)^((L-1)/(L+1)), and "
        "vanishes from there on, jumping from s (L-1)/L. Widths below the rank keep the largest."
    ),
    conditions=_deep_conditions,
    formula=functools.partial(target_modes, "deep-linear-target-rows"),
    make_examples=_deep_examples,
    any_targets=True,
)

THEOREMS = (
    regression_collapse,
    squared_error_rows,
    squared_error_rows_penalised,
    deep_rows,
)
