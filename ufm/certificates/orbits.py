r"""Lower bounds for target rows in orbits.

They are those of `ufm.certificates.dual` and `ufm.certificates.chord` for logits that symmetries of
targets and loss leave alone, at the cost of the orbits. Letters as in `ufm.problems.orbits`: T
representatives, orbit shares p_t, weights r_t sqrt(R_t).

Dual rows that the symmetries leave alone consist of those of the representatives, equal on the
labels that a stabiliser exchanges. Their dual norm is the largest of their blocks' norms, with the
factors p_t / (r_t sqrt(R_t)) in place of r_t sqrt(R_t). The sum over all rows of a dual row is
constant on each class of labels. So for U with G of dual norm at most tau

    value >= -sum_t p_t l*(u_t) - sum_g K_g m_g^2 / (2 lambda_b),

m_g the mean of p_t u_t over the labels of class g, summed over t; a free bias needs m = 0. Any
representatives give a valid bound, as their images under the group are a dual point of all rows.

Candidates are gradients at a point on the path of a barrier, which are feasible but for rounding.
They are scaled into feasibility: what is left to gain is of the size of the path's last barrier.

Rounding. As in the other files. Coordinates are sums over K labels: what they may lose is added to
the norm, relative to the Frobenius norm.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm.certificates.chord import ChordRows, chord_of_rows, size_of
from ufm.certificates.dual import finite, smaller_gram, unit_of
from ufm.certificates.gaps import relative_scale
from ufm.problems import (
    OrbitProblem,
    block_norms,
    coordinates_of,
    orbit_losses,
    orbit_rows,
)

__all__ = ["OrbitEvidence", "orbit_evidence", "orbit_gauge"]


class OrbitEvidence(NamedTuple):
    """What a certificate over orbits is made of.

    Attributes:
        objective: The objective, (); infinite where the point is not feasible.
        lower_bound: The lower bound, ().
        at_zero: The objective of zero logits, ().
        ratio: Dual norm over the allowed one, ().
        largest: The largest logit in size, ().
        multiplier: The dual norm of the gradient, ().
    """

    objective: Float[Array, ""]
    lower_bound: Float[Array, ""]
    at_zero: Float[Array, ""]
    ratio: Float[Array, ""]
    largest: Float[Array, ""]
    multiplier: Float[Array, ""]

    def relative_gap(self, infimum: float) -> float:
        """Return objective less lower bound over what gaps are relative to."""
        scale = relative_scale(float(self.lower_bound), float(self.at_zero), infimum)
        return (float(self.objective) - float(self.lower_bound)) / float(scale)


def orbit_gauge(problem: OrbitProblem, x: Float[Array, "T o"]) -> Float[Array, ""]:
    """Return ||diag(r) Z||_* of logits without bias."""
    norms = block_norms(problem, problem.rows[:, None] * x)
    values = jnp.linalg.svd(norms.matrix, compute_uv=False)
    return jnp.sum(problem.dims * norms.vectors) + jnp.sum(values)


def orbit_evidence(
    problem: OrbitProblem, x: Float[Array, "T o"], bias: Float[Array, " G"] | None
) -> OrbitEvidence:
    """Return the evidence about a candidate in coordinates. Pure: it can be jit-compiled.

    The loss must be convex.
    """
    logits, shares = orbit_rows(problem, x, bias), problem.shares
    gauge = orbit_gauge(problem, x)
    objective = jnp.sum(shares * orbit_losses(problem, logits))
    if problem.bounded:
        objective = jnp.where(gauge <= problem.price * (1 + 1e-12), objective, jnp.inf)
    else:
        objective = objective + problem.price * gauge
    if bias is not None:
        objective = objective + 0.5 * problem.bias * jnp.sum(problem.class_sizes * bias**2)
    at_zero = jnp.sum(shares * orbit_losses(problem, 0 * logits))
    slopes = jax.grad(lambda rows: jnp.sum(orbit_losses(problem, rows)))(logits)
    dual = _invariant(problem, slopes)
    if problem.loss.has_conjugate:
        lower, norm = _conjugate_bound(problem, dual)
    else:
        lower, norm = _chord_bound(problem, logits)
    if problem.bounded:
        paired = -jnp.sum(shares[:, None] * dual * orbit_rows(problem, x, None))
        allowed = jnp.maximum(paired, jnp.finfo(x.dtype).tiny) / problem.price
    else:
        allowed = problem.price
    return OrbitEvidence(
        objective=jnp.where(jnp.isfinite(objective), objective, jnp.inf),
        lower_bound=lower,
        at_zero=at_zero,
        ratio=norm / allowed,
        largest=jnp.max(jnp.abs(logits)),
        multiplier=norm,
    )


def _epsilon(problem: OrbitProblem) -> float:
    """Return the relative rounding of sums over orbits and over labels."""
    return 4 * (max(problem.targets.shape) + 16) * float(np.finfo(np.float64).eps)


def _invariant(problem: OrbitProblem, rows: Array) -> Array:
    """Return the mean of rows over the labels of each orbit, the same number at all of them."""
    T, o = problem.basis.shape[:2]
    places = (problem.places + o * jnp.arange(T)[:, None]).ravel()
    sums = jax.ops.segment_sum(rows.ravel(), places, num_segments=T * o)
    times = jax.ops.segment_sum(jnp.ones_like(rows).ravel(), places, num_segments=T * o)
    means = (sums / jnp.maximum(times, 1)).reshape(T, o)
    return jnp.take_along_axis(means, problem.places, axis=1)


def _label_means(problem: OrbitProblem, dual: Array) -> Array:
    """Return the mean of dual rows over all rows, for a label of each class, (G,)."""
    G = problem.num_classes
    sums = jnp.sum(problem.shares[:, None] * dual, axis=0)
    return jax.ops.segment_sum(sums, problem.label_classes, num_segments=G) / problem.class_sizes


def _factors(problem: OrbitProblem) -> Array:
    """Return what dual rows are multiplied by inside the dual norm, (T, 1)."""
    return jnp.asarray(problem.shares / problem.rows)[:, None]


def _dual_norm(problem: OrbitProblem, weighted: Array) -> Array:
    """Return an upper bound on the dual norm of weighted dual rows."""
    unit = unit_of(weighted)
    scaled = weighted / unit
    norms = block_norms(problem, coordinates_of(problem, scaled))
    square = jnp.linalg.eigvalsh(smaller_gram(norms.matrix))[-1]
    largest = jnp.sqrt(jnp.maximum(jnp.max(norms.vectors, initial=0.0) ** 2, square))
    # Coordinates lose some epsilons of the row, and squares what they are of the whole matrix.
    lost = _epsilon(problem) * jnp.sqrt(jnp.sum(scaled**2))
    return unit * (largest * (1 + _epsilon(problem)) + lost)


def _conjugate_bound(problem: OrbitProblem, dual: Array) -> tuple[Array, Array]:
    """Return the bound of a dual point, scaled into feasibility, and its dual norm."""
    loss, shares, classes = problem.loss, problem.shares, problem.label_counts
    targets, epsilon = jnp.asarray(problem.targets), _epsilon(problem)
    free, cancelled = problem.bias <= 0, jnp.zeros((), dual.dtype)
    if problem.use_bias:
        mean = _label_means(problem, dual)
        root = float(np.sqrt(np.finfo(np.float64).eps))
        cancelled = root * jnp.sum(problem.class_sizes * jnp.abs(mean))
        cancelled = jnp.where(free, cancelled, 0)
        less = _room(problem)[:, None] * mean[problem.label_classes][None, :]
        dual = jnp.where(free, dual - less, dual)
    norm = _dual_norm(problem, _factors(problem) * dual)

    def value(dual: Array) -> Array:
        """Return the value of the dual without its norm, lowered by its rounding."""
        terms = jnp.sum(shares * loss.conjugate(dual, targets, classes))
        size = jnp.sum(shares * loss.conjugate_size(dual, targets, classes))
        price = jnp.zeros((), dual.dtype)
        if problem.use_bias:
            mean = _label_means(problem, dual)
            price = jnp.sum(problem.class_sizes * mean**2) / (2 * jnp.where(free, 1, problem.bias))
            price = jnp.where(free, 0, price)
        return -terms - price - epsilon * (size + price)

    if problem.bounded:
        cost = problem.price * norm
        lower = value(dual) - cost * (1 + epsilon) - cancelled
    else:
        allowed = problem.price * (1 - epsilon)
        theta = jnp.minimum(1.0, allowed / jnp.maximum(norm, jnp.finfo(dual.dtype).tiny))
        lower = value(theta * dual) - theta * cancelled
    # Outside the domain a conjugate is infinite, or not a number: no bound then.
    return jnp.fmax(finite(lower), finite(value(jnp.zeros_like(dual)))), norm


def _chord_bound(problem: OrbitProblem, logits: Array) -> tuple[Array, Array]:
    """Return the bound of a loss without a conjugate, and its dual norm."""
    shares, targets = jnp.asarray(problem.shares), jnp.asarray(problem.targets)
    epsilon = _epsilon(problem)
    at_zero, pull = jax.vjp(lambda rows: orbit_losses(problem, rows), 0 * logits)
    (slopes_at_zero,) = pull(jnp.ones_like(at_zero))
    infima = shares * problem.loss.infima(targets, problem.label_counts)
    infimum = jnp.sum(infima) - jnp.nan_to_num(epsilon * jnp.sum(jnp.abs(infima)))
    # With one class of labels a bias is a shift, which such a loss does not see.
    sees_bias = problem.use_bias and not (problem.loss.shift_invariant and problem.num_classes == 1)
    rows = ChordRows(
        losses=lambda rows: orbit_losses(problem, rows),
        shares=shares[:, None],
        factors=_factors(problem),
        gauge_rows=jnp.asarray(problem.rows)[:, None],
        price=jnp.asarray(problem.price),
        bounded=problem.bounded,
        decay=jnp.asarray(problem.bias) if sees_bias else None,
        norm=lambda weighted: _dual_norm(problem, weighted),
        rotates=True,
        sums_to_zero=problem.loss.shift_invariant,
        at_zero=size_of(at_zero),
        slopes_at_zero=size_of(slopes_at_zero),
        epsilon=epsilon,
        columns=jax.nn.one_hot(problem.label_classes, problem.num_classes, dtype=logits.dtype),
    )
    return chord_of_rows(rows, logits, finite(infimum))


def _room(problem: OrbitProblem) -> Array:
    """Return what every row takes of a mean that is subtracted, (T,), one on the average.

    It is in proportion to the row's room in the domain of the conjugate, as the mass of a row of
    probabilities is.
    """
    targets, shares = jnp.asarray(problem.targets), problem.shares
    inner = problem.loss.constant_dual(targets, shares, problem.label_counts)
    room: Any = jnp.sum(problem.loss.domain(inner, targets, problem.label_counts), axis=1)
    total = jnp.sum(shares * room)
    return jnp.where(total > 0, room / jnp.where(total > 0, total, 1), 1)
