"""The registry of what can be varied: every entry is read by everything that varies something."""

import importlib
from typing import Any

import numpy as np
import pytest
from plain import a_problem

import ufm
from ufm.problems import SEARCHED, VARIABLES, Family, Variable, family_of, variable_of

families = importlib.import_module("ufm.problems.families")
STEP = a_problem(class_counts=ufm.ClassGroups.step(4, 100, imbalance_ratio=10), feature_dim=4)


def test_names_and_labels_are_there_once() -> None:
    names = [variable.name for variable in VARIABLES]
    assert len(set(names)) == len(names)
    assert all(variable.label for variable in VARIABLES)
    assert set(SEARCHED) < set(names)
    for variable in VARIABLES:
        assert set(variable.same_numbers) <= set(names)
        assert not (variable.structural and variable.set_number)


def test_parameters_of_losses_have_names_of_their_own() -> None:
    variable = variable_of("loss.alpha")
    assert variable is not None
    assert (variable.name, variable.label, variable.positive) == (
        "loss.alpha",
        "loss's alpha",
        False,
    )
    assert variable_of("weight") is None


class Scaled(ufm.Loss):
    """A loss with a number of its own, a plain one."""

    scale: float = 1.0

    convex = True

    def __call__(self, logits: Any, targets: Any, classes: Any) -> Any:
        return self.scale * (logits - targets)[:, 0] ** 2


def test_plain_numbers_of_own_losses_are_varied() -> None:
    problem = a_problem(loss=Scaled())
    assert family_of(problem, {"loss.scale": [2.0, 3.0]}).loss.scale.tolist() == [2.0, 3.0]
    with pytest.raises(ufm.ArgumentError, match=r"which Scaled.* does not have"):
        family_of(problem, {"loss.convex": [0.0]})


def test_a_new_axis_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """All counts times one number: swept, searched for a threshold and in a phase diagram."""

    def more_samples(family: Family, column: np.ndarray) -> Family:
        return family._replace(counts=family.counts * column)

    def search(stated: object) -> object:
        return families.Search(1.0, (0.1, 10.0), True)

    entry = Variable("samples", "all samples", "n", set_number=more_samples, search=search)  # type: ignore[arg-type]
    monkeypatch.setattr(families, "VARIABLES", (*VARIABLES, entry))
    assert family_of(STEP, {"samples": [2.0, 3.0]}).counts[0].tolist() == [200.0, 300.0]
    pytest.importorskip("xarray")
    dataset = ufm.sweep(STEP, {"samples": [1.0, 2.0]}, quantities=["rank"])
    assert dataset["samples"].attrs["long_name"] == "all samples (n)"
    assert bool(dataset.certified.all())
    diagram = ufm.phase_diagram(STEP, ("samples", [1.0, 2.0]), ("weight_decay", [1e-3]))
    assert (diagram.x_name, diagram.objective.shape) == ("samples", (1, 2))
    assert np.all(diagram.relative_gap < 1e-9)
    assert ufm.minority_collapse_threshold(STEP, "samples").vary == "samples"
