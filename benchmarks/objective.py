r"""The objective in NumPy float64, in the three forms that the methods work on.

Factored, with c_i = 1 for a sample and n_k for a class:

    sum_i (c_i/N) l(z_i, y_i) + (lambda_W/2) ||W||^2 + (lambda_H/2) sum_i c_i ||h_i||^2,

    z_i = W h_i.

Convex, with tau = sqrt(lambda_W lambda_H) and D = diag(n_k):

    sum_k (n_k/N) l(z_k, y_k) + tau ||D^{1/2} Z||_*.

The gaps of all rivals are computed from these, whatever the precision in which they ran themselves.
"""

import numpy as np

from benchmarks.problems import Setting

__all__ = ["convex", "factored", "losses", "value_and_gradient"]


def losses(kind: str, logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss of every row of `logits`, and its gradient."""
    rows = np.arange(len(labels))
    if kind == "mse":
        error = logits.copy()
        error[rows, labels] -= 1
        return 0.5 * np.sum(error**2, axis=1), error
    shifted = logits - np.max(logits, axis=1, keepdims=True)
    gradient = np.exp(shifted)
    total = np.sum(gradient, axis=1)
    value = np.log(total) - shifted[rows, labels]
    gradient /= total[:, None]
    gradient[rows, labels] -= 1
    return value, gradient


def value_and_gradient(
    setting: Setting, weights: np.ndarray, features: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the factored objective and its gradients, for features with one row per class."""
    counts = np.asarray(setting.counts, np.float64)
    values, rows = losses(setting.loss, features @ weights.T, np.arange(setting.num_classes))
    rows *= (counts / setting.num_samples)[:, None]
    decayed = setting.features * counts[:, None] * features
    value = counts @ values / setting.num_samples
    value += 0.5 * setting.weights * np.sum(weights**2) + 0.5 * np.sum(decayed * features)
    return float(value), rows.T @ features + setting.weights * weights, rows @ weights + decayed


def factored(setting: Setting, weights: np.ndarray, features: np.ndarray) -> float:
    """Return the factored objective, for features with one row per class or one per sample."""
    weights, features = np.asarray(weights, np.float64), np.asarray(features, np.float64)
    if len(features) == setting.num_classes:
        return value_and_gradient(setting, weights, features)[0]
    values, _ = losses(setting.loss, features @ weights.T, setting.labels)
    decay = setting.weights * np.sum(weights**2) + setting.features * np.sum(features**2)
    return float(np.mean(values) + 0.5 * decay)


def convex(setting: Setting, logits: np.ndarray) -> float:
    """Return the convex objective: the least factored one of points with these class logits."""
    logits, counts = np.asarray(logits, np.float64), np.asarray(setting.counts, np.float64)
    values, _ = losses(setting.loss, logits, np.arange(setting.num_classes))
    singular = np.linalg.svd(np.sqrt(counts)[:, None] * logits, compute_uv=False)
    return float(counts @ values / setting.num_samples + setting.tau * np.sum(singular))
