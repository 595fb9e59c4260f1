"""The result of a solve: the minimiser, its certificate, and how it was reached."""

import functools
import time
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from ufm._support import Module, Status, assembled, counted, printed, rebuilt
from ufm.certificates import Certificate
from ufm.geometry import AnyArray
from ufm.metrics import (
    ClassGeometry,
    geometry_of_matrices,
    logit_rows,
    norms,
    rank_from,
    support_margins,
)
from ufm.problems import (
    Parameters,
    Problem,
    check_dense,
    labels,
    lifted,
    widened,
    zero_padded,
)
from ufm.solving.block_point import BlockPoint
from ufm.solving.methods import SolveRecord
from ufm.solving.orbit_point import OrbitPoint

__all__ = [
    "MatrixPoint",
    "Minimum",
    "Restarts",
    "Solution",
    "SolveError",
    "SolveInterrupted",
    "decided_status",
    "matrix_point",
    "solution_of_point",
]

GROUPS_SHOWN = 6  # in the text of a solution


class SolveError(RuntimeError):
    """Raised by `Solution.check()` where the solve did not end well."""


class SolveInterrupted(KeyboardInterrupt):
    """Ctrl-C during a solve.

    Attributes:
        solution: The point reached.
    """

    solution: "Solution"


class Restarts(NamedTuple):
    """What became of every initial point: arrays of shape (R,), in the order of the keys.

    Attributes:
        objective: The objective reached.
        relative_gradient: The stopping measure reached.
        status: How each start ended.
        steps: Steps made from each.
        best: Index of the start that is returned.
    """

    objective: np.ndarray
    relative_gradient: np.ndarray
    status: np.ndarray
    steps: np.ndarray
    best: int


class MatrixPoint(Module):
    """A point with explicit matrices. Every class, or target row, is a group of its own.

    Attributes:
        parameters: Weights, features and bias.
        logits: Mean logits of every class or target row, bias included, shape (R, K).
        class_features: Their means of what the last layer multiplies, shape (R, D).
    """

    parameters: Parameters
    logits: Float[AnyArray, "R K"]
    class_features: Float[Array, "R D"]

    @property
    def bias(self) -> Float[AnyArray, " K"] | None:
        """The bias of every class."""
        return self.parameters.bias

    @property
    def group_bias(self) -> Float[AnyArray, " K"] | None:
        """The bias of every group."""
        return self.parameters.bias

    @property
    def plain_logits(self) -> Float[AnyArray, "R K"]:
        """The logits without the bias."""
        bias = self.parameters.bias
        return self.logits if bias is None else self.logits - bias

    @property
    def groups(self) -> Int[np.ndarray, " R"]:
        """The group of every class or target row."""
        return np.arange(len(self.logits))

    def margins(self, problem: Problem) -> Float[np.ndarray, " R"]:
        """Return the margin of every row."""
        targets = np.asarray(problem.target_rows(np.float64, np))
        return support_margins(np.asarray(self.logits), targets)

    def blocks(self, problem: Problem) -> ClassGeometry:
        """Return logits and Gram matrices in blocks."""
        check_dense(max(self.logits.shape))
        return geometry_of_matrices(
            self.parameters.weights[-1],
            self.class_features,
            self.plain_logits,
            np.asarray(problem.gauge_rows),
        )


def matrix_point(
    problem: Problem, parameters: Parameters, logits: Array, class_features: Array
) -> MatrixPoint:
    """Return a point of a problem of the same or smaller widths as one of `problem`.

    Coordinates that the narrower problem does not have are zero.
    """
    dims = problem.layer_dims
    return MatrixPoint(
        widened(problem, parameters),
        logits,
        zero_padded(class_features, (problem.num_rows, dims[-2])),
    )


class Minimum(NamedTuple):
    """A value that initial points converged to.

    Attributes:
        objective: The lowest value of those points.
        relative_gradient: The stopping measure at the lowest point.
        starts: How many initial points ended at or near the value.
        point: The lowest point.
    """

    objective: float
    relative_gradient: float
    starts: int
    point: MatrixPoint | BlockPoint | OrbitPoint

    @property
    def parameters(self) -> Parameters:
        """The unknowns."""
        return self.point.parameters

    @property
    def logits(self) -> Float[AnyArray, "K K"]:
        """Mean logits of every class, without the bias."""
        return self.point.plain_logits

    @property
    def rank(self) -> int:
        """Rank of the logits without bias.

        Singular values up to 1e-9 of the largest, or of one, count as zero.
        """
        return int(rank_from(np.linalg.svd(self.logits, compute_uv=False), 1.0))


@printed
class Solution(Module):
    """A minimiser, with what is known about it. All arrays are NumPy.

    Numbers per class are given per group of interchangeable classes: `margins[groups]` are those of
    all classes. At group resolution there are G groups, and matrices of K rows are formed when they
    are asked for. At class and sample resolution every class is a group of its own, so G = K.

    Attributes:
        problem: What was solved.
        resolution: "groups", "orbits" (of target rows), "classes" or "samples".
        objective: The value, penalties included.
        point: The minimiser as it was found, in matrices, in blocks, or by orbits.
        status: How the solve ended.
        steps: Steps made by the method.
        evaluations: Gradients and Hessian-vector products.
        escapes: Stationary points that were left because their certificate failed.
        relative_gradient: The stopping measure reached: the relative gradient, or the relative gap
            over groups and orbits.
        certificate: A lower bound; None where no bound exists for the model.
        restarts: What became of every initial point.
        minima: The distinct values that starts converged to, the lowest first.
            `ufm.landscape.census` also distinguishes geometries of equal value.
        trajectory: The recorded steps; None unless they were asked for.
        seconds: Wall time, compilation included.
        price: Over groups and orbits tau under weight decay, or the multiplier of the norm balls'
            gauge; None elsewhere.
        dual_ratios: At group resolution the dual norm of the modes within each group over the
            allowed one, shape (G,); None elsewhere. Below one the modes vanish, so the classes of
            the group have one classifier.
    """

    problem: Problem
    resolution: str
    objective: float
    point: MatrixPoint | BlockPoint | OrbitPoint
    status: Status
    steps: int
    evaluations: int
    escapes: int
    relative_gradient: float
    certificate: Certificate | None
    restarts: Restarts
    minima: tuple[Minimum, ...]
    trajectory: SolveRecord | None
    seconds: float
    price: float | None = None
    dual_ratios: Float[np.ndarray, " G"] | None = None

    @property
    def parameters(self) -> Parameters:
        """The unknowns: weights, features and bias.

        At group resolution they are one of many lifts of the blocks, which differ by rotations.

        Raises:
            ValueError: If K is too large for explicit matrices. All matrices of K rows raise it,
                too.
        """
        return self.point.parameters

    @property
    def weights(self) -> tuple[Float[Array, "out in"], ...]:
        """The matrices W_1, ..., W_L, each of shape (out, in)."""
        return self.point.parameters.weights

    @property
    def features(self) -> Float[Array, "n d"]:
        """The features in rows, one per class or target row, (R, d), or per sample, (N, d)."""
        return self.point.parameters.features

    @property
    def bias(self) -> Float[AnyArray, " K"] | None:
        """The bias of every class, shape (K,); None without one."""
        return self.point.bias

    @property
    def logits(self) -> Float[AnyArray, "R K"]:
        """The mean logits of each class, or target row, bias included, shape (R, K)."""
        return self.point.logits

    @property
    def class_features(self) -> Float[Array, "R D"]:
        """The means over each class, or target row, of what the last layer multiplies, (R, D)."""
        return self.point.class_features

    @property
    def labels(self) -> Int[np.ndarray, " N"]:
        """The class, or target row, of every sample, shape (N,), for whole counts."""
        return labels(self.problem.row_counts)

    @property
    def sample_features(self) -> Float[np.ndarray, "N d"]:
        """The features of every sample, shape (N, d), for whole counts."""
        return np.asarray(lifted(self.features, self.problem.row_counts))

    @property
    def groups(self) -> Int[np.ndarray, " K"]:
        """The group of every class, shape (K,)."""
        return self.point.groups

    @property
    def group_bias(self) -> Float[AnyArray, " G"] | None:
        """The bias of a class of each group, shape (G,); None without one."""
        return self.point.group_bias

    @functools.cached_property
    def blocks(self) -> ClassGeometry:
        """Logits without bias, W W^T of the last layer, and the Gram matrix of `class_features`.

        They are K x K matrices as `ufm.problems.Blocks`: a few numbers per group.
        """
        return self.point.blocks(self.problem)

    @property
    def weight_norms(self) -> Float[np.ndarray, " G"]:
        """Norm of the last layer's row of a class of each group, shape (G,)."""
        return norms(self.blocks.weight_gram)

    @property
    def feature_norms(self) -> Float[np.ndarray, " G"]:
        """Norm of the class mean of a class of each group, shape (G,)."""
        return norms(self.blocks.feature_gram)

    @property
    def weight_cosines(self) -> Float[np.ndarray, "G G"]:
        """Cosines between the classifiers of two different classes of groups g and h, shape (G, G).

        NaN where one of them vanishes, and on the diagonal for a group of one class.
        """
        return self.blocks.weight_gram.cosines()[1]

    @property
    def feature_cosines(self) -> Float[np.ndarray, "G G"]:
        """Cosines between class means, as `weight_cosines`."""
        return self.blocks.feature_gram.cosines()[1]

    @property
    def margins(self) -> Float[np.ndarray, " G"]:
        """Own logit less the largest other one, bias included, of a class of each group, (G,).

        For other targets, of each row: the least logit of the labels in its support, less the
        largest of the others; infinite where the support is empty or has all labels.
        """
        return self.point.margins(self.problem)

    @property
    def rank(self) -> int:
        """Rank of the logits without bias: singular values above 1e-9 of the largest."""
        return int(self.blocks.rank)

    def by_group(self) -> dict[str, np.ndarray]:
        """Return the observables of each group, (G,), and of each pair of groups, (G, G).

        Returns:
            Arrays by name: `counts` and `sizes`, samples per class and classes; `weight_norms`,
            `feature_norms`, `margins`, `weight_cosines` and `feature_cosines`, as the attributes;
            `logits_own` and `logits_others`, the logit of the own class, and that of another class
            of each group, bias included (minus infinity where there is none), both for one-hot
            classes; and `bias` where the model has one.
        """
        counts, sizes = self.counts_and_sizes()
        found = {
            "counts": counts,
            "sizes": sizes,
            "weight_norms": self.weight_norms,
            "feature_norms": self.feature_norms,
            "margins": self.margins,
            "weight_cosines": self.weight_cosines,
            "feature_cosines": self.feature_cosines,
        }
        if self.problem.one_hot:
            own, others = logit_rows(self.blocks.logits, self.group_bias)
            found |= {"logits_own": own, "logits_others": others}
        bias = {} if self.group_bias is None else {"bias": self.group_bias}
        return {name: np.asarray(value, np.float64) for name, value in (found | bias).items()}

    def lift(self) -> "Solution":
        """Return the solution with explicit matrices, at class resolution if over groups or orbits.

        Raises:
            ValueError: If K is too large for explicit matrices.
        """
        if isinstance(self.point, MatrixPoint):
            return self
        point = MatrixPoint(self.parameters, self.logits, self.class_features)
        minima = tuple(one._replace(point=point) for one in self.minima)
        return rebuilt(self, resolution="classes", point=point, minima=minima)

    def check(self) -> "Solution":
        """Return the solution itself.

        Raises:
            SolveError: If the solve did not converge, or a certificate whose bound is tight does
                not hold.
        """
        if not self.status.ok:
            reached = f"relative gradient {self.relative_gradient:.2g}"
            by_gap = self.resolution in ("groups", "orbits")
            reached = str(self.certificate) if by_gap else reached
            raise SolveError(f"{self.status.message} ({reached})")
        if self.certificate is not None and self.certificate.tight and not self.certificate.holds:
            raise SolveError(f"global optimality is not certified: {self.certificate}")
        return self

    def counts_and_sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return samples per class and classes of each group, (G,) each."""
        sizes = np.bincount(self.groups).astype(np.float64)
        counts = np.zeros(sizes.size)
        counts[self.groups] = np.asarray(self.problem.row_counts)
        return counts, sizes

    def __str__(self) -> str:
        problem, (counts, sizes) = self.problem, self.counts_and_sizes()
        over = "" if problem.one_hot else f", {problem.num_rows} target rows"
        if self.resolution == "groups":
            shown = zip(sizes[:GROUPS_SHOWN], counts[:GROUPS_SHOWN], strict=True)
            parts = [f"{size:g} x {count:g}" for size, count in shown]
            parts += ["..."] if sizes.size > GROUPS_SHOWN else []
            over = f" in {counted(sizes.size, 'group')} ({' + '.join(parts)})"
        if isinstance(self.point, OrbitPoint):
            over += f" in {counted(self.point.orbits.num_orbits, 'orbit')}"
        work = f"{counted(self.steps, 'step')}, {counted(self.evaluations, 'evaluation')}"
        resolution = {"classes": "class"}.get(self.resolution, self.resolution.removesuffix("s"))
        lines = [
            f"objective     {self.objective:.15g}",
            f"status        {self.status.message}",
            f"certificate   {self.certificate or 'none: no lower bound is known for this model'}",
            f"problem       K = {problem.num_classes}{over}, N = {np.sum(sizes * counts):g}, "
            f"d = {problem.feature_dim}, {problem.loss.title}, "
            f"{type(problem.regularizer).__name__}",
            f"work          {work}, {self.seconds:.3g} s at {resolution} resolution",
        ]
        if len(self.minima) > 1:
            found = ", ".join(
                f"{minimum.objective:.9g} ({minimum.starts})" for minimum in self.minima
            )
            lines.append(
                f"minima        {found} from {counted(self.restarts.status.size, 'start')}"
            )
        return "\n".join(lines)


def decided_status(status: Status, certificate: Certificate) -> Status:
    """Return how a solve ended whose certificate decides it, as one over groups or orbits.

    Args:
        status: Status of the method that reached the point.
        certificate: The certificate of the point.
    """
    if not certificate.believable:
        return Status.CONTRADICTION
    if certificate.holds:
        return Status.FLOOR if certificate.at_floor else Status.CONVERGED
    return Status.NOT_CERTIFIED if status == Status.CONVERGED else status


def solution_of_point(
    problem: Problem,
    resolution: str,
    point: MatrixPoint | BlockPoint | OrbitPoint,
    certificate: Certificate,
    *,
    objective: float,
    residual: float,
    status: Status,
    steps: int,
    started: float,
    price: float,
    escapes: int = 0,
    dual_ratios: Float[np.ndarray, " G"] | None = None,
) -> Solution:
    """Return the solution of a method with one initial point, whose certificate decides its end.

    Args:
        problem: What was solved.
        resolution: At which resolution.
        point: The minimiser.
        certificate: Its certificate.
        objective: Its value.
        residual: The relative gap.
        status: Status of the method.
        steps: Steps made.
        started: Time at the start of the solve, from `time.perf_counter`.
        price: As in `Solution`, and so are the next two.
        escapes: Stationary points that were left.
        dual_ratios: Of the modes within groups.
    """
    status, residual = decided_status(status, certificate), max(residual, 0.0)
    reached = [np.array([value]) for value in (objective, residual, status, steps)]
    return assembled(
        Solution,
        problem=problem,
        resolution=resolution,
        objective=objective,
        point=point,
        status=status,
        steps=steps,
        evaluations=steps,
        escapes=escapes,
        relative_gradient=residual,
        certificate=certificate,
        restarts=Restarts(*reached, best=0),  # type: ignore[misc, arg-type]
        minima=(Minimum(objective, residual, 1, point),) if status.ok else (),
        trajectory=None,
        seconds=time.perf_counter() - started,
        price=price,
        dual_ratios=dual_ratios,
    )
