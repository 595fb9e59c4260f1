"""Full-batch gradient descent in PyTorch as the papers run it: N samples, float32, N(0, 0.1^2).

The loss is PyTorch's, the penalties are the optimiser's `weight_decay`, one per parameter group.
Every now and then the clock is stopped and the objective evaluated in float64 at the point reached,
so that the gap is not limited by the rounding of the float32 loss; the iterates themselves are, and
where they stop improving is their floor.
"""

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from benchmarks.measurement import Clock, Measurement
from benchmarks.objective import factored
from benchmarks.problems import Setting

__all__ = ["measure", "objective_at", "stepper"]

LEARNING_RATE = 0.1
TRIAL_STEPS = 10
MOMENTUM = {"gd": 0.0, "sgd": 0.9}
INIT_SCALE = 0.1
LABELS = {"gd": "PyTorch GD, lr 0.1", "sgd": "PyTorch SGD, lr 0.1, momentum 0.9"}


def data_term(setting: Setting, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean loss over the samples."""
    if setting.loss == "ce":
        return torch.nn.functional.cross_entropy(logits, labels)
    targets = torch.nn.functional.one_hot(labels, setting.num_classes).to(logits.dtype)
    return 0.5 * torch.nn.functional.mse_loss(logits, targets, reduction="sum") / len(labels)


def stepper(
    setting: Setting, weights: torch.Tensor, features: torch.Tensor, momentum: float
) -> Callable[[], None]:
    """Return a function that makes one step, in place, on the two leaves."""
    labels = torch.from_numpy(setting.labels)
    groups = [
        {"params": [weights], "weight_decay": setting.weights},
        {"params": [features], "weight_decay": setting.features},
    ]
    optimizer = torch.optim.SGD(groups, lr=LEARNING_RATE, momentum=momentum)

    def step() -> None:
        optimizer.zero_grad()
        data_term(setting, features @ weights.T, labels).backward()
        optimizer.step()

    return step


def measure(
    setting: Setting, variant: str, optimum: float, limit: float
) -> Iterator[list[Measurement]]:
    """Descend until every target is reached or the time is up."""
    threads = _use_the_faster_threads(setting)
    weights, features = _start(setting)
    step = stepper(setting, weights, features, MOMENTUM[variant])
    measurement, clock, steps, looked = Measurement(LABELS[variant], optimum), Clock(), 0, 0.0
    while clock.seconds < limit and not measurement.done:
        # Look at least every second, and after 2 % more time: arrivals are known to 2 %.
        next_look = min(max(1.02 * looked, looked + 1e-3), looked + 1.0, limit)
        while clock.seconds < next_look:
            step()
            steps += 1
        with clock.paused() as looked:
            value = factored(setting, weights.detach().numpy(), features.detach().numpy())
            if not np.isfinite(value):
                measurement.trouble = "diverged"
                break
            measurement.report(looked, value)
    measurement.timed_out = not measurement.done and not measurement.trouble
    measurement.note = f"float32, {threads} thread{'s' * (threads > 1)}, {steps} steps"
    yield [measurement]


def objective_at(
    setting: Setting, variant: str, weights: np.ndarray, features: np.ndarray
) -> float:
    """Return the descended objective, in float64, with class-level parameters at every sample."""
    w, h = torch.from_numpy(weights), torch.from_numpy(features[setting.labels])
    penalty = 0.5 * setting.weights * torch.sum(w**2) + 0.5 * setting.features * torch.sum(h**2)
    return float(data_term(setting, h @ w.T, torch.from_numpy(setting.labels)) + penalty)


def _start(setting: Setting) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    weights = (INIT_SCALE * torch.randn(setting.num_classes, setting.dim)).requires_grad_()
    features = (INIT_SCALE * torch.randn(setting.num_samples, setting.dim)).requires_grad_()
    return weights, features


def _use_the_faster_threads(setting: Setting) -> int:
    """Set one thread or all, whichever steps faster. It makes the slow first call, too."""
    seconds = {}
    for threads in {torch.get_num_threads(), 1}:
        torch.set_num_threads(threads)
        step = stepper(setting, *_start(setting), momentum=0.0)
        step()
        began = time.perf_counter()
        for _ in range(TRIAL_STEPS):
            step()
        seconds[threads] = time.perf_counter() - began
    fastest = min(seconds, key=seconds.__getitem__)
    torch.set_num_threads(fastest)
    return fastest
