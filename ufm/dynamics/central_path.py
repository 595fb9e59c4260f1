r"""The central path of squared error: features move, the classifier is the least-squares one at every moment.

Balanced classes of n samples, N = K n; L(H) = min over W and b of (1/2N) sum_i ||W h_i + b - y_i||^2. With Sigma_W the within-class covariance
(the mean over all samples), M the centred class means in rows and S = M Sigma_W^{-1/2} the signal-to-noise matrix, of singular values omega_j =
sqrt(K) v_j,

    L = (1/2K) sum_{j < K} 1 / (1 + v_j^2)

(the Schur complement of the least squares), so that L is invariant under linear maps of the features, and only S moves it. Two flows keep
Sigma_W = I, both from H' = -dL/dH; in both the singular vectors of S stand still, and with time in units of n K^2

    "projected" onto the tangent space of Sigma_W = I:       v' = v / (1 + v^2)^2,    log v + v^2 + v^4 / 4 = a + t,
    "followed", by H -> Sigma_W^{-1/2} H after every step:    v' = v / (1 + v^2),      log v + v^2 / 2       = a + t.

Proof. At Sigma_W = I, dL/dM = -(1/K^2) X diag(omega / (1 + v^2)^2) V^T for M = X diag(omega) V^T, and dL/dSigma_W = (1/2K) V diag(v^2 / (1 +
v^2)^2) V^T = G; so M' = -(1/n) dL/dM, and residuals r_i' = -(2/N) G r_i, which the projection removes, and which renormalising turns into M' <-
M' + (2/N) M G. QED So all v_j diverge, and their ratios go to one: v_j^4 = 4 (a_j + t) (1 + o(1)), or v_j^2 = 2 (a_j + t) (1 + o(1)).

Han, Papyan & Donoho (ICLR 2022), arXiv:2106.02073, state c1 log w + c2 w^2 + c3 w^4 = a + t (recalled): the projected flow, with c1 : c2 : c3 =
1 : 1/K : 1/(4 K^2) in omega. The flow is integrated here with W and b from least squares and no use of the formulas above, which it is then held
against.
"""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm.dynamics.arguments import checked_schedule
from ufm.dynamics.flow import CHUNK, STUCK, diffrax_or_remedy, integrated
from ufm.precision import double_precision
from ufm.status import Status

__all__ = ["CentralPath", "CentralPathCheck", "central_path", "central_path_check", "path_clock", "signal_to_noise"]

FLOWS = ("projected", "followed", "free")
STEPS = 200_000


class CentralPath(NamedTuple):
    """The central path at T times. flow: "projected", "followed" or "free" (neither: Sigma_W moves as it will). num_classes: K, of n samples each.

    times: (T,) in units of the gradient flow. features: (T, N, d), classes in order. objective: (T,). singular_values: (T, K - 1) v_j, those of
    the signal-to-noise matrix over sqrt(K), descending. vectors: (T, K, K - 1) and (T, d, K - 1) its singular vectors.
    whiteness: (T,) ||Sigma_W - I||_F. steps, rtol: of the integrator. status: how it ended.
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
        features: (N, d), classes in order, of equal sizes; whitened first (Sigma_W = I) but for the free flow.
        num_classes: K; d >= K - 1, and N - K >= d so that Sigma_W has an inverse.
        times: increasing times to record at, in units of the gradient flow; or the last alone.
        flow: how Sigma_W = I is kept, see above.
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step.

    Raises:
        ValueError: where the features do not fit.
        ImportError: without diffrax.
    """
    diffrax_or_remedy()
    H = np.asarray(features, np.float64)
    K = num_classes
    if H.ndim != 2 or K < 2 or len(H) % K or not np.all(np.isfinite(H)):
        raise ValueError(
            f"`features` must be finite, (N, d) with N a multiple of the {K} classes, got shape {H.shape}."
        )
    if not K - 1 <= H.shape[1] <= len(H) - K:
        raise ValueError(f"`features` must have K - 1 <= d <= N - K dimensions, got K = {K} and shape {H.shape}.")
    if flow not in FLOWS:
        raise ValueError(f"`flow` must be one of {FLOWS}, got {flow!r}.")
    schedule = checked_schedule("times", times)
    if flow != "free":
        values, vectors = np.linalg.eigh(_within(H, K))
        if values[0] <= 1e-12 * values[-1]:
            raise ValueError(
                "`features` must vary within classes in all dimensions; their within-class covariance has no inverse."
            )
        H = H @ (vectors / np.sqrt(values)) @ vectors.T
    points, status, now, left = [], Status.FINISHED, np.float64(0), STEPS
    with double_precision():
        point: Any = jnp.asarray(H)
        for target in schedule:
            while now < target and status == Status.FINISHED:
                before = now
                point, reached, made, okay = integrated(
                    _along_path(K, flow), "explicit", CHUNK, None, point, now, target, rtol, atol
                )
                now, left = np.float64(reached), left - int(made)
                if not bool(okay) or now - before <= STUCK * (target - before):
                    status = Status.INTEGRATION_FAILED
                elif left <= 0 and now < target:
                    status = Status.MAX_STEPS
            points.append((float(now), np.asarray(point)))
            if status != Status.FINISHED:
                break
    rows = np.stack([rows for _, rows in points])
    parts = [signal_to_noise(rows, K) for _, rows in points]
    return CentralPath(
        flow,
        K,
        len(H) // K,
        np.array([moment for moment, _ in points]),
        rows,
        np.array([_least_squares(rows, K) for _, rows in points]),
        np.stack([part[1] for part in parts]),
        (np.stack([part[0] for part in parts]), np.stack([part[2] for part in parts])),
        np.array([np.linalg.norm(_within(rows, K) - np.eye(rows.shape[1])) for _, rows in points]),
        STEPS - left,
        rtol,
        status,
    )


def path_clock(flow: str, values: Any) -> Float[np.ndarray, " *T"]:
    """Return what grows as the time along the path in units of n K^2: log v + v^2 + v^4 / 4, or log v + v^2 / 2 of the followed flow."""
    v = np.asarray(values, np.float64)
    return np.log(v) + (v**2 + v**4 / 4 if flow == "projected" else v**2 / 2)


class CentralPathCheck(NamedTuple):
    """A central path against its closed form.

    clock_error: the largest deviation of a clock from its start plus t / (n K^2), relative to all the time that went by (to one, where it is less).
    turned: the largest sine of the angles by which the singular vectors turned. loss_error: of L against (1/2K) sum 1 / (1 + v^2), relative.
    spread: (T,) largest over smallest v. tolerances: what the integrator's errors explain of the first two.
    """

    clock_error: float
    turned: float
    loss_error: float
    spread: Float[np.ndarray, " T"]
    tolerances: tuple[float, float]

    @property
    def holds(self) -> bool:
        """Whether clocks and vectors are within their tolerances, and the spread falls; False with NaN."""
        clock, angle = self.tolerances
        within = self.clock_error <= clock and self.turned <= angle and self.loss_error <= 1e-9
        return bool(within and self.spread.size > 1 and np.all(np.diff(self.spread) < 0))


def central_path_check(path: CentralPath) -> CentralPathCheck:
    """Check that singular vectors stand still, that singular values keep time, and that their ratios fall (all v distinct at the start)."""
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
    # Errors of steps add up. A relative error of v is one of v^4, four times the time, in its clock; angles suffer where singular values are close.
    slip = 2 * path.steps * path.rtol + 1e-13
    gap = np.min(np.abs(np.diff(v, axis=1)) / v[:, :-1]) if v.shape[1] > 1 else 1.0
    return CentralPathCheck(
        float(np.max(late)),
        float(np.max(turned)),
        float(np.max(np.abs(path.objective / loss - 1))),
        v[:, 0] / v[:, -1],
        (8 * slip, float(slip / gap)),
    )


def signal_to_noise(features: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return X (K, K - 1), v (K - 1,) and V (d, K - 1) with M Sigma_W^{-1/2} = sqrt(K) X diag(v) V^T."""
    values, vectors = np.linalg.eigh(_within(features, num_classes))
    values = np.maximum(values, np.finfo(np.float64).eps * values[-1])  # of a free flow, whose variability collapses
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
    """Return the vector field; the same object for the same settings, under which compiled code is kept."""
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

    # The symmetric matrix S with S Sigma_W + Sigma_W S = d Sigma_W / dt: what keeps Sigma_W where it is, exactly also where rounding has moved
    # it from I.
    residuals = rest(H)
    drift = rest(down).T @ residuals / N
    sizes, axes = jnp.linalg.eigh(residuals.T @ residuals / N)
    turn = axes @ ((axes.T @ (drift + drift.T) @ axes) / (sizes[:, None] + sizes[None, :])) @ axes.T
    return down - (residuals if flow == "projected" else centred) @ turn
