r"""Tests of what a loss states about itself, on random logits.

They test whether rows are separate, and the gradient, convexity, conjugate and infimum.

A certificate rests on what a loss states about itself: that l is convex, that its derivative is its
own, and that it is never below its infimum. If it states a conjugate, the certificate rests on that
instead. For a loss l with the conjugate l*(u) = sup_z <u, z> - l(z), a lower bound needs

    l(z) + l*(u) >= <u, z>    for all z and all u in the domain,    with equality at u = l'(z).

A wrong conjugate, or a loss that is not convex, violates this. The checks can refute a claim but
not prove it, because they see random points only, and where the infimum is needed also what descent
from them reaches. Each takes 96 rows of logits over three orders of magnitude, with the labels of
all classes in turn (of 96 classes if there are more).
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ufm._support import compiled, double_precision, on_host, printed, table_lines, to_numpy
from ufm.problems.class_sizes import ClassGroups

if TYPE_CHECKING:
    from ufm.problems.losses import Loss

__all__ = ["LossCheck", "LossReport", "check_loss", "objection_to"]

ROWS = 96
# No measurement of these numbers is recorded.
SIZES = (0.03, 0.3, 1.0, 3.0, 10.0, 30.0)  # of the logits
CHORD = (0.25, 0.5, 0.75)  # places on a chord
FAR = (1.0, 10.0, 100.0)  # steps downhill after which values are compared with the infimum
DESCENT = 100  # steps of the descent where a bound rests on the infimum
GROWTH, SHRINKAGE = 1.5, 0.5  # of a step of the descent that lowers the value, or does not
STEP = 1e-4  # step of the differences that gradients are compared with
SMOOTH = 1e-6  # tolerance of comparisons with differences
EXACT = 1e-9  # tolerance of comparisons that only rounding disturbs
INSIDE = 1e-12  # share of a dual well inside the domain that is mixed into the others
DUAL = 1e-7  # tolerance of the cost of that share, which near the boundary has its logarithm
FLOOR = 1e-3  # share of the mean size of the terms that is added to the scale of violations
KEPT = 4096  # answers of `objection_to` that are kept


class LossCheck(NamedTuple):
    """One claim of a loss, and the worst violation of it that was found.

    Attributes:
        name: The name of the check.
        claim: The claim, in words.
        violation: The largest violation, relative to the size of the terms; NaN without a claim.
        tolerance: The violation that rounding, or the finite step of a difference, explains.
        claimed: Whether the loss claims it.
    """

    name: str
    claim: str
    violation: float
    tolerance: float
    claimed: bool

    @property
    def passed(self) -> bool:
        """Whether the claim stands, or there is none; False for NaN."""
        return not self.claimed or bool(self.violation <= self.tolerance)


@printed
class LossReport(NamedTuple):
    """What `check_loss` found; true where every check passed. Prints as a table.

    Attributes:
        loss: The name of the loss.
        checks: One per claim.
    """

    loss: str
    checks: tuple[LossCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether every claim stands."""
        return not self.failed

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of the claims that do not stand."""
        return tuple(check.name for check in self.checks if not check.passed)

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        verdict = "no objection" if self.passed else f"wrong: {', '.join(self.failed)}"
        cells = [("check", "claim", "violation", "tolerance", "verdict")]
        for check in self.checks:
            found = f"{check.violation:.1e}" if check.claimed else "-"
            word = "not claimed" if not check.claimed else "ok" if check.passed else "FAILED"
            cells.append((check.name, check.claim, found, f"{check.tolerance:.0e}", word))
        return "\n".join([f"{self.loss}: {verdict}", *table_lines(cells)])


@on_host
def check_loss(
    loss: "Loss", class_counts: Any = (5.0, 3.0, 2.0), *, targets: Any = None, key: int = 0
) -> LossReport:
    """Check on random logits what a loss states about itself.

    `solve` does so for every loss that is not the library's own, before it trusts a certificate.

    Args:
        loss: A `Loss`.
        class_counts: Samples per class, a sequence or a `ClassGroups`; as many classes as the loss
            has parameters for.
        targets: Target rows on which the claims are tested, (R, K); 96 of them, if there are more.
            One-hot rows if not given.
        key: Integer seed of the logits.

    Returns:
        A report, true if every claim passed. A conjugate is tested where one is stated.

    Raises:
        ValueError: If a parameter of the loss does not fit the classes.

    Example:
        >>> import ufm
        >>> bool(ufm.losses.check_loss(ufm.CrossEntropy()))
        True
    """
    classes = class_counts if isinstance(class_counts, ClassGroups) else ClassGroups(class_counts)
    loss.check(classes)
    rows = np.eye(classes.num_classes) if targets is None else np.asarray(targets, np.float64)
    draws = np.random.default_rng(key)
    n = ROWS
    R = len(rows)
    labels = np.arange(n) % R if n >= R else np.arange(n) * R // n
    largest = np.max(np.abs(rows), axis=1, keepdims=True)
    # Rows of large numbers, as of a regression, are near their minimum at large logits only.
    sizes = np.resize(SIZES, n)[draws.permutation(n), None] * np.maximum(largest, 1)[labels]
    outputs = loss.num_outputs(rows.shape[1])
    one, other, direction = draws.standard_normal((3, n, outputs))
    # Half of the points are as at the end of training: the logit of the label is the largest.
    peaks = (rows / np.maximum(largest, np.finfo(float).tiny))[labels, :outputs]
    one = sizes * (one + np.where(draws.random(n) < 0.5, 3.0, 0.0)[:, None] * peaks)
    other = one + sizes[draws.permutation(n)] * other
    direction = direction / np.linalg.norm(direction, axis=1, keepdims=True)
    shares = draws.random(R) + 0.1
    # One count per class, so that all groupings share one compiled program.
    single = ClassGroups(np.array(classes.per_class)) if targets is None else classes
    with double_precision():
        points = (rows, labels, one, other, direction, shares / shares.sum())
        found = {
            name: float(value)
            for name, value in to_numpy(_measured(loss.per_class(classes), single, *points)).items()
        }
    convex, shift = bool(loss.convex), bool(loss.shift_invariant)
    conjugate = convex and loss.has_conjugate
    table = (
        ("rows", "a row's loss depends on that row only", EXACT, True),
        ("gradient", "the derivative is that of the values", SMOOTH, True),
        ("shift", "a constant added to all logits changes nothing", EXACT, shift),
        ("infimum", f"no value is below {_infimum_words(loss)}", EXACT, True),
        ("convexity", "no value lies above a chord", EXACT, convex),
        ("domain", "gradients lie in the domain of the conjugate", EXACT, conjugate),
        ("bound", "l(z) + l*(u) >= <u, z>", DUAL, conjugate),
        ("equality", "l(z) + l*(l'(z)) = <l'(z), z>", DUAL, conjugate),
        ("constant dual", "in the domain, with mean zero", EXACT, conjugate),
    )
    checks = (
        LossCheck(name, claim, found.get(name, np.nan), tol, claimed)
        for name, claim, tol, claimed in table
    )
    return LossReport(loss.label, tuple(checks))


def objection_to(loss: "Loss", classes: ClassGroups, targets: Any = None) -> str:
    """Return in words which claims of a loss `check_loss` found wrong; empty if none.

    A loss is checked once for each number of classes, or for the target rows that are given.
    """
    leaves, structure = jax.tree.flatten(loss)
    numbers = tuple(
        np.asarray(leaf).tobytes() if isinstance(leaf, np.ndarray) else leaf for leaf in leaves
    )
    rows = None if targets is None else np.asarray(targets, np.float64).tobytes()
    key = structure, numbers, classes.num_classes, rows
    if key not in _objections:
        while len(_objections) >= KEPT:
            _objections.pop(next(iter(_objections)))
        failed = check_loss(loss, classes, targets=targets).failed
        words = f"`ufm.losses.check_loss` says that {loss.label} is wrong in: {', '.join(failed)}"
        _objections[key] = words if failed else ""
    return _objections[key]


_objections: dict[Any, str] = {}


def _infimum_words(loss: "Loss") -> str:
    """Return what a loss says of its infimum."""
    return f"{loss.infimum:g}" if np.isfinite(loss.infimum) else "the infimum of its target row"


def _worst(violations: Array) -> Array:
    """Return the largest violation, at least zero; infinite if one is NaN."""
    return jnp.max(jnp.where(jnp.isnan(violations), jnp.inf, jnp.maximum(violations, 0)))


def _against(*terms: Array) -> Array:
    """Return the scale of violations, row by row.

    It is the size of the row's terms plus a thousandth of the mean size, for rows of tiny terms.
    """
    size = jnp.sum(jnp.abs(jnp.stack(terms)), axis=0)
    return size + FLOOR * jnp.mean(size) + jnp.finfo(size.dtype).tiny


def _descended(
    losses: Callable[[Array], Array], points: Float[Array, "n K"], targets: Float[Array, "n Q"]
) -> Float[Array, " n"]:
    """Return values that descent reaches from small logits, row by row.

    Steps of a length of their own go down the slope. A step that lowers the value is taken, and the
    next is longer; else the next is shorter.
    """

    def looked_at(logits: Array) -> tuple[Array, Array]:
        def total(z: Array) -> tuple[Array, Array]:
            found = losses(z)
            return jnp.sum(found), found

        slopes, found = jax.grad(total, has_aux=True)(logits)
        norms = jnp.linalg.norm(slopes, axis=1, keepdims=True)
        return found, slopes / jnp.maximum(norms, jnp.finfo(norms.dtype).tiny)

    def step(state: tuple[Array, ...], _: None) -> tuple[tuple[Array, ...], None]:
        logits, value, direction, length = state
        ahead = logits - length[:, None] * direction
        found, turned = looked_at(ahead)
        lower = found < value  # NaN compares false
        column = lower[:, None]
        taken = (
            jnp.where(column, ahead, logits),
            jnp.where(lower, found, value),
            jnp.where(column, turned, direction),
            jnp.where(lower, GROWTH, SHRINKAGE) * length,
        )
        return taken, None

    start = points / (1 + jnp.linalg.norm(points, axis=1, keepdims=True))
    length = jnp.maximum(1, jnp.max(jnp.abs(targets), axis=1))
    first: tuple[Array, ...] = (start, *looked_at(start), length)
    return jax.lax.scan(step, first, None, length=DESCENT)[0][1]


def _above(infimum: Array, lowest: Array, values: Array) -> Array:
    """Return by how much infima lie above the lowest values, those that are known.

    The scale is that of the lowest value, and of the middle one of all rows: some rows of an
    exponential have values beyond comparison with its infimum.
    """
    known = infimum != -jnp.inf
    infimum = jnp.where(known, infimum, 0)
    size = jnp.abs(lowest) + jnp.abs(infimum)
    size = size + FLOOR * jnp.median(jnp.abs(values) + size) + jnp.finfo(size.dtype).tiny
    return _worst(jnp.where(known, infimum - lowest, 0) / size)


# Nine checks on the same points and values, compiled as one program: kept whole.
@functools.partial(compiled, once=True)
def _measured(
    loss: Any,
    classes: ClassGroups,
    single: Float[Array, "T Q"],
    labels: Int[Array, " n"],
    one: Float[Array, "n K"],
    other: Float[Array, "n K"],
    direction: Float[Array, "n K"],
    shares: Float[Array, " T"],
) -> dict[str, Array]:
    """Return the worst violation of every claim, by its name."""
    n, ones = labels.shape[0], jnp.ones_like(one)
    targets = single[labels]

    def values(*points: Array) -> list[Array]:
        """Return the loss at several sets of points, in one call that compiles once."""
        tiled = jnp.tile(targets, (len(points), 1))
        return jnp.split(loss(jnp.concatenate(points), tiled, classes), len(points))

    def total(both: tuple[Array, Array]) -> tuple[Array, list[Array]]:
        found = values(*both)
        return jnp.sum(jnp.stack(found)), found

    (slope, elsewhere), (at, there) = jax.grad(total, has_aux=True)((one, other))
    even = (jnp.arange(n) % 2 == 0)[:, None]
    down = -slope / jnp.maximum(jnp.linalg.norm(slope, axis=1, keepdims=True), 1e-300)
    mixed, ahead, behind, shifted, at_zero, *rest = values(
        jnp.where(even, one, other),
        one + STEP * direction,
        one - STEP * direction,
        one + 1.7,
        0 * ones,
        *((1 - t) * one + t * other for t in CHORD),
        *(one + step * down for step in FAR),
    )
    chord, far = rest[: len(CHORD)], rest[len(CHORD) :]

    found = {
        "rows": _worst(jnp.abs(mixed - jnp.where(even[:, 0], at, there)) / _against(at, there))
    }

    # The derivative, or a subgradient at a kink, lies between the differences on both sides, up to
    # their error.
    along = jnp.sum(slope * direction, axis=1)
    sides = jnp.stack([ahead - at, at - behind]) / STEP
    outside = jnp.maximum(jnp.min(sides, axis=0) - along, along - jnp.max(sides, axis=0))
    found["gradient"] = _worst(outside / _against(at, jnp.linalg.norm(slope, axis=1)))

    found["shift"] = _worst(jnp.abs(shifted - at) / _against(at))

    lowest = functools.reduce(jnp.minimum, [at, there, at_zero, *far])
    if loss.convex and not loss.has_conjugate:  # bounds rest on the infimum
        lowest = jnp.minimum(lowest, _descended(lambda z: loss(z, targets, classes), one, targets))
    number = jnp.asarray(loss.infimum, at.dtype) * jnp.ones_like(at)
    found["infimum"] = jnp.maximum(
        _above(number, lowest, at), _above(loss.infima(targets, classes), lowest, at)
    )
    if not loss.convex:
        return found

    above = [middle - (1 - t) * at - t * there for t, middle in zip(CHORD, chord, strict=True)]
    found["convexity"] = _worst(jnp.stack(above) / _against(at, there)[None, :])
    if not loss.has_conjugate:
        return found

    # The dual of one row per class, as certificates use it.
    constants = loss.constant_dual(single, shares, classes)
    constant = constants[labels]
    duals = (slope, elsewhere, 0.5 * slope, 0.5 * (slope + elsewhere), constant)
    # Move the duals from the boundary of the domain, where rounding takes them outside, to just
    # inside.
    duals = tuple((1 - INSIDE) * dual + INSIDE * constant for dual in duals)
    stacked, tiled = jnp.concatenate(duals), jnp.tile(targets, (len(duals), 1))
    conjugates = jnp.split(loss.conjugate(stacked, tiled, classes), len(duals))
    margins = jnp.split(loss.domain(stacked, tiled, classes), len(duals))

    mean = jnp.max(jnp.abs(shares @ constants)) / jnp.maximum(jnp.max(jnp.abs(constants)), 1e-300)
    outside = jnp.where(loss.domain(constants, single, classes) > 0, 0.0, jnp.inf)
    found["constant dual"] = _worst(jnp.stack([mean, jnp.max(outside)]))
    found["domain"] = _worst(-margins[0] / jnp.max(jnp.abs(margins[0])))

    slacks = []
    for dual, conjugate, margin in zip(duals, conjugates, margins, strict=True):
        inside = jnp.all(margin > 0, axis=1)
        for logits, value in ((one, at), (other, there), (0 * ones, at_zero)):
            inner = jnp.sum(dual * logits, axis=1)
            slack = value + conjugate - inner
            slacks.append(
                jnp.where(
                    inside, slack / _against(value, jnp.where(inside, conjugate, 0), inner), 0
                )
            )
    found["bound"] = _worst(-jnp.stack(slacks))
    found["equality"] = _worst(jnp.abs(slacks[0]))
    return found
