r"""Collapse of next-token prediction by context: features of contexts against what follows them.

Context j occurs with probability pi_j, is followed by token z with probability p_jz, and has the
feature h_j; its support S_j is the set of tokens that ever follow. The cross-entropy is at least
the mean entropy of the p_j. Where weights decay to zero, logits in the support tend to the
log-odds, <w_z - w_z', h_j> = log(p_jz / p_jz'), and those outside it fall behind without bound
(Thrampoulidis 2024).

What contexts have in common, and what follows for their features at a minimum:

- The same p_j, and the same ratio of the penalty's weight to pi_j: equal features, at any decay.
  With each context penalised once and unequal pi_j they need not be equal.
- The same support only: what is orthogonal to the differences of the support's weights is equal in
  the limit of vanishing decay, at the slow rate 1/log(1/decay) (Zhao et al. 2024).
  `support_variability` is of whole features, and positive there; `support_variability_outside`
  takes those differences out.

A residual or a margin is a better sign of that limit than the direction of W, which comes as
slowly.

References:
    - Thrampoulidis (2024), Implicit optimization bias of next-token prediction in linear models,
      NeurIPS.
    - Zhao, Behnia, Vakilian and Thrampoulidis (2024), Implicit geometry of next-token prediction:
      from language sparsity patterns to model representations, COLM.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from ufm._support import ArgumentError, printed
from ufm.metrics.checked_input import (
    check_size,
    checked_rtol,
    head_of,
    host_array,
    real_array,
    weight_array,
)
from ufm.metrics.class_statistics import class_statistics
from ufm.metrics.explained import Explained
from ufm.metrics.pairs import ratio, rows_at_a_time

__all__ = [
    "ContextCollapse",
    "ContextStatistics",
    "context_collapse",
    "context_collapse_from",
    "context_statistics",
    "whole_numbers",
]

NEED_WEIGHTS = (
    "cross_entropy",
    "excess",
    "support_variability_outside",
    "log_odds_error",
    "margin",
    "mean_margin",
)
DIGITS = 12  # to which frequencies of weighted samples are compared


@printed
class ContextStatistics(NamedTuple):
    """Features by context, and how often each token followed each context.

    Attributes:
        counts: The number of samples of each context, or their weight, (C,), positive.
        means: h_j, (C, d).
        variances: The mean of |h - h_j|^2 over the samples of each, (C,).
        pairs: Context and token of what was seen, sorted, without repetition, (P, 2).
        pair_counts: How often, (P,), positive.
        num_tokens: V.
    """

    counts: Float[np.ndarray, " C"]
    means: Float[np.ndarray, "C d"]
    variances: Float[np.ndarray, " C"]
    pairs: Int[np.ndarray, "P 2"]
    pair_counts: Float[np.ndarray, " P"]
    num_tokens: int

    @property
    def starts(self) -> Int[np.ndarray, " ends"]:
        """Where the pairs of each context begin, and where the last ends, (C + 1,)."""
        return np.searchsorted(self.pairs[:, 0], np.arange(len(self.counts) + 1))

    @property
    def rows(self) -> Float[np.ndarray, "C V"]:
        """How often each token followed each context, a matrix of C V numbers (`ufm.Targets`)."""
        dense = np.zeros((len(self.counts), self.num_tokens))
        dense[self.pairs[:, 0], self.pairs[:, 1]] = self.pair_counts
        return dense

    @property
    def frequencies(self) -> Float[np.ndarray, " P"]:
        """p_jz of the pairs, (P,)."""
        return self.pair_counts / self.counts[self.pairs[:, 0]]


def whole_numbers(
    name: str, values: Any, size: int, below: int | None = None
) -> Int[np.ndarray, " N"]:
    """Return integers that are not negative, (size,), and stay below a bound if one is given.

    Raises:
        ValueError: The values are anything else.
    """
    found = host_array(name, values)
    if found.dtype.kind not in "iu" or found.shape != (size,):
        raise ArgumentError(
            name,
            f"must be integers of shape ({size},), one for each row of `features`, got dtype "
            f"{found.dtype} and shape {found.shape}",
        )
    least, most = (int(found.min()), int(found.max())) if size else (0, 0)
    if least < 0 or (below is not None and most >= below):
        bounds = "not be negative" if below is None else f"be in 0, ..., {below - 1}"
        raise ArgumentError(
            name, f"must {bounds}, got {least if least < 0 else most}; leave such samples out"
        )
    return found.astype(np.int64, copy=False)


def context_statistics(
    features: Float[np.ndarray, "N d"],
    tokens: Int[np.ndarray, " N"],
    contexts: Int[np.ndarray, " N"],
    num_tokens: int,
    sample_weights: Float[np.ndarray, " N"] | None = None,
) -> ContextStatistics:
    """Return features by context and the tokens that follow.

    Args:
        features: In rows, (N, d).
        tokens: The token that follows each, 0, ..., V - 1, (N,).
        contexts: The context of each, any integers, (N,); those without samples are left out.
        num_tokens: V.
        sample_weights: The weight of each sample, (N,), not negative; 1 by default.
    """
    H, z, j = np.asarray(features, np.float64), np.asarray(tokens), np.asarray(contexts)
    a = np.ones(len(H)) if sample_weights is None else np.asarray(sample_weights, np.float64)
    H, z, j, a = H[a > 0], z[a > 0], j[a > 0], a[a > 0]
    _, places = np.unique(j, return_inverse=True)
    found = class_statistics(H, places, int(places.max()) + 1, a)
    keys, where = np.unique(places * num_tokens + z, return_inverse=True)
    return ContextStatistics(
        counts=np.asarray(found.counts),
        means=np.asarray(found.means),
        variances=np.asarray(found.within_trace),
        pairs=np.stack([keys // num_tokens, keys % num_tokens], axis=1),
        pair_counts=np.bincount(where, a),
        num_tokens=num_tokens,
    )


@printed
@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class ContextCollapse(Explained):
    """Collapse by context; prints as a table with formulas.

    Attributes:
        num_samples: N, or the sum of the sample weights.
        num_contexts: C.
        num_tokens: V.
        num_rows: How many different p_j there are.
        num_supports: How many different supports.
        entropy_floor: The mean entropy of what follows, in nats.
        cross_entropy: The cross-entropy of the logits at the h_j. It is None without weights, and
            so are `excess`, `support_variability_outside`, `log_odds_error` and the margins.
        excess: Cross-entropy less the floor, a mean of divergences KL(p_j, softmax).
        context_variability: Variance within contexts over that of their means; 0 where the feature
            is a function of the context.
        row_variability: Variance among contexts of one p_j over that of all; None where no two
            contexts have one.
        support_variability: The same for contexts of one support.
        support_variability_outside: The same without the differences of the support's weights.
        log_odds_error: Root mean square, over contexts and tokens in the support, of the logits
            less log p_jz, both centred over the support.
        margin: The least difference of a logit in the support and one outside; None where every
            support has all tokens.
        mean_margin: Its mean over contexts.
    """

    CONVENTIONS: ClassVar[dict[str, str]] = {
        "entropy_floor": "sum pi_j H(p_j)",
        "cross_entropy": "sum pi_j CE(p_j, W h_j + b)",
        "excess": "cross-entropy - floor",
        "context_variability": "sum n_j v_j / sum n_j |h_j - mean|^2",
        "row_variability": "sum pi_j |h_j - mean of its p|^2 / sum pi_j |h_j - mean|^2",
        "support_variability": "sum pi_j |h_j - mean of its S|^2 / sum pi_j |h_j - mean|^2",
        "support_variability_outside": "the same orthogonally to w_z - w_z' of z, z' in S",
        "log_odds_error": "rms of logits - log p in the support, both centred",
        "margin": "least logit in the support - largest outside, least over contexts",
        "mean_margin": "its mean over contexts",
    }

    num_samples: float
    num_contexts: int
    num_tokens: int
    num_rows: int
    num_supports: int
    entropy_floor: float
    cross_entropy: float | None
    excess: float | None
    context_variability: float
    row_variability: float | None
    support_variability: float | None
    support_variability_outside: float | None
    log_odds_error: float | None
    margin: float | None
    mean_margin: float | None

    @property
    def title(self) -> str:
        """What was measured, in a line."""
        return (
            f"Collapse of {self.num_contexts} contexts before {self.num_tokens} tokens, "
            f"{self.num_rows} distributions on {self.num_supports} supports, "
            f"{self.num_samples:g} samples"
        )


def _groups(keys: list[bytes]) -> list[np.ndarray]:
    """Return the places of equal keys, together."""
    found: dict[bytes, list[int]] = {}
    for place, key in enumerate(keys):
        found.setdefault(key, []).append(place)
    return [np.array(places) for places in found.values()]


def _alike(statistics: ContextStatistics) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the places of contexts with one support, and of those with one distribution."""
    tokens, rounded = statistics.pairs[:, 1], np.round(statistics.frequencies, DIGITS)
    own = [slice(int(a), int(b)) for a, b in itertools.pairwise(statistics.starts)]
    supports = [tokens[part].tobytes() for part in own]
    rows = [key + rounded[part].tobytes() for key, part in zip(supports, own, strict=True)]
    return _groups(supports), _groups(rows)


def _group_variability(
    statistics: ContextStatistics,
    groups: list[np.ndarray],
    rtol: float,
    removed: list[np.ndarray] | None = None,
) -> float | None:
    """Return the scatter within groups of two contexts or more over that about the mean of all.

    Args:
        statistics: The contexts.
        groups: Their places, together.
        rtol: What counts as rounding error.
        removed: For each group, rows whose span is taken out of the features, (r, d).
    """
    share, means = statistics.counts / statistics.counts.sum(), statistics.means
    mean, inside, whole, size = share @ means, 0.0, 0.0, 0.0
    for i, places in enumerate(groups):
        if len(places) < 2:
            continue
        weight, h = share[places], means[places]
        size += weight @ np.sum(h**2, axis=1)
        if removed is not None:
            _, values, rows = np.linalg.svd(removed[i], full_matrices=False)
            rows = rows[values > rtol * values.max(initial=0.0)]
            h, about = h - (h @ rows.T) @ rows, mean - (mean @ rows.T) @ rows
        else:
            about = mean
        own = weight @ h / weight.sum()
        inside += weight @ np.sum((h - own) ** 2, axis=1)
        whole += weight @ np.sum((h - about) ** 2, axis=1)
    if all(len(places) < 2 for places in groups):
        return None
    return float(ratio(np, np.float64(inside), np.float64(whole), rtol**2 * size))


def _slices(statistics: ContextStatistics) -> Iterator[tuple[slice, slice]]:
    """Return contexts, and their pairs, some at a time."""
    starts = statistics.starts
    step = rows_at_a_time(statistics.num_tokens)
    for first in range(0, len(starts) - 1, step):
        last = min(first + step, len(starts) - 1)
        yield slice(first, last), slice(int(starts[first]), int(starts[last]))


def _of_logits(statistics: ContextStatistics, W: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """Return the numbers that logits give, a few contexts at a time."""
    share, p = statistics.counts / statistics.counts.sum(), statistics.frequencies
    excess = squares = 0.0
    margins = np.full(len(share), np.inf)
    for rows, pairs in _slices(statistics):
        logits = statistics.means[rows] @ W.T + b
        owner = statistics.pairs[pairs, 0] - rows.start
        token = statistics.pairs[pairs, 1]
        first = np.flatnonzero(np.diff(owner, prepend=-1))
        inside, frequency = logits[owner, token], p[pairs]
        largest = np.max(logits, axis=1, keepdims=True)
        normaliser = largest[:, 0] + np.log(np.sum(np.exp(logits - largest), axis=1))
        apart = np.log(frequency) - (inside - normaliser[owner])
        excess += float(share[rows] @ np.add.reduceat(frequency * apart, first))
        size = np.diff(np.append(first, len(owner)))
        off = inside - np.log(frequency)
        off = off - (np.add.reduceat(off, first) / size)[owner]
        squares += float(share[rows] @ (np.add.reduceat(off**2, first) / size))
        logits[owner, token] = -np.inf
        margins[rows] = np.minimum.reduceat(inside, first) - np.max(logits, axis=1)
    some = np.isfinite(margins)
    kept = share[some]
    return {
        "excess": max(excess, 0.0),
        "log_odds_error": float(np.sqrt(squares)),
        "margin": float(margins[some].min()) if some.any() else None,
        "mean_margin": float(kept @ margins[some] / kept.sum()) if some.any() else None,
    }


def context_collapse_from(
    statistics: ContextStatistics,
    weights: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    rtol: float | None = None,
) -> ContextCollapse:
    """Return collapse by context from the statistics of contexts and a linear head.

    Arguments and errors as `context_collapse`.
    """
    n, means, v, pairs, _, V = statistics
    C, d = means.shape
    if C < 2:
        raise ArgumentError("contexts", f"must hold at least 2 contexts to compare, got {C}")
    head = head_of(weights, bias, (V, d), "token")
    rtol = checked_rtol(rtol, max(C, d))
    by_support, by_row = _alike(statistics)
    share, token = n / n.sum(), pairs[:, 1]
    p, starts = statistics.frequencies, statistics.starts
    between = share @ np.sum((means - share @ means) ** 2, axis=1)
    floor = rtol**2 * (share @ np.sum(means**2, axis=1))
    entropy = float(-(share[pairs[:, 0]] * p) @ np.log(p)) + 0.0
    found: dict[str, Any] = dict.fromkeys(NEED_WEIGHTS)
    if head is not None:
        W, b = head
        found = _of_logits(statistics, W, b)
        found["cross_entropy"] = found["excess"] + entropy
        tokens = [token[starts[one[0]] : starts[one[0] + 1]] for one in by_support]
        found["support_variability_outside"] = _group_variability(
            statistics, by_support, rtol, [W[z] - W[z].mean(axis=0) for z in tokens]
        )
    return ContextCollapse(
        num_samples=float(n.sum()),
        num_contexts=C,
        num_tokens=V,
        num_rows=len(by_row),
        num_supports=len(by_support),
        entropy_floor=entropy,
        context_variability=float(ratio(np, share @ v, between, floor)),
        row_variability=_group_variability(statistics, by_row, rtol),
        support_variability=_group_variability(statistics, by_support, rtol),
        **found,
    )


def context_collapse(
    features: ArrayLike,
    tokens: ArrayLike,
    contexts: ArrayLike,
    weights: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    num_tokens: int | None = None,
    sample_weights: ArrayLike | None = None,
    rtol: float | None = None,
) -> ContextCollapse:
    """Return the collapse of contexts in next-token prediction.

    Arrays are whatever NumPy or DLPack understands. The computation is in float64, in memory of the
    means of all contexts and of the pairs that were seen; logits are formed a few contexts at a
    time.

    Args:
        features: The feature at each position, in rows, (N, d).
        tokens: The token that follows, integers 0, ..., V - 1, (N,).
        contexts: The context of each position, any integers that are not negative, (N,): positions
            of one context have one number.
        weights: The head's rows, (V, d). Without them what needs them is None.
        bias: The head's bias, (V,); zero by default.
        num_tokens: V; by default the number of rows of `weights`, or else the highest token plus
            one.
        sample_weights: The weight of each sample, (N,), not negative; 1 by default.
        rtol: What counts as rounding error, relative to the size of the means; max(C, d) times the
            machine epsilon by default.

    Returns:
        The numbers, which print as a table with their formulas.

    Raises:
        ValueError: An array of the wrong shape, not of real numbers, or not finite; tokens or
            contexts that are no integers or out of range; fewer than two contexts; a bias without
            weights.

    >>> found = context_collapse([[1.0], [1.0], [-1.0]], [0, 1, 1], [7, 7, 3])
    >>> found.num_contexts, round(found.entropy_floor, 6)
    (2, 0.462098)
    """
    H = real_array("features", features, (None, None), "a matrix (N, d), one row for each sample")
    check_size("features", H)
    if weights is not None and num_tokens is None:
        num_tokens = len(host_array("weights", weights))
    z = whole_numbers("tokens", tokens, len(H), num_tokens)
    j = whole_numbers("contexts", contexts, len(H))
    a = weight_array("sample_weights", sample_weights, len(H), "sample")
    V = int(z.max()) + 1 if num_tokens is None else int(num_tokens)
    return context_collapse_from(context_statistics(H, z, j, V, a), weights, bias, rtol=rtol)
