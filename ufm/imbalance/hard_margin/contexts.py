r"""How next-token models approach their hard-margin problem, with the rates.

    f = min sum_j pi_j CE(z_j, p_j) + tau ||Om^{1/2} Z||_*,    tau = sqrt(lambda_W lambda_H),

over logits Z of R contexts; p_j has the support S_j, H = sum_j pi_j Entropy(p_j) is the entropy
floor, and L = log(1 / tau). Let Z^ solve the hard-margin problem with the value T, and lambda_jv
> 0 be its multipliers. Then, as tau vanishes,

    z_jz - z_jv = L + log(p_jz pi_j / lambda_jv) + O(1 / L),    z in S_j, v off S_j,
    z_jz - z_jz' = log(q_jz / q_jz') + O(tau / L),  q = p - tau g / pi,   z, z' in S_j,
    f = H + tau (T L + T + B + c / L + O(1 / L^2)),

    B = sum_{j, z in S_j} g_jz log p_jz - sum_{j, v off S_j} lambda_jv log(lambda_jv / pi_j),

g the gradient of the norm at Z^: at the minimiser pi_j times the probability of a token off the
support is tau times minus the gradient, which tends to lambda. With C the logits log p_jz in the
supports and log(lambda_jv / pi_j) off them, c is half the second derivative of the norm at Z^ along
C. Two contexts of one support have

    ||h_i - h_j|| / ||h_i|| = sqrt((C_i - C_j) (W^ W^^T)^+ (C_i - C_j)^T) / (||h^_i|| L)

up to a factor 1 + O(1 / L). All multipliers must be positive and Z^ of full rank, R or V - 1.
Without that the leading term T L is left.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ufm._support import ArgumentError, check_instance, holds_text, on_host, printed
from ufm.imbalance.hard_margin.problem import HardMargin
from ufm.imbalance.hard_margin.solve import HardMarginSolution, solve_hard_margin
from ufm.metrics import entropy_floor
from ufm.problems import CrossEntropy, Problem, Targets, WeightDecay
from ufm.solving import Solution, solve
from ufm.theory import second_order

__all__ = [
    "ContextApproach",
    "ContextLimit",
    "EqualContexts",
    "approach_of_contexts",
    "collapse_of_contexts",
    "limit_of_contexts",
]

DECAYS = (1e-4, 1e-5, 1e-6, 1e-7)
CERTIFIED = 1e-9
POSITIVE = 1e-7  # multiplier over the largest from which it counts as positive
RANK = 1e-7  # singular value over the largest from which it counts as one
# Relative errors of limits, extrapolated from decays at which 1 / L^3 is some 1e-3.
NEAR = {"slope": 2e-3, "remainder": 0.1, "distance": 0.02}
TOLD = 1e-6  # relative distance up to which features count as equal
TINY = 1e-12  # error that is rounding
BOUNDED = 1.5  # factor by which an error over its rate may grow from the first decay to the last


class ContextLimit(NamedTuple):
    """What next-token logits tend to as weight decay vanishes. NumPy arrays over R contexts.

    Attributes:
        solution: Of the hard-margin problem, certified.
        entropy: H, ().
        multipliers: lambda, (R, V); zero in the supports.
        gradient: g, (R, V); -lambda off the supports.
        correction: C, (R, V), rows of mean zero; NaN where a multiplier is zero.
        constant: B, (); NaN likewise.
        curvature: c, (); NaN likewise, or where the logits lack rank.
        strict: Whether all is determined.
    """

    solution: HardMarginSolution
    entropy: float
    multipliers: Float[np.ndarray, "R V"]
    gradient: Float[np.ndarray, "R V"]
    correction: Float[np.ndarray, "R V"]
    constant: float
    curvature: float
    strict: bool


@on_host
def limit_of_contexts(targets: Targets) -> ContextLimit:
    """Return the limit of next-token logits as weight decay vanishes.

    Args:
        targets: `Targets.contexts`, or others whose rows are distributions.

    Raises:
        ValueError: If rows do not sum to one, are negative, or all supports are complete.
    """
    check_instance("targets", targets, Targets)
    rows = np.asarray(targets.rows, np.float64)
    if not np.allclose(rows.sum(axis=1), 1, rtol=0, atol=1e-9):
        raise ArgumentError(
            "targets", "must have rows that sum to one", remedy="use ufm.Targets.contexts"
        )
    solution = solve_hard_margin(HardMargin(targets=targets))
    inside, roots = rows > 0, np.sqrt(solution.problem.row_weights)[:, None]
    shares = np.asarray(targets.counts, np.float64) / float(np.sum(targets.counts))
    found = solution.multipliers
    multipliers = np.where(inside, 0, found)
    # The gradient in the supports: the equalities' multipliers, and the share of the margins'.
    share = multipliers.sum(axis=1, keepdims=True) / inside.sum(axis=1, keepdims=True)
    gradient = np.where(inside, found + share, -multipliers)
    singular = np.linalg.svd(roots * solution.logits, compute_uv=False)
    rank = int(np.sum(singular > RANK * singular[0]))
    strict = bool(
        np.all(multipliers[~inside] > POSITIVE * multipliers.max())
        and rank in (rows.shape[0], rows.shape[1] - 1)
    )
    logs = np.full_like(rows, np.nan)
    if strict:
        logs = np.log(np.where(inside, rows, multipliers / shares[:, None]))
    constant = np.sum(gradient * logs)
    correction = logs - logs.mean(axis=1, keepdims=True)
    curvature = second_order(roots * solution.logits, roots * correction) / 2 if strict else np.nan
    return ContextLimit(
        solution=solution,
        entropy=float(entropy_floor(rows, targets.counts)),
        multipliers=multipliers,
        gradient=gradient,
        correction=correction,
        constant=float(constant),
        curvature=float(curvature),
        strict=strict,
    )


@printed
class ContextApproach(NamedTuple):
    """Next-token minima at vanishing weight decay, and the predicted rates. Shapes (B,).

    Attributes:
        decays: tau.
        objective: f, certified.
        slope: (f - H) / (tau L), which tends to `value`.
        remainder: ((f - H) / tau - T L - T - B) L, which tends to `curvature`; NaN if the limit is
            not strict.
        margin_error: The largest error of the corrected margins.
        log_odds_error: The largest error of the log-odds in supports.
        distance: The relative distance of features of one support, times L, over what it tends to,
            of the pair where that is largest; NaN if it is zero, or the limit is not strict.
        relative_gap: Of the certificates.
        value: T, ().
        curvature: c, ().
    """

    decays: Float[np.ndarray, " B"]
    objective: Float[np.ndarray, " B"]
    slope: Float[np.ndarray, " B"]
    remainder: Float[np.ndarray, " B"]
    margin_error: Float[np.ndarray, " B"]
    log_odds_error: Float[np.ndarray, " B"]
    distance: Float[np.ndarray, " B"]
    relative_gap: Float[np.ndarray, " B"]
    value: float
    curvature: float

    @property
    def limits(self) -> dict[str, float]:
        """Extrapolated limits over the predicted ones, by name: all near one."""
        found = {"slope": (self.slope, self.value)}
        if np.isfinite(self.curvature):
            found["remainder"] = (self.remainder, self.curvature)
        if np.all(np.isfinite(self.distance)):
            found["distance"] = (self.distance, 1.0)
        return {
            name: _extrapolated(-1 / np.log(self.decays), values) / limit
            for name, (values, limit) in found.items()
        }

    @property
    def growth(self) -> dict[str, float]:
        """By how much the errors over their rates grow from the first decay to the last."""
        if not np.isfinite(self.curvature):
            return {}
        rates = {
            "margins": self.margin_error * -np.log(self.decays),
            "log-odds": self.log_odds_error / self.decays * -np.log(self.decays),
        }
        return {name: float(rate[-1] / rate[0]) for name, rate in rates.items() if rate[0] > TINY}

    @property
    def holds(self) -> bool:
        """Whether all is certified, limits are met and errors shrink at their rates."""
        near = all(abs(limit - 1) <= NEAR[name] for name, limit in self.limits.items())
        bounded = all(growth <= BOUNDED for growth in self.growth.values())
        return near and bounded and bool(np.all(self.relative_gap <= CERTIFIED))

    def __str__(self) -> str:
        limits = ", ".join(f"{name} {value:.4f}" for name, value in self.limits.items())
        growth = ", ".join(f"{name} {value:.2f}" for name, value in self.growth.items())
        return (
            f"approach to the hard margins: {holds_text(self.holds)}; certified to "
            f"{np.max(self.relative_gap):.1e}; limits over predictions: {limits}; growth of errors "
            f"over their rates: {growth or 'not determined'}"
        )


@on_host
def approach_of_contexts(problem: Problem, decays: Any = DECAYS) -> ContextApproach:
    """Return how near next-token minima are to their limit at given weight decays.

    Args:
        problem: With targets; its penalties are replaced by tau on weights and features.
        decays: tau, at least three, descending, below 1.

    Raises:
        ValueError: If `decays` are not those.
    """
    decays = np.asarray(decays, np.float64)
    if decays.ndim != 1 or decays.size < 3 or not np.all((decays > 0) & (decays < 1)):
        raise ArgumentError("decays", "must be at least three numbers between 0 and 1", decays)
    targets = _targets_of(problem)
    limit = limit_of_contexts(targets)
    solutions = [solve(_decayed(problem, tau)) for tau in decays]
    objective = np.array([solution.objective for solution in solutions])
    scale = -np.log(decays)
    value = limit.solution.value
    excess = (objective - limit.entropy) / decays
    margins, log_odds = zip(
        *(
            _errors(limit, targets, solution.logits, tau)
            for solution, tau in zip(solutions, decays, strict=True)
        ),
        strict=True,
    )
    distance = [
        _distance(limit, targets, solution) * length
        for solution, length in zip(solutions, scale, strict=True)
    ]
    return ContextApproach(
        decays=decays,
        objective=objective,
        slope=excess / scale,
        remainder=(excess - value * (scale + 1) - limit.constant) * scale,
        margin_error=np.array(margins),
        log_odds_error=np.array(log_odds),
        distance=np.array(distance),
        relative_gap=np.array([_gap(solution) for solution in solutions]),
        value=value,
        curvature=limit.curvature,
    )


@printed
class EqualContexts(NamedTuple):
    """Whether the features of contexts with equal targets are equal.

    Attributes:
        equal: The largest relative distance of features with the same target and the same feature
            weight over loss weight, which is to be zero.
        unequal: The smallest one with the same target and another ratio, which is not; NaN if there
            is no such pair.
        relative_gap: Of the certificate.
    """

    equal: float
    unequal: float
    relative_gap: float

    @property
    def holds(self) -> bool:
        """Whether exactly the contexts that are to collapse do, at a certified minimum."""
        apart = not self.unequal <= TOLD  # NaN: there are none
        return self.equal <= TOLD and apart and self.relative_gap <= CERTIFIED

    def __str__(self) -> str:
        return (
            f"collapse of contexts: {holds_text(self.holds)}; distances {self.equal:.1e} with "
            f"equal ratios, {self.unequal:.1e} with others; certified to {self.relative_gap:.1e}"
        )


@on_host
def collapse_of_contexts(problem: Problem) -> EqualContexts:
    """Return how far the features of contexts with equal targets are apart at the minimum.

    Args:
        problem: With targets, at least two rows of which are equal.

    Raises:
        ValueError: If no two target rows are equal.
    """
    targets = _targets_of(problem)
    rows = np.asarray(targets.rows, np.float64)
    ratio = np.asarray(problem.row_weights) / np.asarray(targets.counts, np.float64)
    solution = solve(problem)
    features = np.asarray(solution.parameters.features)
    pairs = [
        (i, j)
        for i in range(len(rows))
        for j in range(i)
        if np.allclose(rows[i], rows[j], rtol=0, atol=1e-14)
    ]
    if not pairs:
        raise ArgumentError("problem", "must have at least two equal target rows")
    same = [bool(np.isclose(ratio[i], ratio[j], rtol=1e-12)) for i, j in pairs]
    apart = [
        float(np.linalg.norm(features[i] - features[j]) / np.linalg.norm(features[i]))
        for i, j in pairs
    ]
    equal = [distance for distance, alike in zip(apart, same, strict=True) if alike]
    unequal = [distance for distance, alike in zip(apart, same, strict=True) if not alike]
    return EqualContexts(
        max(equal, default=0.0), min(unequal, default=float("nan")), _gap(solution)
    )


def _targets_of(problem: Problem) -> Targets:
    check_instance("problem", problem, Problem)
    if problem.targets is None:
        raise ArgumentError("problem", "must have `targets`", remedy="use ufm.Targets.contexts")
    return problem.targets


def _decayed(problem: Problem, tau: float) -> Problem:
    """Return the model of the problem's targets with penalties tau."""
    return Problem(
        targets=problem.targets,
        feature_dim=problem.feature_dim,
        loss=CrossEntropy(),
        regularizer=WeightDecay(weights=tau, features=tau),
    )


def _gap(solution: Solution) -> float:
    certificate = solution.certificate
    return float("inf") if certificate is None else float(certificate.relative_gap)


def _errors(limit: ContextLimit, targets: Targets, logits: Any, tau: float) -> tuple[float, float]:
    """Return the largest errors of the corrected margins and of the log-odds in supports."""
    rows, logits = np.asarray(targets.rows, np.float64), np.asarray(logits)
    inside = rows > 0
    number = inside.sum(axis=1, keepdims=True)
    shares = np.asarray(targets.counts, np.float64) / float(np.sum(targets.counts))
    # Logits less what they are to be, up to a number per row.
    limits = np.where(inside, rows - tau * limit.gradient / shares[:, None], 1)
    odds = np.where(inside, logits - np.log(limits), 0)
    odds = np.where(inside, odds - odds.sum(axis=1, keepdims=True) / number, 0)
    rest = logits - limit.correction - np.where(inside, 0, np.log(tau))
    own = np.where(inside, rest, 0).sum(axis=1, keepdims=True) / number
    return float(np.max(np.abs(rest - own))), float(np.max(np.abs(odds)))


def _distance(limit: ContextLimit, targets: Targets, solution: Solution) -> float:
    """Return the relative distance of two features of one support, over what it tends to times L.

    Of the pair where that is largest; NaN if it is zero or not known.
    """
    inside = np.asarray(targets.rows) > 0
    features = np.asarray(solution.parameters.features)
    inverse = np.linalg.pinv(limit.solution.weight_gram, rcond=RANK, hermitian=True)
    norms = np.sqrt(np.diagonal(limit.solution.feature_gram))
    found = []
    for i in range(len(inside)):
        for j in range(i):
            if not np.array_equal(inside[i], inside[j]):
                continue
            change = limit.correction[i] - limit.correction[j]
            far = np.sqrt(max(float(change @ inverse @ change), 0.0)) / norms[i]
            apart = np.linalg.norm(features[i] - features[j]) / np.linalg.norm(features[i])
            if far > TOLD:
                found.append((far, apart / far))
    return max(found)[1] if found else float("nan")


def _extrapolated(at: np.ndarray, values: Float[np.ndarray, " B"]) -> float:
    """Return the value at zero of the polynomial through the last three points."""
    x, y = np.asarray(at)[-3:], np.asarray(values)[-3:]
    return float(np.polynomial.polynomial.polyfit(x, y, 2)[0])
