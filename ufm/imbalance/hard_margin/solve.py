r"""The hard-margin problem, solved and certified; and how cross-entropy approaches it.

`certified_margins` is the pure core: it can be passed to `jit` and `vmap`. `solve_hard_margin` is
the host's side.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ufm._support import (
    ArgumentError,
    Module,
    Status,
    check_instance,
    compiled,
    double_precision,
    holds_text,
    on_host,
    printed,
    to_numpy,
    within_steps,
)
from ufm.imbalance.hard_margin.certificate import (
    ZERO,
    MarginEvidence,
    margin_evidence,
    polar_multipliers,
    polished_dual,
    row_dual,
    row_evidence,
    row_margins,
    scaled_to_margins,
)
from ufm.imbalance.hard_margin.interior_point import (
    LARGEST_GROUPS,
    RowMarginPath,
    follow_margins,
    follow_row_margins,
)
from ufm.imbalance.hard_margin.problem import (
    GroupMargins,
    HardMargin,
    RowMargins,
    logits_of,
    margin_groups,
    margin_rows,
)
from ufm.problems import Blocks, CrossEntropy, WeightDecay, check_dense, over_groups, rows_of
from ufm.solving import solve_batch
from ufm.solving.methods import PATH_STEPS
from ufm.theory import SELI, SupportProxy, seli, support_proxy

__all__ = [
    "ClosedFormCheck",
    "HardMargin",
    "HardMarginBlocks",
    "HardMarginRows",
    "HardMarginSolution",
    "ProxyCheck",
    "SELIApproach",
    "SELIErrors",
    "approach_to_seli",
    "certified_margins",
    "certified_rows",
    "certify_hard_margin",
    "closed_form_check",
    "compare_with_seli",
    "proxy_check",
    "row_path",
    "solve_hard_margin",
]

PATH_GAP = 1e-13  # relative duality gap at which the interior-point path ends
SMALLEST_DECAY = 1e-6
CERTIFIED = 1e-9  # relative gap and error of the value up to which a closed form holds
GEOMETRY = 1e-7  # relative error of logits and Gram matrices up to which a closed form holds
ACTIVE = 1e-6  # relative excess over the margin asked for, up to which a constraint is active


class HardMarginBlocks(NamedTuple):
    """The K x K matrices of a solution, over groups.

    Attributes:
        logits: Z.
        weight_gram: Gram matrix of the weights.
        feature_gram: Gram matrix of the class means.
        multipliers: Multiplier of every margin.
    """

    logits: Blocks
    weight_gram: Blocks
    feature_gram: Blocks
    multipliers: Blocks

    def dense(self, groups: np.ndarray) -> "HardMarginRows":
        """Return them as matrices, one row per class; `groups` has the group of every class."""
        return HardMarginRows(*(matrix.dense(groups) for matrix in self))


class HardMarginRows(NamedTuple):
    """The answers as matrices over R rows and K outputs; see `HardMarginSolution`."""

    logits: Float[np.ndarray, "R K"]
    weight_gram: Float[np.ndarray, "K K"]
    feature_gram: Float[np.ndarray, "R R"]
    multipliers: Float[np.ndarray, "R K"]

    def dense(self, groups: np.ndarray) -> "HardMarginRows":
        """Return them as they are."""
        return self


class HardMarginSolution(Module):
    """The solution of a hard-margin problem.

    All arrays are NumPy. There are G groups of interchangeable classes, or R target rows. The
    properties `logits`, `weight_gram`, `feature_gram` and `multipliers` are formed when asked for.

    Attributes:
        problem: What was solved.
        groups: The group of every class, (K,); for targets the distinct row of every row, (R,).
        answers: The matrices as blocks, for targets as they are.
        certificate: Value, lower bound and smallest margin.
        support: Whether a class of group g just has its margin over one of group h, with a positive
            multiplier, (G, G); False if there is no such pair. For targets (R, K), whether a row
            has it over an entry off its support.
        status: Status of the path.
        steps: Steps of the path.
    """

    problem: HardMargin
    groups: Int[np.ndarray, " n"]
    answers: HardMarginBlocks | HardMarginRows
    certificate: MarginEvidence
    support: Bool[np.ndarray, "n m"]
    status: Status
    steps: int

    @property
    def blocks(self) -> HardMarginBlocks:
        """The K x K answers as blocks over groups of classes.

        Raises:
            ValueError: For targets, which have matrices only.
        """
        if isinstance(self.answers, HardMarginRows):
            raise ValueError(
                "the answers for targets are no blocks; use `logits`, `weight_gram`, "
                "`feature_gram` and `multipliers`"
            )
        return self.answers

    @property
    def value(self) -> float:
        """(1/2) ||W||^2 + (1/2) sum_i ||h_i||^2, for logits that have the margins."""
        return float(self.certificate.value)

    @property
    def lower_bound(self) -> float:
        """A bound below which no feasible point goes."""
        return float(self.certificate.lower_bound)

    @property
    def relative_gap(self) -> float:
        """Value less lower bound, over the lower bound."""
        return float(self.certificate.relative_gap)

    @property
    def smallest_margin(self) -> float:
        """The smallest margin, as a multiple of the one asked for, rounding taken off."""
        return float(self.certificate.smallest_margin)

    def holds(self, tolerance: float = 1e-9) -> bool:
        """Whether the solution is certified to a relative `tolerance`."""
        return self.certificate.holds(tolerance)

    @property
    def logits(self) -> Float[np.ndarray, "R K"]:
        """Z, row k the logits of class k, or of target row k."""
        return self.answers.dense(self.groups).logits

    @property
    def weight_gram(self) -> Float[np.ndarray, "K K"]:
        """W W^T."""
        return self.answers.dense(self.groups).weight_gram

    @property
    def feature_gram(self) -> Float[np.ndarray, "R R"]:
        """Inner products of the class means, or of the features of the target rows."""
        return self.answers.dense(self.groups).feature_gram

    @property
    def multipliers(self) -> Float[np.ndarray, "R K"]:
        """Dual multipliers lambda_yc of the margins of class y over class c; zero diagonal.

        Each is the sum over all samples of class y. For targets, those of the margins of row y over
        entry c; in the support those of the equalities, of any sign, whose sum is zero.
        """
        return self.answers.dense(self.groups).multipliers


def certified_margins(
    problem: GroupMargins, tol: Any = PATH_GAP, max_steps: int = PATH_STEPS
) -> tuple[HardMarginBlocks, MarginEvidence, Bool[Array, "G G"], Int[Array, ""], Int[Array, ""]]:
    """Solve a hard-margin problem over groups, and certify it.

    Pure: it can be jit-compiled and vmapped.

    Returns:
        The answers, the evidence, the support (G, G), the status and the steps.
    """
    path = follow_margins(problem, tol, max_steps)
    logits = scaled_to_margins(problem, path.logits)
    evidence = margin_evidence(problem, logits, path.multipliers)
    # Dual multipliers are those of the bound: divided by the norm that they have.
    multipliers = path.multipliers / evidence.norm
    sizes, delta, roots = problem.sizes, problem.multipliers, jnp.sqrt(problem.counts)
    rows = rows_of(logits)
    margins = delta[:, None] * rows.own[:, None] - delta[None, :] * rows.others
    tight = margins - problem.margins[:, None] <= ACTIVE * problem.margins[:, None]
    support = (problem.times > 0) & tight & (multipliers > 0)
    features, weights, _ = logits.scaled_rows(roots).moduli()
    outer = roots[:, None] * roots[None, :]
    same = jnp.diagonal(multipliers)
    pairs = jnp.sqrt(sizes[:, None] * sizes[None, :])
    blocks = HardMarginBlocks(
        logits=logits,
        weight_gram=weights,
        feature_gram=Blocks(features.within / problem.counts, features.between / outer, sizes),
        multipliers=Blocks(-same, pairs * multipliers - jnp.diag(same), sizes),
    )
    return blocks, evidence, support, path.status, path.steps


def row_path(
    problem: RowMargins, tol: Any = PATH_GAP, max_steps: int = PATH_STEPS
) -> RowMarginPath:
    """Solve a hard-margin problem over rows; the logits have the margins. Pure."""
    path = follow_row_margins(problem, tol, max_steps)
    _, _, smallest = row_margins(problem, path.logits)
    return path._replace(logits=path.logits / jnp.where(smallest > 0, smallest, 1))


def certified_rows(
    problem: RowMargins, logits: Float[Array, "R K"], dual: Float[Array, "R K"]
) -> tuple[HardMarginRows, MarginEvidence, Bool[Array, "R K"]]:
    """Return the answers of logits and a dual, the evidence, and the support (R, K). Pure."""
    evidence = row_evidence(problem, logits, dual)
    slope, multipliers = row_dual(problem, dual / evidence.norm)
    margins, _, _ = row_margins(problem, logits)
    asked, inside, roots = problem.margins[:, None], problem.supports, jnp.sqrt(problem.weights)
    support = ~inside & (margins - asked <= ACTIVE * asked) & (multipliers > 0)
    number = jnp.sum(inside, axis=1, keepdims=True, dtype=roots.dtype)
    share = jnp.sum(multipliers, axis=1, keepdims=True) / number
    left, values, right = jnp.linalg.svd(roots[:, None] * logits, full_matrices=False)
    values = values[None, :]
    matrices: Any = (
        logits,
        (right.T * values) @ right,
        (left * values) @ left.T / (roots[:, None] * roots[None, :]),
        jnp.where(inside, slope / problem.multipliers[None, :] - share, multipliers),
    )
    return HardMarginRows(*matrices), evidence, support


_certified = compiled(certified_margins)
_row_path = compiled(row_path)
_certified_rows = compiled(certified_rows)
_evidence = compiled(margin_evidence, once=True)
_polar = compiled(polar_multipliers, once=True)
_row_evidence = compiled(row_evidence, once=True)


@on_host
def solve_hard_margin(
    problem: HardMargin, *, tol: float = PATH_GAP, max_steps: int = PATH_STEPS
) -> HardMarginSolution:
    """Solve a hard-margin problem, and certify the solution.

    Groups of interchangeable classes are found, so that the cost depends on how many there are, not
    on K. Target rows of the same support and margin are one row.

    Args:
        problem: A `HardMargin`, with up to 64 distinct triples of count, multiplier and margin; of
            targets, with at most 4096 entries of distinct rows.
        tol: Relative duality gap at which to leave the path; the distance of the logits from the
            solution is proportional to it.
        max_steps: Newton steps at most.

    Returns:
        The solution; a numerical failure is in its `status`, and in its certificate.

    Raises:
        ValueError: For more groups or entries.
    """
    check_instance("problem", problem, HardMargin)
    if problem.targets is not None:
        return _solved_rows(problem, tol, max_steps)
    form, groups = margin_groups(problem)
    if form.num_groups > LARGEST_GROUPS:
        raise ArgumentError(
            "problem",
            f"has {form.num_groups} classes of different count, multiplier or margin, and "
            f"solving it takes the fourth power of that in memory: at most {LARGEST_GROUPS} "
            "are allowed. Use `ufm.theory.seli` and "
            "`ufm.imbalance.hard_margin.solve.certify_hard_margin` instead",
        )
    with double_precision():
        blocks, evidence, support, status, steps = to_numpy(
            _certified(form, np.asarray(tol, np.float64), within_steps(max_steps))
        )
    ended = Status.CONTRADICTION if evidence.contradicted else Status(int(status))
    return HardMarginSolution(problem, groups, blocks, evidence, support, ended, int(steps))


def _solved_rows(problem: HardMargin, tol: float, max_steps: int) -> HardMarginSolution:
    form, index = margin_rows(problem)
    if form.supports.size > LARGEST_GROUPS**2:
        raise ArgumentError(
            "problem",
            f"has {form.supports.shape[0]} distinct rows of {form.supports.shape[1]} outputs, and "
            "solving it takes the square of their product in memory: at most "
            f"{LARGEST_GROUPS**2} entries are allowed. Use `ufm.theory.support_proxy`, whose test "
            "says where it is the solution",
        )
    with double_precision():
        path = to_numpy(_row_path(form, np.asarray(tol, np.float64), within_steps(max_steps)))
        duals = [path.dual]
        if np.all(np.isfinite(path.logits)):
            duals.append(polished_dual(form, path.logits, path.dual))
        # Any dual gives a bound: the highest counts.
        answers, evidence, support = max(
            (to_numpy(_certified_rows(form, path.logits, dual)) for dual in duals),
            key=lambda found: float(found[1].lower_bound),
        )
    ended = Status.CONTRADICTION if evidence.contradicted else Status(int(path.status))
    # Rows that are one share its multipliers by their weights.
    share = problem.row_weights / form.weights[index]
    rows = HardMarginRows(
        answers.logits[index],
        answers.weight_gram,
        answers.feature_gram[np.ix_(index, index)],
        share[:, None] * answers.multipliers[index],
    )
    return HardMarginSolution(
        problem, index, rows, evidence, support[index], ended, int(path.steps)
    )


@on_host
def certify_hard_margin(
    problem: HardMargin, logits: Any, multipliers: Any = None
) -> MarginEvidence:
    """Return the evidence that logits solve a hard-margin problem, wherever they come from.

    Args:
        problem: A `HardMargin`.
        logits: (K, K) class logits, row k those of class k; or `Blocks` over the groups of the
            problem. For targets (R, K).
        multipliers: (K, K) non-negative multipliers of the margins of class y over c, or (G, G)
            with blocks; for targets (R, K), as `HardMarginSolution` has them. From the polar factor
            of the logits if not given. The bound is valid for any.

    Raises:
        ValueError: If the shapes are not those.
    """
    check_instance("problem", problem, HardMargin)
    if problem.targets is not None:
        return _certified_candidate(problem, logits, multipliers)
    form, groups = margin_groups(problem)
    candidate: Any = logits
    if not isinstance(logits, Blocks):
        check_dense(problem.num_classes)
        single: Any = np.ones(problem.num_classes)
        form = GroupMargins(
            form.counts[groups], single, form.multipliers[groups], form.margins[groups]
        )
        shape = (problem.num_classes,) * 2
        candidate = Blocks.single(_matrix("logits", logits, shape))
    elif np.shape(logits.between) != (form.num_groups,) * 2:
        raise ArgumentError(
            "logits",
            f"must be over the {form.num_groups} groups of the problem, got "
            f"{np.shape(logits.between)[0]} groups",
        )
    with double_precision():
        if multipliers is not None:
            multipliers = _matrix("multipliers", multipliers, (form.num_groups,) * 2)
        elif np.all(np.isfinite(candidate.between)):
            multipliers = _polar(form, candidate)
        else:
            multipliers = np.zeros((form.num_groups, form.num_groups))
        return to_numpy(_evidence(form, candidate, multipliers))


def _certified_candidate(problem: HardMargin, logits: Any, multipliers: Any) -> MarginEvidence:
    """Return the evidence about logits (R, K). Rows stay apart, however alike they are."""
    distinct, index = margin_rows(problem)
    form = RowMargins(
        problem.row_weights,  # type: ignore[arg-type]
        distinct.supports[index],
        distinct.multipliers,
        distinct.margins[index],
    )
    logits = _matrix("logits", logits, form.supports.shape)
    roots, delta = np.sqrt(form.weights)[:, None], np.asarray(form.multipliers)
    if multipliers is None:
        dual = _polar_factor(roots * logits) * roots
    else:
        multipliers = _matrix("multipliers", multipliers, form.supports.shape)
        inside = np.asarray(form.supports)
        total = np.sum(np.where(inside, 0, multipliers), axis=1, keepdims=True)
        share = total / np.sum(inside, axis=1, keepdims=True)
        dual = delta * np.where(inside, multipliers + share, -multipliers)
    with double_precision():
        return to_numpy(_row_evidence(form, logits, dual))


def _polar_factor(matrix: np.ndarray) -> np.ndarray:
    """Return U V^T of the singular values that are not zero; zero where a number is none."""
    if not np.all(np.isfinite(matrix)):
        return np.zeros_like(matrix)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return (left * (values > ZERO * values[0])) @ right


class SELIErrors(NamedTuple):
    """Relative distances from the closed form.

    Attributes:
        value: Of the objective.
        logits: Of the logits, in the Frobenius norm.
        weight_gram: Of the Gram matrix of the weights, in the Frobenius norm.
        feature_gram: Of the Gram matrix of the class means, in the Frobenius norm.
    """

    value: float
    logits: float
    weight_gram: float
    feature_gram: float


def compare_with_seli(
    solution: HardMarginSolution, exact: SELI | SupportProxy | None = None
) -> SELIErrors:
    """Return how far a solution is from a closed form. Both are K x K.

    Args:
        solution: The solution.
        exact: The closed form; that of `ufm.theory.seli` if not given, for classes.

    Raises:
        ValueError: If it is not given for targets.
    """
    problem = solution.problem
    check_dense(problem.num_classes)
    if exact is None:
        if problem.class_counts is None:
            raise ArgumentError("exact", "must be given for targets", exact, "`support_proxy`")
        exact = seli(problem.class_counts, multipliers=problem.multipliers, margins=problem.margins)
    matrices = ("logits", "weight_gram", "feature_gram")
    errors = {
        name: float(
            np.linalg.norm(getattr(solution, name) - getattr(exact, name))
            / np.linalg.norm(getattr(exact, name))
        )
        for name in matrices
    }
    return SELIErrors(value=abs(solution.value - float(exact.value)) / float(exact.value), **errors)


@printed
class ClosedFormCheck(NamedTuple):
    """A closed form of the hard-margin problem, checked without trusting it.

    Attributes:
        evidence: The certificate of its logits, with its own dual as multipliers.
        errors: Relative distances of the certified solution from it.
        solved: Whether that solution is certified.
    """

    evidence: MarginEvidence
    errors: SELIErrors
    solved: bool

    @property
    def holds(self) -> bool:
        """Whether logits and dual certify each other, and the solution has the same geometry.

        NaN compares false, so that NaN never holds.
        """
        matrices = (self.errors.logits, self.errors.weight_gram, self.errors.feature_gram)
        same = self.errors.value <= CERTIFIED and all(error <= GEOMETRY for error in matrices)
        return self.solved and self.evidence.holds(CERTIFIED) and same

    def __str__(self) -> str:
        errors = ", ".join(f"{name} {error:.1e}" for name, error in self.errors._asdict().items())
        gap = float(self.evidence.relative_gap)
        return (
            f"closed form: {holds_text(self.holds)}; certified to {gap:.1e}, errors of the "
            f"solution ({'' if self.solved else 'not '}certified): {errors}"
        )


def closed_form_check(problem: HardMargin, exact: SELI | SupportProxy) -> ClosedFormCheck:
    """Check a closed form by its certificate, and against the certified solution.

    Args:
        problem: A `HardMargin` that `solve_hard_margin` takes.
        exact: What is to be its solution.

    Raises:
        ValueError: If K is too large for K x K matrices, or there are more groups.
    """
    solution = solve_hard_margin(problem)
    errors = compare_with_seli(solution, exact)
    # D^{-1/2} Lambda is the dual, and Lambda has -delta_c lambda_yc off the supports.
    form, index = margin_rows(problem)
    slopes = np.sqrt(problem.row_weights)[:, None] * np.asarray(exact.dual) / form.multipliers
    multipliers = np.where(form.supports[index], slopes, -slopes)
    evidence = certify_hard_margin(problem, exact.logits, multipliers)
    return ClosedFormCheck(evidence, errors, solution.holds(CERTIFIED))


@printed
class ProxyCheck(NamedTuple):
    """The test of whether centred supports have maximal margins, against the certified solution.

    Attributes:
        proxy: The centred supports and what the test says of them.
        form: The check of the proxy as the solution.
        lower_bound: Certified, of the problem.
        value: Certified, of the problem.
    """

    proxy: SupportProxy
    form: ClosedFormCheck
    lower_bound: float
    value: float

    @property
    def holds(self) -> bool:
        """Whether the proxy is the solution where the test says so, and is not where it denies it.

        False where the test decides nothing.
        """
        if self.proxy.exact:
            return self.form.holds
        below = self.value < float(self.proxy.value) * (1 - CERTIFIED)
        return bool(self.proxy.decided) and self.form.solved and below

    def __str__(self) -> str:
        says = "is" if self.proxy.exact else "is not" if self.proxy.decided else "may not be"
        return (
            f"test of the centred supports: {holds_text(self.holds)}; it says that they {says} "
            f"the solution; their value {float(self.proxy.value):.10g}, the least "
            f"{self.value:.10g}. {self.form}"
        )


def proxy_check(problem: HardMargin) -> ProxyCheck:
    """Check what the test of `ufm.theory.support_proxy` says about a problem with targets.

    Raises:
        ValueError: If the problem has no targets, or multipliers or margins that are not one.
    """
    check_instance("problem", problem, HardMargin)
    if problem.targets is None:
        raise ArgumentError("problem", "must have `targets`")
    if not (np.all(problem.multipliers == 1) and np.all(problem.margins == 1)):
        raise ArgumentError("problem", "must have multipliers and margins of one")
    proxy = support_proxy(problem.targets)
    solution = solve_hard_margin(problem)
    form = closed_form_check(problem, proxy)
    return ProxyCheck(proxy, form, solution.lower_bound, solution.value)


class SELIApproach(NamedTuple):
    """How the logits of cross-entropy turn to the hard-margin solution as weight decay vanishes.

    Arrays have shape (B,).

    Attributes:
        decays: N tau.
        cosine: Cosine between the N x K logits of all samples and the hard-margin solution's.
        angle: The angle in radians.
        scaled_angle: The angle times log(1 / (N tau)).
        limit: What the scaled angle tends to, ().
        relative_gap: Gaps of the certified minima over the objective.
        status: Status of every solve.
    """

    decays: Float[np.ndarray, " B"]
    cosine: Float[np.ndarray, " B"]
    angle: Float[np.ndarray, " B"]
    scaled_angle: Float[np.ndarray, " B"]
    limit: float
    relative_gap: Float[np.ndarray, " B"]
    status: Int[np.ndarray, " B"]


def approach_to_seli(class_counts: Any, decays: Any) -> SELIApproach:
    r"""Return how near cross-entropy is to the hard-margin direction at given weight decays.

    The minima are certified, over groups.

    The minimiser of the mean cross-entropy under weight decay, signed features, no bias, has z_y -
    z_c = log(1 / (N tau)) + log(n_y / lambda_yc) + o(1), tau = sqrt(lambda_W lambda_H) and lambda
    the multipliers of the hard-margin solution: at the minimiser n_y / N times the probability of a
    wrong class is tau times the polar factor's multiplier, and that tends to lambda_yc. So

        angle = limit / log(1 / (N tau)) (1 + o(1)),

    limit = ||part of C across Z|| / ||Z||, C the logits with the margins log(n_y / lambda_yc),
    norms over all samples. No penalty within reach of floating point makes the angle small.

    Args:
        class_counts: Samples per class, a sequence of numbers or a `ClassGroups`.
        decays: N tau, one number or (B,), from 1e-6, beyond which rounding of the loss leaves no
            certificate, to below 1.
    """
    problem = HardMargin(class_counts)
    decays = np.atleast_1d(np.asarray(decays, np.float64))
    if decays.ndim != 1 or not np.all((decays >= SMALLEST_DECAY) & (decays < 1)):
        raise ArgumentError(
            "decays",
            f"must be N tau, one number or a sequence, from {SMALLEST_DECAY:g} to below 1",
            decays.tolist(),
            "for smaller ones use `ufm.theory.seli_angle`",
        )
    solution = solve_hard_margin(problem)
    form, _ = margin_groups(problem)
    tau = decays / np.sum(form.counts * form.sizes)
    with double_precision():
        decay: Any = np.ones(())
        base = over_groups(
            form.counts, form.sizes, CrossEntropy(), WeightDecay(weights=decay, features=decay)
        )
        found = solve_batch(eqx.tree_at(lambda p: p.gauge.price, base, tau), tol=PATH_GAP)
        multipliers = np.asarray(rows_of(solution.blocks.multipliers).others)
        present = np.asarray(form.times) > 0
        log_odds = np.where(
            present, np.log(form.counts)[:, None] - np.log(np.where(present, multipliers, 1)), 0
        )
        correction = to_numpy(logits_of(form, jnp.asarray(log_odds)))
    target = solution.blocks.logits
    along, across = _along_and_across(form, found.logits, target)
    beside = _along_and_across(form, correction, target)[1]
    length = _along_and_across(form, target, target)[0]
    angle = np.arctan2(across, along)
    return SELIApproach(
        decays=decays,
        cosine=np.cos(angle),
        angle=angle,
        scaled_angle=angle * -np.log(decays),
        limit=float(beside / length),
        relative_gap=np.asarray((found.objective - found.lower_bound) / found.objective),
        status=np.asarray(found.status),
    )


def _along_and_across(
    form: GroupMargins, logits: Blocks, target: Blocks
) -> tuple[np.ndarray, np.ndarray]:
    """Return the lengths of the parts of logits along and across the target; batch axes last."""

    def vector(blocks: Blocks) -> np.ndarray:
        within, between = np.asarray(blocks.within), np.asarray(blocks.between)
        batch = within.shape[1:]
        rows = np.concatenate(
            [np.sqrt(form.sizes - 1).reshape(-1, 1, *(1,) * len(batch)) * within[:, None], between],
            axis=1,
        )
        return (np.sqrt(form.counts).reshape(-1, 1, *(1,) * len(batch)) * rows).reshape(-1, *batch)

    unit = vector(target)
    unit = unit / np.linalg.norm(unit)
    found = vector(logits)
    along = np.tensordot(unit, found, axes=1)
    return along, np.linalg.norm(found - np.multiply.outer(unit, along), axis=0)


def _matrix(name: str, values: Any, shape: tuple[int, ...]) -> Any:
    matrix = np.asarray(values, np.float64)
    if matrix.shape != shape:
        raise ArgumentError(name, f"must be of shape {shape}, got {matrix.shape}")
    return matrix
