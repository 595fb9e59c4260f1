r"""Condensation: from small weights, the hidden weights of a two-layer network turn towards few directions before the loss moves.

A network f(x) = sum_j a_j s(w_j . x) with squared error (1/2n) sum_i (f(x_i) - y_i)^2; not an unconstrained features model, whose features have
no weights. The activation s has multiplicity p: its first derivative at zero that is not zero is the p-th (tanh: 1; x tanh x: 2; x^2 tanh x: 3).
While f is small against y, to leading order each unit theta = (a, w) follows by itself the gradient of

    E(a, w) = a P(w),    P(w) = (c / n) sum_i y_i (w . x_i)^p,    c = s^(p)(0) / p!,

homogeneous of degree p + 1, so its direction climbs E on the sphere, to a local maximum: to a maximum of P on the unit circle where P > 0 (a >
0), or to a minimum where P < 0 (a < 0). For inputs of two dimensions (one and a constant, say) P is a trigonometric polynomial of degree p on
the circle, which has at most 2p maxima and minima together. So there are at most 2p directions, and they are known beforehand (derived here).

Zhou, Zhou, Jin, Luo, Zhang & Xu (NeurIPS 2022), arXiv:2105.11686, find the number of directions to be twice the multiplicity at most (recalled,
not read). ReLU has no derivative at zero: P is only piecewise linear, and nothing bounds the number by 2.

All units turn as said, but not at the same time: for p = 1 all grow at one rate; for p >= 2 a unit reaches any size in finite time, the larger
the earlier, and in the flow of the whole network ("common" clock) the first few fit the data before the others have moved. Each unit's path has
the same shape on its own clock ("own"), as long as the residuals are the targets: that is what the theorem is about.
"""

import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm.dynamics.flow import CHUNK, diffrax_or_remedy, integrated
from ufm.precision import checked_positive, checked_whole, double_precision
from ufm.solvers.stages import generator

__all__ = ["CONDENSING", "Condensation", "Multiplicity", "condensation", "predicted_directions"]


class Multiplicity(NamedTuple):
    """An activation, its multiplicity p at zero, and s^(p)(0) / p!; None for both where it is not smooth there."""

    function: Callable[[Array], Array]
    multiplicity: int | None
    coefficient: float | None


CONDENSING = {
    "tanh": Multiplicity(jnp.tanh, 1, 1.0),
    "xtanh": Multiplicity(lambda z: z * jnp.tanh(z), 2, 1.0),
    "x2tanh": Multiplicity(lambda z: z**2 * jnp.tanh(z), 3, 1.0),
    "relu": Multiplicity(jax.nn.relu, None, None),
}
ANGLE = np.radians(2.0)  # within which directions are one
GROWN = 10.0  # times its start, from which on a unit has a direction of its own
MOST_ALONE = 0.05  # share of units still on their way
RECORDS = 24
MOST_STEPS = 20_000
SHORTEST = 1e-3  # step in the logarithm of the growth, for the kinks of a ReLU


class Condensation(NamedTuple):
    """What became of the hidden weights.

    activation, multiplicity: p, or None. clock: "own" or "common". initial, final: (m, d) the hidden weights. outer: (m,) the weights a at the end.
    growth: (m,) of the norm of (a, w). loss: first and last, of the network. directions: (q, d) unit vectors that units grown ten times have
    condensed to. shares: (q,) of the grown units, those within two degrees. expected: (r, d) the predicted directions; None where there is no
    prediction.
    """

    activation: str
    multiplicity: int | None
    clock: str
    initial: Float[np.ndarray, "m d"]
    final: Float[np.ndarray, "m d"]
    outer: Float[np.ndarray, " m"]
    growth: Float[np.ndarray, " m"]
    loss: tuple[float, float]
    directions: Float[np.ndarray, "q d"]
    shares: Float[np.ndarray, " q"]
    expected: Float[np.ndarray, "r d"] | None

    @property
    def grown(self) -> np.ndarray:
        """(m,) which units have grown ten times."""
        return self.growth >= GROWN

    @property
    def condensed(self) -> bool:
        """Whether all but a twentieth of the grown units have one of at most 2p directions; False without a multiplicity."""
        if self.multiplicity is None or not np.any(self.grown):
            return False
        return bool(len(self.directions) <= 2 * self.multiplicity and np.sum(self.shares) >= 1 - MOST_ALONE)

    @property
    def holds(self) -> bool:
        """Whether, besides, each of the directions is a predicted one; False without a prediction, and with NaN."""
        if not self.condensed or self.expected is None or not len(self.expected):
            return False
        return bool(np.all(np.max(self.directions @ self.expected.T, axis=1) >= np.cos(ANGLE)))


def condensation(
    activation: str,
    inputs: Float[np.ndarray, "n d"],
    targets: Float[np.ndarray, " n"],
    *,
    width: int = 100,
    scale: float = 1e-6,
    growth: float = 1e4,
    clock: Literal["own", "common"] = "own",
    most_fitted: float = 0.1,
    key: Any = None,
    rtol: float = 1e-7,
) -> Condensation:
    """Follow the hidden weights of a small two-layer network from Gaussian entries, while the loss has hardly moved.

    Args:
        activation: "tanh", "xtanh" (x tanh x), "x2tanh" or "relu".
        inputs: (n, d), a constant column among them for a bias.
        targets: (n,).
        width: m, the number of hidden units.
        scale: standard deviation of all weights at the start.
        growth: up to which factor to follow: of every unit on its own clock, of the fastest on the common one.
        clock: "own": every unit by itself, with the targets as residuals; "common": the gradient flow of the network.
        most_fitted: on the common clock, end before this share of the loss is gone.
        key: a JAX PRNG key, or an integer seed; 0 if not given.
        rtol: tolerance of the integrator.

    Raises:
        ValueError: for bad arguments.
        ImportError: without diffrax.
    """
    diffrax_or_remedy()
    if activation not in CONDENSING:
        raise ValueError(f"`activation` must be one of {tuple(CONDENSING)}, got {activation!r}.")
    if clock not in ("own", "common"):
        raise ValueError(f"`clock` must be 'own' or 'common', got {clock!r}.")
    X, y = np.asarray(inputs, np.float64), np.asarray(targets, np.float64)
    if X.ndim != 2 or y.shape != X.shape[:1] or not (np.all(np.isfinite(X)) and np.all(np.isfinite(y)) and np.any(y)):
        raise ValueError(
            f"`inputs` and `targets` must be finite, (n, d) and (n,), and not all targets zero; got {X.shape} and {y.shape}."
        )
    width, scale = checked_whole("width", width), checked_positive("scale", scale)
    if not checked_positive("growth", growth) > GROWN:
        raise ValueError(f"`growth` must be above {GROWN:g}, from which on directions are looked at, got {growth!r}.")
    draws = generator(key)
    start = scale * draws.standard_normal((width, X.shape[1] + 1))
    units, times = start, np.linspace(0, np.log(growth), RECORDS)
    with double_precision():
        arguments = jnp.asarray(X), jnp.asarray(y)
        field, shortest = _fields[activation, clock], SHORTEST if activation == "relu" else None
        first = loss = float(_loss(activation, units, *arguments))
        for now, target in itertools.pairwise(times):
            reached, left = jnp.asarray(units), MOST_STEPS
            while now < target and left > 0:
                reached, now, made, okay = integrated(
                    field, "explicit", CHUNK, arguments, reached, now, target, rtol, 1e-3 * rtol * scale, shortest
                )
                left = left - int(made) if bool(okay) else 0
            after = float(_loss(activation, reached, *arguments))
            if now < target or (clock == "common" and not after >= (1 - most_fitted) * first):
                break
            units, loss = np.asarray(reached), after
    final, outer = units[:, 1:], units[:, 0]
    grown = np.linalg.norm(units, axis=1) / np.linalg.norm(start, axis=1)
    directions, shares = _clusters(final[grown >= GROWN])
    known = CONDENSING[activation]
    expected = predicted_directions(activation, X, y) if known.multiplicity is not None and X.shape[1] == 2 else None
    return Condensation(
        activation,
        known.multiplicity,
        clock,
        start[:, 1:],
        final,
        outer,
        grown,
        (first, loss),
        directions,
        shares,
        expected,
    )


def predicted_directions(
    activation: str, inputs: Float[np.ndarray, "n 2"], targets: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "r 2"]:
    """Return the unit vectors at which P has a positive maximum or a negative minimum on the circle, at most 2p, from the roots of a polynomial.

    Raises:
        ValueError: for inputs that are not (n, 2), or an activation that is not smooth at zero.
    """
    known = CONDENSING.get(activation)
    if known is None or known.multiplicity is None or known.coefficient is None:
        raise ValueError(f"`activation` must be one that is smooth at zero, got {activation!r}.")
    X, y = np.asarray(inputs, np.float64), np.asarray(targets, np.float64)
    if X.ndim != 2 or X.shape[1] != 2:
        raise ValueError(f"`inputs` must be (n, 2) for predicted directions, got shape {X.shape}.")
    p = known.multiplicity
    # As sum_m c_m e^{i m phi}, |m| <= p; its values at 2p + 1 angles say all about it.
    angles = 2 * np.pi * np.arange(2 * p + 1) / (2 * p + 1)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    values = known.coefficient * np.mean(y[:, None] * (X @ circle.T) ** p, axis=0)
    modes = np.arange(-p, p + 1)
    coefficients = np.array([np.mean(values * np.exp(-1j * m * angles)) for m in modes])
    slope = np.roots((1j * modes * coefficients)[::-1])
    critical = np.angle(slope[np.abs(np.abs(slope) - 1) < 1e-6])
    height = np.real(np.exp(1j * np.outer(critical, modes)) @ coefficients)
    bend = np.real(np.exp(1j * np.outer(critical, modes)) @ (-(modes**2) * coefficients))
    kept = np.sort(critical[height * bend < 0])
    return np.stack([np.cos(kept), np.sin(kept)], axis=1)


def _clusters(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return directions that more than one vector has, the most frequent first, and the share of vectors within the angle of each."""
    left, directions, shares = vectors / np.linalg.norm(vectors, axis=1, keepdims=True), [], []
    total = len(left)
    while len(left):
        near = left @ left.T >= np.cos(ANGLE)
        chosen = near[np.argmax(np.sum(near, axis=1))]
        if np.sum(chosen) < min(2, total):
            break
        mean = np.mean(left[chosen], axis=0)
        directions.append(mean / np.linalg.norm(mean))
        shares.append(np.sum(chosen) / total)
        left = left[~chosen]
    return np.array(directions).reshape(len(directions), vectors.shape[1]), np.array(shares)


def _loss(activation: str, units: Any, X: Any, y: Any) -> Any:
    outputs = CONDENSING[activation].function(X @ jnp.asarray(units)[:, 1:].T) @ jnp.asarray(units)[:, 0]
    return jnp.mean((outputs - y) ** 2) / 2


def _velocity_of(activation: str, clock: str) -> Any:
    """Return the direction of steepest descent of every unit, in a time in which a unit (the fastest one) grows by e at most."""
    function = CONDENSING[activation].function

    def velocity(t: Any, units: Array, arguments: Any) -> Array:
        X, y = arguments

        def gain(units: Array) -> Array:
            """What the units take off the loss, to first order, if the residuals stay."""
            inputs = X @ units[:, 1:].T
            residual = y
            if clock == "common":
                residual = y - jax.lax.stop_gradient(function(inputs) @ units[:, 0])
            return jnp.mean(residual * (function(inputs) @ units[:, 0]))

        pull = jax.grad(gain)(units)
        rate = jnp.linalg.norm(pull, axis=1) / jnp.maximum(jnp.linalg.norm(units, axis=1), 1e-300)
        rate = rate if clock == "own" else jnp.full_like(rate, jnp.max(rate))
        return pull / jnp.maximum(rate, 1e-300)[:, None]

    return velocity


_fields = {(name, clock): _velocity_of(name, clock) for name in CONDENSING for clock in ("own", "common")}
