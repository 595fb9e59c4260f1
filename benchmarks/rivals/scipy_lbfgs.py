r"""SciPy's L-BFGS-B, gradient by hand in NumPy float64, at class level: a feature row per class.

Two variants. "plain" moves W and H themselves, from N(0, 0.1^2). "balanced" moves V and U with W =
s V and sqrt(n_k) h_k = u_k / s, s = (lambda_H / lambda_W)^{1/4}, in which both penalties are equal,
from Gaussian blocks of squared norm sum_k n_k^{1/2}: the coordinates that suit the problem, written
by hand. SciPy's own stopping rules are off, so that it goes on until it arrives or can find no
better point. Short runs are repeated, and the fastest counts.
"""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.optimize

from benchmarks.measurement import TARGETS, Measurement
from benchmarks.objective import value_and_gradient
from benchmarks.problems import Setting

__all__ = ["flattened", "measure", "objective", "objective_at"]

LABELS = {"plain": "SciPy L-BFGS-B on (W, H)", "balanced": "SciPy L-BFGS-B, balanced"}
OPTIONS = {"maxcor": 12, "maxiter": 10**9, "maxfun": 10**9, "ftol": 0.0, "gtol": 0.0, "maxls": 50}
REPEATS = 5
SHORT = 2.0


def objective(setting: Setting, variant: str, x: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the objective and its gradient at the flat unknowns."""
    scale_w, scale_h = _scales(setting, variant)
    weights, features = _blocks(setting, x)
    value, by_weights, by_features = value_and_gradient(
        setting, scale_w * weights, scale_h * features
    )
    return value, np.concatenate([(scale_w * by_weights).ravel(), (scale_h * by_features).ravel()])


def flattened(
    setting: Setting, variant: str, weights: np.ndarray, features: np.ndarray
) -> np.ndarray:
    """Return the flat unknowns at given parameters."""
    scale_w, scale_h = _scales(setting, variant)
    return np.concatenate([(weights / scale_w).ravel(), (features / scale_h).ravel()])


def measure(
    setting: Setting, variant: str, optimum: float, limit: float
) -> Iterator[list[Measurement]]:
    """Minimise until every target is reached, the time is up, or SciPy gives up."""
    measurement, started = Measurement(LABELS[variant], optimum), time.perf_counter()
    for _ in range(REPEATS):
        _minimise(setting, variant, measurement, limit)
        yield [measurement]
        if time.perf_counter() - started > SHORT:
            break


def _minimise(setting: Setting, variant: str, measurement: Measurement, limit: float) -> None:
    goal = measurement.optimum * (1 + min(TARGETS))
    began = time.perf_counter()

    def function(x: np.ndarray) -> tuple[float, np.ndarray]:
        return objective(setting, variant, x)

    def look(intermediate_result: Any) -> None:
        seconds, value = time.perf_counter() - began, float(intermediate_result.fun)
        measurement.report(seconds, value)
        if value <= goal or seconds > limit:
            raise StopIteration

    result = scipy.optimize.minimize(
        function,
        _start(setting, variant),
        jac=True,
        method="L-BFGS-B",
        callback=look,
        options=OPTIONS,
    )
    measurement.timed_out = not measurement.done and time.perf_counter() - began > limit
    measurement.note = f"{result.nit} steps, {result.nfev} evaluations"


def objective_at(
    setting: Setting, variant: str, weights: np.ndarray, features: np.ndarray
) -> float:
    """Return the objective that is minimised, at class-level parameters."""
    return objective(setting, variant, flattened(setting, variant, weights, features))[0]


def _start(setting: Setting, variant: str) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(2 * setting.num_classes * setting.dim)
    if variant == "plain":
        return 0.1 * noise
    return noise * np.sqrt(np.sum(np.sqrt(setting.counts)) / (setting.num_classes * setting.dim))


def _scales(setting: Setting, variant: str) -> tuple[float, np.ndarray]:
    if variant == "plain":
        return 1.0, np.ones((setting.num_classes, 1))
    scale = (setting.features / setting.weights) ** 0.25
    return scale, 1 / (scale * np.sqrt(np.asarray(setting.counts, np.float64))[:, None])


def _blocks(setting: Setting, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    weights, features = x.reshape(2, setting.num_classes, setting.dim)
    return weights, features
