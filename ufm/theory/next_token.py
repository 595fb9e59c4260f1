r"""Next-token models: what supports of contexts say about the limit of vanishing weight decay.

    min sum_j pi_j CE(W h_j, p_j) + (lambda/2) (||W||^2 + sum_j om_j ||h_j||^2),

contexts j = 1..R over V tokens, pi_j their probability, p_j the distribution of the next token, S_j
its support, H = sum_j pi_j Entropy(p_j) the entropy floor, om = 1. As lambda vanishes, the logits
grow like log(1 / lambda) times the solution of the hard-margin problem (NTP-SVM)

    min ||Om^{1/2} Z||_*    subject to    z_z = z_z' in S_j,    z_z - z_v >= 1 for v off S_j,

and within supports they tend to the log-odds of p. The centred supports

    S~ = S (I - J/V),    S the 0/1 matrix of the supports,

have all margins one. With the singular value decomposition Om^{1/2} S~ = U S V^T they solve the
problem if the polar factor U V^T has no positive entry off the supports, since it is then a sum of
the constraints' gradients with multipliers that are not negative. If S~ has rank R or V - 1, the
polar factor is the only subgradient among matrices orthogonal to 1, and the condition is necessary,
too.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float

from ufm._support import ArgumentError, check_instance, printed
from ufm.problems import Targets

__all__ = ["SupportProxy", "second_order", "support_proxy"]

ROUNDING = 1e-12  # entries of a polar factor up to which they count as zero
RANK = 1e-10  # singular values relative to the largest up to which they count as zero


@printed
class SupportProxy(NamedTuple):
    """The centred supports, as NumPy arrays, and whether they are the hard-margin solution.

    Attributes:
        logits: S~, (R, V).
        value: The nuclear norm of Om^{1/2} S~, ().
        weight_gram: W W^T = V S V^T, (V, V).
        feature_gram: Inner products of the features, Om^{-1/2} U S U^T Om^{-1/2}, (R, R).
        singular_values: Those of Om^{1/2} S~, descending, (min(R, V),).
        dual: The polar factor, (R, V).
        exact: Whether its entries off the supports are not positive: S~ solves the problem.
        strict: Whether they are negative.
        decided: Whether S~ is no solution if it is not `exact`; otherwise the test leaves it open.
    """

    logits: Float[Array, "R V"]
    value: Float[Array, ""]
    weight_gram: Float[Array, "V V"]
    feature_gram: Float[Array, "R R"]
    singular_values: Float[Array, " r"]
    dual: Float[Array, "R V"]
    exact: Bool[Array, ""]
    strict: Bool[Array, ""]
    decided: Bool[Array, ""]


def support_proxy(targets: Targets) -> SupportProxy:
    """Return the centred supports of targets, and the test of whether they have maximal margins.

    Args:
        targets: `Targets` of numbers that are not negative, such as `Targets.contexts`. Their
            feature weights, the counts if not given, are om.

    Raises:
        ValueError: If a target is negative, a row is zero or all supports are complete.

    Reference: Zhao, Behnia, Vakilian, Thrampoulidis (2024), arXiv:2408.15417, for the proxy; the
    test is derived here.
    """
    check_instance("targets", targets, Targets)
    rows = np.asarray(targets.rows, np.float64)
    if not np.all(rows >= 0) or not np.all(np.any(rows > 0, axis=1)):
        raise ArgumentError(
            "targets", "must have rows of numbers that are not negative and not all zero"
        )
    supports = rows > 0
    if supports.all():
        raise ArgumentError("targets", "must have a row with a zero entry")
    stated: Any = targets.counts if targets.feature_weights is None else targets.feature_weights
    roots = np.sqrt(np.asarray(stated, np.float64))
    logits: Any = supports - np.mean(supports, axis=1, keepdims=True)
    left, values, right = np.linalg.svd(roots[:, None] * logits, full_matrices=False)
    singular: Any = np.where(values > RANK * values[0], values, 0)
    rank = int(np.sum(singular > 0))
    dual: Any = left[:, :rank] @ right[:rank]
    off = dual[~supports]
    return SupportProxy(
        logits=logits,
        value=np.sum(singular),
        weight_gram=(right.T * singular) @ right,
        feature_gram=(left * singular) @ left.T / np.outer(roots, roots),
        singular_values=singular,
        dual=dual,
        exact=np.all(off <= ROUNDING),  # type: ignore[arg-type]
        strict=np.all(off < -ROUNDING),  # type: ignore[arg-type]
        decided=np.asarray(rank in (len(roots), supports.shape[1] - 1)),  # type: ignore[arg-type]
    )


def second_order(matrix: Float[np.ndarray, "n m"], change: Float[np.ndarray, "n m"]) -> float:
    r"""Return the second derivative by t of the nuclear norm of matrix + t change, at t = 0.

    With the singular value decomposition U S V^T and A = U^T change V it is

        sum_ij (A_ij - A_ji)^2 / (2 (s_i + s_j)) + sum_i (||off U||^2 + ||off V||^2)_i / s_i,

    over modes with s > 0, what `change` does to a mode off the span of U or of V counting in the
    second sum.
    """
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    alive = values > RANK * values[0]
    left, values, right = left[:, alive], values[alive], right[alive]
    inner = left.T @ change @ right.T
    turned = np.sum((inner - inner.T) ** 2 / (2 * (values[:, None] + values[None, :])))
    beside = change @ right.T - left @ inner
    above = left.T @ change - inner @ right
    return float(turned + np.sum((np.sum(beside**2, axis=0) + np.sum(above**2, axis=1)) / values))
