"""`solve`: from a problem to a certified solution."""

import math
import time
from typing import Any, Literal

import numpy as np

from ufm._support import (
    Status,
    checked_positive,
    checked_whole,
    double_precision,
    on_host,
)
from ufm.certificates import (
    Certificate,
    OneLayerBound,
    certificate_from,
    certificate_of,
    has_bracket,
)
from ufm.problems import (
    Parameters,
    Problem,
    check_dense,
)
from ufm.solving.assembly import assemble
from ufm.solving.class_resolution import Lanes, search
from ufm.solving.group_resolution import solve_groups
from ufm.solving.kinked_losses import has_kinked_loss, solve_kinked
from ufm.solving.methods import Method, generator
from ufm.solving.orbit_resolution import orbit_reduction, orbits_pay, solve_orbits
from ufm.solving.programs import penalty
from ufm.solving.resolution import choose_resolution
from ufm.solving.settings import (
    Progress,
    SolveSettings,
    check_choices,
    check_own_method,
    checked_settings,
    lowered,
)
from ufm.solving.solution import Solution, SolveInterrupted
from ufm.solving.starts import structured_starts

__all__ = ["certify", "solve"]

MOST_RESTARTS = 1_000_000
COLLAPSED = 1e-9  # a gauge below this times the root of N counts as zero


@on_host
def solve(
    problem: Problem,
    *,
    method: Method | None = None,
    resolution: Literal["auto", "samples", "classes", "groups"] = "auto",
    key: Any = None,
    tol: float = 1e-9,
    max_steps: int | None = None,
    restarts: int | None = None,
    initial: Any = None,
    record_every: int = 0,
    dtype: Literal["float64", "float32"] = "float64",
    progress: Progress | None = None,
) -> Solution:
    """Minimise a problem's objective.

    Args:
        problem: What to minimise.
        method: `LBFGS()`, `NewtonCG()`, `GradientDescent(...)` or a `Method` of your own. If not
            given, Newton-CG solves small problems, and L-BFGS large ones and chains of ReLUs; where
            L-BFGS stalls, Newton-CG goes on.
        resolution: "classes", one feature row per class, or per distinct row of other targets,
            weighted by its count (exact). "groups",
            classes of equal counts taken together (exact for one layer and a convex loss with d >=
            K - 1, or K); the cost does not depend on K, and it takes no method, initial point,
            restarts or records. Rows of other targets are taken together in their orbits under
            permutations of labels that leave targets and loss alone; the solution's `resolution` is
            then "orbits". "samples", one row per sample, to watch what the papers ran; needs
            whole class counts. "auto" takes groups for many classes in few groups, or where
            matrices over classes do not fit, and classes otherwise.
        key: A JAX PRNG key, or an integer seed, for the initial points; 0 if not given.
        tol: Stop once the relative gradient, sum over blocks of ||gradient|| max(||block||, typical
            norm) / objective in balanced coordinates, is at most this, and certify to this relative
            gap. In float32 no tolerance below 1e-4 is attempted. Inside norm balls the objective
            can come close to zero. Below 1e-4 of its value at zero the descent goes on with its
            logarithm, as long as that has digits. Beyond, the status is FLOOR.
        max_steps: Steps of the method from each start; if not given 3000, 6000 for ReLUs between
            layers, 20000 where a dual certificate says when to go on, 100000 for gradient descent.
        restarts: Most initial points; the lowest objective is returned, and `restarts` of the
            solution lists what became of every point. A certificate that holds ends the search
            before all are used. If not given: 1 where every minimum is global (one layer, a convex
            loss, signed features, d >= K - 1, or K); for other problems of one layer 64, fewer (at
            least 8) where there are more than 2000 unknowns; 8 for deep models, five times as many
            where the optimal value is known. Besides these there are points near constructions of
            low objective: truncations of the minimiser with more dimensions, and what
            `ufm.constructions` lists for deep models. Where there are truncations and few classes,
            pairs of classes of the best point are then exchanged, as long as that leads lower.
        initial: Parameters to start from (weights, features, bias) instead of random ones, at the
            resolution of the solve.
        record_every: Record a trajectory every so many steps inside the compiled loop; 0 records
            nothing.
        dtype: Precision of the computation. Results are certified in float64 in either case.
        progress: Called with (step, objective, relative gradient) a few times a second.

    Returns:
        The solution. A numerical failure is in its `status`, never an exception, also where
        `jax_debug_nans` or `jax_debug_infs` is set (`ufm._support.precision.double_precision`).

    Raises:
        ValueError: For bad arguments, and under jit, vmap or grad.
        SolveInterrupted: On Ctrl-C; a KeyboardInterrupt whose `solution` holds what was reached.
    """
    started = time.perf_counter()
    check_choices(problem, method, resolution, dtype)
    draws, tol = generator(key), checked_positive("tol", tol)
    record_every = checked_whole("record_every", record_every, 0)
    if restarts is not None:
        restarts = checked_whole("restarts", restarts, 1, MOST_RESTARTS)
    given = (method, initial, max_steps, None if restarts == 1 else restarts, record_every or None)
    plain = dtype == "float64" and all(argument is None for argument in given)
    check_own_method(resolution, plain)

    def by_classes() -> Solution:
        return solve(problem, resolution="classes", key=key, tol=tol)

    if plain and resolution in ("auto", "groups"):
        reduction = orbit_reduction(problem)
        if reduction is not None and (resolution == "groups" or orbits_pay(reduction)):
            return solve_orbits(reduction, tol, started, by_classes)
        if resolution == "groups" or choose_resolution(problem) == "groups":
            return solve_groups(problem, tol, started, by_classes)
    check_dense(math.isqrt(problem.num_rows * problem.num_outputs))
    if plain and resolution != "samples" and has_kinked_loss(problem):

        def smooth(other: Problem, point: Parameters | None) -> Solution:
            return solve(other, resolution="classes", key=key, tol=tol / 100, initial=point)

        return solve_kinked(problem, tol, started, smooth)
    settings = checked_settings(
        problem,
        method,
        "samples" if resolution == "samples" else "classes",
        draws,
        tol,
        max_steps,
        restarts,
        initial,
        record_every,
        np.dtype(dtype),
        progress,
    )
    with double_precision():
        return _solve_matrices(settings, started)


def _solve_matrices(settings: SolveSettings, started: float) -> Solution:
    """Search, certify and assemble at class or sample resolution."""
    lanes: Lanes | None = None
    try:
        near = np.zeros((0, 0))
        if settings.structured:
            near = structured_starts(settings.problem, settings.draws, solve)
        for lanes in search(settings, near):  # noqa: B007
            pass
        assert lanes is not None  # there is at least one start
        return assemble(settings, lanes, _certificate(settings, lanes), started)
    except KeyboardInterrupt as stop:
        if lanes is None:
            raise KeyboardInterrupt from stop
        certificate = settings.certificate(lanes.iterates.x[lanes.best])
        failure = SolveInterrupted(
            "interrupted; the exception's `solution` holds the point reached"
        )
        failure.solution = assemble(settings, lanes, certificate, started, Status.INTERRUPTED)
        raise failure from stop


def _certificate(settings: SolveSettings, lanes: Lanes) -> Certificate | None:
    """Return the certificate of the best point; for deep models it takes more solves."""
    x = lanes.iterates.x[lanes.best]
    if not has_bracket(settings.problem):
        return settings.certificate(x)
    inputs = settings.answer(x).inputs
    certificate = certificate_from(settings.problem, inputs, settings.tol, _solve_one_layer)
    return lowered(certificate, settings.fewer)


@on_host
def certify(problem: Problem, parameters: Any, *, tolerance: float = 1e-9) -> Certificate | None:
    """Return a certificate for a candidate.

    None where no bound exists: the loss is not convex, or a regularizer of your own has no gauge.

    The lower bound holds for any candidate, however it was found. One layer: a dual bound at the
    candidate. Squared error with linear layers: the exact minimum. Other deep models: a bracket,
    for which problems of one layer are solved; rigorous, and loose for many classes.

    Args:
        problem: The problem.
        parameters: Anything with `weights`, `features` and `bias`, such as a `Solution` or
            `Parameters`. Features are (K, d), one row per class, or (N, d), one row per sample in
            the order of the classes.
        tolerance: Relative gap up to which the certificate is said to hold.

    Raises:
        ValueError: If the shapes are not the problem's.
    """
    return certificate_of(
        problem, parameters, tolerance=tolerance, solve_one_layer=_solve_one_layer
    )


def _solve_one_layer(problem: Problem) -> OneLayerBound:
    """Solve a problem of one layer for the bracket of a deep one."""
    solution = solve(problem)
    certificate = solution.certificate
    assert certificate is not None
    with double_precision():
        total = float(penalty(problem, solution.parameters._replace(bias=None)))
    gauge = total / float(problem.gauge.price)  # 0 where it is bounded, and is not asked for
    if not gauge > COLLAPSED * float(np.sqrt(problem.num_samples)):
        gauge = 0.0
    bound = certificate.lower_bound if certificate.believable else -np.inf
    return OneLayerBound(bound, gauge, certificate.dual_ratio)
