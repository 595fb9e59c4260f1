"""The central path of squared error: features move, the classifier is always the least-squares one.

Setting: balanced classes of n samples, N = K n, and L(H) the minimum over W and b of
(1/2N) sum_i ||W h_i + b - y_i||^2. Sigma_W is the within-class covariance, a mean over all
samples. M holds the centred class means in rows. The signal-to-noise matrix S = M Sigma_W^{-1/2}
has singular values omega_j = sqrt(K) v_j. The Schur complement of the least squares gives

    L = (1/2K) sum_{j < K} 1 / (1 + v_j^2).

So L is invariant under linear maps of the features, and only S moves it. Two flows keep
Sigma_W = I, both from H' = -dL/dH. In both, the singular vectors of S stand still. With time in
units of n K^2,

    "projected" onto the tangent space of Sigma_W = I:
        v' = v / (1 + v^2)^2,    log v + v^2 + v^4 / 4 = a + t,
    "followed", by H -> Sigma_W^{-1/2} H after every step:
        v' = v / (1 + v^2),      log v + v^2 / 2       = a + t.

Proof. At Sigma_W = I, for M = X diag(omega) V^T,

    dL/dM       = -(1/K^2) X diag(omega / (1 + v^2)^2) V^T,
    dL/dSigma_W = (1/2K) V diag(v^2 / (1 + v^2)^2) V^T = G.

So M' = -(1/n) dL/dM, and residuals move by r_i' = -(2/N) G r_i. The projection removes the motion
of the residuals. Renormalising turns it into M' <- M' + (2/N) M G. QED

All v_j diverge, and their ratios go to one: v_j^4 = 4 (a_j + t) (1 + o(1)) for the projected flow,
v_j^2 = 2 (a_j + t) (1 + o(1)) for the followed one.

Han, Papyan & Donoho (ICLR 2022), arXiv:2106.02073, state c1 log w + c2 w^2 + c3 w^4 = a + t
(recalled). That is the projected flow, with c1 : c2 : c3 = 1 : 1/K : 1/(4 K^2) in omega. Here the
flow is integrated with W and b from least squares, without the formulas above. It is then compared
with them.
"""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm._support import (
    ArgumentError,
    Status,
    check_one_of,
    double_precision,
    holds_text,
    on_host,
    printed,
    table_lines,
)
from ufm.dynamics.arguments import checked_schedule
from ufm.dynamics.flow import Integration, diffrax_or_remedy

__all__ = [
    "CentralPath",
    "CentralPathCheck",
    "central_path",
    "central_path_check",
    "path_clock",
    "signal_to_noise",
]

LOSS_ERROR = 1e-9  # relative; only the least squares round
FLOWS = ("projected", "followed", "free")
STEPS = 200_000  # of the integrator, in all
SINGULAR = 1e-12  # ratio of eigenvalues below which a covariance has no inverse in float64


@printed
class CentralPath(NamedTuple):
    """A central path at T times.

    Attributes:
        flow: "projected", "followed" or "free"; the free flow lets Sigma_W move.
        num_classes: K.
        samples: n, the number of samples of each class.
        times: Times of the gradient flow, shape (T,).
        features: Features, classes in order, shape (T, N, d).
        objective: L at each time, shape (T,).
        singular_values: v_j, the singular values of the signal-to-noise matrix over sqrt(K),
            descending, shape (T, K - 1).
        vectors: The singular vectors, shapes (T, K, K - 1) and (T, d, K - 1).
        whiteness: ||Sigma_W - I||_F, shape (T,).
        steps: Number of steps of the integrator.
        rtol: Relative tolerance of one step.
        status: How the integration ended.
    """

    flow: str
    num_classes: int
    samples: int
    times: Float[np.ndarray, " T"]
    features: Float[np.ndarray, "T N d"]
    objective: Float[np.ndarray, " T"]
    singular_values: Float[np.ndarray, "T r"]
    vectors: tuple[Float[np.ndarray, "T K r"], Float[np.ndarray, "T d r"]]
    whiteness: Float[np.ndarray, " T"]
    steps: int
    rtol: float
    status: Status

    def __str__(self) -> str:
        first, last = self.singular_values[0], self.singular_values[-1]
        rows = [
            ("central path", f"{self.flow}, {self.num_classes} classes of {self.samples} samples"),
            ("status", self.status.message),
            ("times", f"{self.times.size}, to {self.times[-1]:.6g}, in {self.steps} steps"),
            ("objective", f"{self.objective[0]:.10g} to {self.objective[-1]:.10g}"),
            ("singular values", f"{_ends_text(first)}, then {_ends_text(last)}"),
            ("||Sigma_W - I||", f"at most {np.max(self.whiteness):.3g}"),
        ]
        return "\n".join(table_lines(rows))


def _ends_text(values: np.ndarray) -> str:
    """Return the largest and the smallest of descending values, as text."""
    return f"{values[0]:.6g} down to {values[-1]:.6g}"


@on_host
def central_path(
    features: Float[np.ndarray, "N d"],
    num_classes: int,
    *,
    times: Any,
    flow: Literal["projected", "followed", "free"] = "projected",
    rtol: float = 1e-10,
    atol: float = 1e-12,
) -> CentralPath:
    """Follow the central path from given features.

    Args:
        features: Features of shape (N, d), classes in order and of equal sizes. They are whitened
            first (Sigma_W = I), except for the free flow.
        num_classes: K, with d >= K - 1, and N - K >= d so that Sigma_W has an inverse.
        times: Increasing times to record at, in units of the gradient flow. One number is the last
            of 60 on a logarithmic scale.
        flow: How Sigma_W = I is kept: "projected", "followed", or "free" for not at all.
        rtol: Relative tolerance of one step.
        atol: Absolute tolerance of one step.

    Raises:
        ValueError: If the features do not fit, or another argument is not valid.
        ImportError: If diffrax is not installed.
    """
    diffrax_or_remedy()
    H = np.asarray(features, np.float64)
    K = num_classes
    if H.ndim != 2 or K < 2 or len(H) % K or not np.all(np.isfinite(H)):
        raise ArgumentError(
            "features",
            f"must be finite, (N, d) with N a multiple of the {K} classes, got shape {H.shape}",
        )
    if not K - 1 <= H.shape[1] <= len(H) - K:
        raise ArgumentError(
            "features", f"must have K - 1 <= d <= N - K dimensions, got K = {K} and shape {H.shape}"
        )
    check_one_of("flow", flow, FLOWS)
    schedule = checked_schedule("times", times)
    H = H if flow == "free" else _whitened(H, K)
    points, status = [], Status.RUNNING
    with double_precision():
        path = Integration(
            _along_path(K, flow), "explicit", None, jnp.asarray(H), STEPS, rtol, atol
        )
        for target in schedule:
            status = path.advance(target)
            points.append((float(path.now), np.asarray(path.point)))
            if status != Status.RUNNING:
                break
    status = Status.FINISHED if status == Status.RUNNING else status
    return _measured(points, flow, K, path.steps, rtol, status)


def _whitened(H: np.ndarray, K: int) -> np.ndarray:
    """Return the features times Sigma_W^{-1/2}."""
    values, vectors = np.linalg.eigh(_within(H, K))
    if values[0] <= SINGULAR * values[-1]:
        raise ArgumentError(
            "features",
            "must vary within classes in all dimensions; their within-class covariance has "
            "no inverse",
        )
    return H @ (vectors / np.sqrt(values)) @ vectors.T


def _measured(
    points: list[tuple[float, np.ndarray]],
    flow: str,
    K: int,
    steps: int,
    rtol: float,
    status: Status,
) -> CentralPath:
    """Return the path through points, with everything that is measured along it."""
    rows = np.stack([rows for _, rows in points])
    parts = [signal_to_noise(rows, K) for _, rows in points]
    identity = np.eye(rows.shape[2])
    return CentralPath(
        flow=flow,
        num_classes=K,
        samples=rows.shape[1] // K,
        times=np.array([moment for moment, _ in points]),
        features=rows,
        objective=np.array([_least_squares(rows, K) for _, rows in points]),
        singular_values=np.stack([part[1] for part in parts]),
        vectors=(np.stack([part[0] for part in parts]), np.stack([part[2] for part in parts])),
        whiteness=np.array([np.linalg.norm(_within(rows, K) - identity) for _, rows in points]),
        steps=steps,
        rtol=rtol,
        status=status,
    )


@on_host
def path_clock(flow: str, values: Any) -> Float[np.ndarray, " *T"]:
    """Return the clock, which grows as time in units of n K^2 along the path.

    It is log v + v^2 + v^4 / 4 for the projected flow, and log v + v^2 / 2 for the followed one.

    Args:
        flow: "projected" or "followed".
        values: v, positive, of any shape.
    """
    v = np.asarray(values, np.float64)
    return np.log(v) + (v**2 + v**4 / 4 if flow == "projected" else v**2 / 2)


@printed
class CentralPathCheck(NamedTuple):
    """A central path compared with its closed form.

    Attributes:
        clock_error: Largest deviation of a clock from its start plus t / (n K^2), relative to the
            total time (or to one if that is larger).
        turned: Largest sine of the angles by which singular vectors turned.
        loss_error: Relative deviation of L from (1/2K) sum 1 / (1 + v^2).
        spread: Largest over smallest v, shape (T,).
        tolerances: What errors of the integrator explain of `clock_error` and `turned`.
    """

    clock_error: float
    turned: float
    loss_error: float
    spread: Float[np.ndarray, " T"]
    tolerances: tuple[float, float]

    @property
    def holds(self) -> bool:
        """Whether all errors are within tolerance, and the spread falls; False with NaN."""
        clock, angle = self.tolerances
        within = (
            self.clock_error <= clock and self.turned <= angle and self.loss_error <= LOSS_ERROR
        )
        return bool(within and self.spread.size > 1 and np.all(np.diff(self.spread) < 0))

    def __str__(self) -> str:
        clock, angle = self.tolerances
        rows = [
            ("central path", holds_text(self.holds)),
            ("clock error", f"{self.clock_error:.3g}, tolerance {clock:.3g}"),
            ("turned", f"{self.turned:.3g}, tolerance {angle:.3g}"),
            ("loss error", f"{self.loss_error:.3g}, tolerance {LOSS_ERROR:.3g}"),
            ("largest / smallest", f"{self.spread[0]:.6g} to {self.spread[-1]:.6g}"),
        ]
        return "\n".join(table_lines(rows))


@on_host
def central_path_check(path: CentralPath) -> CentralPathCheck:
    """Check that singular vectors stand still, singular values keep time, and their ratios fall.

    Args:
        path: A path with distinct v at the start.
    """
    v, (left, right) = path.singular_values, path.vectors
    scale = path.samples * path.num_classes**2
    elapsed = (path.times / scale)[:, None]
    clock = path_clock(path.flow, v)
    late = np.abs(clock - clock[0] - elapsed) / np.maximum(elapsed[-1], 1.0)
    loss = np.sum(1 / (1 + v**2), axis=1) / (2 * path.num_classes)
    turned = [
        np.linalg.norm(now - then * np.sum(now * then, axis=0), axis=0)
        for side in (left, right)
        for then, now in ((side[0], one) for one in side)
    ]
    # Errors of steps add up. A relative error e of v is an error of e v^4 in its clock, which is
    # 4 e times the elapsed time. Angles are sensitive where singular values are close.
    slip = 2 * path.steps * path.rtol + 1e-13
    gap = np.min(np.abs(np.diff(v, axis=1)) / v[:, :-1]) if v.shape[1] > 1 else 1.0
    return CentralPathCheck(
        float(np.max(late)),
        float(np.max(turned)),
        float(np.max(np.abs(path.objective / loss - 1))),
        v[:, 0] / v[:, -1],
        (8 * slip, float(slip / gap)),
    )


def signal_to_noise(
    features: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the singular vectors and values of the signal-to-noise matrix.

        M Sigma_W^{-1/2} = sqrt(K) X diag(v) V^T

    Args:
        features: Features of shape (N, d), classes in order and of equal sizes.
        num_classes: K.

    Returns:
        X of shape (K, K - 1), v of shape (K - 1,), and V of shape (d, K - 1).
    """
    values, vectors = np.linalg.eigh(_within(features, num_classes))
    values = np.maximum(
        values, np.finfo(np.float64).eps * values[-1]
    )  # of a free flow, whose variability collapses
    means = features.reshape(num_classes, -1, features.shape[1]).mean(axis=1)
    signal = (means - means.mean(axis=0)) @ (vectors / np.sqrt(values)) @ vectors.T
    X, omega, Vt = np.linalg.svd(signal, full_matrices=False)
    rank = num_classes - 1
    return X[:, :rank], omega[:rank] / np.sqrt(num_classes), Vt[:rank].T


def _within(features: np.ndarray, num_classes: int) -> np.ndarray:
    rows = features.reshape(num_classes, -1, features.shape[1])
    rest = (rows - rows.mean(axis=1, keepdims=True)).reshape(features.shape)
    return np.asarray(rest.T @ rest / len(rest))


def _least_squares(features: np.ndarray, num_classes: int) -> float:
    targets = np.repeat(np.eye(num_classes), len(features) // num_classes, axis=0)
    design = np.hstack([features, np.ones((len(features), 1))])
    rest = targets - design @ np.linalg.lstsq(design, targets)[0]
    return float(np.sum(rest**2) / (2 * len(features)))


_fields: dict[tuple[int, str], Any] = {}


def _along_path(num_classes: int, flow: str) -> Any:
    """Return the vector field. Equal settings give the same object, which keeps compiled code."""
    if (num_classes, flow) not in _fields:
        _fields[num_classes, flow] = lambda t, H, _: _velocity(H, num_classes, flow)
    return _fields[num_classes, flow]


def _velocity(H: Float[Array, "N d"], num_classes: int, flow: str) -> Float[Array, "N d"]:
    N = len(H)
    targets = jnp.repeat(jnp.eye(num_classes, dtype=H.dtype), N // num_classes, axis=0)
    centred, goals = H - jnp.mean(H, axis=0, keepdims=True), targets - 1 / num_classes
    weights = jnp.linalg.solve(centred.T @ centred, centred.T @ goals)  # W^T, (d, K)
    down = (goals - centred @ weights) @ weights.T / N  # -dL/dH: the classifier is stationary
    if flow == "free":
        return down

    def rest(rows: Array) -> Array:
        grouped = rows.reshape(num_classes, -1, rows.shape[1])
        return (grouped - jnp.mean(grouped, axis=1, keepdims=True)).reshape(rows.shape)

    # The symmetric matrix `turn` solves turn Sigma_W + Sigma_W turn = d Sigma_W / dt. Subtracting
    # it keeps Sigma_W fixed, exactly even where rounding has moved Sigma_W from I.
    residuals = rest(H)
    drift = rest(down).T @ residuals / N
    sizes, axes = jnp.linalg.eigh(residuals.T @ residuals / N)
    turn = axes @ ((axes.T @ (drift + drift.T) @ axes) / (sizes[:, None] + sizes[None, :])) @ axes.T
    return down - (residuals if flow == "projected" else centred) @ turn
