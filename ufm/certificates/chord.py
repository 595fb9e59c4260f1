r"""Lower bounds from the value, the gradient and the infimum of a loss: no conjugate is needed.

Letters as in `ufm.certificates.dual`: rows r with logits z_r (bias included), shares pi_r and rows
of the gauge r_r; u_r = l_r'(z_r), G = diag(pi / r) U, m = sum_r pi_r u_r, and

    v(Z) = sum_r pi_r (l_r(z_r) - <u_r, z_r>) = -sum_r pi_r l_r*(u_r),

for Fenchel and Young's inequality is an equality at a gradient. As l* is convex and l*(0) = -inf l,
on the chord from u to 0 it is at most theta l*(u) - (1 - theta) inf l, and so for any Z

    value >= theta v(Z) + (1 - theta) inf - theta^2 ||m||^2 / (2 lambda_b),
    theta = min(1, tau / ||G||^o),    inf = sum_r pi_r inf l_r;

value >= v(Z) - T ||G||^o for a bounded gauge. At a point with an error of epsilon this bound loses
epsilon. Its point is therefore moved. The dual that would lose epsilon^2 is that of the other file:
G with its singular values cut at tau, and those in use raised to it; or G scaled down, for
non-negative features. Newton's method solves l_r'(z_r) = u_r for it, row by row. Whatever point it
reaches, the bound there is valid, and the better of the two is taken.

Free bias. The bound needs m = 0 exactly: a residual, however small, makes it false, for the bias
has no price. First all rows are shifted by one vector that makes m vanish but for rounding. What is
left is proved to vanish by other duals, the gradients u^j at constant logits b_0 +- delta e_i,
whose means are m_i^+ and m_i^-. Let A have the columns (m_i^+ - m_i^-) / 2, let c_i = (m_i^+ +
m_i^-) / 2, and let P be any matrix near a pseudo-inverse of A. A residual x is removed by the
weights |a_i|, a = -P x, on m_i^+ or m_i^-, which leaves (I - A P) x and all |a_i| c_i. Where that
is less than a share q < 1 of x, in some norm, the same is done again, and so weights exist that
leave nothing, with a sum kappa of at most |P x| and 1 / (1 - q) of what the rest needs. The mixture
of u and the u^j with these weights is a dual of mean zero. For it value >= min(v, (v + kappa min_j
v_j) / (1 + kappa)), and its norm is bounded in the same way. The weights are never computed, so
their rounding does not matter. A loss that does not see a shift has gradients that sum to zero, and
so has x: I - A P has to be small on such x only.

Rounding. A function that was never seen is evaluated here. Its value and gradient are taken to have
errors of (R + C + 16) machine epsilons of the sizes of what they are made of: for the gradient
|u| + |l'(0)| + |l''(z) z|, entry by entry, and for the value that of the terms |l|, |l(0)| and the
gradient's size times |z|. These are the errors of a function whose steps are each accurate to a few
epsilons, or exact at arguments as near as that. Every number above is enclosed by them: norms and
residuals are raised, values lowered.

References: chord and moved point are derived here from convex duality alone; see
`ufm.certificates.dual`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ufm.certificates.dual import (
    DualBound,
    dual_norm,
    finite,
    levelled,
    mean_infimum,
    smaller_gram,
    unit_of,
)
from ufm.problems import Problem, class_samples

__all__ = ["ChordRows", "chord_bound", "chord_of_rows", "size_of"]

STEPS = 12  # of Newton's method for the rows
SHIFTS = 60  # of Newton's method for the bias
DAMPING = 0.25  # of a step that did not bring the row nearer
RIDGE = 1e-14  # the least pivot of a Hessian with a diagonal of ones
DENSE = 2**20  # entries of all rows' Hessians that may be formed; beyond, conjugate gradients
INNER_STEPS = 50  # of conjugate gradients
SPREADS = (2.0, 1.0, 0.25)  # of the constant logits around the best, in logits
SMALL = 1e-4  # of the length of a residual, beside the weights that it needs
LEAST = 1e-300


class ChordRows(NamedTuple):
    """What the bound knows of a problem: rows, prices, and sizes of the loss at zero logits.

    Attributes:
        losses: From logits (R, C) to the loss of every row, (R,).
        shares: pi, (R, 1).
        factors: pi / r, (R, 1), between gradients and G.
        gauge_rows: r, (R, 1).
        price: tau, or the bound T of the gauge, ().
        bounded: Whether the gauge is bounded.
        decay: lambda_b, (); None without a bias.
        norm: From G to an upper bound on its dual norm.
        rotates: Whether features are signed.
        sums_to_zero: Whether gradients do.
        at_zero: Size of the losses at zero, (R,).
        slopes_at_zero: Size of the gradients at zero, (R, C).
        epsilon: Relative rounding of a function of a row and of sums over rows.
        columns: (C, B), of zeros and ones: the outputs that share each number of the bias. None
            where every output has its own, and B = C.
    """

    losses: Callable[[Array], Array]
    shares: Array
    factors: Array
    gauge_rows: Array
    price: Array
    bounded: bool
    decay: Array | None
    norm: Callable[[Array], Array]
    rotates: bool
    sums_to_zero: bool
    at_zero: Array
    slopes_at_zero: Array
    epsilon: float
    columns: Array | None = None

    def slopes(self, logits: Array) -> Array:
        """Return the gradient of every row."""
        return jax.grad(lambda z: jnp.sum(self.losses(z)))(logits)

    def mean(self, slopes: Array) -> Array:
        """Return the mean over all rows, summed over the outputs of each number of a bias, (B,)."""
        mean = jnp.sum(self.shares * slopes, axis=0)
        return mean if self.columns is None else mean @ self.columns

    def of_bias(self, numbers: Array) -> Array:
        """Return a bias from its numbers, (C,)."""
        return numbers if self.columns is None else self.columns @ numbers

    def squared(self, mean: Array) -> Array:
        """Return the squared norm of a mean, over all outputs."""
        times = 1 if self.columns is None else jnp.sum(self.columns, axis=0)
        return jnp.sum(mean**2 / times)


class _Point(NamedTuple):
    """The dual of a point, and by how much rounding may have changed it.

    Attributes:
        value: v(Z) less its rounding, ().
        weighted: G, (R, C).
        error: What the rounding of G may add to its norm, ().
        mean: m, (B,).
        mean_error: Of its entries, (B,).
    """

    value: Array
    weighted: Array
    error: Array
    mean: Array
    mean_error: Array

    @property
    def residual(self) -> Array:
        """What the entries of m may be in size."""
        return jnp.abs(self.mean) + self.mean_error


class _Constants(NamedTuple):
    """What the duals of constant logits can mend, for every spread.

    Attributes:
        pseudo: P, in absolute values, (S, B, B).
        again: The largest |P c_i|, (S,).
        lost: The largest |P (I - A P) x| of an x of length one, (S,).
        bend: The largest length of a c_i, (S,).
        left: The largest length of (I - A P) x, (S,).
        scale: Of residuals, the same for every spread, (S, B).
        value: The least v_j, (S,).
        norm: The largest dual norm, (S,).
    """

    pseudo: Array
    again: Array
    lost: Array
    bend: Array
    left: Array
    scale: Array
    value: Array
    norm: Array


def chord_bound(
    problem: Problem, logits: Float[Array, "R C"], norm: Float[Array, ""] | None = None
) -> DualBound:
    """Return the lower bound that logits (bias included) provide, whatever the convex loss.

    Pure: it can be jit-compiled and vmapped.

    It is never below the mean of the losses' infima.

    Args:
        problem: a problem with a convex form (`has_convex_form`).
        logits: (R, C), the logits of every row; any values.
        norm: (), an upper bound on the dual norm of the rows `dual` at these logits that was proved
            elsewhere, instead of the cheap one.
    """
    rows = _rows_of(problem, logits.dtype)
    infimum = mean_infimum(problem, logits.dtype)
    proved = norm is not None
    logits, constants, point, norm = _dual_at(rows, logits, norm)
    lower = _bound(rows, point, norm, constants, infimum)
    paired = rows.gauge_rows * logits
    if rows.bounded:
        # At an optimum -<W H^T, G> = T ||G||: the norm is compared with what the candidate attains.
        allowed = jnp.maximum(-jnp.sum(point.weighted * paired), LEAST) / rows.price
    else:
        allowed = rows.price * (1 - rows.epsilon)
    if rows.rotates and not proved:
        level = allowed * (1 - 4 * rows.epsilon) - 2 * point.error
        wanted = _with_level(point.weighted, jnp.maximum(level, 0.5 * allowed), paired)
        lower = jnp.fmax(lower, _moved_bound(rows, logits, wanted, None, constants, infimum))
    elif not rows.bounded:
        level = allowed * (1 - 4 * rows.epsilon) - 2 * point.error
        theta = jnp.minimum(1.0, jnp.maximum(level, 0.5 * allowed) / jnp.maximum(norm, LEAST))
        wanted = theta * point.weighted
        lower = jnp.fmax(
            lower, _moved_bound(rows, logits, wanted, theta * norm, constants, infimum)
        )
    return DualBound(jnp.fmax(lower, infimum), norm / allowed, point.weighted, allowed)


def chord_of_rows(
    rows: ChordRows, logits: Float[Array, "R C"], infimum: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the bound of logits as they are, without a point that is moved, and its dual norm.

    Args:
        rows: what the bound knows of a problem.
        logits: (R, C), bias included; any values.
        infimum: (), that the mean loss is never below.
    """
    _, constants, point, norm = _dual_at(rows, logits, None)
    return jnp.fmax(_bound(rows, point, norm, constants, infimum), infimum), norm


def _dual_at(
    rows: ChordRows, logits: Array, norm: Array | None
) -> tuple[Array, _Constants | None, _Point, Array]:
    """Return logits, shifted where a bias is free, with their dual and an upper bound on its norm.

    Where there is a bias the duals of constant logits come with them.
    """
    constants = None
    if rows.decay is not None:
        logits = jnp.where(rows.decay <= 0, _centred(rows, logits), logits)
        constants = _constants(rows)
    point = _point(rows, logits)
    norm = (rows.norm(point.weighted) if norm is None else norm) * (1 + rows.epsilon)
    return logits, constants, point, norm + point.error


def _rows_of(problem: Problem, dtype: Any) -> ChordRows:
    samples, classes = class_samples(problem, dtype), problem.class_counts
    shares = (samples.counts / jnp.sum(samples.counts))[:, None]
    gauge = problem.gauge
    gauge_rows = jnp.asarray(gauge.rows, dtype)[:, None]

    def losses(logits: Array) -> Array:
        return problem.loss(logits, samples.targets, classes)

    # Written so that the compiler does not take it for a constant, and evaluates the loss.
    zero = 0 * samples.counts[:, None] * jnp.ones((1, problem.num_outputs), dtype)
    at_zero, pull = jax.vjp(losses, zero)
    (slopes_at_zero,) = pull(jnp.ones_like(at_zero))
    return ChordRows(
        losses=losses,
        shares=shares,
        factors=shares / gauge_rows,
        gauge_rows=gauge_rows,
        price=jnp.asarray(gauge.price, dtype),
        bounded=gauge.bounded,
        decay=jnp.asarray(problem.regularizer.bias_penalty, dtype) if problem.use_bias else None,
        norm=lambda weighted: dual_norm(problem, weighted),
        rotates=problem.feature_cone.rotates,
        sums_to_zero=problem.loss.shift_invariant,
        at_zero=size_of(at_zero),
        slopes_at_zero=size_of(slopes_at_zero),
        epsilon=(sum(zero.shape) + 16) * float(jnp.finfo(dtype).eps),
    )


def size_of(numbers: Array) -> Array:
    """Return absolute values, zero for what is not finite, as a loss may be at zero logits."""
    return jnp.where(jnp.isfinite(numbers), jnp.abs(numbers), 0)


def _point(rows: ChordRows, logits: Array) -> _Point:
    """Return the dual of logits."""
    values = rows.losses(logits)
    slopes, bent = jax.jvp(rows.slopes, (logits,), (logits,))
    sizes = jnp.abs(slopes) + rows.slopes_at_zero + jnp.abs(bent)
    shares, epsilon = rows.shares[:, 0], rows.epsilon
    products = slopes * logits
    # The value has the size of its own terms, and what the gradient's errors do to the product.
    magnitudes = jnp.abs(values) + rows.at_zero + 2 * jnp.sum(sizes * jnp.abs(logits), axis=1)
    value = jnp.sum(shares * (values - jnp.sum(products, axis=1)))
    return _Point(
        value=value - epsilon * jnp.sum(shares * magnitudes),
        weighted=rows.factors * slopes,
        error=epsilon * _length(rows.factors * sizes),
        mean=rows.mean(slopes),
        mean_error=epsilon * rows.mean(sizes),
    )


def _length(matrix: Array) -> Array:
    """Return the Frobenius norm; squares of entries neither underflow nor overflow."""
    unit = unit_of(matrix)
    return unit * jnp.sqrt(jnp.sum((matrix / unit) ** 2)) * (1 + 1e-12)


def _bound(
    rows: ChordRows, point: _Point, norm: Array, constants: _Constants | None, infimum: Array
) -> Array:
    """Return the chord bound of a point whose dual norm is at most `norm`."""
    value, epsilon, price = point.value, rows.epsilon, jnp.zeros_like(norm)
    if rows.decay is not None and constants is not None:
        free = rows.decay <= 0
        kappa, best = _mended(constants, point)
        mixed = (value + kappa * constants.value[best]) / (1 + kappa)
        mixed = jnp.minimum(value, mixed) - epsilon * kappa * jnp.abs(constants.value[best])
        value = jnp.where(free, mixed, value)
        dearer = jnp.maximum(norm, (norm + kappa * constants.norm[best]) / (1 + kappa))
        norm = jnp.where(free, dearer, norm)
        price = rows.squared(point.residual) / (2 * jnp.where(free, 1, rows.decay))
        price = jnp.where(free, 0, price)
    if rows.bounded:
        cost = rows.price * norm
        return finite(value - cost - epsilon * (jnp.abs(value) + cost))
    theta = jnp.minimum(1.0, rows.price * (1 - epsilon) / jnp.maximum(norm, LEAST))
    # An infimum that is not known is no bound, unless no share of it is needed.
    rest = jnp.where(theta < 1, (1 - theta) * infimum, 0)
    rounding = theta * jnp.abs(value) + theta**2 * price + jnp.abs(rest)
    return finite(theta * value + rest - theta**2 * price - epsilon * rounding)


def _moved_bound(
    rows: ChordRows,
    logits: Array,
    wanted: Array,
    norm: Array | None,
    constants: _Constants | None,
    infimum: Array,
) -> Array:
    """Return the bound of the point whose G is as wanted, or near it.

    Args:
        rows: the problem.
        logits: where Newton's method starts.
        wanted: (R, C), the G to reach.
        norm: (), an upper bound on its dual norm; None to take that of what was reached.
        constants: for a free bias.
        infimum: of the mean loss.
    """
    moved = _solved(rows, logits, wanted / rows.factors)
    if rows.decay is not None:
        moved = jnp.where(rows.decay <= 0, _centred(rows, moved), moved)
    point = _point(rows, moved)
    if norm is None:
        norm = rows.norm(point.weighted) * (1 + rows.epsilon) + point.error
    else:
        off = _length(point.weighted - wanted)
        norm = (norm + off) * (1 + rows.epsilon) + point.error
    return _bound(rows, point, norm, constants, infimum)


def _with_level(weighted: Array, level: Array, paired: Array) -> Array:
    """Return G with its singular values cut at a level, and those in use raised to it."""
    unit = unit_of(weighted)
    squares, vectors = jnp.linalg.eigh(smaller_gram(weighted / unit))
    values = unit * jnp.sqrt(jnp.maximum(squares, 0))
    return levelled(weighted, values, vectors, level, paired)[1]


# The rows' equations l_r'(z_r) = u_r


def _solved(rows: ChordRows, logits: Array, wanted: Array) -> Array:
    """Return logits near these whose gradients are nearer to those wanted, row by row."""
    tiny = 4 * jnp.finfo(logits.dtype).eps
    floor = tiny * jnp.max(jnp.abs(wanted), axis=1)

    def distance(z: Array) -> Array:
        off = jnp.max(jnp.abs(rows.slopes(z) - wanted), axis=1)
        return jnp.where(jnp.isfinite(off) & jnp.all(jnp.isfinite(z), axis=1), off, jnp.inf)

    def going(state: tuple[Array, Array, Array, Array]) -> Array:
        _, off, length, step = state
        return (step < STEPS) & jnp.any((off > floor) & (length > 1e-3))

    def advanced(
        state: tuple[Array, Array, Array, Array],
    ) -> tuple[Array, Array, Array, Array]:
        z, off, length, step = state
        new = z + length[:, None] * _newton_step(rows, z, wanted - rows.slopes(z))
        new_off = distance(new)
        nearer = new_off < off
        z, off = jnp.where(nearer[:, None], new, z), jnp.where(nearer, new_off, off)
        return z, off, jnp.where(nearer, 1.0, DAMPING * length), step + 1

    start = logits, distance(logits), jnp.ones_like(floor), jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(going, advanced, start)[0]


def _newton_step(rows: ChordRows, logits: Array, lacking: Array) -> Array:
    """Return steps that change the gradients of all rows by what is lacking, to first order."""
    count, width = logits.shape

    def product(direction: Array) -> Array:
        return jax.jvp(rows.slopes, (logits,), (direction,))[1]

    if count * width * width > DENSE:
        return _conjugate_gradients(product, lacking)
    basis = jnp.broadcast_to(jnp.eye(width, dtype=logits.dtype)[:, None], (width, count, width))
    return _scaled_solution(jnp.moveaxis(jax.vmap(product)(basis), 0, 2), lacking)


def _scaled_solution(hessians: Array, lacking: Array) -> Array:
    """Return the solutions of systems that may be singular, relative to their diagonals."""
    diagonal = jnp.diagonal(hessians, axis1=-2, axis2=-1)
    largest = jnp.max(diagonal, axis=-1, keepdims=True)
    roots = jnp.sqrt(jnp.maximum(diagonal, jnp.maximum(1e-14 * largest, LEAST)))
    scaled = hessians / (roots[..., :, None] * roots[..., None, :])
    return _eliminated(scaled, (lacking / roots)[..., None])[..., 0] / roots


def _eliminated(matrices: Array, right: Array) -> Array:
    """Return the solutions X of A X = B by elimination, for A a rescaled semi-definite matrix.

    No pivots are sought, which such matrices do not need, and those of nothing are raised. It is
    written out because two programs that factorise batches by LAPACK at the same time may wait for
    each other forever: jaxlib takes the threads for it from the pool that runs the programs.
    """
    width = matrices.shape[-1]

    def step(k: Array, both: Array) -> Array:
        row = jax.lax.dynamic_slice_in_dim(both, k, 1, axis=-2)
        pivot = jax.lax.dynamic_slice_in_dim(row, k, 1, axis=-1)
        row = row / jnp.where(pivot > RIDGE, pivot, RIDGE)
        column = jax.lax.dynamic_slice_in_dim(both, k, 1, axis=-1)
        rest = both - column * row
        return jax.lax.dynamic_update_slice_in_dim(rest, row, k, axis=-2)

    both = jnp.concatenate([matrices, right], axis=-1)
    return jax.lax.fori_loop(0, width, step, both)[..., width:]


def _conjugate_gradients(product: Callable[[Array], Array], wanted: Array) -> Array:
    """Return solutions by conjugate gradients, all rows at once, each with its own step."""
    goal = (1e-12 * jnp.sum(wanted**2, axis=1)) * 1e-12

    def going(state: tuple[Array, Array, Array, Array, Array]) -> Array:
        return (state[4] < INNER_STEPS) & jnp.any(state[3] > goal)

    def advanced(state: tuple[Array, Array, Array, Array, Array]) -> Any:
        x, left, direction, square, step = state
        image = product(direction)
        bend = jnp.sum(direction * image, axis=1)
        move = jnp.where((bend > 0) & (square > goal), square / jnp.where(bend > 0, bend, 1), 0)
        x, left = x + move[:, None] * direction, left - move[:, None] * image
        new = jnp.where(move > 0, jnp.sum(left**2, axis=1), 0)
        ratio = new / jnp.where(square > 0, square, 1)
        return x, left, left + ratio[:, None] * direction, new, step + 1

    start = jnp.zeros_like(wanted), wanted, wanted, jnp.sum(wanted**2, axis=1)
    return jax.lax.while_loop(going, advanced, (*start, jnp.zeros((), jnp.int32)))[0]


# A free bias


def _centred(rows: ChordRows, logits: Array) -> Array:
    """Return logits shifted by one vector for which the mean gradient vanishes, or nearly."""

    def mean(shift: Array) -> Array:
        return rows.mean(rows.slopes(logits + rows.of_bias(shift)[None, :]))

    def going(state: tuple[Array, Array, Array, Array]) -> Array:
        return (state[3] < SHIFTS) & (state[2] > 1e-6)

    def advanced(
        state: tuple[Array, Array, Array, Array],
    ) -> tuple[Array, Array, Array, Array]:
        shift, left, length, step = state
        hessian = jax.jacfwd(mean)(shift)
        new = shift - length * _scaled_solution(hessian, left)
        new_left = mean(new)
        size = jnp.max(jnp.abs(new_left))
        nearer = jnp.isfinite(size) & jnp.all(jnp.isfinite(new)) & (size < jnp.max(jnp.abs(left)))
        shift, left = jnp.where(nearer, new, shift), jnp.where(nearer, new_left, left)
        # The last digits are fetched by the first step that does not lower the mean any more.
        return shift, left, jnp.where(nearer, 1.0, DAMPING * length), step + 1

    zero = 0 * rows.mean(rows.slopes_at_zero)
    start = zero, mean(zero), jnp.ones((), logits.dtype), jnp.zeros((), jnp.int32)
    shift = jax.lax.while_loop(going, advanced, start)[0]
    return logits + rows.of_bias(shift)[None, :]


def _constants(rows: ChordRows) -> _Constants:
    """Return what the duals at constant logits around the best ones can mend."""
    shape = rows.slopes_at_zero.shape
    middle = _centred(rows, jnp.zeros(shape, rows.shares.dtype) * rows.shares)[0]
    width = shape[1] if rows.columns is None else rows.columns.shape[1]
    directions = jnp.concatenate([jnp.eye(width), -jnp.eye(width)])

    def at(shift: Array) -> tuple[Array, Array, Array, Array]:
        point = _point(rows, jnp.broadcast_to((middle + rows.of_bias(shift))[None, :], shape))
        norm = rows.norm(point.weighted) * (1 + rows.epsilon) + point.error
        return point.value, norm, point.mean, point.mean_error

    sizes = jnp.abs(rows.slopes(jnp.broadcast_to(middle[None, :], shape))) + rows.slopes_at_zero
    scale = jnp.maximum(rows.mean(sizes), LEAST)
    spreads = [
        _spread(rows, scale, *jax.lax.map(at, spread * directions.astype(middle.dtype)))
        for spread in SPREADS
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *spreads)
    return stacked


def _spread(
    rows: ChordRows, scale: Array, values: Array, norms: Array, means: Array, errors: Array
) -> _Constants:
    """Return what the duals of one spread can mend: means (2 C, C), those of + first."""
    width, identity = len(scale), jnp.eye(len(scale))
    scaled, errors = means / scale[None, :], errors / scale[None, :]
    odd = (scaled[:width] - scaled[width:]).T / 2  # the columns of A
    even = (scaled[:width] + scaled[width:]).T / 2  # the columns c_i
    errors = jnp.maximum(errors[:width], errors[width:]).T + rows.epsilon * (
        jnp.abs(odd) + jnp.abs(even)
    )
    # Gradients that sum to zero span one dimension less: A is filled up by one more direction.
    null = jnp.outer(scale, jnp.ones(width)) * (jnp.max(jnp.abs(odd)) / jnp.sum(scale))
    pseudo = _eliminated(odd + null if rows.sums_to_zero else odd, identity)
    # Residuals that sum to zero are orthogonal to the scale, once they are divided by it.
    unit = scale / jnp.linalg.norm(scale)
    projection = identity - jnp.outer(unit, unit) if rows.sums_to_zero else identity
    pseudo = pseudo @ projection
    reached = jnp.abs(pseudo)
    left = (identity - odd @ pseudo) @ projection
    # What rounding of these products may hide, with the roundings of the products before.
    hidden = 4 * rows.epsilon * (identity + jnp.abs(odd) @ reached) @ jnp.abs(projection)
    left = jnp.abs(left) + hidden
    return _Constants(
        pseudo=reached,
        again=_largest_sum(jnp.abs(pseudo @ even) + reached @ (errors + 4 * rows.epsilon)),
        lost=_largest_sum(reached @ left),
        bend=_largest_sum(jnp.abs(even) + errors),
        left=_largest_sum(left),
        scale=scale,
        value=jnp.min(values),
        norm=jnp.max(norms),
    )


def _largest_sum(columns: Array) -> Array:
    """Return the largest sum of a column."""
    return jnp.max(jnp.sum(columns, axis=0))


def _mended(constants: _Constants, point: _Point) -> tuple[Array, Array]:
    """Return a sum of weights that suffices to make the mean zero, and the spread it is for.

    A residual x needs weights of sum |P x| =: N. What they leave has an N of at most `again` N +
    `lost` |x| and a length of at most `bend` N + `left` |x|. So N + SMALL |x| falls by a factor.
    """
    residual = point.residual / constants.scale[0]
    first = jnp.sum(constants.pseudo @ residual, axis=1) + SMALL * jnp.sum(residual)
    share = jnp.maximum(
        constants.again + SMALL * constants.bend, constants.lost / SMALL + constants.left
    )
    total = first / jnp.where(share < 1, 1 - share, 1)
    total = jnp.where((share < 1) & jnp.isfinite(total), total * (1 + 1e-9), jnp.inf)
    best = jnp.argmin(total)
    return total[best], best
