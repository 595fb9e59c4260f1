"""Whether every method minimises the same function: all objectives at one random point.

The factored and the convex form agree where the factors are balanced, lambda_W W^T W = lambda_H H^T
D H. So the point is W = s Q S^{1/2} R, D^{1/2} H = s^{-1} P S^{1/2} R, with P S Q^T the singular
value decomposition of a random D^{1/2} Z, s = (lambda_H / lambda_W)^{1/4}, and R a random frame of
R^d.
"""

import numpy as np

from benchmarks.objective import convex, factored
from benchmarks.problems import Setting
from benchmarks.rivals import RIVALS

__all__ = ["balanced_point", "disagreements"]


def balanced_point(setting: Setting, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return W and class-level H, both (K, d), where both forms of the objective agree; d >= K."""
    rng = np.random.default_rng(seed)
    roots = np.sqrt(np.asarray(setting.counts, np.float64))[:, None]
    left, singular, right = np.linalg.svd(roots * rng.standard_normal((setting.num_classes,) * 2))
    frame = np.linalg.qr(rng.standard_normal((setting.dim, setting.num_classes)))[0].T
    scale = (setting.features / setting.weights) ** 0.25
    weights = scale * (right.T * np.sqrt(singular)) @ frame
    features = (left * np.sqrt(singular)) @ frame / (scale * roots)
    return weights, features


def disagreements(setting: Setting, seed: int = 0) -> dict[str, float]:
    """Return, for every installed method, how far its objective is from `ufm`'s, relatively."""
    weights, features = balanced_point(setting, seed)
    ours = RIVALS["ufm"].load().objective_at(setting, "", weights, features)
    values = {
        "NumPy, classes": factored(setting, weights, features),
        "NumPy, samples": factored(setting, weights, features[setting.labels]),
        "NumPy, convex": convex(setting, features @ weights.T),
    }
    for name, rival in RIVALS.items():
        if not rival.missing:
            values[name] = rival.load().objective_at(setting, rival.variant, weights, features)
    return {name: abs(value - ours) / ours for name, value in values.items()}
