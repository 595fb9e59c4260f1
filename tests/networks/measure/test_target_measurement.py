"""Heads for regression, several tags and language, measured from batches and from modules."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tables import for_each

import ufm
from ufm import networks
from ufm._support import ArgumentError
from ufm.metrics import (
    context_collapse,
    linguistic_collapse,
    multi_label_collapse,
    neural_collapse,
    regression_collapse,
)

rng = np.random.default_rng(0)
N, B, T, D, V = 40, 6, 5, 4, 3
FEATURES = rng.normal(size=(N, D))
REAL = FEATURES[:, :2] + 0.2 * rng.normal(size=(N, 2))
TAGS = np.concatenate([np.eye(3), (rng.uniform(size=(N - 3, 3)) < 0.5).astype(float)])
WEIGHTS, BIAS = rng.normal(size=(V, D)), rng.normal(size=V)
HIDDEN = rng.normal(size=(B, T, D))
TOKENS = rng.integers(V, size=(B, T))
CONTEXTS = rng.integers(7, size=(B, T))
PARTS = (slice(0, 10), slice(10, 11), slice(11, N))


def test_a_regression_head_is_measured_in_one_pass() -> None:
    once = ((FEATURES[part], REAL[part]) for part in PARTS)
    found = networks.measure(once, weights=WEIGHTS[:2], bias=BIAS[:2], targets="regression")
    expected = regression_collapse(FEATURES, REAL, WEIGHTS[:2], BIAS[:2])
    assert isinstance(found, networks.RegressionMeasurement)
    for name in expected.CONVENTIONS:
        np.testing.assert_allclose(getattr(found.collapse, name), getattr(expected, name))
    about = found.moments.measure(about="origin")
    np.testing.assert_allclose(about.nrc1, regression_collapse(FEATURES, REAL, about="origin").nrc1)
    assert repr(found) == str(found.collapse)
    assert json.dumps(found.to_dict())


def test_a_head_for_several_tags_is_measured_in_one_pass() -> None:
    a = rng.integers(1, 3, size=N)
    batches = [(FEATURES[part], TAGS[part], a[part]) for part in PARTS]
    options = {"sample_weights": 2, "centre": "multiplicity"}
    found = networks.measure(batches, weights=WEIGHTS, targets="multi-label", **options)
    expected = multi_label_collapse(
        FEATURES, TAGS, WEIGHTS, sample_weights=a, centre="multiplicity"
    )
    assert isinstance(found, networks.MultiLabelMeasurement)
    for name in expected.CONVENTIONS:
        np.testing.assert_allclose(getattr(found.collapse, name), getattr(expected, name))
    assert repr(found) == str(found.collapse)
    assert json.dumps(found.to_dict())


def test_positions_may_have_rows_of_targets() -> None:
    targets = rng.normal(size=(B, T, 2))
    a = rng.integers(1, 3, size=(B, T))
    found = networks.measure([(HIDDEN, targets, a)], targets="regression", sample_weights=2)
    expected = regression_collapse(
        HIDDEN.reshape(-1, D), targets.reshape(-1, 2), sample_weights=a.reshape(-1)
    )
    np.testing.assert_allclose(found.collapse.nrc1, expected.nrc1)
    flat = networks.measure(
        [(HIDDEN.reshape(-1, D), targets[..., 0].reshape(-1))], targets="regression"
    )
    assert flat.collapse.num_outputs == 1


def test_a_language_model_head_is_measured_by_token_and_by_context() -> None:
    tokens = TOKENS.copy()
    tokens[:, -1] = -100  # the last position is followed by nothing
    batches = [(HIDDEN[part], tokens[part], CONTEXTS[part]) for part in (slice(0, 3), slice(3, B))]
    found = networks.measure(
        batches,
        weights=WEIGHTS,
        bias=BIAS,
        targets="contexts",
        contexts=2,
        ignore_index=-100,
        loss=ufm.CrossEntropy(),
    )
    H, z, j = HIDDEN[:, :-1].reshape(-1, D), TOKENS[:, :-1].reshape(-1), CONTEXTS[:, :-1]
    collapse = neural_collapse(H, z, WEIGHTS, BIAS)
    expected = context_collapse(H, z, j.reshape(-1), WEIGHTS, BIAS)
    assert isinstance(found, networks.LanguageMeasurement)
    for ours, theirs in (
        (found.contexts, expected),
        (found.linguistic, linguistic_collapse(collapse)),
    ):
        for name in theirs.CONVENTIONS:
            value = getattr(theirs, name)
            if value is not None:
                np.testing.assert_allclose(getattr(ours, name), value, err_msg=name)
    np.testing.assert_allclose(found.collapse.nc1.pinv, collapse.nc1.pinv)
    assert found.loss >= found.contexts.entropy_floor
    assert set(found.to_dict()) == {"collapse", "linguistic", "contexts", "loss"}
    assert "log_odds_error" in str(found)
    assert json.dumps(found.to_dict())


def test_contexts_need_not_be_known() -> None:
    found = networks.measure([(HIDDEN, TOKENS)], targets="contexts")
    assert found.contexts is found.context_moments is None
    assert found.linguistic.num_classes == V
    assert set(found.to_dict()) == {"collapse", "linguistic"}
    once = iter([(HIDDEN, TOKENS, CONTEXTS)])
    one_pass = networks.measure(once, targets="contexts", contexts=2, passes=1)
    assert one_pass.contexts.num_contexts == len(np.unique(CONTEXTS))
    assert one_pass.linguistic.agreement is None


def test_layers_are_measured_together() -> None:
    batches = [({"one": FEATURES[part], "two": FEATURES[part, :2]}, REAL[part]) for part in PARTS]
    found = networks.measure_layers(batches, targets="regression", weights={"one": WEIGHTS[:2]})
    assert list(found) == ["one", "two"]
    assert found["one"].collapse.nrc3 is not None
    assert found["two"].collapse.nrc3 is None
    np.testing.assert_allclose(
        found["two"].collapse.deep_nrc4, regression_collapse(FEATURES[:, :2], REAL).deep_nrc4
    )
    mixed = [*batches, ({"one": FEATURES[:2]}, REAL[:2])]
    with pytest.raises(ArgumentError, match="same layers"):
        networks.measure_layers(mixed, targets="regression")


@for_each(
    ("options", "named"),
    [
        ({"targets": "regresion"}, "targets"),
        ({"targets": "regression", "groups": [0, 0, 1]}, "groups"),
        ({"targets": "regression", "loss": ufm.CrossEntropy()}, "loss"),
        ({"targets": "regression", "ignore_index": 0}, "ignore_index"),
        ({"targets": "regression", "centre": "samples"}, "centre"),
        ({"targets": "regression", "contexts": 2}, "contexts"),
        ({"targets": "multi-label", "absent": "leave out"}, "absent"),
        ({"targets": "multi-label", "scatter": True}, "scatter"),
        ({"targets": "multi-label", "num_classes": 5}, "tags"),
        ({"contexts": 1}, "contexts"),
        ({"centre": "multiplicity"}, "centre"),
    ],
)
def test_options_that_say_nothing_are_named(options: dict[str, Any], named: str) -> None:
    y = TAGS if options.get("targets") == "multi-label" else REAL
    if "targets" not in options:
        y = np.arange(N) % 3
    with pytest.raises(ArgumentError) as caught:
        networks.measure([(FEATURES, y)], **options)
    assert caught.value.argument == named


def test_no_batch_and_no_matrix_are_refused() -> None:
    with pytest.raises(ArgumentError, match="at least one batch"):
        networks.measure([], targets="regression")
    with pytest.raises(ArgumentError, match="mapping from layers"):
        networks.measure_layers([(FEATURES, REAL)], targets="regression")
    with pytest.raises(ArgumentError, match="flatten or pool"):
        networks.measure([(HIDDEN, REAL[:B])], targets="regression")
    with pytest.raises(ArgumentError, match="entry 5"):
        networks.measure([(HIDDEN, TOKENS)], targets="contexts", contexts=5)


# Modules


class Loader:
    """Two batches with inputs and any other entries, by name."""

    def __init__(self, **arrays: np.ndarray):
        self.arrays = arrays

    def __iter__(self) -> Iterator[dict[str, Any]]:
        size = len(next(iter(self.arrays.values())))
        for part in (slice(0, size // 2), slice(size // 2, size)):
            yield {name: array[part] for name, array in self.arrays.items()}


def head_of(num_outputs: int, hidden: int = D) -> tuple[Any, Any]:
    """A network of flax.linen with one hidden layer, and its variables."""
    linen = pytest.importorskip("flax.linen")
    import jax

    class Network(linen.Module):
        @linen.compact
        def __call__(self, inputs: Any) -> Any:
            return linen.Dense(num_outputs, name="head")(linen.tanh(linen.Dense(hidden)(inputs)))

    model = Network()
    return model, model.init(jax.random.key(0), np.zeros((1, D), np.float32))


@pytest.mark.filterwarnings("ignore")
def test_modules_with_heads_for_regression_and_tags() -> None:
    inputs = FEATURES.astype(np.float32)
    for kind, n, y in (("regression", 2, REAL), ("multi-label", 3, TAGS)):
        model, variables = head_of(n)
        loader = Loader(inputs=inputs, labels=y)
        options: Any = {"variables": variables, "inputs": "inputs"}
        found = networks.measure_model(model, loader, targets=kind, **options)["head:in"]
        layer = networks.last_linear(model, variables=variables, inputs=inputs)
        collected = networks.collect(model, loader, targets=kind, **options)
        H = np.concatenate([np.asarray(features["head:in"]) for features, _ in collected])
        given = H, y, layer.weights, layer.bias
        whole = regression_collapse if kind == "regression" else multi_label_collapse
        expected = whole(*given)
        for name in expected.CONVENTIONS:
            value = getattr(expected, name)
            if value is not None:
                np.testing.assert_allclose(
                    getattr(found.collapse, name), value, rtol=1e-6, atol=1e-12, err_msg=name
                )
    with pytest.raises(ArgumentError, match="sample_weights"):
        networks.measure_model(model, loader, targets="multi-label", ignore_index=0, **options)


@pytest.mark.filterwarnings("ignore")
def test_a_module_with_a_language_model_head() -> None:
    model, variables = head_of(V)
    ids = rng.integers(2, size=(B, T))
    labels = TOKENS.copy()
    labels[:, -1] = -100
    loader = Loader(inputs=HIDDEN.astype(np.float32), ids=ids, labels=labels)
    found = networks.measure_model(
        model,
        loader,
        variables=variables,
        inputs="inputs",
        pool="positions",
        targets="contexts",
        contexts=lambda batch: networks.prefix_contexts(batch["ids"]),
        ignore_index=-100,
        absent="leave out",
    )["head:in"]
    prefixes = {tuple(row[: t + 1]) for row in ids for t in range(T - 1)}
    assert found.contexts.num_contexts == len(prefixes)
    assert found.contexts.num_samples == B * (T - 1)
    assert found.contexts.excess > 0
    assert found.contexts.num_tokens == V
