r"""Where the modes of deep linear models with squared error jump, and which local minima coexist.

A mode with the singular value sigma in the targets keeps the share y of it that minimises
(`ufm.theory.squared_error_modes`)

    v(y) = (w sigma^2 / 2N) [ (1 - y)^2 + q beta y^{2/q} ],
    beta = (N Lambda / w) sigma^{-2L/(L+1)},    q = L + 1,

w the weight of the fit: theta = lambda_b / (1 + lambda_b) for the common mode under a penalised
bias, else one. Stationary points have e (1 - e)^{(L-1)/(L+1)} = beta, e = 1 - y. The left-hand side
rises to

    beta_s = (L+1)/(2L) ((L-1)/(2L))^{(L-1)/(L+1)}     at y = (L-1)/(2L),

the spinodal, where the minimum with y > 0 vanishes. Before, at beta_j = (1/L)
((L-1)/L)^{(L-1)/(L+1)}, its value passes that of y = 0, and the global minimum jumps from y =
(L-1)/L to zero. With one layer both are one, and there is no jump. From two layers on y = 0 is a
local minimum at every penalty. beta is proportional to Lambda, the geometric mean of all penalties.

The kept modes are the largest: if a mode is kept and one of larger sigma (or w) is not, turning the
one into the other lowers the objective. So the local minima keep the m modes with the largest
sigma, for every m up to the number of modes before their spinodal. Among modes of equal sigma any
may be kept.

The closed form for all depths, and the local minima, are derived here; for balanced classes see
Tirer and Bruna (ICML 2022) and Dang et al. (ICML 2023).
"""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from ufm._support import ArgumentError, is_concrete, printed
from ufm.problems import Problem
from ufm.theory.atlas import theorems
from ufm.theory.optimal_factors import letters
from ufm.theory.squared_error_modes import shrinkage, threshold
from ufm.theory.target_modes import centred_targets

__all__ = ["Jumps", "jumps", "spinodal"]

ROUNDING = 1e-13  # of the largest singular value of targets, up to which one counts as zero
COVERED = (
    "squared-error-general-orthogonal-frame",
    "squared-error-free-bias",
    "squared-error-penalised-bias",
    "deep-linear-general-orthogonal-frame",
    "deep-linear-free-bias",
    "deep-linear-penalised-bias",
    "squared-error-target-rows",
    "deep-linear-target-rows",
)


@printed
class Jumps(NamedTuple):
    """The modes of a problem that a width leaves room for, the largest first, and where they jump.

    Attributes:
        targets: Sigma, the singular values of the targets with row k times sqrt(n_k), less what a
            bias takes, (m,).
        decay: Lambda, the geometric mean of all L + 1 penalties of the problem.
        jump_decay: The Lambda at which the mode's global minimum jumps, (m,).
        spinodal_decay: The Lambda at which the local minimum that keeps the mode vanishes, (m,).
        share_at_jump: y before the jump, (L-1)/L; zero after it.
        share_at_spinodal: (L-1)/(2L).
        shares: y of the local minimum that keeps the mode, at the problem's penalties, (m,); NaN
            beyond the spinodal.
        kept: Whether the global minimum keeps the mode, (m,).
        local_minima: Objectives of the local minima that keep the first 0, 1, ..., m modes,
            (m + 1,); NaN where there is none. For one layer only the global minimum is there.
    """

    targets: Float[np.ndarray, " m"]
    decay: float
    jump_decay: Float[np.ndarray, " m"]
    spinodal_decay: Float[np.ndarray, " m"]
    share_at_jump: float
    share_at_spinodal: float
    shares: Float[np.ndarray, " m"]
    kept: Bool[np.ndarray, " m"]
    local_minima: Float[np.ndarray, " n"]

    @property
    def jump_factor(self) -> Float[np.ndarray, " m"]:
        """What all penalties are to be multiplied by for the mode to jump, (m,)."""
        return self.jump_decay / self.decay

    @property
    def spinodal_factor(self) -> Float[np.ndarray, " m"]:
        """Factor of all penalties at which the mode's local minimum vanishes, (m,)."""
        return self.spinodal_decay / self.decay

    @property
    def objective(self) -> float:
        """The global minimum, the least of the local ones."""
        return float(np.nanmin(self.local_minima))

    def __str__(self) -> str:
        head = f"{'mode':>12}{'jumps at':>14}{'vanishes at':>14}{'share now':>12}"
        lines = [
            f"{sigma:12.6g}{jump:14.6g}{end:14.6g}{share:12.6g}{'' if kept else '  (not kept)'}"
            for sigma, jump, end, share, kept in zip(
                self.targets,
                self.jump_decay,
                self.spinodal_decay,
                self.shares,
                self.kept,
                strict=True,
            )
        ]
        title = (
            f"geometric mean of the penalties {self.decay:.6g}; "
            f"a share jumps from {self.share_at_jump:.4g} to 0, "
            f"its local minimum vanishes at {self.share_at_spinodal:.4g}"
        )
        return "\n".join([title, head, *lines])


def spinodal(num_layers: int) -> float:
    """Return the beta at which the local minimum that keeps a mode vanishes."""
    L = num_layers
    return (L + 1) / (2 * L) * ((L - 1) / (2 * L)) ** ((L - 1) / (L + 1))


def jumps(problem: Problem) -> Jumps:
    """Return where the modes of a linear model with squared error jump, and its local minima.

    Args:
        problem: Squared error, weight decay, linear layers, any class sizes or target rows, without
            a bias or with a free one; for balanced classes with a penalised one too.

    Raises:
        ValueError: For any other problem, with the conditions that do not hold.
    """
    if not is_concrete(problem):
        raise ArgumentError(
            "problem",
            "must hold numbers, got traced values; call `jumps` outside of `jit` and `vmap`",
        )
    failing = []
    for name in COVERED:
        applicability = theorems[name].applies(problem)
        if applicability:
            break
        failing.append(f"{name}: {applicability}")
    else:
        raise ValueError("`problem` must be one of these theorems':\n  " + "\n  ".join(failing))
    numbers = letters(jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), problem))
    L, q, N, decay = (
        numbers.num_layers,
        numbers.num_factors,
        float(numbers.total),
        float(numbers.decay),
    )
    if problem.targets is None:
        targets, weights = _modes(problem, np.asarray(numbers.counts), float(numbers.bias))
    else:
        scaled = centred_targets(numbers, problem, centred=problem.use_bias).scaled
        targets = np.linalg.svd(np.asarray(scaled), compute_uv=False)
        targets = targets[targets > ROUNDING * targets[0]]
        weights = np.ones_like(targets)
    room = min(numbers.width, targets.size)
    lost = float(np.sum((weights * targets**2)[room:])) / (2 * N)
    targets, weights = targets[:room], weights[:room]
    per_beta = weights * targets ** (2 * L / (L + 1)) / N  # the Lambda at which beta is one
    jump, end = per_beta * threshold(L), per_beta * spinodal(L)
    beta = decay / per_beta
    there, kept = beta < spinodal(L), beta < threshold(L)
    rest = np.asarray(shrinkage(np.where(there, beta, 0.0), L))  # type: ignore[arg-type]
    unit = weights * targets**2 / (2 * N)
    on = unit * rest * (1 + (q - 1) * (1 - rest))
    first = np.cumprod(np.append(True, there)).astype(bool)
    values = lost + np.append(0, np.cumsum(on)) + np.append(np.cumsum(unit[::-1])[::-1], 0)
    if L == 1:
        first = np.arange(room + 1) == np.sum(kept)
    return Jumps(
        targets=targets,
        decay=decay,
        jump_decay=jump,
        spinodal_decay=end,
        share_at_jump=(L - 1) / L,
        share_at_spinodal=(L - 1) / (2 * L),
        shares=np.where(there, 1 - rest, np.nan),
        kept=kept,
        local_minima=np.where(first, values, np.nan),
    )


def _modes(problem: Problem, counts: np.ndarray, bias: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the singular values of the targets and the weights of their fit.

    Those that are kept longest come first.
    """
    K, roots = counts.size, np.sqrt(counts)
    if not problem.use_bias:
        return np.sort(roots)[::-1], np.ones(K)
    if bias > 0:
        return roots, np.append(np.ones(K - 1), bias / (1 + bias))
    centred = np.diag(roots) - np.outer(roots, counts / np.sum(counts))
    return np.linalg.svd(centred, compute_uv=False)[:-1], np.ones(K - 1)
