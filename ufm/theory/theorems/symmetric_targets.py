r"""Cross-entropy with target rows that treat all pairs of labels alike: a simplex ETF.

Label smoothing and label noise, mixup, tag sets, languages whose contexts are symmetric, distilled
targets. See `ufm.theory.symmetric_rows` for the scalar equation.
"""

import itertools
from typing import Any

import numpy as np

from ufm._support import array_module
from ufm.problems import CrossEntropy, Problem, Targets, WeightDecay
from ufm.theory import conditions as needs
from ufm.theory.symmetric_rows import (
    etf_moments,
    etf_rows_prediction,
    symmetric_rows,
)
from ufm.theory.theorem import Condition, Example, Prediction, Theorem

__all__ = ["SYMMETRIC", "THEOREMS", "soft_rows_conditions"]

SYMMETRIC = 1e-10  # relative error of second moments; the scalar equation is solved to 1e-14


def soft_rows_conditions(problem: Problem) -> tuple[Condition, ...]:
    """Return the conditions of one layer with cross-entropy and non-negative target rows."""
    return (
        needs.target_rows(problem),
        needs.several_labels(problem),
        *needs.one_layer(problem, CrossEntropy),
        needs.signed_features(problem),
        needs.centred_dims(problem),
    )


def _conditions(problem: Problem) -> tuple[Condition, ...]:
    return (*soft_rows_conditions(problem), *_symmetric(problem))


def _symmetric(problem: Problem) -> tuple[Condition, ...]:
    """The second moments are multiples of P, of the targets and of what is left of them."""
    of_targets = "sum n_r^2/om_r t_r t_r' a multiple of P, t_r = y_r - s_r/K"
    of_slopes = "the same at the solution, t_r = y_r - s_r softmax(z_r)"
    fits = all(condition.holds is True for condition in soft_rows_conditions(problem))
    if not fits:
        return tuple(
            Condition(statement, False, "another model") for statement in (of_targets, of_slopes)
        )
    xp = array_module(problem)
    targets = problem.target_rows(xp.asarray(problem.row_counts).dtype, xp)
    error = etf_moments(problem, targets - xp.mean(targets, axis=1, keepdims=True))
    words = "off by {}".format
    before = Condition(of_targets, error <= SYMMETRIC, words(needs.number(error)))
    if before.holds is False or (xp is np and not before.holds):
        return (before,)  # without which there is nothing to solve
    error = etf_moments(problem, symmetric_rows(problem).slopes)
    return (before, Condition(of_slopes, error <= SYMMETRIC, words(needs.number(error))))


def _formula(problem: Problem) -> Prediction:
    r"""Return the simplex ETF of the scalar equation.

    The constant `kappa` is the singular value of Om^{1/2} Z, and all is zero where `collapse_ratio`
    is at least one.
    """
    found = symmetric_rows(problem)
    return etf_rows_prediction(
        "cross-entropy-symmetric-targets",
        problem,
        found.logits,
        found.kappa,
        found.objective,
        {"kappa": found.kappa, "collapse_ratio": found.collapse_ratio},
    )


def _problem(targets: Targets, decay: float, dim: int, bias: float | None = None) -> Problem:
    return Problem(
        targets=targets,
        feature_dim=dim,
        loss=CrossEntropy(),
        regularizer=WeightDecay(2 * decay, decay / 2, bias or 0.0),
        use_bias=bias is not None,
    )


def _language(profile: tuple[float, ...], num_tokens: int) -> Targets:
    """Return all ordered tuples of tokens with one profile of probabilities: om = 1."""
    rows: list[Any] = []
    for tokens in itertools.permutations(range(num_tokens), len(profile)):
        row = np.zeros(num_tokens)
        row[list(tokens)] = profile
        rows.append(row)
    return Targets.contexts(np.array(rows))


def _affine_orbit() -> Targets:
    """Return the 20 rows that the maps j -> a j + b of the integers modulo 5 make of one."""
    row = np.array([0.5, 0.3, 0.15, 0.05, 0.0])
    rows = [row[(a * np.arange(5) + b) % 5] for a in range(1, 5) for b in range(5)]
    return Targets(np.array(rows), np.full(20, 3.0))


def _examples() -> tuple[Example, ...]:
    mixed = Targets.mixup(4, 20, {0.7: 2.0, 0.5: 1.0})
    return (
        Example("mixup of 4 classes, lam .7 and .5", _problem(mixed, 2e-3, 6)),
        Example("mixup, free bias, d=3", _problem(mixed, 2e-3, 3, bias=0.0)),
        Example("language of V=4, profile (.7, .3)", _problem(_language((0.7, 0.3), 4), 2e-3, 5)),
        Example("orbit of AGL(1,5), penalised bias", _problem(_affine_orbit(), 1e-3, 5, bias=0.1)),
        Example("collapsed: mixup, 0.2", _problem(mixed, 0.2, 6)),
    )


symmetric_targets = Theorem(
    name="cross-entropy-symmetric-targets",
    title="cross-entropy with symmetric target rows: a simplex ETF from one scalar equation",
    reference=(
        "derived here; for mixup, whose ETF Fisher, Meng & Papyan (ICLR 2024), arXiv:2402.06171, "
        "assume"
    ),
    statement=(
        "(1/N) sum n_r [s_r lse(z_r) - <y_r, z_r>] + (lW/2)||W||^2 + (lH/2) sum om_r ||h_r||^2 [+ "
        "(lb/2)||b||^2], y_r >= 0 of mass s_r, d >= K - 1. If sum om_r z_r z_r' is a multiple of "
        "P = I - J/K for z_r = argmin s_r lse(z) - <y_r,z> + (mu om_r/2 n_r)||z||^2, mu the root "
        "of sum n_r^2/om_r ||y_r - s_r softmax(z_r)||^2 = (K-1)(N tau)^2, tau = sqrt(lW lH), then "
        "W W' = sqrt(lH/lW) kappa P with kappa = N tau/mu, H H' = sqrt(lW/lH) Z Z'/kappa, b = 0 "
        "(with sum n_r (y_r - s_r softmax(z_r)) = 0), and the minimum is the loss + tau (K-1) "
        "kappa. All is zero from N tau = sqrt(sum n_r^2/om_r ||y_r - s_r/K||^2/(K-1)) on. Any "
        "targets that are symmetric under a 2-transitive group of label permutations have this; it "
        "is checked at the solution."
    ),
    conditions=_conditions,
    formula=_formula,
    make_examples=_examples,
    any_targets=True,
)

THEOREMS = (symmetric_targets,)
