"""Certificates: a candidate's objective, a lower bound, and what follows from the two."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm._support import checked_positive, compiled, double_precision, printed, to_numpy
from ufm.certificates.atoms import relaxed_norm, violating_atom
from ufm.certificates.chord import chord_bound
from ufm.certificates.deep import (
    OneLayerBound,
    bracket,
    has_bracket,
    has_singular_value_form,
    singular_value_bound,
)
from ufm.certificates.dual import (
    DualBound,
    dual_bound,
    has_convex_form,
    has_tight_bound,
    longest_sum,
    mean_infimum,
)
from ufm.certificates.faces import MOST_FACED, norm_is_at_most
from ufm.certificates.gaps import relative_scale, rounding_of
from ufm.problems import (
    Parameters,
    Problem,
    Samples,
    checked_parameters,
    is_library_loss,
    objection_to,
    samples_of,
)

__all__ = [
    "BoundInputs",
    "Certificate",
    "bound_inputs",
    "certificate_from",
    "certificate_of",
    "loss_doubt",
    "lower_bound",
]

ABOVE = 3e-11  # by which the limit that is proved lies above the norm, relatively
RELAXATION_LIMIT = 64  # rows up to which the relaxation is tried, at K^3 a step


@printed
class Certificate(NamedTuple):
    """A proof about a problem and a candidate: the optimal value lies in [lower_bound, objective].

    Attributes:
        objective: The candidate's objective, evaluated here; infinite where the candidate is not
            feasible.
        lower_bound: Valid for the problem whatever the candidate is.
        scale: What gaps are measured against: the lower bound, but at least 1e-6 of the objective
            at zero. Never the candidate's own value, which could be anything.
        tolerance: Relative gap up to which the certificate holds.
        dual_ratio: Dual norm of the candidate's gradient over the allowed one; at most one where
            the candidate is optimal. NaN where the bound does not come from the gradient.
        method: What the lower bound rests on.
        tight: Whether the bound can be expected to meet the optimal value, so that a gap that stays
            open counts against the candidate. This is proved for singular values, and for one layer
            with signed features and d >= K (K - 1 where the loss does not see a shift, or a bias is
            free). It is observed for non-negative features and d >= K. It is not so for smaller d
            (the gap is then the price of the dimension), nor for the bracket of deep models.
        rounding: By how much rounding may take the objective below the lower bound. More than that
            is a contradiction.
        doubt: What `ufm.losses.check_loss` found against a loss that is not the library's own;
            empty for nothing.
        infimum: The infimum of the loss, the zero of the scale.
    """

    objective: float
    lower_bound: float
    scale: float
    tolerance: float
    dual_ratio: float
    method: str
    tight: bool
    rounding: float = 0.0
    doubt: str = ""
    infimum: float = 0.0

    @property
    def gap(self) -> float:
        """Objective less lower bound: how far from optimal the candidate can be at most."""
        return self.objective - self.lower_bound

    @property
    def relative_gap(self) -> float:
        """The gap over the scale."""
        return self.gap / self.scale

    @property
    def contradicted(self) -> bool:
        """Whether the lower bound lies above the objective by more than rounding."""
        return bool(self.gap < -self.rounding)

    @property
    def believable(self) -> bool:
        """Whether the bound is neither contradicted nor based on a loss that is in doubt."""
        return not self.contradicted and not self.doubt

    @property
    def holds(self) -> bool:
        """Whether global optimality is proved to the tolerance; False for NaN and infinity."""
        small = np.isfinite(self.objective) and self.relative_gap <= self.tolerance
        return bool(small and self.believable)

    @property
    def at_floor(self) -> bool:
        """Whether it holds relative to the floor of the scale, and not to the optimal value."""
        return self.holds and not self.gap <= self.tolerance * (self.lower_bound - self.infimum)

    def __str__(self) -> str:
        verdict = (
            "holds"
            if self.holds
            else "does not hold"
            if self.tight
            else "open (the bound need not be tight)"
        )
        if self.contradicted:
            verdict = (
                "contradicts itself, the lower bound lies above the objective, and does not hold"
            )
        if self.doubt:
            verdict = (
                f"{'contradicts itself' if self.contradicted else 'does not hold'}, {self.doubt};"
            )
        floor = " of 1e-6 of the objective at zero" if self.at_floor else ""
        return (
            f"optimal value in [{self.lower_bound:.12g}, {self.objective:.12g}], "
            f"relative gap {self.relative_gap:.2g}: "
            f"{verdict} at {self.tolerance:g}{floor} ({self.method})"
        )


def certificate_of(
    problem: Problem,
    parameters: Any,
    *,
    tolerance: float = 1e-9,
    solve_one_layer: Callable[[Problem], OneLayerBound] | None = None,
) -> Certificate | None:
    """Return a certificate for a candidate.

    None where no bound exists for the model: a loss that is not convex, or a regularizer without a
    gauge.

    Args:
        problem: the problem.
        parameters: anything with `weights`, `features` and `bias`, such as a `Solution` or
            `Parameters`. Features are (R, d), one row per class or target row, or (N, d), one row
            per sample in their order.
        tolerance: relative gap up to which the certificate is said to hold.
        solve_one_layer: solves and certifies problems of one layer, which the bracket of deep
            models needs; without it they have no certificate.

    Raises:
        ValueError: if the shapes are not the problem's.
    """
    tolerance = checked_positive("tolerance", tolerance)
    with double_precision():
        sizes = (problem.num_rows, float(problem.num_samples))
        candidate = checked_parameters(problem, parameters, "parameters", sizes)
        rows = candidate.features.shape[0]
        inputs = to_numpy(_bound_inputs(problem, samples_of(problem, rows), candidate))
    return certificate_from(problem, inputs, tolerance, solve_one_layer)


class BoundInputs(NamedTuple):
    """What a certificate is made of.

    objective: of the candidate, infinite where it is not feasible. at_zero: of zero logits. bound:
    the dual bound, None without a convex form. logits: (R, K), the means of every row's samples, at
    which the bound was taken.
    """

    objective: Float[Array, ""]
    at_zero: Float[Array, ""]
    bound: DualBound | None
    logits: Float[Array, "R K"]


def certificate_from(
    problem: Problem,
    inputs: BoundInputs,
    tolerance: float = 1e-9,
    solve_one_layer: Callable[[Problem], OneLayerBound] | None = None,
) -> Certificate | None:
    """Return the certificate of a candidate.

    None where no bound exists, or where the bracket needs `solve_one_layer` and it is not given.
    """
    objective, at_zero, bound = float(inputs.objective), float(inputs.at_zero), inputs.bound
    ratio, tight = np.nan, True
    if bound is not None:
        lower, ratio = float(bound.lower_bound), float(bound.ratio)
        kind, tight = f"dual bound, {problem.feature_cone.gauge_words}", has_tight_bound(problem)
        if problem.nonnegative_features:
            scale = relative_scale(lower, at_zero, _floor(problem))
            if objective - lower > tolerance * scale and problem.num_rows <= RELAXATION_LIMIT:
                tighter, how = _tightened(problem, inputs, tolerance)
                if float(tighter.lower_bound) > lower:
                    lower, ratio = float(tighter.lower_bound), float(tighter.ratio)
                    kind = f"dual bound, {how}"
    elif has_singular_value_form(problem):
        kind, lower = "singular values", singular_value_bound(problem)
    elif has_bracket(problem) and solve_one_layer is not None:
        kind, tight = "bracket, dual bounds of one layer", False
        lower = bracket(problem, objective, solve_one_layer, tolerance)
    else:
        return None
    largest = float(np.max(np.abs(inputs.logits)))
    return Certificate(
        objective,
        lower + 0.0,  # no zero with a minus sign
        scale=float(relative_scale(lower, at_zero, _floor(problem))),
        tolerance=float(tolerance),
        dual_ratio=ratio,
        method=f"{kind}, {problem.regularizer.words}",
        tight=tight,
        rounding=float(
            rounding_of(
                objective, at_zero, largest, longest_sum(problem), problem.regularizer.bounded
            )
        ),
        doubt=loss_doubt(problem),
        infimum=_floor(problem),
    )


def _floor(problem: Problem) -> float:
    """Return what gaps are measured above: the infimum of the loss, or the mean of its rows'.

    It is zero where neither is known.
    """
    floor = float(problem.loss.infimum)
    if not np.isfinite(floor) and problem.loss.convex and not problem.loss.has_conjugate:
        with double_precision():
            floor = float(mean_infimum(problem))
    return floor if np.isfinite(floor) else 0.0


def loss_doubt(problem: Problem) -> str:
    """Return what there is against the loss of a problem in words, empty for nothing.

    The library's own are not asked.
    """
    loss = problem.loss
    if is_library_loss(loss):
        return ""
    rows = None if problem.targets is None else problem.targets.rows
    return objection_to(loss, problem.class_counts, rows)


def bound_inputs(problem: Problem, samples: Samples, candidate: Parameters) -> BoundInputs:
    """Return what the bound of a candidate is computed from. Pure.

    The candidate has one feature row for each of the samples.
    """
    objective = problem.objective(candidate, samples)
    feasible = jnp.isfinite(objective) & problem.feature_cone.contains(candidate.features)
    for norm in problem.norms(candidate, samples):
        feasible = feasible & (norm <= 1 + 1e-12)
    logits = samples.means(problem.logits(candidate), problem.num_rows)
    bound = lower_bound(problem, logits) if has_convex_form(problem) else None
    at_zero = problem.value_at_zero(samples)
    return BoundInputs(jnp.where(feasible, objective, jnp.inf), at_zero, bound, logits)


def lower_bound(
    problem: Problem, logits: Float[Array, "R K"], norm: Float[Array, ""] | None = None
) -> DualBound:
    """Return the lower bound that the logits of rows provide, by the conjugate where one is stated.

    Pure: it can be jit-compiled and vmapped.

    Args:
        problem: a problem with a convex form (`has_convex_form`).
        logits: (R, K), bias included; any values.
        norm: (), an upper bound on the dual norm of `DualBound.dual` that was proved elsewhere.
    """
    bound = dual_bound if problem.loss.has_conjugate else chord_bound
    return bound(problem, logits, norm)


def _tightened(problem: Problem, inputs: BoundInputs, tolerance: float) -> tuple[DualBound, str]:
    """Return the bound with a better norm, if that closes the gap, and what the norm is called.

    The exact norm lies between the largest gain of an atom and the cheap norm. It does not help
    where the two coincide, or where even a norm as small as the gain would leave the gap open. For
    few rows the exact norm is looked for, for more the doubly non-negative relaxation.
    """
    assert inputs.bound is not None
    dual, cheap = (
        np.asarray(inputs.bound.dual),
        float(inputs.bound.ratio) * float(inputs.bound.allowed),
    )
    if not np.all(np.isfinite(dual)):
        return inputs.bound, ""
    gain = violating_atom(dual, True).gain
    if gain >= (1 - 1e-12) * cheap:
        return inputs.bound, ""
    with double_precision():

        def bound_with(norm: float) -> DualBound:
            return to_numpy(
                _bound_with_norm(problem, jnp.asarray(inputs.logits), jnp.asarray(norm))
            )

        best = float(bound_with(gain).lower_bound)
        scale = relative_scale(best, float(inputs.at_zero), _floor(problem))
        if float(inputs.objective) - best > tolerance * scale:
            return inputs.bound, ""
        allowed = float(inputs.bound.allowed)
        limit = max(gain, allowed) * (1 + ABOVE)
        if len(dual) <= MOST_FACED and norm_is_at_most(dual, limit):
            return bound_with(limit), "exact non-negative gauge"
        # At the allowed norm nothing has to be scaled down.
        norm = min(relaxed_norm(dual, target=allowed), cheap)
        return bound_with(norm), "doubly non-negative relaxation"


_bound_with_norm = compiled(lower_bound, once=True)


_bound_inputs = compiled(bound_inputs, once=True)
