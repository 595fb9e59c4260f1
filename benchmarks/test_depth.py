"""A start with one more layer is the same model; starts count only where they are low enough."""

import numpy as np

from benchmarks.depth import Found, Search, Setting, deepened
from ufm.problems import Parameters


def logits(parameters: Parameters) -> np.ndarray:
    hidden = np.asarray(parameters.features)
    for matrix in parameters.weights[:-1]:
        hidden = np.maximum(hidden @ np.asarray(matrix).T, 0)
    return hidden @ np.asarray(parameters.weights[-1]).T


def test_a_layer_more_leaves_the_logits_and_balances_the_factors() -> None:
    rng = np.random.default_rng(0)
    first = rng.standard_normal((5, 3))
    first[2] = 0  # a unit that is out passes nothing on
    shallow = Parameters((first, rng.standard_normal((3, 5))), rng.standard_normal((3, 3)), None)
    deep = deepened(shallow)
    assert [matrix.shape for matrix in deep.weights] == [(5, 3), (5, 5), (3, 5)]
    np.testing.assert_allclose(logits(deep), logits(shallow), rtol=1e-12, atol=1e-12)
    norms = [np.linalg.norm(block) for block in (*deep.weights, deep.features)]
    np.testing.assert_allclose(norms, norms[0], rtol=1e-12)
    assert np.linalg.matrix_rank(deep.weights[1]) == 4


def test_a_layer_more_on_what_collapsed_is_zero() -> None:
    deep = deepened(Parameters((np.zeros((4, 3)), np.zeros((3, 4))), np.zeros((3, 3)), None))
    assert not any(np.any(block) for block in (*deep.weights, deep.features))


def test_starts_count_only_at_or_below_the_reference() -> None:
    def found(reference: float) -> Found:
        search = Search(Setting(3, 3, 3, reference), starts=4)
        return search._descended("random", search.numbers, search.scales)

    lowest = found(np.nan).lowest
    assert found(np.nan).hits == 0
    assert found(lowest * (1 - 1e-4)).hits == 0
    assert 1 <= found(lowest).hits < 4  # the smallest start ends at zero
    assert found(0.5).hits == 4
