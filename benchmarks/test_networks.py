"""The benchmark's data hold the trap that they are made for; only float32 code falls into it."""

from pathlib import Path

import numpy as np

from benchmarks.networks import QUICK, float32, one_pass, reference, two_passes, write_features


def test_float32_code_is_wrong_where_one_and_two_passes_are_right(tmp_path: Path) -> None:
    path = tmp_path / "features.f32"
    write_features(QUICK[0], path)
    truth = reference(QUICK[0], path)[1:]
    for method in (one_pass, two_passes):
        np.testing.assert_allclose(method(QUICK[0], path)[1:], truth, rtol=1e-10)
    nc1, ratio = float32(QUICK[0], path)[1:]
    assert not 0.1 < nc1 / truth[0] < 10
    np.testing.assert_allclose(ratio, truth[1], rtol=1e-2)
