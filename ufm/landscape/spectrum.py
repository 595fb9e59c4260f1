"""Gradient and Hessian of the objective at any point, from Hessian-vector products.

Products use forward over reverse differentiation.

Eigenvalues depend on the coordinates. In the coordinates of the parameters they change with the
ratio of the penalties of weights and features, while the logits of minimisers do not.
`hessian_spectrum` uses the balanced coordinates of `ufm.solving.methods.balanced_coordinates`
(W_l = s_l V_l,
sqrt(c_i) h_i = s_H u_i, all penalties equal). There, only the geometric mean of the penalties
counts, and rotations of feature space are isometries. Norm balls become slack variables, so that no
constraint is left.

Entries of non-negative features that are zero are held at zero, and so are inputs of ReLUs that are
zero (`ufm.landscape.critical_points` says what that leaves out). The spectrum is that of the
remaining directions.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from ufm._support import (
    ArgumentError,
    compiled,
    double_precision,
    is_whole,
    on_host,
    printed,
    table_lines,
    to_numpy,
)
from ufm.problems import Parameters, Problem
from ufm.solving.relu import (
    SmoothPiece,
    hessian_along,
    normal_basis,
    products,
    pushed,
    read,
    smooth_piece_at,
    tangent_basis,
)

__all__ = [
    "DENSE",
    "HessianSpectrum",
    "gradient",
    "hessian_product",
    "hessian_spectrum",
    "whole_spectrum",
]

DENSE = 2000  # unknowns up to which all eigenvalues are found
EXTREMES = 10  # eigenvalues that are found beyond
TOLERANCE = 1e-12  # relative, of the Lanczos iteration


@printed
class HessianSpectrum(NamedTuple):
    """Eigenvalues of the Hessian in balanced coordinates.

    Attributes:
        eigenvalues: Eigenvalues, ascending, shape (j,).
        directions: Eigenvectors as changes of the parameters, with a first axis of length j; of
            unit norm in balanced coordinates.
        num_unknowns: Number of coordinates.
        num_held: Number of dimensions in which constraints and kinks hold the point, and of scales
            that the coordinates of norm balls do not see.
        complete: Whether these are all eigenvalues of the remaining directions.
        residual: Largest ||H v - lambda v|| over |lambda|_max; infinite if the iteration did not
            converge.
    """

    eigenvalues: Float[np.ndarray, " j"]
    directions: Parameters
    num_unknowns: int
    num_held: int
    complete: bool
    residual: float

    def __str__(self) -> str:
        values = self.eigenvalues
        found = "all" if self.complete else "extreme"
        size = f"{self.num_unknowns} unknowns, {self.num_held} of them held"
        rows = [("Hessian spectrum", f"{found} {values.size} eigenvalues, {size}")]
        if values.size:
            rows += [("eigenvalues", f"from {values[0]:.6g} to {values[-1]:.6g}")]
            rows += [("negative", str(int(np.sum(values < 0))))]
        return "\n".join(table_lines([*rows, ("residual", f"{self.residual:.3g}")]))


@on_host
def gradient(problem: Problem, parameters: Any) -> Parameters:
    """Return the gradient of the objective with respect to the parameters, in their shapes.

    Weight decay is part of the objective. Norm balls and h >= 0 are constraints, and not part of
    it. The slope of a ReLU at a kink is taken as zero.

    Args:
        problem: The problem.
        parameters: Anything with `weights`, `features` and `bias`. Features have one row per class
            or per sample.

    Raises:
        ValueError: If shapes do not fit, or parameters violate the constraints.
    """
    with double_precision():
        problem, given, samples = read(problem, parameters)
        return to_numpy(_gradient(problem, samples, given))


@on_host
def hessian_product(problem: Problem, parameters: Any, direction: Any) -> Parameters:
    """Return the Hessian of the objective with respect to the parameters, times a direction.

    Args:
        problem: The problem.
        parameters: Anything with `weights`, `features` and `bias`. Features have one row per class
            or per sample.
        direction: A direction, of the same shapes.

    Raises:
        ValueError: If shapes do not fit, or parameters violate the constraints.
    """
    with double_precision():
        problem, given, samples = read(problem, parameters)
        along = jax.tree.map(
            lambda block: np.asarray(block, np.float64),
            Parameters(tuple(direction.weights), direction.features, direction.bias),
        )
        shapes = [[np.shape(block) for block in jax.tree.leaves(tree)] for tree in (given, along)]
        if shapes[0] != shapes[1]:
            raise ArgumentError(
                "direction", f"must have the shapes of the parameters, {shapes[0]}; got {shapes[1]}"
            )
        return to_numpy(_product(problem, samples, given, along))


@on_host
def hessian_spectrum(
    problem: Problem, parameters: Any, *, number: int | None = None
) -> HessianSpectrum:
    """Return eigenvalues and eigenvectors of the Hessian in balanced coordinates.

    Directions in which the point is held are left out.

    Args:
        problem: The problem.
        parameters: Anything with `weights`, `features` and `bias`. Features have one row per class
            or per sample.
        number: Number of eigenvalues to find by Lanczos iteration on products, half of them the
            smallest and half the largest. Clusters, such as the flat directions of symmetries,
            converge slowly. If not given, all up to 2000 unknowns, and 10 beyond.

    Raises:
        ValueError: If shapes do not fit, parameters violate the constraints, or `number` is not
            whole and positive.
    """
    if number is not None and not is_whole(number, 1):
        raise ArgumentError(
            "number", "must be a whole number of at least 1", number, "leave it out for all"
        )
    with double_precision():
        local = smooth_piece_at(problem, parameters)
        size = local.x.size
        if number is None and size <= DENSE:
            values, vectors, held = whole_spectrum(local)
            residual = 0.0 if np.all(np.isfinite(values)) else np.inf
        else:
            normal = normal_basis(local)
            held = len(normal)
            values, vectors, residual = _extremes(
                local, normal, min(int(number or EXTREMES), size - held)
            )
        directions = pushed(local, vectors)
    return HessianSpectrum(values, directions, size, held, values.size == size - held, residual)


def whole_spectrum(local: SmoothPiece) -> tuple[np.ndarray, np.ndarray, int]:
    """Return all eigenvalues of the smooth piece on the tangent space.

    Args:
        local: The smooth piece, in m coordinates.

    Returns:
        Eigenvalues (j,), eigenvectors in coordinates (j, m), and m - j.
    """
    basis = tangent_basis(local)
    reduced = hessian_along(local, basis)
    held = local.x.size - len(basis)
    if not np.all(np.isfinite(reduced)):
        return np.full(len(basis), np.nan), basis, held
    values, vectors = np.linalg.eigh(reduced)
    return values, vectors.T @ basis, held


def _extremes(
    local: SmoothPiece, normal: np.ndarray, number: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the eigenvalues at both ends, with eigenvectors in rows, and the largest residual.

    Lanczos iteration on the projected Hessian.
    """
    size = local.x.size

    def tangential(v: np.ndarray) -> np.ndarray:
        return v - normal.T @ (normal @ v)

    def projected(v: np.ndarray) -> np.ndarray:
        v = np.ravel(v)
        return tangential(products(local, tangential(v)[None, :], 1)[0])

    top = 2 * _largest(projected, size)
    ends = []
    for sign, count in ((1.0, (number + 1) // 2), (-1.0, number // 2)):
        if not count:
            continue

        def lifted(v: np.ndarray, sign: float = sign) -> np.ndarray:
            # Lift held directions beyond the other end. Shift all eigenvalues away from zero,
            # because the tolerance of the iteration is relative.
            v = np.ravel(v)
            return projected(v) + sign * top * (v + 2 * (normal.T @ (normal @ v)))

        operator = LinearOperator((size, size), matvec=lifted, dtype=np.float64)
        start = tangential(np.random.default_rng(0).standard_normal(size))
        ncv = min(size, max(4 * count, 40))
        try:
            found = eigsh(
                operator,
                k=count,
                which="SA" if sign > 0 else "LA",
                v0=start,
                ncv=ncv,
                tol=TOLERANCE,
            )
        except ArpackNoConvergence as failure:
            found = failure.eigenvalues, failure.eigenvectors
        ends.append((found[0] - sign * top, found[1]))
    values = np.concatenate([found[0] for found in ends])
    vectors = np.concatenate([found[1].T for found in ends])
    order = np.argsort(values)
    values, vectors = values[order], vectors[order]
    residuals = [
        np.linalg.norm(projected(v) - value * v) for value, v in zip(values, vectors, strict=True)
    ]
    complete = values.size == number
    return (
        values,
        vectors,
        float(max(residuals, default=0) / max(top, 1e-300)) if complete else np.inf,
    )


def _largest(product: Any, size: int) -> float:
    """Return a rough value of the largest absolute eigenvalue, by power iteration."""
    v = np.random.default_rng(1).standard_normal(size)
    for _ in range(20):
        v = product(v / max(float(np.linalg.norm(v)), 1e-300))
    return float(np.linalg.norm(v))


@compiled
def _gradient(problem, samples, parameters):  # type: ignore[no-untyped-def]
    return jax.grad(lambda p: problem.objective(p, samples))(parameters)


@compiled
def _product(problem, samples, parameters, direction):  # type: ignore[no-untyped-def]
    return jax.jvp(jax.grad(lambda p: problem.objective(p, samples)), (parameters,), (direction,))[
        1
    ]
