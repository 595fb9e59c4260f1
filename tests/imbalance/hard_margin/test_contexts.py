"""How next-token models approach their hard margins: rates, and checks that can say no."""

import numpy as np
import pytest
from tables import for_each

import ufm
from ufm.imbalance.hard_margin.contexts import (
    approach_of_contexts,
    collapse_of_contexts,
    limit_of_contexts,
)

ROWS = np.array([[0.9, 0.1, 0], [0.3, 0.7, 0], [0.5, 0, 0.5], [0, 0.4, 0.6]])


def problem(rows=ROWS, **options):
    return ufm.Problem(
        targets=ufm.Targets.contexts(rows, **options),
        feature_dim=rows.shape[1],
        loss=ufm.CrossEntropy(),
        regularizer=ufm.WeightDecay(weights=1e-2, features=1e-2),
    )


@pytest.fixture(scope="module")
def approach():
    return approach_of_contexts(problem())


class TestApproach:
    def test_the_rates_are_those_predicted(self, approach):
        assert approach.holds
        assert set(approach.limits) == {"slope", "remainder", "distance"}
        assert set(approach.growth) == {"margins", "log-odds"}
        assert np.all(approach.objective > limit_of_contexts(problem().targets).entropy)
        assert "holds" in str(approach)

    @for_each(
        ("field", "factor"),
        [("value", 1.01), ("curvature", 1.3), ("distance", 1.05), ("relative_gap", 1e9)],
    )
    def test_it_says_no_to_another_limit(self, approach, field, factor):
        assert not approach._replace(**{field: getattr(approach, field) * factor}).holds

    @for_each(
        ("field", "rate"), [("margin_error", (1, 1, 1, 1)), ("log_odds_error", (1, 2, 5, 20))]
    )
    def test_it_says_no_to_a_slower_rate(self, approach, field, rate):
        assert not approach._replace(**{field: getattr(approach, field)[0] * np.array(rate)}).holds

    def test_a_limit_with_loose_margins_has_the_leading_term_only(self):
        supports = np.array(
            [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1.0]]
        )
        limit = limit_of_contexts(ufm.Targets.contexts(supports))
        assert not limit.strict
        assert np.isnan(limit.curvature)
        np.testing.assert_allclose(limit.solution.value, 3.312539389, atol=1e-9)

    def test_bad_input(self):
        with pytest.raises(ufm.ArgumentError, match="at least three"):
            approach_of_contexts(problem(), (1e-2, 1e-3))
        with pytest.raises(ufm.ArgumentError, match="sum to one"):
            limit_of_contexts(ufm.Targets(2 * ROWS))
        classes = ufm.Problem(
            class_counts=(1, 1),
            feature_dim=2,
            loss=ufm.CrossEntropy(),
            regularizer=ufm.WeightDecay(weights=1e-2, features=1e-2),
        )
        with pytest.raises(ufm.ArgumentError, match="must have `targets`"):
            approach_of_contexts(classes)


class TestCollapse:
    def test_equal_contexts_collapse_where_their_ratios_are_equal(self):
        check = collapse_of_contexts(problem(ROWS[[0, 0, 2, 3]]))
        assert check.holds
        assert check.equal <= 1e-6
        assert not check._replace(equal=1e-3).holds
        assert not check._replace(relative_gap=1e-3).holds
        assert not check._replace(unequal=0.0).holds

    def test_they_do_not_where_they_differ(self):
        check = collapse_of_contexts(problem(ROWS[[0, 0, 2, 3]], counts=(4.0, 1.0, 1.0, 1.0)))
        assert check.holds
        assert check.unequal > 0.1
        with pytest.raises(ufm.ArgumentError, match="two equal target rows"):
            collapse_of_contexts(problem())
