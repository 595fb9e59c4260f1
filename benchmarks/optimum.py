"""The optimum of all gaps: a lower bound by duality, and a point that meets it to nine digits."""

from typing import NamedTuple

import ufm
from benchmarks.problems import Setting

__all__ = ["Optimum", "certified_optimum"]

REQUIRED = 1e-9


class Optimum(NamedTuple):
    """The optimal value lies in [lower_bound, objective]; relative_gap is that interval's width."""

    lower_bound: float
    objective: float
    relative_gap: float


def certified_optimum(setting: Setting, tol: float = 1e-10) -> Optimum:
    """Return a certified interval around the optimal value.

    Raises:
        RuntimeError: if the interval is wider than 1e-9 of its lower end.
    """
    solution = ufm.solve(setting.problem(), tol=tol)
    certificate = solution.certificate
    if certificate is None or not certificate.relative_gap <= REQUIRED:
        raise RuntimeError(f"no certified optimum for {setting.name}: {certificate}")
    relative = certificate.gap / certificate.lower_bound
    return Optimum(certificate.lower_bound, certificate.objective, relative)
