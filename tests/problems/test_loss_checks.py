"""Losses that are not what they say are found out; right ones, smooth or not, pass."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
from plain import CASES, COUNTS, Case
from tables import for_each, slow

import ufm
from ufm.certificates import loss_doubt
from ufm.problems import Loss, objection_to
from ufm.problems.loss_checks import LossReport, check_loss

CLASSES = ufm.ClassGroups(COUNTS)


class Lowered(ufm.SquaredError):
    """The squared error less five, with its conjugate and its infimum."""

    infimum = -5.0

    def __call__(self, logits: Any, targets: Any, classes: Any) -> Any:
        return super().__call__(logits, targets, classes) - 5

    def conjugate(self, dual: Any, targets: Any, classes: Any) -> Any:
        return super().conjugate(dual, targets, classes) + 5


class Hinge(Loss):
    """The hinge loss of every logit, with gradients on the boundary of its conjugate's domain."""

    convex = True
    shift_invariant = False

    def __call__(self, logits: Any, targets: Any, classes: Any) -> Any:
        return jnp.sum(jnp.maximum(0, 1 - (2 * targets - 1) * logits), axis=1)

    def conjugate(self, dual: Any, targets: Any, classes: Any) -> Any:
        return jnp.sum((2 * targets - 1) * dual, axis=1)

    def domain(self, dual: Any, targets: Any, classes: Any) -> Any:
        share = -(2 * targets - 1) * dual
        return jnp.concatenate([share, 1 - share], axis=1)

    def constant_dual(self, targets: Any, shares: Any, classes: Any) -> Any:
        # Per column, a b = c with a of the label's rows, of weight p, and b of the others: inside
        # (0, 1).
        own = (shares @ targets / jnp.sum(shares))[None, :]
        top = 0.5 / jnp.maximum(own, 1 - own)
        return -targets * top * (1 - own) + (1 - targets) * top * own


@jax.custom_jvp
def _steep(logits: Any, targets: Any) -> Any:
    return ufm.CrossEntropy()(logits, targets, CLASSES)


@_steep.defjvp
def _steeper(primals: Any, tangents: Any) -> Any:
    return jax.jvp(
        lambda z: ufm.CrossEntropy()(z, primals[1], CLASSES), primals[:1], (1.01 * tangents[0],)
    )


def changed(parent: type[Loss], **changes: Any) -> Loss:
    return type("Own", (parent,), changes)()


def entropy(z: Any, y: Any, c: Any) -> Any:
    return ufm.CrossEntropy()(z, y, c)


def conjugate(u: Any, y: Any, c: Any) -> Any:
    return ufm.CrossEntropy().conjugate(u, y, c)


def centred(z: Any) -> Any:
    return z - jnp.mean(z, axis=0, keepdims=True)


# Changes of the cross-entropy, and what at least they break.
CHANGES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "conjugate too low": (
        {"conjugate": lambda s, u, y, c: conjugate(u, y, c) - 5},
        {"bound", "equality"},
    ),
    "conjugate too high": (
        {"conjugate": lambda s, u, y, c: conjugate(u, y, c) + 1e-3},
        {"equality"},
    ),
    "conjugate of the parent": ({"__call__": lambda s, z, y, c: entropy(3 * z, y, c)}, {"domain"}),
    "conjugate not a number": (
        {"conjugate": lambda s, u, y, c: jnp.nan * u[:, 0]},
        {"bound", "equality"},
    ),
    "gradient": ({"__call__": lambda s, z, y, c: _steep(z, y)}, {"gradient", "domain"}),
    "not convex": (
        {"__call__": lambda s, z, y, c: ufm.Focal(2.0)(z, y, c)},
        {"convexity", "domain"},
    ),
    "domain": ({"domain": lambda s, u, y, c: -(y + u)}, {"domain", "constant dual"}),
    "mean of the constant dual": (
        {"constant_dual": lambda s, y, p, c: 1 / y.shape[1] - y},
        {"constant dual"},
    ),
    "rows": ({"__call__": lambda s, z, y, c: entropy(centred(z), y, c)}, {"rows"}),
    "shift": (
        {"__call__": lambda s, z, y, c: entropy(z, y, c) + jnp.sum(z, axis=1) ** 2},
        {"shift"},
    ),
    "not a number": (
        {"__call__": lambda s, z, y, c: jnp.nan * z[:, 0]},
        {"rows", "gradient", "shift", "infimum"},
    ),
}
WRONG = {
    name: (changed(ufm.CrossEntropy, **changes), broken)
    for name, (changes, broken) in CHANGES.items()
}
WRONG["infimum"] = changed(Lowered, infimum=0.0), {"infimum"}
WRONG["infimum by a little"] = changed(Lowered, infimum=-4.99), {"infimum"}
FEW = (
    "conjugate too low",
    "gradient",
    "not convex",
    "infimum",
    "not a number",
)  # compiled by default


@pytest.mark.parametrize(
    "name",
    [name if name in FEW else pytest.param(name, marks=pytest.mark.nightly) for name in WRONG],
)
def test_a_wrong_loss_is_found_out(name: str) -> None:
    loss, wrong = WRONG[name]
    report = check_loss(loss)
    assert not report
    assert not report.passed
    assert wrong <= set(report.failed)
    if name.startswith(("conjugate too", "infimum")):
        assert wrong == set(report.failed)
    assert f"Own: wrong: {', '.join(report.failed)}" in str(report)
    assert "FAILED" in str(report)


@for_each(
    "loss",
    [slow(Lowered()), Hinge(), slow(plain.stretched(ufm.CrossEntropy)()), ufm.Focal(2.0)],
)
def test_a_right_loss_passes(loss: Loss) -> None:
    for counts in (COUNTS, (7.0, 1.0)):
        report = check_loss(loss, counts)
        assert report, str(report)
    words = str(report)
    assert "no objection" in words
    assert ("not claimed" in words) == (not loss.convex or not loss.shift_invariant)


@pytest.mark.nightly
@for_each("case", CASES)
def test_the_losses_of_the_library_pass(case: Case) -> None:
    for key in range(5):
        report = check_loss(case.loss, COUNTS, key=key)
        assert report, str(report)


@pytest.mark.slow
def test_more_classes_than_rows_and_tiny_or_huge_losses_are_checked() -> None:
    assert check_loss(ufm.CrossEntropy(), np.arange(1.0, 151.0))
    for weight in (1e-12, 1e12):
        assert check_loss(ufm.ClassWeighted(weights=weight))


def test_parameters_that_do_not_fit_the_classes_are_named() -> None:
    with pytest.raises(ValueError, match="`offsets` must be one number, one per group"):
        check_loss(ufm.LogitAdjusted(offsets=(1.0, 2.0)))


def test_a_loss_is_checked_once_for_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(loss: Loss, classes: Any, targets: Any) -> LossReport:
        calls.append(loss)
        return LossReport("Own", ())

    monkeypatch.setattr("ufm.problems.loss_checks.check_loss", counted)
    kind = plain.stretched(ufm.LabelSmoothing)
    for alpha in (0.1, 0.2, 0.1):
        for counts in ((3.0, 2.0), (9.0, 2.0)):
            assert objection_to(kind(alpha), ufm.ClassGroups(counts)) == ""
    assert len(calls) == 2


def least_poisson(target: jax.Array) -> jax.Array:
    return jnp.sum(target - jax.scipy.special.xlogy(target, target))


@for_each(
    ("infimum", "failed"),
    [(0.0, ("infimum",)), (-2.3, ("infimum",)), (-2.44, ()), (least_poisson, ())],
)
def test_an_infimum_that_no_random_logits_come_near_is_found_by_descent(
    infimum: Any, failed: tuple[str, ...]
) -> None:
    """The Poisson loss of counts (0, 2, 5), which is never below -2.43."""

    def poisson(logits: jax.Array, target: jax.Array) -> jax.Array:
        return jnp.sum(jnp.exp(logits) - target * logits)

    loss = ufm.losses.from_function(poisson, infimum=infimum)
    assert check_loss(loss, targets=[[3, 1, 0], [0, 2, 5]]).failed == failed


def test_a_loss_is_tried_on_the_target_rows_that_it_is_used_with() -> None:
    """A squared error whose infimum holds for one-hot rows and no others."""
    loss = ufm.losses.from_function(
        lambda z, y: 0.5 * jnp.sum((z - y) ** 2) + 1 - jnp.sum(y), shift_invariant=False
    )
    rows = np.array([[1.0, 1.0, 0.0], [0.0, 5.0, 0.0]])
    assert check_loss(loss)
    assert check_loss(loss, targets=rows).failed == ("infimum",)
    for targets, words in ((np.eye(3), ""), (rows, "wrong in: infimum")):
        problem = ufm.Problem(
            targets=ufm.Targets(targets),
            feature_dim=3,
            loss=loss,
            regularizer=ufm.WeightDecay(weights=1e-2, features=1e-2),
        )
        assert words in loss_doubt(problem)
        assert bool(words) == bool(loss_doubt(problem))
