"""`solve`: from a problem to a certified solution.

The convenience over the pure core of solvers and certificates.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ufm._support import (
    Status,
    assembled,
    certified_status,
    checked_positive,
    checked_whole,
    compiled,
    double_precision,
    is_concrete,
    judged,
    lowest,
    on_host,
    rebuilt,
    to_numpy,
    within_steps,
)
from ufm.certificates import (
    Certificate,
    OneLayerBound,
    certificate_from,
    certificate_of,
    has_bracket,
    has_convex_form,
    has_one_minimum,
    has_singular_value_form,
    has_tight_bound,
    needed_dimension,
    violating_atom,
)
from ufm.problems import (
    DENSE_LIMIT,
    Problem,
    canonical,
    check_dense,
    checked_parameters,
    grouped,
    has_group_form,
    has_structures,
    labels,
    reduced,
    samples_of,
    starts_of,
    truncations,
)
from ufm.solving.class_batch import answer_at, unknowns_at
from ufm.solving.escapes import TIDY, with_atom, with_small_entries_zeroed
from ufm.solving.group_resolution import MOST_GROUPS_SOLVED, grouping_pays, solve_groups
from ufm.solving.methods import (
    AIM,
    HANDOVER,
    LBFGS,
    SEARCH_STEPS,
    SMOOTHINGS,
    Iterate,
    Method,
    NewtonCG,
    Records,
    Stage,
    Start,
    advance,
    can_go_on,
    default_schedule,
    default_steps,
    empty_records,
    first_iterate,
    generator,
    has_kinks,
    infimum_of,
    most_starts,
    num_unknowns,
    parameters_of,
    relative_to_objective,
    search_scales,
    start_scales,
)
from ufm.solving.relu import polish
from ufm.solving.solution import (
    Minimum,
    Restarts,
    Solution,
    SolveInterrupted,
    matrix_point,
)

__all__ = ["certify", "solve"]

Progress = Callable[[int, float, float], None]

DEFAULT_CONVEX_STEPS = 20_000  # few need them: a certificate says when to go on
MAX_ESCAPES = 20
LONG_MEMORY = 30
MOST_RESTARTS = 1_000_000
ROUNDS = 5  # with the logarithm of the objective
NEWTON_STEPS = 200
ALIKE = 1e-4  # relative difference of objectives of starts that are near the same minimum
MOST_FOLLOWED = 8
SAME = 1e-8  # relative difference of objectives that count as one
DEFAULT_RESTARTS = 8  # of deep models
MAX_SETS = 5  # of so many, at deep problems whose optimal value is known
SET = 21  # starts that are solved together where one alone was not certified
PERTURBATION = 1e-3  # of structured starts, which may be saddle points: relative to the root mean square of the unknowns
FIRST_CHUNK = 1000
SECONDS_PER_CHUNK = 0.5


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
        problem: what to minimise.
        method: `LBFGS()`, `NewtonCG()` or `GradientDescent(...)`. If not given, L-BFGS brings the
            relative gradient to 1e-4 and Newton-CG finishes.
        resolution: "classes", one feature row per class weighted by its count (exact); "groups",
            classes of equal counts taken together (exact for one layer and a convex loss with d >=
            K - 1, or K; the cost does not depend on K; takes no method, initial point, restarts or
            records); "samples", one row per sample, to watch what the papers ran; needs whole class
            counts. "auto" takes groups for many classes in few groups, or where matrices over
            classes do not fit, and classes otherwise.
        key: a JAX PRNG key, or an integer seed, for the initial points; 0 if not given.
        tol: stop once the relative gradient, sum over blocks of ||gradient|| max(||block||, typical
            norm) / objective in balanced coordinates, is at most this, and certify to this relative
            gap. In float32 no tolerance below 1e-4 is attempted. Inside norm balls the objective
            can come close to zero. Below 1e-4 of its value at zero the descent goes on with its
            logarithm, as long as that has digits. Beyond, the status is FLOOR.
        max_steps: steps of the method from each start; if not given 3000, 6000 for ReLUs between
            layers, 20000 where a dual certificate says when to go on, 100000 for gradient descent.
        restarts: most initial points; the lowest objective is returned, and `restarts` of the
            solution lists what became of every point. A certificate that holds ends the search
            before all are used. If not given: 1 where every minimum is global (one layer, a convex
            loss, signed features, d >= K - 1, or K); for other problems of one layer 64, fewer (at
            least 8) where there are more than 2000 unknowns; 8 for deep models, five times as many
            where the optimal value is known. Besides these there are points near structures that
            are low: truncations of the minimiser with more dimensions, and what `ufm.constructions`
            lists for deep models.
        initial: parameters to start from (weights, features, bias) instead of random ones, at the
            resolution of the solve.
        record_every: record a trajectory every so many steps inside the compiled loop; 0 records
            nothing.
        dtype: precision of the computation. Results are certified in float64 in either case.
        progress: called with (step, objective, relative gradient) a few times a second.

    Returns:
        The solution; a numerical failure is in its `status`, never an exception, also where `jax_debug_nans` or `jax_debug_infs` is set
        (`ufm._support.precision.double_precision`).

    Raises:
        ValueError: for bad arguments, and under jit, vmap or grad.
        SolveInterrupted: on Ctrl-C; a KeyboardInterrupt whose `solution` holds what was reached.
    """
    started = time.perf_counter()
    run = _Run.prepare(
        problem,
        method,
        resolution,
        key,
        tol,
        max_steps,
        restarts,
        initial,
        record_every,
        dtype,
        progress,
    )
    plain = (
        method is None
        and initial is None
        and max_steps is None
        and restarts in (None, 1)
        and not record_every
    )
    if resolution == "groups" and not (plain and dtype == "float64"):
        raise ValueError(
            "resolution 'groups' has its own method: it takes no `method`, `initial`, `max_steps`, `restarts`, `record_every` or dtype 'float32'; "
            "leave them out, or use resolution='classes'."
        )
    if resolution == "groups" or (
        resolution == "auto" and plain and dtype == "float64" and _takes_groups(problem)
    ):
        return solve_groups(
            problem,
            float(tol),
            started,
            lambda: solve(problem, resolution="classes", key=key, tol=tol),
        )
    check_dense(problem.num_classes)
    with double_precision():
        interrupted = None
        try:
            run.execute()
            run.certify()
        except KeyboardInterrupt as stop:
            interrupted = stop
        solution = run.solution(started, interrupted is not None)
    if interrupted is not None:
        failure = SolveInterrupted(
            "interrupted; the exception's `solution` holds the point reached"
        )
        failure.solution = solution
        raise failure from interrupted
    return solution


@on_host
def certify(problem: Problem, parameters: Any, *, tolerance: float = 1e-9) -> Certificate | None:
    """Return a certificate for a candidate, or None where no bound exists for the model (a loss that is not convex).

    The lower bound holds for any candidate, however it was found. One layer: a dual bound at the
    candidate. Squared error with linear layers: the exact minimum. Other deep models: a bracket,
    for which problems of one layer are solved; rigorous, and loose for many classes.

    Args:
        problem: the problem.
        parameters: anything with `weights`, `features` and `bias`, such as a `Solution` or
            `Parameters`. Features are (K, d), one row per class, or (N, d), one row per sample in
            the order of the classes.
        tolerance: relative gap up to which the certificate is said to hold.

    Raises:
        ValueError: if the shapes are not the problem's.
    """
    return certificate_of(
        problem, parameters, tolerance=tolerance, solve_one_layer=_solve_one_layer
    )


def default_restarts(problem: Problem, method: Method | None = None, labels: Any = None) -> int:
    """Return how many random initial points a problem gets at most, if the caller does not say.

    Args:
        problem: with its widths as they are solved.
        method: what the caller asked for, or None.
        labels: the class of every sample at sample resolution, or None.
    """
    if not has_convex_form(problem):
        return DEFAULT_RESTARTS * (
            MAX_SETS if method is None and has_singular_value_form(problem) else 1
        )
    if method is not None or has_one_minimum(problem):
        return 1
    return most_starts(
        num_unknowns(problem, problem.num_classes if labels is None else labels.size)
    )


def start_sets(problem: Problem, restarts: int) -> list[int]:
    """Return how many random initial points are solved together, set after set, until the best of them is certified.

    One layer with a bound that is tight: one alone, which is often enough, then sets of equal
    sizes. Deep models whose optimal value is known: sets of 8. Others: all.
    """
    if has_singular_value_form(problem):
        together, alone = DEFAULT_RESTARTS, 0
    elif has_convex_form(problem) and has_tight_bound(problem):
        together, alone = SET, 1
    else:
        return [restarts]
    left = restarts - alone
    sets = -(-left // together)
    return [1] * alone + [left // sets + (index < left % sets) for index in range(sets)]


def structured_starts(
    problem: Problem, generator: np.random.Generator
) -> Float[np.ndarray, "starts n"]:
    """Return initial points near what is known to be low, in balanced coordinates; (0, 0) where nothing is.

    Deep models: `ufm.constructions`. One layer whose dimension is too small for the convex
    minimiser: truncations of that minimiser.

    Args:
        problem: of weight decay or norm balls, one count per class.
        generator: of the perturbations.
    """
    if has_structures(problem):
        return starts_of(problem, generator)
    if not has_convex_form(problem) or problem.feature_dim >= needed_dimension(problem):
        return np.zeros((0, 0))
    wide = solve(rebuilt(problem, feature_dim=problem.num_classes), resolution="classes", key=0)
    with double_precision():
        points = [
            np.asarray(unknowns_at(problem, None, LBFGS(), point, jnp.float64))
            for point in truncations(problem, wide.parameters)
        ]
    (draws,) = generator.spawn(1)
    return np.stack(
        [x + PERTURBATION * np.sqrt(np.mean(x**2)) * draws.standard_normal(x.shape) for x in points]
    )


def _solve_one_layer(problem: Problem) -> OneLayerBound:
    """Solve a problem of one layer for the bracket of a deep one."""
    solution = solve(problem)
    certificate = solution.certificate
    assert certificate is not None
    with double_precision():
        penalty = float(_penalty(problem, solution.parameters._replace(bias=None)))
    gauge = penalty / float(problem.gauge.price)  # 0 where it is bounded, and is not asked for
    # What the collapse leaves behind of the initial point is nothing.
    if not gauge > 1e-9 * float(np.sqrt(np.sum(np.asarray(problem.class_counts)))):
        gauge = 0.0
    bound = certificate.lower_bound if certificate.believable else -np.inf
    return OneLayerBound(bound, gauge, certificate.dual_ratio)


def _takes_groups(problem: Problem) -> bool:
    """Whether "auto" takes group resolution: where it is exact and much less work, or matrices over classes do not fit.

    With non-negative features the minimiser found over groups may need more dimensions than there
    are.
    """
    if not has_group_form(problem) or not is_concrete(problem):
        return False
    if problem.num_classes > DENSE_LIMIT:
        return grouped(problem)[0].num_groups <= MOST_GROUPS_SOLVED
    if problem.nonnegative_features:
        return False
    return grouping_pays(problem, 1) and grouping_pays(problem, grouped(problem)[0].num_groups)


class _Run:
    """One call of `solve`: the host side, which strings compiled pieces together."""

    def __init__(self, **settings: Any):
        self.__dict__.update(settings)
        self.escapes = 0
        self.batched = False
        # Lanes of earlier sets; and, where one of all lanes is being followed, all of them and its
        # index.
        self.reached: Iterate | None = None
        self.followed: int | None = None
        self.certificate: Certificate | None = None
        self.followers: np.ndarray | None = None
        self._answered: tuple[Method, np.ndarray, Any] | None = None

    @classmethod
    def prepare(
        cls,
        problem: Any,
        method: Any,
        resolution: Any,
        key: Any,
        tol: Any,
        max_steps: Any,
        restarts: Any,
        initial: Any,
        record_every: Any,
        dtype: Any,
        progress: Any,
    ) -> "_Run":
        """Validate the arguments of `solve` and fill in the defaults."""
        if not isinstance(problem, Problem):
            raise ValueError(f"`problem` must be a ufm.Problem, got {type(problem).__name__}.")
        if method is not None and not isinstance(method, Method):
            raise ValueError(
                f"`method` must be ufm.LBFGS(), ufm.NewtonCG(), ufm.GradientDescent(...) or a ufm.Method of your own, got {method!r}."
            )
        if not isinstance(resolution, str) or resolution not in (
            "auto",
            "samples",
            "classes",
            "groups",
        ):
            raise ValueError(
                f"`resolution` must be 'auto', 'samples', 'classes' or 'groups', got {resolution!r}."
            )
        if not isinstance(dtype, str) or dtype not in ("float64", "float32"):
            raise ValueError(f"`dtype` must be 'float64' or 'float32', got {dtype!r}.")
        tol = checked_positive("tol", tol)
        if max_steps is None:
            default = DEFAULT_CONVEX_STEPS if has_convex_form(problem) else default_steps(problem)
            max_steps = (
                method.default_steps if method is not None and method.default_steps else default
            )
        max_steps = within_steps(checked_whole("max_steps", max_steps, 0))
        record_every = within_steps(checked_whole("record_every", record_every, 0))
        if restarts is not None:
            restarts = checked_whole("restarts", restarts, 1, MOST_RESTARTS)
        if initial is not None and restarts not in (None, 1):
            raise ValueError(
                f"`initial` is one point, but `restarts` is {restarts}; give one of the two."
            )
        sample_labels = labels(problem.class_counts) if resolution == "samples" else None
        if initial is not None:
            rows = problem.num_classes if sample_labels is None else sample_labels.size
            initial = checked_parameters(problem, initial, "initial", (rows,))
            if not all(np.all(np.isfinite(block)) for block in jax.tree.leaves(initial)):
                raise ValueError("`initial` must be finite, got NaN or infinite entries.")
        draws = generator(key)
        floor = 0.0 if dtype == "float64" else 1e-4
        working = canonical(problem)
        if method is None and initial is None:
            working = reduced(working)
        default = initial is None and restarts is None
        if restarts is None:
            restarts = (
                1 if initial is not None else default_restarts(working, method, sample_labels)
            )
        return cls(
            structured=default and method is None and sample_labels is None,
            stated=problem,
            problem=working,
            method=method,
            labels=sample_labels,
            generator=draws,
            tol=max(tol, floor),
            _floor=floor,
            max_steps=max_steps,
            restarts=restarts,
            initial=initial,
            record_every=record_every,
            dtype=np.dtype(dtype),
            progress=progress,
        )

    stated: Problem
    problem: Problem
    structured: bool
    method: Method | None
    labels: np.ndarray | None
    generator: np.random.Generator
    tol: float
    _floor: float
    max_steps: int
    restarts: int
    initial: Any
    record_every: int
    dtype: np.dtype
    progress: Progress | None
    iterate: Iterate
    current: Method

    def execute(self) -> None:
        """Run the method, or the default ones in turn, from one set of starts after the other, until certified or all are used."""
        near = (
            structured_starts(self.problem, self.generator) if self.structured else np.zeros((0, 0))
        )
        first = 0
        one_set = self.method is not None or self.initial is not None
        for count in [self.restarts] if one_set else start_sets(self.problem, self.restarts):
            # The structures come with the first set of several.
            several = count > 1 or self.restarts == 1
            self.reached = self._lanes_reached()[0] if first else None
            self._attempt(first, count, near if several else near[:0])
            near = near[:0] if several else near
            first += count
            if not one_set and self._certified():
                return

    def _certified(self) -> bool:
        """Whether the certificate of the best point reached ends the search; False for models whose certificate does not end a search."""
        if not (has_convex_form(self.problem) or has_singular_value_form(self.problem)):
            return False
        lanes, best = self._lanes_reached()
        certificate = certificate_from(self.problem, self._answer_at(lanes.x[best])[-1], self.tol)
        # More starts mend no bound that is none.
        return certificate is not None and (certificate.holds or not certificate.believable)

    def _lanes_reached(self) -> tuple[Iterate, int]:
        """Return all lanes of all sets along one axis, without the method's memory, and which has the lowest objective."""
        lanes = to_numpy(self.iterate._replace(memory=None))
        if not self.batched:
            lanes = jax.tree.map(lambda leaf: leaf[None], lanes)
        if self.reached is None:
            pass
        elif self.followed is not None:
            lanes = jax.tree.map(self._put, self.reached, lanes)
        else:
            lanes = jax.tree.map(lambda *leaves: np.concatenate(leaves), self.reached, lanes)
        return lanes, int(lowest(np.asarray(lanes.value)))

    def _put(self, all_lanes: np.ndarray, one: np.ndarray) -> np.ndarray:
        """Return the lanes with the one that is being followed in its place."""
        return np.concatenate([all_lanes[: self.followed], one, all_lanes[self.followed + 1 :]])  # type: ignore[operator]

    def certify(self) -> None:
        """Bracket a deep problem; other certificates need no solves, and are made with the solution."""
        if not has_bracket(self.problem):
            return
        lanes, best = self._lanes_reached()
        evidence = self._answer_at(lanes.x[best])[-1]
        self.certificate = certificate_from(self.problem, evidence, self.tol, _solve_one_layer)

    def _attempt(self, first: int, count: int, near: np.ndarray) -> None:
        """Solve from a set of starts: random ones, the `first` to `first + count` of all, and those near structures."""
        self.followed, self.batched = None, count + len(near) > 1
        lanes = (count + len(near),) if self.batched else ()
        if self.method is not None:
            self._begin(Stage(self.method, self.tol, 1.0), first, lanes, near)
            self._beyond_floor()
            return
        search = self.batched and has_convex_form(self.problem)
        stages = default_schedule(
            self.problem,
            self._rows(),
            self.tol,
            self._floor,
            aligned=self.labels is None,
            given=self.initial is not None,
        )
        if search:
            stages = [
                Stage(
                    LBFGS(),
                    max(0.1 * self.tol, self._floor),
                    SEARCH_STEPS / max(self.max_steps, SEARCH_STEPS),
                )
            ]
        ahead = self._compile_ahead([stage.method for stage in stages], lanes)
        self._begin(stages[0], first, lanes, near)
        ahead.result()
        for stage in stages[1:]:
            self._switch(stage)
        if has_kinks(self.problem):
            self._follow()
        if self.tol >= HANDOVER:
            return
        if search:
            self._beyond_floor()
            self._finish()
            return
        if not has_kinks(self.problem) and not self._reached():
            # L-BFGS stalls where the problem is badly scaled: Newton's method goes on.
            self._switch(Stage(NewtonCG(), AIM * self.tol, 1.0))
        self._beyond_floor()
        if has_convex_form(self.problem):
            self._escape()

    def _finish(self) -> None:
        """Follow the lowest lanes to their minima: Newton's method where they have not converged, and the ways out of the best one."""
        done: set[int] = set()
        while len(done) < MOST_FOLLOWED:
            lanes, best = self._lanes_reached()
            value = float(lanes.value[best])
            open_lanes = (lanes.relative_gradient > self.tol) & (
                lanes.value <= value + ALIKE * abs(value)
            )
            open_lanes[best] = True
            left = [
                int(lane)
                for lane in np.argsort(lanes.value, kind="stable")
                if open_lanes[lane] and lane not in done
            ]
            if not left:
                return
            lane = left[0]
            done.add(lane)
            self.reached, self.followed, self.batched = lanes, lane, False
            self.iterate = jax.tree.map(lambda leaf, lane=lane: leaf[lane], lanes)
            if lanes.relative_gradient[lane] > self.tol:
                self._switch(Stage(NewtonCG(), AIM * self.tol, 0.3))
            if self._lanes_reached()[1] == lane:
                done.add(lane)
                self._escape()

    def _beyond_floor(self) -> None:
        """Go on with the logarithm of the objective where that has digits and the floor of the scale ended the descent."""
        logarithm = self.current.in_logarithm()
        if logarithm is None or not self.problem.regularizer.bounded:
            return
        if has_kinks(self.problem):
            return
        before, plain = to_numpy(self.iterate), self.current
        values, residuals = np.asarray(before.value), np.asarray(before.relative_gradient)
        relative = self._relative(residuals, values)
        lanes = can_go_on(residuals, relative, self.tol)
        if self._floor > 0 or not np.any(lanes):
            return
        for _ in range(ROUNDS):
            # The coordinates of a ball have a scale of their own, which is one again at those of
            # the parameters.
            x = np.asarray(self.iterate.x)
            points = [self._answer_at(row)[0] for row in x.reshape(-1, x.shape[-1])]
            again = [
                np.asarray(unknowns_at(self.problem, self.labels, plain, point, self.dtype))
                for point in points
            ]
            self.iterate = self.iterate._replace(x=jnp.asarray(np.reshape(again, x.shape)))
            self._switch(Stage(logarithm, AIM * self.tol, 1.0))
            if np.all(np.asarray(self.iterate.relative_gradient)[lanes] <= self.tol):
                break
        reached = to_numpy(self.iterate)
        self._switch(
            Stage(plain, self.tol, 0.0)
        )  # no steps: the value itself, and what is relative to the floor
        after = to_numpy(self.iterate)
        better = lanes & np.isfinite(reached.relative_gradient) & (after.value <= before.value)
        # All lanes keep residuals that are relative to the floor, whichever they were solved by.
        infimum = infimum_of(self.problem)
        with np.errstate(
            divide="ignore", invalid="ignore"
        ):  # a lane at the infimum itself has no share: NaN
            share = (after.value - infimum) / (values - infimum)
            floored = reached.relative_gradient * (residuals / relative) * share
        after = after._replace(relative_gradient=floored, status=reached.status)

        def chosen(old: Any, new: Any) -> Any:
            return jnp.asarray(
                np.where(
                    np.reshape(better, better.shape + (1,) * (np.ndim(new) - better.ndim)), new, old
                )
            )

        kept = jax.tree.map(
            chosen,
            before._replace(memory=None, records=None),
            after._replace(memory=None, records=None),
        )
        self.iterate = kept._replace(memory=self.iterate.memory, records=self.iterate.records)

    def _relative(self, residuals: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Return relative gradients without the floor of the scale."""
        if not self.problem.regularizer.bounded:
            return residuals
        x = np.asarray(self.iterate.x)
        at_zero = float(self._answer_at(x[0] if x.ndim > 1 else x)[-1].at_zero)
        return relative_to_objective(self.problem, residuals, values, at_zero)

    def _follow(self) -> None:
        """Take the lowest starts from near the kinks of their minima onto these; of starts with the same objective, one that arrives."""
        lanes = jax.tree.map(np.array, self._lanes_reached()[0])
        values, status = lanes.value.copy(), lanes.status
        status[status != Status.NON_FINITE] = Status.DUPLICATE
        self.followers = np.full(values.shape, -1)
        followed = 0
        for lane in np.argsort(values, kind="stable"):
            if not np.isfinite(values[lane]) or self.followers[lane] >= 0:
                continue
            if followed == MOST_FOLLOWED:
                break
            followed += 1
            alike = (self.followers < 0) & (
                np.abs(values - values[lane]) <= ALIKE * abs(values[lane])
            )
            found = polish(
                self.problem, self._answer_at(lanes.x[lane])[0], SMOOTHINGS[-1], self.tol
            )
            lanes.x[lane] = np.asarray(
                unknowns_at(self.problem, self.labels, self.current, found.parameters, self.dtype)
            )
            lanes.value[lane], lanes.relative_gradient[lane] = (
                found.objective,
                found.relative_gradient,
            )
            status[lane] = Status.STALLED
            # Where one start does not arrive, the next one like it may.
            self.followers[alike if found.relative_gradient <= self.tol else lane] = lane
        self.iterate = jax.tree.map(
            lambda leaf: jnp.asarray(leaf if self.batched else leaf[0]), lanes
        )

    def _escape(self) -> None:
        """Leave what is stationary but not certified: tidy what is nearly zero, then follow violating atoms, until certified."""
        tight, newton = has_tight_bound(self.problem), isinstance(self.current, NewtonCG)
        # Where the bound is not tight, the gap stays open: what is won in the last digits is then
        # no progress.
        least = 1e-15 if tight else self.tol
        for _ in range(MAX_ESCAPES):
            gap = self._gap()
            if gap <= self.tol:
                return
            before = self.iterate
            if not newton:
                newton = True
                self._switch(Stage(NewtonCG(), AIM * self.tol, 0.3))
                continue
            for x, method in self._ways_out():
                self.iterate = before._replace(x=jnp.asarray(x, self.dtype))
                # Newton's method gets there in a few steps, or not at all.
                few = min(0.3, NEWTON_STEPS / max(self.max_steps, 1))
                self._switch(
                    Stage(method, AIM * self.tol, few if isinstance(method, NewtonCG) else 0.3)
                )
                if (
                    float(self.iterate.value) < float(before.value) * (1 - least)
                    or self._gap() < 0.5 * gap
                ):
                    self.escapes += 1
                    break
                self.iterate = before._replace(
                    step=self.iterate.step, evaluations=self.iterate.evaluations
                )
            else:
                return

    def _evidence(self) -> Any:
        return self._answer_at(self.iterate.x)[-1]

    def _answer_at(self, x: Any) -> Any:
        """Return parameters, value, logits, class features and evidence at unknowns, evaluated once in a row for the same."""
        x = np.array(x)  # a copy: what it came from may be written to
        if (
            self._answered is None
            or self._answered[0] is not self.current
            or not np.array_equal(self._answered[1], x)
        ):
            self._answered = (
                self.current,
                x,
                to_numpy(_answer(self.problem, self.labels, self.current, x)),
            )
        return self._answered[2]

    def _gap(self) -> float:
        certificate = certificate_from(self.problem, self._evidence(), self.tol)
        return (
            certificate.relative_gap
            if certificate is not None and np.isfinite(certificate.relative_gap)
            else np.inf
        )

    def _ways_out(self) -> Iterator[tuple[np.ndarray, Method]]:
        """Return points from which to go on, and how."""
        x, rows, bound = np.asarray(self.iterate.x), self._rows(), self._evidence().bound
        for threshold in TIDY:
            if (point := with_small_entries_zeroed(self.problem, x, rows, threshold)) is not None:
                yield point, NewtonCG()
        atom = violating_atom(np.asarray(bound.dual), self.problem.nonnegative_features)
        if atom.gain > float(bound.allowed) * (1 + 1e-12):

            def objective(point: np.ndarray) -> float:
                return float(
                    _objective_at(
                        self.problem, self.labels, self.current, jnp.asarray(point, self.dtype)
                    )
                )

            if (point := with_atom(self.problem, x, atom, self.labels, objective)) is not None:
                yield point, NewtonCG()
        if has_tight_bound(self.problem):
            # Where the Hessian is all but singular and decreases drown in rounding, gradients can
            # still be followed.
            yield x, LBFGS(memory=LONG_MEMORY)

    def _reached(self) -> bool:
        return bool(np.all(np.asarray(self.iterate.relative_gradient) <= self.tol))

    def _begin(self, stage: Stage, first: int, lanes: tuple[int, ...], near: np.ndarray) -> None:
        method = stage.method
        if self.initial is not None:
            numbers = np.asarray(
                unknowns_at(self.problem, self.labels, method, self.initial, self.dtype)
            )
            scale = np.zeros(lanes, self.dtype)
        else:
            size, count = (
                num_unknowns(self.problem, self._rows(), balanced=method.balanced),
                math.prod(lanes) - len(near),
            )
            numbers = self.generator.standard_normal((count, size))
            scale = (
                search_scales(first, count)
                if has_convex_form(self.problem)
                else start_scales(count, has_kinks(self.problem))
            )
            if len(near):
                numbers, scale = (
                    np.concatenate([numbers, near]),
                    np.append(scale, np.zeros(len(near))),
                )
            numbers, scale = (
                numbers.astype(self.dtype).reshape(*lanes, size),
                scale.astype(self.dtype).reshape(lanes),
            )
        zero = np.zeros(lanes, np.int32)
        self._enter(stage, Start(numbers, scale, zero, zero), self._blank_records(lanes))

    def _switch(self, stage: Stage) -> None:
        """Go on with another method of balanced coordinates from the points reached, keeping counts and records.

        It makes a new attempt at every point that is finite.
        """
        old = to_numpy(self.iterate)
        start = Start(old.x, np.zeros(np.shape(old.step), self.dtype), old.step, old.evaluations)
        self._enter(stage, start, old.records)

    def _enter(self, stage: Stage, start: Start, records: Records | None) -> None:
        self.current = stage.method
        begin = _begun_batched if self.batched else _begun
        self._run(
            begin,
            (self.problem, self.labels, stage.method, start, records),
            stage,
            np.atleast_1d(start.step),
        )

    def _blank_records(self, lanes: tuple[int, ...]) -> Records | None:
        if not self.record_every:
            return None
        blank = empty_records(self.max_steps // self.record_every + 4, self.dtype)
        return jax.tree.map(lambda column: np.broadcast_to(column, (*lanes, *column.shape)), blank)

    def _run(
        self, first: Callable[..., Iterate], arguments: tuple, stage: Stage, begin_steps: np.ndarray
    ) -> None:
        """Run the compiled `first` for one chunk of steps, then go on in chunks until all lanes end or their steps are spent."""
        proceed = _advanced_batched if self.batched else _advanced
        tolerance = np.asarray(stage.tol, self.dtype)
        # A stage may use its share of the steps, and every lane at most what it has left.
        allowed = np.ceil(stage.shares(np.arange(begin_steps.size)) * self.max_steps)
        last = np.minimum(begin_steps + allowed, self.max_steps).astype(np.int32)
        chunk, piece, until = FIRST_CHUNK, first, begin_steps
        while True:
            until = np.minimum(until + chunk, last).astype(np.int32)
            limit = until if self.batched else until[0]
            began = time.perf_counter()
            self.iterate = jax.block_until_ready(
                piece(*arguments, limit, tolerance, self.record_every)
            )
            elapsed = time.perf_counter() - began
            if self.progress is not None:
                self._report(self.progress)
            steps = np.atleast_1d(np.asarray(self.iterate.step))
            running = np.atleast_1d(np.asarray(self.iterate.status)) == Status.RUNNING
            if not np.any(running & (steps < last)):
                return
            if piece is not first:  # the first piece's time includes its compilation
                chunk = int(
                    np.clip(
                        chunk * SECONDS_PER_CHUNK / max(elapsed, 1e-3),
                        max(chunk // 8, 1),
                        8 * chunk,
                    )
                )
            piece, arguments = proceed, (self.problem, self.labels, self.current, self.iterate)

    def _report(self, progress: Progress) -> None:
        values = np.atleast_1d(np.asarray(self.iterate.value, np.float64))
        values = np.asarray(self.current.plain_value(self.problem, values))
        best = int(lowest(values))
        residual = np.atleast_1d(np.asarray(self.iterate.relative_gradient))[best]
        progress(int(np.max(self.iterate.step)), float(values[best]), float(residual))

    def _rows(self) -> int:
        return self.problem.num_classes if self.labels is None else self.labels.size

    def _compile_ahead(self, methods: list[Method], shape: tuple[int, ...]) -> "Future[None]":
        """Compile the later stages in a second thread while the first one compiles and runs.

        The pieces run once on placeholders, for no steps, which leaves them in the caches of `jit`.
        """
        numbers = np.zeros(
            (*shape, num_unknowns(self.problem, self._rows(), balanced=methods[0].balanced)),
            self.dtype,
        )
        records = self._blank_records(shape)
        signature = (
            jax.tree.structure((self.problem, methods, records)),
            tuple(np.shape(leaf) for leaf in jax.tree.leaves((self.problem, records))),
            None if self.labels is None else self.labels.shape,
            numbers.shape,
            self.dtype,
            self.record_every,
        )
        future: Future[None] = Future()
        if signature in _compiled:
            future.set_result(None)
            return future
        _compiled.add(signature)

        def compile_pieces() -> None:
            problem, sample_labels = self.problem, self.labels
            begin = _begun if not shape else _begun_batched
            zero, tol = np.zeros(shape, np.int32), np.asarray(self.tol, self.dtype)
            start = Start(numbers, np.zeros(shape, self.dtype), zero, zero)
            different = {jax.tree.structure(method): method for method in methods}
            different.pop(jax.tree.structure(methods[0]))
            with double_precision():
                _answer(problem, sample_labels, methods[-1], numbers[0] if shape else numbers)
                for method in different.values():
                    begin(
                        problem, sample_labels, method, start, records, zero, tol, self.record_every
                    )

        pool = ThreadPoolExecutor(1)
        future = pool.submit(compile_pieces)
        pool.shutdown(wait=False)
        return future

    def _minima(self, lanes: Iterate, restarts: Restarts) -> tuple[Minimum, ...]:
        """Return the distinct values of the starts that converged, with those that were not followed counted where they ended."""
        leaders: list[int] = []
        for lane in np.argsort(restarts.objective, kind="stable"):
            value = restarts.objective[lane]
            before = restarts.objective[leaders[-1]] if leaders else -np.inf
            ended = restarts.status[lane] in (Status.CONVERGED, Status.FLOOR) and np.isfinite(value)
            if ended and not value <= before + SAME * abs(before):
                leaders.append(int(lane))
        found = []
        for lane in leaders:
            value = restarts.objective[lane]
            near = np.abs(restarts.objective - value) <= SAME * abs(value)
            followed = np.zeros_like(near) if self.followers is None else self.followers == lane
            parameters, _, logits, class_features, _ = self._answer_at(lanes.x[lane])
            point = matrix_point(self.stated, parameters, logits, class_features)
            starts = int(
                np.sum(near & np.isin(restarts.status, (Status.CONVERGED, Status.FLOOR)) | followed)
            )
            residual = float(restarts.relative_gradient[lane])
            found.append(Minimum(float(value), residual, starts, point))
        return tuple(found)

    def solution(self, started: float, interrupted: bool) -> Solution:
        """Return the best point reached, certified."""
        if not hasattr(self, "iterate"):
            raise KeyboardInterrupt
        lanes, best = self._lanes_reached()
        iterate = jax.tree.map(lambda leaf: leaf[best], lanes)
        values, residuals = (
            np.asarray(lanes.value, np.float64),
            np.asarray(lanes.relative_gradient, np.float64),
        )
        parameters, value, logits, class_features, evidence = self._answer_at(iterate.x)
        unfinished = Status.INTERRUPTED if interrupted else Status.MAX_STEPS
        codes = judged(lanes.status, residuals, self.tol, unfinished)  # type: ignore[arg-type]
        relative = self._relative(residuals, values)
        codes[(codes == Status.CONVERGED) & (relative > self.tol)] = Status.FLOOR
        residuals = relative
        certificate = self.certificate or certificate_from(self.problem, evidence, self.tol)
        if certificate is not None and certificate.at_floor and codes[best] == Status.STALLED:
            codes[best] = Status.FLOOR
        if certificate is not None and not certificate.believable:
            codes[best] = Status.CONTRADICTION
        restarts = Restarts(values, residuals, codes, np.asarray(lanes.step), best)
        status = Status(int(codes[best]))  # type: ignore[call-arg]
        return assembled(
            Solution,
            problem=self.stated,
            resolution="classes" if self.labels is None else "samples",
            objective=float(value),
            point=matrix_point(self.stated, parameters, logits, class_features),
            status=status
            if certificate is None
            else certified_status(status, certificate.holds, certificate.tight),
            steps=int(iterate.step),
            evaluations=int(iterate.evaluations),
            escapes=self.escapes,
            relative_gradient=float(residuals[best]),
            certificate=certificate,
            restarts=restarts,
            minima=self._minima(lanes, restarts),
            trajectory=None if iterate.records is None else iterate.records.trajectory(),
            seconds=time.perf_counter() - started,
            price=None,
            dual_ratios=None,
        )


# The compiled pieces. Sizes, methods' types and the dtype are static, everything else is traced:
# another penalty, count, learning rate or tolerance runs the same machine code.

_compiled: set[Any] = set()


def _begin_one(problem, labels, method, start, records, until, tol, every):  # type: ignore[no-untyped-def]
    return advance(
        problem,
        labels,
        method,
        first_iterate(problem, labels, method, start, records),
        until,
        tol,
        every,
    )


_begun = compiled(_begin_one)
_advanced = compiled(advance)


@compiled
def _begun_batched(problem, labels, method, starts, records, until, tol, every):  # type: ignore[no-untyped-def]
    def one(start, records, until):  # type: ignore[no-untyped-def]
        return _begin_one(problem, labels, method, start, records, until, tol, every)

    return jax.vmap(one)(starts, records, until)


@compiled
def _advanced_batched(problem, labels, method, iterates, until, tol, every):  # type: ignore[no-untyped-def]
    def one(iterate, until):  # type: ignore[no-untyped-def]
        return advance(problem, labels, method, iterate, until, tol, every)

    return jax.vmap(one)(iterates, until)


@functools.partial(compiled, once=True)
def _penalty(problem, parameters):  # type: ignore[no-untyped-def]
    return problem.penalty(parameters, samples_of(problem, None, jnp.float64))


@functools.partial(compiled, once=True)
def _objective_at(problem, labels, method, x):  # type: ignore[no-untyped-def]
    parameters = parameters_of(problem, labels, method, x)
    return problem.objective(parameters, samples_of(problem, labels, x.dtype))


_answer = compiled(answer_at)
