"""Symmetric matrices of targets: thresholds of hierarchies, dead modes, and what is refused."""

import equinox as eqx
import numpy as np
import pytest
from tables import for_each

import ufm
from ufm.comparison.verify import check
from ufm.theory import hierarchy_thresholds, predict, theorems

STOCHASTIC = theorems["doubly-stochastic-targets"]
HIERARCHY = theorems["hierarchical-collapse"]
SYMMETRIC = theorems["cross-entropy-symmetric-targets"]


def problem(targets, decay, dim=6, bias=None, **changes):
    settings = {
        "targets": targets,
        "feature_dim": dim,
        "loss": ufm.CrossEntropy(),
        "regularizer": ufm.WeightDecay(2 * decay, decay / 2, bias or 0.0),
        "use_bias": bias is not None,
    }
    return ufm.Problem(**(settings | changes))


def failing(theorem, setting):
    return [condition.statement for condition in theorem.applies(setting).failing]


def at(targets, c):
    """The problem with a given c = K sqrt(n) tau."""
    K, n = targets.num_outputs, float(np.asarray(targets.counts)[0])
    return problem(targets, c / (K * np.sqrt(n)), dim=K)


TARGETS = ufm.Targets.hierarchy(3, 2, 0.6, 0.2, count=7.0)  # 0.05 for each other class
SIBLINGS, ALL = 0.4, 0.6 + 0.2 - 0.1


@for_each(
    ("c", "rank"),
    [
        (0.99 * SIBLINGS, 5),
        (1.01 * SIBLINGS, 2),
        (0.99 * ALL, 2),
        (1.01 * ALL, 0),
    ],
)
def test_siblings_merge_first_and_exactly_where_they_are_said_to(c, rank):
    setting = at(TARGETS, c)
    prediction = predict(setting)
    assert prediction.theorem == HIERARCHY.name
    assert prediction.rank == rank
    solution = ufm.solve(setting).check()
    comparison = ufm.compare(solution, prediction)
    assert comparison["objective"].passed
    logits = solution.logits
    apart = np.max(np.abs(logits[0] - logits[1]))
    assert (apart > 1e-3) == (c < SIBLINGS)
    assert (np.max(np.abs(logits)) > 1e-3) == (c < ALL)
    found = hierarchy_thresholds(setting)
    np.testing.assert_allclose([found.c, found.siblings, found.all], [c, SIBLINGS, ALL])
    tau = np.sqrt(float(np.prod(setting.regularizer.decays(1))))
    np.testing.assert_allclose(found.siblings_decay, tau * SIBLINGS / c)
    assert "coincide" in str(found)


def test_labels_in_any_order_are_a_hierarchy():
    order = np.random.default_rng(0).permutation(6)
    rows = np.asarray(TARGETS.rows)[np.ix_(order, order)]
    found, plain = predict(at(ufm.Targets(rows, TARGETS.counts), 0.2)), predict(at(TARGETS, 0.2))
    assert found.theorem == HIERARCHY.name
    np.testing.assert_allclose(found.logits, np.asarray(plain.logits)[np.ix_(order, order)])


def test_smoothed_rows_are_those_of_the_scalar_equation():
    setting = at(ufm.Targets.noisy(0.2, [7.0] * 5), 0.1)
    found, expected = predict(setting), SYMMETRIC.predict(setting)
    assert found.theorem == STOCHASTIC.name
    for field in ("objective", "logits", "weight_gram", "feature_gram", "singular_values"):
        np.testing.assert_allclose(
            getattr(found, field), getattr(expected, field), atol=1e-11, err_msg=field
        )


def gaussian(width):
    """Cyclic soft labels of five classes whose targets fall like a Gaussian."""
    distance = np.minimum(np.arange(5), 5 - np.arange(5))
    row = np.exp(-(distance**2) / (2 * width**2))
    return ufm.Targets([np.roll(row / row.sum(), k) for k in range(5)], np.full(5, 7.0))


def test_a_mode_that_dies_before_its_eigenvalue_of_the_targets_is_refused():
    setting = at(gaussian(0.8), 0.04)
    assert np.linalg.eigvalsh(np.asarray(gaussian(0.8).rows))[0] > 0.04
    assert failing(STOCHASTIC, setting) == ["P log(Y - c P) P with no negative eigenvalue"]
    solution = ufm.solve(setting).check()
    wrong = STOCHASTIC.formula(setting)
    assert abs(float(wrong.objective) - solution.objective) > 1e-6


THIN = ufm.Targets([np.roll([0.99, 0.01, 0.0, 0.0, 0.01], k) for k in range(5)])
LOPSIDED = np.array([[0.6, 0.3, 0.1], [0.3, 0.5, 0.2], [0.1, 0.2, 0.7]])
SWAPPED = ufm.Targets.hierarchy(3, 2, 0.6, 0.01, count=7.0)  # siblings less likely than others
CONDITIONS = {
    "sum": "a symmetric matrix of targets with sums of one",
    "order": "own >= sibling >= other >= 0",
    "rows": "rows of a balanced hierarchy: own, sibling and other target, of sum one",
    "logs": "equal row sums of log(Y - c P)",
}


@for_each(
    ("theorem", "setting", "statement"),
    [
        (STOCHASTIC, at(ufm.Targets(LOPSIDED, [5.0] * 3), 0.05), CONDITIONS["logs"]),
        (STOCHASTIC, at(ufm.Targets(np.roll(LOPSIDED, 1, 0)), 0.05), CONDITIONS["sum"]),
        (STOCHASTIC, at(ufm.Targets(2 * np.eye(3)), 0.05), CONDITIONS["sum"]),
        (
            STOCHASTIC,
            problem(ufm.Targets(np.full((5, 4), 0.25)), 1e-2),
            "as many rows as labels",
        ),
        (HIERARCHY, at(SWAPPED, 0.02), CONDITIONS["order"]),
        (HIERARCHY, at(gaussian(2.0), 0.02), CONDITIONS["rows"]),
        (HIERARCHY, at(ufm.Targets(np.asarray(TARGETS.rows) * 1.001), 0.02), CONDITIONS["rows"]),
        (
            HIERARCHY,
            problem(ufm.Targets(TARGETS.rows, [7.0] * 5 + [7.1]), 1e-2),
            "equal class counts",
        ),
        (HIERARCHY, problem(TARGETS, 1e-2, dim=4), "d >= K - 1"),
    ],
)
def test_what_is_not_covered_is_refused(theorem, setting, statement):
    assert statement in failing(theorem, setting)


def test_thresholds_are_refused_without_a_hierarchy():
    with pytest.raises(ValueError, match="own >= sibling >= other"):
        hierarchy_thresholds(at(SWAPPED, 0.02))


@pytest.mark.parametrize("field", ["objective", "weight_gram", "logits"])
def test_a_wrong_constant_is_found(field):
    setting = HIERARCHY.examples[1].problem
    prediction = HIERARCHY.predict(setting)
    wrong = eqx.tree_at(
        lambda tree: getattr(tree, field), prediction, getattr(prediction, field) * (1 + 1e-5)
    )
    assert not check(HIERARCHY, "wrong", setting, wrong).passed
