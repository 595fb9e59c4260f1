"""Condensation: small hidden weights of a two-layer network turn towards few directions.

They do so before the loss moves. The network is f(x) = sum_j a_j s(w_j . x) with squared error
(1/2n) sum_i (f(x_i) - y_i)^2. It is not an unconstrained features model, whose features have no
weights. The activation s has multiplicity p: its first non-zero derivative at zero is the p-th
(tanh: 1; x tanh x: 2; x^2 tanh x: 3). While f is small compared with y, each unit theta = (a, w)
follows, to leading order and by itself, the gradient of

    E(a, w) = a P(w),    P(w) = (c / n) sum_i y_i (w . x_i)^p,    c = s^(p)(0) / p!.

E is homogeneous of degree p + 1, so the direction of theta climbs E on the sphere to a local
maximum. That is a maximum of P on the unit sphere where P > 0 (then a > 0), or a minimum where
P < 0 (then a < 0). For inputs of two dimensions (one and a constant, say) P is a trigonometric
polynomial of degree p on the circle, with at most 2p maxima and minima together. So there are at
most 2p directions, and they are known beforehand (derived here).

Zhou, Zhou, Jin, Luo, Zhang & Xu (NeurIPS 2022), arXiv:2105.11686, find that the number of
directions is at most twice the multiplicity (recalled, not read). ReLU has no derivative at zero:
P is only piecewise linear, and nothing bounds the number by 2.

All units turn this way, but not at the same time. For p = 1 all grow at one rate. For p >= 2 a unit
reaches any size in finite time, and larger units do so earlier. In the flow of the whole network
(clock "common") the first few fit the data before the others have moved. On its own clock ("own")
each unit's path has the same shape as long as the residuals are the targets. The theorem is about
that case.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm._support import (
    ArgumentError,
    Status,
    check_one_of,
    checked_positive,
    checked_whole,
    double_precision,
    holds_text,
    on_host,
    printed,
    table_lines,
)
from ufm.dynamics.flow import Integration, diffrax_or_remedy
from ufm.solving.methods import generator

__all__ = ["CONDENSING", "Condensation", "Multiplicity", "condensation", "predicted_directions"]


class Multiplicity(NamedTuple):
    """An activation and its multiplicity.

    Attributes:
        function: The activation s.
        multiplicity: p; None if s is not smooth at zero.
        coefficient: s^(p)(0) / p!; None if s is not smooth at zero.
    """

    function: Callable[[Array], Array]
    multiplicity: int | None
    coefficient: float | None


CONDENSING = {
    "tanh": Multiplicity(jnp.tanh, 1, 1.0),
    "xtanh": Multiplicity(lambda z: z * jnp.tanh(z), 2, 1.0),
    "x2tanh": Multiplicity(lambda z: z**2 * jnp.tanh(z), 3, 1.0),
    "relu": Multiplicity(jax.nn.relu, None, None),
}
ANGLE = np.radians(2.0)  # directions closer than this count as one
GROWN = 10.0  # growth from which the direction of a unit is measured
MOST_ALONE = 0.05  # share of grown units that may have another direction: they are still turning
RECORDS = 24  # times at which the loss is checked
MOST_STEPS = 20_000  # of the integrator between two of them
# Smallest step for ReLUs, in the logarithm of the growth: an adaptive step would shrink to nothing
# at every kink.
MIN_STEP = 1e-3


@printed
class Condensation(NamedTuple):
    """The hidden weights of m units, before and after they grew.

    Attributes:
        activation: Name of the activation.
        multiplicity: p, or None.
        clock: "own" or "common".
        initial: Hidden weights at the start, shape (m, d).
        final: Hidden weights at the end, shape (m, d).
        outer: Outer weights a at the end, shape (m,).
        growth: Growth of the norm of (a, w), shape (m,).
        loss: Loss of the network at the start and at the end.
        directions: Unit vectors to which grown units have condensed, shape (q, d).
        shares: Share of grown units within two degrees of each direction, shape (q,).
        expected: Predicted directions, shape (r, d); None if there is no prediction.
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

    def __str__(self) -> str:
        known = (
            "no multiplicity" if self.multiplicity is None else f"multiplicity {self.multiplicity}"
        )
        expected = "no prediction" if self.expected is None else f"{len(self.expected)} predicted"
        shares = ", ".join(f"{share:.3g}" for share in self.shares)
        rows = [
            ("condensation", f"{holds_text(self.holds)}: {self.activation}, {known}"),
            ("units", f"{np.sum(self.grown)} of {self.growth.size} grew, clock {self.clock!r}"),
            ("directions", f"{len(self.directions)}, {expected}; shares {shares or 'none'}"),
            ("loss", f"{self.loss[0]:.6g} to {self.loss[1]:.6g}"),
        ]
        return "\n".join(table_lines(rows))

    @property
    def grown(self) -> np.ndarray:
        """Which units have grown at least tenfold, shape (m,)."""
        return self.growth >= GROWN

    @property
    def condensed(self) -> bool:
        """Whether 95 per cent of the grown units have one of at most 2p directions.

        False without a multiplicity.
        """
        if self.multiplicity is None or not np.any(self.grown):
            return False
        return bool(
            len(self.directions) <= 2 * self.multiplicity and np.sum(self.shares) >= 1 - MOST_ALONE
        )

    @property
    def holds(self) -> bool:
        """Whether the units condensed, and every direction is a predicted one.

        False without a prediction, and with NaN.
        """
        if not self.condensed or self.expected is None or not len(self.expected):
            return False
        return bool(np.all(np.max(self.directions @ self.expected.T, axis=1) >= np.cos(ANGLE)))


@on_host
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
    """Follow the hidden weights of a small two-layer network, while the loss has hardly moved.

    Args:
        activation: "tanh", "xtanh" (x tanh x), "x2tanh" (x^2 tanh x) or "relu".
        inputs: Inputs of shape (n, d). A constant column among them is a bias.
        targets: Targets of shape (n,).
        width: m, the number of hidden units.
        scale: Standard deviation of all weights at the start.
        growth: Growth at which to stop: of every unit on its own clock, of the fastest unit on the
            common clock.
        clock: "own" lets every unit move by itself, with the targets as residuals. "common" is the
            gradient flow of the network.
        most_fitted: On the common clock, stop before this share of the loss is gone.
        key: JAX PRNG key or integer seed; 0 if not given.
        rtol: Relative tolerance of one step of the integrator.

    Raises:
        ValueError: If an argument is not valid.
        ImportError: If diffrax is not installed.
    """
    diffrax_or_remedy()
    X, y = _checked_data(activation, clock, inputs, targets)
    width, scale = checked_whole("width", width), checked_positive("scale", scale)
    if not checked_positive("growth", growth) > GROWN:
        raise ArgumentError(
            "growth",
            f"must be above {GROWN:g}, the growth from which directions are measured",
            growth,
        )
    draws = generator(key)
    start = scale * draws.standard_normal((width, X.shape[1] + 1))
    units, times = start, np.linspace(0, np.log(growth), RECORDS)
    with double_precision():
        arguments = jnp.asarray(X), jnp.asarray(y)
        field, atol = _fields[activation, clock], 1e-3 * rtol * scale
        least = MIN_STEP if activation == "relu" else None
        start_at = jnp.asarray(units)
        path = Integration(field, "explicit", arguments, start_at, MOST_STEPS, rtol, atol, least)
        first = loss = float(_loss(activation, units, *arguments))
        for target in times[1:]:
            path.left = MOST_STEPS
            arrived = path.advance(target) == Status.RUNNING
            after = float(_loss(activation, path.point, *arguments))
            if not arrived or (clock == "common" and not after >= (1 - most_fitted) * first):
                break
            units, loss = np.asarray(path.point), after
    grown = np.linalg.norm(units, axis=1) / np.linalg.norm(start, axis=1)
    directions, shares = _clusters(units[grown >= GROWN, 1:])
    multiplicity = CONDENSING[activation].multiplicity
    has_prediction = multiplicity is not None and X.shape[1] == 2
    return Condensation(
        activation=activation,
        multiplicity=multiplicity,
        clock=clock,
        initial=start[:, 1:],
        final=units[:, 1:],
        outer=units[:, 0],
        growth=grown,
        loss=(first, loss),
        directions=directions,
        shares=shares,
        expected=predicted_directions(activation, X, y) if has_prediction else None,
    )


def _checked_data(
    activation: str, clock: str, inputs: Any, targets: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and targets as arrays, for a known activation and clock."""
    check_one_of("activation", activation, CONDENSING)
    check_one_of("clock", clock, ("own", "common"))
    X, y = np.asarray(inputs, np.float64), np.asarray(targets, np.float64)
    finite = np.all(np.isfinite(X)) and np.all(np.isfinite(y))
    if X.ndim != 2 or y.shape != X.shape[:1] or not (finite and np.any(y)):
        raise ArgumentError(
            "inputs",
            "and `targets` must be finite, (n, d) and (n,), and not all targets zero; got "
            f"{X.shape} and {y.shape}",
        )
    return X, y


@on_host
def predicted_directions(
    activation: str, inputs: Float[np.ndarray, "n 2"], targets: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "r 2"]:
    """Return the unit vectors to which units can condense.

    There P has a positive maximum or a negative minimum on the circle. There are at most 2p such
    points. They come from the roots of a polynomial.

    Args:
        activation: An activation that is smooth at zero.
        inputs: Inputs of shape (n, 2).
        targets: Targets of shape (n,).

    Returns:
        Unit vectors of shape (r, 2).

    Raises:
        ValueError: If the inputs do not have shape (n, 2), or the activation is not smooth at zero.
    """
    known = CONDENSING.get(activation)
    if known is None or known.multiplicity is None or known.coefficient is None:
        raise ArgumentError("activation", "must be one that is smooth at zero", activation)
    X, y = np.asarray(inputs, np.float64), np.asarray(targets, np.float64)
    if X.ndim != 2 or X.shape[1] != 2:
        raise ArgumentError(
            "inputs", f"must be (n, 2) for predicted directions, got shape {X.shape}"
        )
    p = known.multiplicity
    # P = sum_m c_m e^{i m phi} with |m| <= p, which its values at 2p + 1 angles determine.
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
    """Return the directions that more than one vector has, and the share of vectors near each.

    The most frequent direction comes first. Every vector counts for one direction.
    """
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
    outputs = (
        CONDENSING[activation].function(X @ jnp.asarray(units)[:, 1:].T) @ jnp.asarray(units)[:, 0]
    )
    return jnp.mean((outputs - y) ** 2) / 2


def _velocity_of(activation: str, clock: str) -> Any:
    """Return the direction of steepest descent of every unit, in logarithmic time.

    In one unit of time a unit (on the common clock, the fastest one) grows by a factor of at most
    e.
    """
    function = CONDENSING[activation].function

    def velocity(t: Any, units: Array, arguments: Any) -> Array:
        X, y = arguments

        def gain(units: Array) -> Array:
            """Return by how much the units lower the loss, to first order, at these residuals."""
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


_fields = {
    (name, clock): _velocity_of(name, clock) for name in CONDENSING for clock in ("own", "common")
}
