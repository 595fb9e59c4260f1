"""Pick-all-labels: designs, scaled sums, limits, and what is refused."""

import equinox as eqx
import numpy as np
import pytest
from tables import for_each

import ufm
from ufm.comparison.verify import check
from ufm.theory import predict, theorems

TAGS = theorems["pick-all-labels"]
NONNEGATIVE = theorems["pick-all-labels-nonnegative"]
FANO = ((0, 1, 2), (0, 3, 4), (0, 5, 6), (1, 3, 5), (1, 4, 6), (2, 3, 6), (2, 4, 5))
DESIGNS = "tag sets with sum n_S a_m^2 P 1_S 1_S' P a multiple of P (2-designs have it)"


def problem(targets, decay=1e-2, dim=8, bias=None, **changes):
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


def test_the_lines_of_the_fano_plane_are_as_good_as_all_triples():
    lines = predict(problem(ufm.Targets.multi_label(7, tag_sets=FANO, counts=[5.0] * 7)))
    triples = predict(problem(ufm.Targets.multi_label(7, {3: 35.0})))
    assert lines.theorem == triples.theorem == TAGS.name
    np.testing.assert_allclose(lines.objective, triples.objective, rtol=1e-14)
    np.testing.assert_allclose(lines.weight_gram, triples.weight_gram, atol=1e-13)


def test_a_cycle_of_pairs_is_no_design_and_has_a_lower_minimum():
    cycle = ((0, 1), (1, 2), (2, 3), (3, 0))
    setting = problem(ufm.Targets.multi_label(4, tag_sets=cycle, counts=[6.0] * 4))
    assert failing(TAGS, setting) == [DESIGNS]
    solution = ufm.solve(setting).check()
    assert solution.objective < float(TAGS.formula(setting).objective) - 1e-3


def test_features_are_scaled_sums_of_those_of_their_labels():
    setting = problem(ufm.Targets.multi_label(4, {1: 40, 2: 24, 3: 12}), 5e-3)
    prediction = predict(setting)
    rows, a = setting.targets.rows, prediction.constants
    gram = np.asarray(prediction.feature_gram)
    for row, tags in enumerate(np.asarray(rows)):
        members = np.flatnonzero(tags)  # the rows of the single labels come first
        scale = a[f"coefficient_{members.size}"] / a["coefficient_1"]
        np.testing.assert_allclose(gram[row], scale * gram[members].sum(axis=0), atol=1e-12)


@for_each(("by_mass", "limit"), [(False, np.log(2)), (True, 2 * np.log(2))])
def test_coefficients_of_weak_decay_differ_by_logarithms_of_the_multiplicity(by_mass, limit):
    targets = ufm.Targets.multi_label(4, {1: 20, 2: 20})
    if by_mass:
        targets = ufm.Targets(targets.rows / targets.rows.sum(axis=1)[:, None], targets.counts)
    constants = predict(problem(targets, 1e-30)).constants
    difference = constants["coefficient_1"] - constants["coefficient_2"]
    assert difference == pytest.approx(limit, abs=0.05)


def test_rows_of_all_labels_and_of_none_carry_nothing():
    some = ufm.Targets.multi_label(4, {1: 20, 2: 12})
    rows = np.concatenate([some.rows, np.ones((1, 4)), np.zeros((1, 4))])
    more = ufm.Targets(rows, np.append(np.asarray(some.counts), [3.0, 5.0]))
    share = 32 / 40
    found, expected = predict(problem(more, 1e-2 * share)), predict(problem(some, 1e-2))
    np.testing.assert_allclose(found.logits[:10], expected.logits, atol=1e-12)
    assert np.all(found.logits[10:] == 0)
    outcome = check(TAGS, "all and none", problem(more, 5e-2))
    assert outcome.passed, outcome.reason


@for_each("factor", [0.99, 1.01])
def test_everything_vanishes_at_once(factor):
    samples = {1: 20.0, 2: 12.0}
    theta = {m: number * m * (4 - m) / 12 for m, number in samples.items()}
    decay = factor * np.sqrt(sum(theta.values())) / 32
    prediction = predict(problem(ufm.Targets.multi_label(4, samples), decay))
    assert prediction.collapsed == (factor > 1)
    np.testing.assert_allclose(prediction.constants["collapse_ratio"], factor, rtol=1e-12)
    solution = ufm.solve(problem(ufm.Targets.multi_label(4, samples), decay))
    assert (np.linalg.norm(solution.logits) < 1e-6) == (factor > 1)


FOUR, THREE = ufm.Targets.multi_label(4, {1: 20, 2: 12}), ufm.Targets.multi_label(3, {1: 12, 2: 12})
LEFT_OVER = ufm.Targets(np.asarray(FOUR.rows) + 1e-6, FOUR.counts)
SETS = (
    "all tag sets of a multiplicity equally often and of mass m, multiplicities 2 of K = 4, or 1 "
    "and 2 of K = 4, 5"
)
UNEVEN = ufm.Targets(FOUR.rows, np.append(np.asarray(FOUR.counts)[:-1], 2.0 + 1e-6))


@for_each(
    ("theorem", "setting", "statement"),
    [
        (TAGS, problem(LEFT_OVER), "rows of zeros and one positive number"),
        (TAGS, problem(UNEVEN), DESIGNS),
        (TAGS, problem(FOUR, dim=2), "d >= K - 1"),
        (TAGS, problem(FOUR, nonnegative_features=True), "features of any sign"),
        (NONNEGATIVE, problem(THREE, nonnegative_features=True), SETS),
        (NONNEGATIVE, problem(UNEVEN, nonnegative_features=True), SETS),
        (NONNEGATIVE, problem(FOUR, nonnegative_features=True, dim=3), "d >= K"),
        (NONNEGATIVE, problem(FOUR, nonnegative_features=True, bias=0.0), "no bias"),
        (NONNEGATIVE, problem(FOUR), "non-negative features"),
    ],
)
def test_what_is_not_covered_is_refused(theorem, setting, statement):
    assert failing(theorem, setting) == [statement]


@pytest.mark.slow
def test_three_labels_have_a_lower_minimum_with_nonnegative_features():
    setting = problem(THREE, nonnegative_features=True, dim=6)
    assert ufm.solve(setting).objective < float(NONNEGATIVE.formula(setting).objective) - 1e-6


@pytest.mark.parametrize("field", ["objective", "weight_gram", "feature_gram"])
def test_a_wrong_constant_is_found(field):
    setting = TAGS.examples[0].problem
    prediction = TAGS.predict(setting)
    wrong = eqx.tree_at(
        lambda tree: getattr(tree, field), prediction, getattr(prediction, field) * (1 + 1e-5)
    )
    assert not check(TAGS, "wrong", setting, wrong).passed
