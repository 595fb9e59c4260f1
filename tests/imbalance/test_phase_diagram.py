import numpy as np
import pytest
from tables import for_each

import ufm
from ufm.problems import varied

DECAY = ufm.Problem(
    class_counts=ufm.ClassGroups.step(10, 500, imbalance_ratio=10),
    feature_dim=20,
    loss=ufm.CrossEntropy(),
    regularizer=ufm.WeightDecay(weights=1e-3, features=1e-3),
)


@pytest.mark.slow
def test_every_point_is_certified_and_on_its_side_of_the_threshold() -> None:
    ratio, decay = np.geomspace(1, 100, 9), np.geomspace(1e-4, 1e-2, 7)
    diagram = ufm.phase_diagram(DECAY, ("imbalance_ratio", ratio), ("weight_decay", decay))
    assert diagram.cosine.shape == (7, 9)
    assert diagram.relative_gap.max() < 1e-9
    assert np.all(diagram.status == ufm.Status.CONVERGED)
    minority = 500 / ratio[None, :]
    scaled = 5 * (500 + minority) * decay[:, None]
    np.testing.assert_allclose(
        diagram.minority_level, np.log(scaled / np.sqrt(minority)), atol=1e-12
    )
    np.testing.assert_allclose(
        diagram.majority_level, np.log(scaled / np.sqrt(500)) + 0 * minority, atol=1e-12
    )
    collapsed = scaled >= np.sqrt(minority)
    assert np.array_equal(collapsed, ~(diagram.cosine < 1 - 1e-9))
    assert np.array_equal(diagram.minority_margin > 1e-9, ~collapsed)
    assert np.array_equal(diagram.rank == 0, scaled >= np.sqrt(500) + 0 * minority)
    # The balanced column is an ETF wherever anything is left.
    np.testing.assert_allclose(diagram.cosine[~collapsed[:, 0], 0], -1 / 9, atol=1e-9)


@pytest.mark.nightly
def test_points_are_those_of_single_solves() -> None:
    diagram = ufm.phase_diagram(
        DECAY, ("imbalance_ratio", [3.0, 30.0]), ("regularizer.features", [1e-5, 1e-4])
    )
    for row, features in enumerate((1e-5, 1e-4)):
        for column, ratio in enumerate((3.0, 30.0)):
            problem = ufm.Problem(
                class_counts=ufm.ClassGroups.step(10, 500, imbalance_ratio=ratio),
                feature_dim=20,
                loss=ufm.CrossEntropy(),
                regularizer=ufm.WeightDecay(weights=1e-3, features=features),
            )
            found = ufm.solve(problem, resolution="classes")
            assert diagram.objective[row, column] == pytest.approx(found.objective, rel=1e-9)
            gram = found.weights[0] @ found.weights[0].T
            cosine = gram[8, 9] / np.sqrt(gram[8, 8] * gram[9, 9])
            assert diagram.cosine[row, column] == pytest.approx(cosine, abs=1e-6)


@for_each(
    ("x", "y"),
    [
        (("imbalance_ratio", [2.0]), ("imbalance_ratio", [3.0])),
        (("no_such_number", [2.0]), ("weight_decay", [3.0])),
        (("imbalance_ratio", [-2.0]), ("weight_decay", [3.0])),
        (("imbalance_ratio", [np.nan]), ("weight_decay", [3.0])),
        (("num_minority", [10.0]), ("weight_decay", [3.0])),
        (("loss.gamma", [1.0]), ("weight_decay", [3.0])),
    ],
)
def test_axes_that_the_problem_does_not_have(
    x: tuple[str, list[float]], y: tuple[str, list[float]]
) -> None:
    with pytest.raises(ValueError, match=r"vary|must|varied|parameter"):
        ufm.phase_diagram(DECAY, x, y)


def test_numbers_are_varied_together() -> None:
    problems = varied(
        DECAY,
        {"imbalance_ratio": [2.0, 4.0], "majority_count": [100.0, 400.0], "weight_decay": 1e-2},
    )
    np.testing.assert_allclose(problems.counts, [[100, 400], [50, 100]])
    np.testing.assert_allclose(problems.gauge.price, [1e-2, 1e-2])
    np.testing.assert_allclose(
        varied(DECAY, {"num_minority": [2.0, 7.5]}).sizes, [[8, 2.5], [2, 7.5]]
    )
    with pytest.raises(ValueError, match="one"):
        varied(DECAY, {"imbalance_ratio": [2.0, 4.0], "majority_count": [1.0, 2.0, 3.0]})


def test_a_lone_small_class_is_no_minority() -> None:
    problem = ufm.Problem(
        class_counts=ufm.ClassGroups((500, 50), sizes=(9, 1)),
        feature_dim=20,
        loss=ufm.CrossEntropy(),
        regularizer=DECAY.regularizer,
    )
    with pytest.raises(ValueError, match="at least two classes"):
        ufm.phase_diagram(problem, ("imbalance_ratio", [2.0]), ("weight_decay", [1e-3]))
    with pytest.raises(ValueError, match="at least two classes"):
        ufm.minority_collapse_threshold(problem, vary="imbalance_ratio")
