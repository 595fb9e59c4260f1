"""From the lanes of a search to the solution."""

import time

import jax
import numpy as np

from ufm._support import Status, assembled, certified_status, has_converged, judged
from ufm.certificates import Certificate
from ufm.solving.class_resolution import Lanes, relative_to_values
from ufm.solving.programs import HostAnswer
from ufm.solving.settings import SolveSettings
from ufm.solving.solution import MatrixPoint, Minimum, Restarts, Solution, matrix_point

__all__ = ["assemble"]

SAME = 1e-8  # relative difference of objectives that count as one


def assemble(
    settings: SolveSettings,
    lanes: Lanes,
    certificate: Certificate | None,
    started: float,
    unfinished: Status = Status.MAX_STEPS,
) -> Solution:
    """Return the best point reached as a solution.

    Args:
        settings: The arguments of the solve.
        lanes: All lanes.
        certificate: The certificate of the best point.
        started: Time at the start of the solve, from `time.perf_counter`.
        unfinished: Status of lanes that were still running.
    """
    best = lanes.best
    iterate = jax.tree.map(lambda leaf: leaf[best], lanes.iterates)
    found = settings.answer(iterate.x)
    restarts = _restarts(settings, lanes, certificate, unfinished)
    status = Status(int(restarts.status[best]))
    if certificate is not None:
        status = certified_status(status, certificate.holds, certificate.tight)
    return assembled(
        Solution,
        problem=settings.stated,
        resolution=settings.resolution,
        objective=float(found.objective),
        point=_point(settings, found),
        status=status,
        steps=int(iterate.step),
        evaluations=int(iterate.evaluations),
        escapes=lanes.escapes,
        relative_gradient=float(restarts.relative_gradient[best]),
        certificate=certificate,
        restarts=restarts,
        minima=_minima(settings, lanes, restarts),
        trajectory=None if iterate.records is None else iterate.records.trajectory(),
        seconds=time.perf_counter() - started,
        price=None,
        dual_ratios=None,
    )


def _point(settings: SolveSettings, found: HostAnswer) -> MatrixPoint:
    """Return the answer as a point of the problem as it was stated, with all of its rows."""
    parameters, logits, class_features = found.parameters, found.logits, found.class_features
    lift = settings.fewer.lift
    if lift is not None:
        parameters = parameters._replace(features=lift(parameters.features))
        class_features = lift(class_features)
        logits = class_features @ parameters.weights[-1].T
        logits = logits if parameters.bias is None else logits + parameters.bias
    return matrix_point(settings.stated, parameters, logits, class_features)


def _restarts(
    settings: SolveSettings, lanes: Lanes, certificate: Certificate | None, unfinished: Status
) -> Restarts:
    """Return how every start ended. The certificate may change the status of the best one."""
    iterates, best = lanes.iterates, lanes.best
    residuals = np.asarray(iterates.relative_gradient, np.float64)
    codes = judged(iterates.status, residuals, settings.tol, unfinished)
    relative = relative_to_values(settings, lanes)
    codes[(codes == Status.CONVERGED) & (relative > settings.tol)] = Status.FLOOR
    if certificate is not None and certificate.at_floor and codes[best] == Status.STALLED:
        codes[best] = Status.FLOOR
    if certificate is not None and not certificate.believable:
        codes[best] = Status.CONTRADICTION
    values = np.asarray(iterates.value, np.float64)
    return Restarts(values, relative, codes, np.asarray(iterates.step), best)


def _minima(settings: SolveSettings, lanes: Lanes, restarts: Restarts) -> tuple[Minimum, ...]:
    """Return the distinct values of the starts that converged.

    A start that was not followed counts for the minimum of the start followed in its place.
    """
    values, found, last = restarts.objective, [], -np.inf
    ended = has_converged(restarts.status)
    for lane in np.argsort(values, kind="stable"):
        value = values[lane]
        if not (ended[lane] and np.isfinite(value)) or value <= last + SAME * abs(last):
            continue
        last = value
        near = ended & (np.abs(values - value) <= SAME * abs(value))
        answer = settings.answer(lanes.iterates.x[lane])
        point = _point(settings, answer)
        residual = float(restarts.relative_gradient[lane])
        starts = int(np.sum(near | (lanes.follows == lane)))
        found.append(Minimum(float(value), residual, starts, point))
    return tuple(found)
