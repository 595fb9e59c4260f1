"""The verdict on solves that have ended, in view of the tolerance that was asked for."""

import numpy as np
import pytest

from ufm._support import Status, certified_status, judged, lowest


@pytest.mark.parametrize("unfinished", [Status.MAX_STEPS, Status.INTERRUPTED])
def test_the_tolerance_decides(unfinished: Status) -> None:
    verdicts = [
        (Status.CONVERGED, 1e-9, Status.CONVERGED),
        (Status.CONVERGED, 2e-9, Status.MAX_STEPS),
        (Status.STALLED, 1e-9, Status.CONVERGED),
        (Status.STALLED, 2e-9, Status.STALLED),
        (Status.STALLED, np.nan, Status.STALLED),
        (Status.RUNNING, 1e-9, Status.CONVERGED),
        (Status.RUNNING, 2e-9, unfinished),
        (Status.NON_FINITE, 0.0, Status.NON_FINITE),
    ]
    codes, residuals, expected = (np.array(column) for column in zip(*verdicts, strict=True))
    before = codes.copy()
    np.testing.assert_array_equal(judged(codes, residuals, 1e-9, unfinished), expected)
    np.testing.assert_array_equal(codes, before)


def test_the_certificate_decides_about_converged_and_stalled_points_alone() -> None:
    for tight in (True, False):
        for ended in (Status.CONVERGED, Status.STALLED):
            assert certified_status(ended, holds=True, tight=tight) is Status.CONVERGED
        assert certified_status(Status.STALLED, holds=False, tight=tight) is Status.STALLED
    assert certified_status(Status.CONVERGED, holds=False, tight=True) is Status.NOT_CERTIFIED
    assert certified_status(Status.CONVERGED, holds=False, tight=False) is Status.CONVERGED
    for ended in (
        Status.MAX_STEPS,
        Status.NON_FINITE,
        Status.INTERRUPTED,
        Status.FLOOR,
        Status.CONTRADICTION,
    ):
        assert certified_status(ended, holds=True, tight=True) is ended
        assert certified_status(ended, holds=False, tight=True) is ended


def test_the_lowest_objective_is_a_finite_one() -> None:
    values = np.array([[3.0, 1.0, 2.0], [np.nan, -np.inf, 5.0], [np.nan, np.inf, np.nan]])
    np.testing.assert_array_equal(lowest(values), [1, 2, 0])
