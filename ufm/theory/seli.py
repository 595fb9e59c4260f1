r"""SELI: the geometry of maximal margins, to which cross-entropy tends as its penalties vanish.

    min (1/2) ||W||^2 + (1/2) sum_i ||h_i||^2
    subject to    delta_y z_y - delta_c z_c >= g_y,  c != y,

z = W h_i for every sample of class y; delta = 1 and g = 1 make the UF-SVM. With v = 1 / delta, P_v
= I - v v^T / |v|^2 and D = diag(n_k), all constraints hold with equality at the unique solution,
whose class logits (one class per column) are

    Z = P_v diag(g / delta).

Why: Z diag(sqrt n) = P_v X, X = diag(g sqrt(n) / delta), has the polar factor U = (P_v X^2
P_v)^{+1/2} X, and with E = X^2

    (P_v E P_v)^{+1/2} = (1/pi) int_0^inf t^{-1/2} [ R_t - R_t v v^T R_t / (v^T R_t v) ] dt,
    R_t = (E + t)^{-1},

has only negative entries off the diagonal. So U diag(sqrt n) is a sum of the constraints' gradients
with positive multipliers, and Z alone minimises the nuclear norm of Z diag(sqrt n), which is the
objective.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float

from ufm._support import (
    ArgumentError,
    check_instance,
    check_numbers,
    checked_condition,
    is_concrete,
    printed,
)
from ufm.problems import ClassGroups, CrossEntropy, LogitAdjusted, Problem
from ufm.theory import conditions

__all__ = ["SELI", "corrected_margins", "seli", "seli_angle"]


@printed
class SELI(NamedTuple):
    """The solution of the hard-margin problem, as NumPy arrays.

    Attributes:
        logits: Row k is the logits of class k, (K, K). D^{1/2} logits = U S V^T, D = diag(n_k).
        value: The minimal value, (): the nuclear norm of D^{1/2} logits.
        weight_gram: W W^T = V S V^T, (K, K).
        feature_gram: Inner products of the class means, D^{-1/2} U S U^T D^{-1/2}, (K, K).
        singular_values: S, descending, (K,); the last is zero.
        dual: The polar factor U V^T, (K, K).
        strict: Whether all multipliers of the constraints are positive, so that the solution is
            unique.
    """

    logits: Float[Array, "K K"]
    value: Float[Array, ""]
    weight_gram: Float[Array, "K K"]
    feature_gram: Float[Array, "K K"]
    singular_values: Float[Array, " K"]
    dual: Float[Array, "K K"]
    strict: Bool[Array, ""]


def seli(class_counts: Any, *, multipliers: Any = None, margins: Any = None) -> SELI:
    r"""Return the solution of the hard-margin problem for any class counts.

    Without multipliers and margins, the SELI geometry: logits I - J/K. For a step of k_A classes of
    n_A samples and k_B of n_B, D^{1/2} logits has the singular values sqrt(n_A), k_A - 1 times,
    sqrt(n_B), k_B - 1 times, and sqrt((k_B n_A + k_A n_B) / K). With margins proportional to 1 /
    sqrt(n_k), classifiers are a simplex ETF.

    Args:
        class_counts: Samples per class, a sequence of numbers or a `ClassGroups`.
        multipliers: Delta of `CDT`, positive: one number for all, one per group or one per class; 1
            if not given.
        margins: g, positive, likewise; 1 / delta of `LDT` are the margins that it asks for.

    Raises:
        ValueError: If multipliers or margins do not fit the classes or are not positive and
            finite.

    Reference: Thrampoulidis, Kini, Vakilian, Behnia (NeurIPS 2022), arXiv:2208.05512, for steps
    without multipliers;
        Behnia, Kini, Vakilian, Thrampoulidis (AISTATS 2023), arXiv:2303.07608, for the implicit
        geometry of modified losses. The form for all counts and its uniqueness are derived here.
    """
    classes = class_counts if isinstance(class_counts, ClassGroups) else ClassGroups(class_counts)
    _needs_numbers(classes)
    n = np.asarray(classes.per_class, np.float64)
    delta, g = _stated(classes, "multipliers", multipliers), _stated(classes, "margins", margins)
    v = 1 / delta
    columns = np.diag(g / delta) - np.outer(v / np.sum(v**2), v * g / delta)
    logits: Any = columns.T
    root = np.sqrt(n)
    U: Any
    S: Any
    U, S, Vt = np.linalg.svd(root[:, None] * logits)
    S[-1] = 0
    dual: Any = U[:, :-1] @ Vt[:-1]
    strict: Any = np.all(dual[~np.eye(len(n), dtype=bool)] < 0)
    return SELI(
        logits=logits,
        value=np.sum(S),
        weight_gram=(Vt.T * S) @ Vt,
        feature_gram=(U * S) @ U.T / np.outer(root, root),
        singular_values=S,
        dual=dual,
        strict=strict,
    )


def corrected_margins(problem: Problem) -> Float[Array, "K K"]:
    r"""Return the margins z_y - z_c of cross-entropy as weight decay vanishes: row y, column c.

        z_y - z_c = log(1 / (N tau)) - log|M_cy| + o(1),    M = (P D P)^{+1/2},

    tau = sqrt(lambda_W lambda_H), P = I - J/K; zero on the diagonal. The error o(1) is of order 1 /
    log(1 / (N tau)), as the direction of Z is (`seli_angle`). At the minimiser the gradients (n_y /
    N) (p - e_y), divided by sqrt(n_y), make -tau times the polar factor of D^{1/2} Z, so that the
    probability of a wrong class c is N tau times its entry over sqrt(n_y); and the polar factor
    tends to that of `seli`, D^{1/2} M. With `LogitAdjusted` these are the margins of the adjusted
    logits, so iota_y - iota_c is subtracted.

    Args:
        problem: One layer, signed features, d >= K - 1, no bias, `CrossEntropy` or `LogitAdjusted`,
            `WeightDecay`.

    Raises:
        ValueError: For any other problem.
    """
    n, size = _vanishing_decay(problem)
    M = seli(n).dual / np.sqrt(n)[:, None]
    off = ~np.eye(len(n), dtype=bool)
    margins: Any = np.where(off, -np.log(size) - np.log(np.abs(np.where(off, M, 1))), 0)
    if type(problem.loss) is LogitAdjusted:
        shift = np.asarray(problem.loss.of_classes(problem.class_counts))
        margins -= shift[:, None] - shift[None, :]
    return margins


def seli_angle(problem: Problem) -> Float[Array, ""]:
    r"""Return the angle in radians between class logits and SELI as weight decay vanishes.

    It is that of the logits with the `corrected_margins`, as N x K matrices of all samples, and
    goes to zero like
    1 / log(1 / (N tau)): a solution at any penalty that can be computed with is visibly not SELI.

    Args:
        problem: As for `corrected_margins`, with penalties so small that the margins are positive.
    """
    margins = corrected_margins(problem)
    roots = np.sqrt(np.asarray(problem.class_counts.per_class, np.float64))[:, None]
    logits = roots * (np.mean(margins, axis=1, keepdims=True) - margins)
    target = roots * seli(problem.class_counts).logits
    along = np.sum(logits * target) / np.linalg.norm(target)
    across = logits - along * target / np.linalg.norm(target)
    angle: Any = np.arctan2(np.linalg.norm(across), along)
    return angle


def _vanishing_decay(problem: Problem) -> tuple[np.ndarray, float]:
    """Return the counts and N tau of a problem that the asymptotics cover."""
    check_instance("problem", problem, Problem)
    needs = {
        "the loss CrossEntropy or LogitAdjusted": type(problem.loss)
        in (CrossEntropy, LogitAdjusted),
        "the regularizer WeightDecay": conditions.weight_decay(problem).holds,
        "one layer": problem.num_layers == 1,
        "features of any sign": conditions.signed_features(problem).holds,
        "no bias": not problem.use_bias,
        "d >= K - 1": problem.feature_dim >= problem.num_classes - 1,
    }
    checked_condition(needs, "problem", "the limit of vanishing weight decay")
    _needs_numbers(problem)
    n = np.asarray(problem.class_counts.per_class, np.float64)
    return n, float(np.sum(n) * problem.gauge.price)


def _stated(classes: ClassGroups, name: str, values: Any) -> np.ndarray:
    if values is None:
        return np.ones(classes.num_classes)
    stated = np.array(classes.expand(np.asarray(values, np.float64), name), np.float64)
    check_numbers(name, stated, several=True, positive=True)
    return stated


def _needs_numbers(tree: Any) -> None:
    if not is_concrete(tree):
        raise ArgumentError("class_counts", "and penalties must be numbers here, not traced values")
