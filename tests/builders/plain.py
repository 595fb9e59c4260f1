"""The models in plain NumPy, sample by sample, as the papers write them, and a small problem."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ufm
from ufm.problems import Loss, Parameters, Problem

COUNTS = (5.0, 3.0, 2.0)
K, N = 3, 10

OFFSETS = (0.3, -0.5, 0.1)
MULTIPLIERS = (1.0, 0.8, 0.5)
WEIGHTS = (0.5, 1.0, 3.0)
TEACHER = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.05, 0.25, 0.7]])


def cross_entropy(z: np.ndarray, k: int) -> float:
    return float(np.logaddexp.reduce(z) - z[k])


def squared_error(z: np.ndarray, k: int) -> float:
    return float(0.5 * np.sum((z - np.eye(len(z))[k]) ** 2))


def label_smoothing(z: np.ndarray, k: int, alpha: float) -> float:
    target = (1 - alpha) * np.eye(len(z))[k] + alpha / len(z)
    return float(-target @ (z - np.logaddexp.reduce(z)))


def focal(z: np.ndarray, k: int, gamma: float) -> float:
    p = np.exp(z[k] - np.logaddexp.reduce(z))
    return float(-((1 - p) ** gamma) * np.log(p))


def rivals(z: np.ndarray, k: int) -> np.ndarray:
    """The other logits less that of the class."""
    return np.delete(z, k) - z[k]


def binary_cross_entropy(z: np.ndarray, k: int) -> float:
    signs = np.where(np.arange(len(z)) == k, -1, 1)
    return float(np.sum(np.logaddexp(0, signs * z)))


def huber(z: np.ndarray, k: int, delta: float) -> float:
    x = np.abs(z - np.eye(len(z))[k])
    return float(np.sum(np.where(x <= delta, x**2 / 2, delta * (x - delta / 2))))


def distillation(z: np.ndarray, k: int, w: float, temperature: float, q: np.ndarray) -> float:
    log_p = z / temperature - np.logaddexp.reduce(z / temperature)
    some = q > 0
    divergence = np.sum(q[some] * (np.log(q[some]) - log_p[some]))
    return float((1 - w) * cross_entropy(z, k) + w * temperature**2 * divergence)


class Case(NamedTuple):
    """A loss and its plain formula: (logits of a sample, its class, all class counts) -> number."""

    name: str
    loss: Loss
    formula: Callable[[np.ndarray, int, np.ndarray], float]


CASES = [
    Case("cross-entropy", ufm.CrossEntropy(), lambda z, k, n: cross_entropy(z, k)),
    Case("squared-error", ufm.SquaredError(), lambda z, k, n: squared_error(z, k)),
    Case("label-smoothing", ufm.LabelSmoothing(0.2), lambda z, k, n: label_smoothing(z, k, 0.2)),
    Case("focal", ufm.Focal(2.0), lambda z, k, n: focal(z, k, 2.0)),
    Case("focal-below-one", ufm.Focal(0.5), lambda z, k, n: focal(z, k, 0.5)),
    Case(
        "logit-adjusted",
        ufm.LogitAdjusted(1.5),
        lambda z, k, n: cross_entropy(z + 1.5 * np.log(n / n.sum()), k),
    ),
    Case(
        "logit-offsets",
        ufm.LogitAdjusted(offsets=OFFSETS),
        lambda z, k, n: cross_entropy(z + np.array(OFFSETS), k),
    ),
    Case("cdt", ufm.CDT(0.4), lambda z, k, n: cross_entropy(z * (n / n.max()) ** 0.4, k)),
    Case(
        "cdt-multipliers",
        ufm.CDT(multipliers=MULTIPLIERS),
        lambda z, k, n: cross_entropy(z * np.array(MULTIPLIERS), k),
    ),
    Case("ldt", ufm.LDT(0.4), lambda z, k, n: cross_entropy(z * (n[k] / n.max()) ** 0.4, k)),
    Case(
        "ldt-multipliers",
        ufm.LDT(multipliers=MULTIPLIERS),
        lambda z, k, n: cross_entropy(z * MULTIPLIERS[k], k),
    ),
    Case(
        "class-weighted",
        ufm.ClassWeighted(0.7),
        lambda z, k, n: (n.sum() / (len(n) * n[k])) ** 0.7 * cross_entropy(z, k),
    ),
    Case(
        "class-weighted-squared",
        ufm.ClassWeighted(weights=WEIGHTS, loss=ufm.SquaredError()),
        lambda z, k, n: WEIGHTS[k] * squared_error(z, k),
    ),
    Case(
        "class-weighted-cdt",
        ufm.ClassWeighted(weights=WEIGHTS, loss=ufm.CDT(multipliers=MULTIPLIERS)),
        lambda z, k, n: WEIGHTS[k] * cross_entropy(z * np.array(MULTIPLIERS), k),
    ),
    Case(
        "class-weighted-ldt",
        ufm.ClassWeighted(weights=WEIGHTS, loss=ufm.LDT(multipliers=MULTIPLIERS)),
        lambda z, k, n: WEIGHTS[k] * cross_entropy(z * MULTIPLIERS[k], k),
    ),
    Case(
        "ldam",
        ufm.LDAM(0.5),
        lambda z, k, n: cross_entropy(z - 0.5 * (n.min() / n[k]) ** 0.25 * np.eye(len(z))[k], k),
    ),
    Case(
        "ldam-margins",
        ufm.LDAM(margins=OFFSETS),
        lambda z, k, n: cross_entropy(z - OFFSETS[k] * np.eye(len(z))[k], k),
    ),
    Case(
        "distillation",
        ufm.Distillation(0.4, temperature=3.0, teacher=TEACHER),
        lambda z, k, n: distillation(z, k, 0.4, 3.0, TEACHER[k]),
    ),
    Case(
        "distillation-cold",
        ufm.Distillation(0.8, temperature=0.5),
        lambda z, k, n: distillation(z, k, 0.8, 0.5, np.eye(len(z))[k]),
    ),
    Case("binary", ufm.BinaryCrossEntropy(), lambda z, k, n: binary_cross_entropy(z, k)),
    Case(
        "pairwise-logistic",
        ufm.PairwiseLogistic(),
        lambda z, k, n: float(np.sum(np.logaddexp(0, rivals(z, k)))),
    ),
    Case("exponential", ufm.Exponential(), lambda z, k, n: float(np.sum(np.exp(rivals(z, k))))),
    Case(
        "squared-hinge",
        ufm.SquaredHinge(),
        lambda z, k, n: float(np.sum(np.maximum(0, 1 + rivals(z, k)) ** 2) / 2),
    ),
    Case(
        "weston-watkins",
        ufm.WestonWatkins(),
        lambda z, k, n: float(np.sum(np.maximum(0, 1 + rivals(z, k)))),
    ),
    Case(
        "crammer-singer",
        ufm.CrammerSinger(),
        lambda z, k, n: float(max(0, 1 + np.max(rivals(z, k)))),
    ),
    Case("huber", ufm.Huber(0.7), lambda z, k, n: huber(z, k, 0.7)),
    Case("poisson", ufm.Poisson(), lambda z, k, n: float(np.sum(np.exp(z)) - z[k] - 1)),
    Case(
        "class-weighted-binary",
        ufm.ClassWeighted(weights=WEIGHTS, loss=ufm.BinaryCrossEntropy()),
        lambda z, k, n: WEIGHTS[k] * binary_cross_entropy(z, k),
    ),
]
CONVEX = [case for case in CASES if case.loss.convex]


def named(case: Case) -> str:
    return case.name


def a_problem(**changes: Any) -> Problem:
    """A small cross-entropy problem of three unequal classes."""
    fields = {
        "class_counts": COUNTS,
        "feature_dim": 4,
        "loss": ufm.CrossEntropy(),
        "regularizer": ufm.WeightDecay(weights=0.02, features=0.005, bias=0.03),
    }
    return Problem(**(fields | changes))


def random_parameters(
    problem: Problem, rows: int | None = None, seed: int = 0, scale: float = 1.0
) -> Parameters:
    rng = np.random.default_rng(seed)
    dims = problem.layer_dims
    weights = tuple(
        scale * rng.normal(size=(dims[i + 1], dims[i])) for i in range(problem.num_layers)
    )
    features = scale * rng.normal(size=(dims[-1] if rows is None else rows, dims[0]))
    return Parameters(weights, features, rng.normal(size=dims[-1]) if problem.use_bias else None)


def on_device(parameters: Parameters) -> Parameters:
    return jax.tree.map(jnp.asarray, parameters)


def logits(problem: Problem, parameters: Parameters) -> np.ndarray:
    rows = []
    for h in parameters.features:
        for matrix in parameters.weights[:-1]:
            h = matrix @ h
            h = np.maximum(h, 0) if problem.activation == "relu" else h
        rows.append(
            parameters.weights[-1] @ h + (0 if parameters.bias is None else parameters.bias)
        )
    return np.array(rows)


def objective(
    problem: Problem, formula: Callable[..., float], parameters: Parameters, classes: np.ndarray
) -> float:
    """(1/N) sum_i loss(z_i, y_i) + penalties, with a feature row for every entry of `classes`."""
    counts = np.asarray(problem.class_counts)
    rows = logits(problem, parameters)
    value = sum(formula(z, k, counts) for z, k in zip(rows, classes, strict=True)) / len(classes)
    if isinstance(problem.regularizer, ufm.NormBall):
        return value
    decays = np.broadcast_to(problem.regularizer.weights, (problem.num_layers,))
    for decay, matrix in zip(decays, parameters.weights, strict=True):
        value += decay / 2 * np.sum(matrix**2)
    value += float(problem.regularizer.features) / 2 * np.sum(parameters.features**2)
    if parameters.bias is not None:
        value += float(problem.regularizer.bias) / 2 * np.sum(parameters.bias**2)
    return float(value)


def gradient(f: Callable[[np.ndarray], float], x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences."""
    slopes = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        e = np.zeros_like(x)
        e[index] = step
        slopes[index] = (f(x + e) - f(x - e)) / (2 * step)
    return slopes


def squared_error_minimum(problem: Problem) -> float:
    """Optimal value without bias: the singular values sqrt(n_k) of Y, each less N tau.

    Dang et al. (2023).
    """
    counts = np.asarray(problem.class_counts)
    total = counts.sum()
    tau = float(np.sqrt(problem.regularizer.weights * problem.regularizer.features))
    roots = np.sqrt(counts)
    kept = np.maximum(roots - total * tau, 0)
    return float(np.sum((roots - kept) ** 2 / (2 * total) + tau * kept))


def cross_entropy_minimum(num_classes: int, count: float, weights: float, features: float) -> float:
    """Optimal value for balanced classes: a simplex ETF with margin M (Zhu et al. 2021)."""
    price = np.sqrt(weights * features * count)
    margin = max(0.0, np.log(1 / price - (num_classes - 1)))
    return float(np.log1p((num_classes - 1) * np.exp(-margin)) + price * (num_classes - 1) * margin)


class Traced(Loss):
    """The squared error, counting how often Python runs it: once per trace."""

    convex = True
    shift_invariant = False
    traces = 0

    def __call__(self, logits: Any, targets: Any, classes: Any) -> Any:
        Traced.traces += 1
        return ufm.SquaredError()(logits, targets, classes)

    def conjugate(self, dual: Any, targets: Any, classes: Any) -> Any:
        return ufm.SquaredError().conjugate(dual, targets, classes)

    def domain(self, dual: Any, targets: Any, classes: Any) -> Any:
        return ufm.SquaredError().domain(dual, targets, classes)

    def constant_dual(self, targets: Any, shares: Any, classes: Any) -> Any:
        return ufm.SquaredError().constant_dual(targets, shares, classes)


def stretched(kind: type[Loss]) -> type[Loss]:
    """A subclass of a loss with three times its logits, and with the conjugate that belongs to it.

    Features of a third of the size make up for the stretch: under weight decay its minimum is that
    of `kind` with a ninth of the penalty on the features.
    """

    class Stretched(kind):  # type: ignore[misc, valid-type]
        def __call__(self, logits: Any, targets: Any, classes: Any) -> Any:
            return super().__call__(3 * logits, targets, classes)

        def conjugate(self, dual: Any, targets: Any, classes: Any) -> Any:
            return super().conjugate(dual / 3, targets, classes)

        def conjugate_size(self, dual: Any, targets: Any, classes: Any) -> Any:
            return super().conjugate_size(dual / 3, targets, classes)

        def domain(self, dual: Any, targets: Any, classes: Any) -> Any:
            return super().domain(dual / 3, targets, classes)

        def constant_dual(self, targets: Any, shares: Any, classes: Any) -> Any:
            return 3 * super().constant_dual(targets, shares, classes)

    Stretched.__name__ = f"Stretched{kind.__name__}"
    return Stretched
