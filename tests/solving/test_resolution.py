"""Which resolution is chosen, for one problem and for batches."""

from tables import for_each

import ufm
from ufm.solving import choose_resolution


def step(num_classes: int, **changes: object) -> ufm.Problem:
    counts = ufm.ClassGroups.step(num_classes, 100.0, imbalance_ratio=10.0)
    fields = {
        "class_counts": counts,
        "feature_dim": num_classes,
        "loss": ufm.CrossEntropy(),
        "regularizer": ufm.WeightDecay(1e-3, 1e-5),
    }
    return ufm.Problem(**{**fields, **changes})


@for_each(
    ("num_classes", "groups", "alone", "together"),
    [
        (50, 2, "groups", "groups"),
        (48, 2, "classes", "groups"),  # a batch of few classes in few groups
        (60, 8, "classes", "classes"),
        (400, 16, "groups", "classes"),  # Newton's method over groups, at G^6 a step
        (400, 17, "classes", "classes"),
        (850, 16, "groups", "groups"),
        (51_000, 17, "groups", "groups"),  # matrices over classes do not fit
    ],
)
def test_many_classes_in_few_groups(
    num_classes: int, groups: int, alone: str, together: str
) -> None:
    problem = step(num_classes)
    assert choose_resolution(problem, groups) == alone
    assert choose_resolution(problem, groups, together=True) == together


def test_where_groups_are_not_exact_there_is_no_choice() -> None:
    for problem in (step(60, feature_dim=10), step(60, hidden_dims=(60,))):
        assert choose_resolution(problem) == "classes"


def test_groups_of_nonnegative_features_are_for_those_who_ask_and_for_what_does_not_fit() -> None:
    some, many = (step(size, nonnegative_features=True) for size in (60, 21_000))
    assert choose_resolution(some) == "classes"
    assert choose_resolution(some, nonnegative=True) == "groups"
    assert choose_resolution(many) == "groups"


def test_nothing_of_the_size_of_the_classes_squared_is_made_for_a_million_of_them() -> None:
    solution = ufm.solve(step(1_000_000))
    assert solution.resolution == "groups"
    assert solution.check().certificate.holds
