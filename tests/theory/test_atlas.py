"""The atlas: which theorem covers what, why none does, and formulas as pure functions."""

import copy
import dataclasses
import functools
import importlib.util
import pathlib
import pickle
import sys
import textwrap

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tables import for_each

import ufm
from ufm._support import double_precision, rebuilt
from ufm.problems import Blocks
from ufm.theory import Condition, NoPrediction, Prediction, predict, theorems

families = importlib.import_module("ufm.theory.theorems")  # the room has an atlas of that name
atlas = importlib.import_module("ufm.theory.atlas")


def problem(**changes):
    settings = {
        "class_counts": (5.0, 5.0, 5.0),
        "feature_dim": 4,
        "loss": ufm.SquaredError(),
        "regularizer": ufm.WeightDecay(weights=0.02, features=0.01),
    }
    return ufm.Problem(**{**settings, **changes})


IMBALANCED = {"class_counts": (8.0, 2.5, 1.0)}
BIAS = {"use_bias": True}
PENALISED = {
    "use_bias": True,
    "regularizer": ufm.WeightDecay(weights=0.02, features=0.01, bias=0.1),
}
BALL = {"regularizer": ufm.NormBall(weights=1.0, features=5.0)}
CE, SMOOTH, FOCAL = (
    {"loss": loss} for loss in (ufm.CrossEntropy(), ufm.LabelSmoothing(0.1), ufm.Focal(2.0))
)
TWO, THREE, RELU = {"hidden_dims": (4,)}, {"hidden_dims": (4, 4)}, {"activation": "relu"}
POSITIVE = {"nonnegative_features": True}
STEP = {"class_counts": (8.0, 2.5, 2.5)}
STRONG = {"regularizer": ufm.WeightDecay(weights=1.0, features=1.0, bias=0.1)}

COVERED = [
    ("squared-error-orthogonal-frame", {}),
    ("squared-error-orthogonal-frame", RELU),
    ("squared-error-orthogonal-frame", POSITIVE),
    ("squared-error-etf", BIAS),
    ("squared-error-penalised-bias", PENALISED),
    ("extended-linear-orthogonal-frame", TWO),
    ("extended-relu-orthogonal-frame", TWO | RELU),
    ("squared-error-general-orthogonal-frame", IMBALANCED),
    ("squared-error-free-bias", IMBALANCED | BIAS),
    ("deep-linear-general-orthogonal-frame", THREE),
    ("deep-linear-general-orthogonal-frame", TWO | IMBALANCED),
    ("deep-linear-free-bias", TWO | BIAS),
    ("deep-linear-free-bias", THREE | BIAS | IMBALANCED),
    ("deep-linear-penalised-bias", TWO | PENALISED),
    ("cross-entropy-etf", CE),
    ("cross-entropy-etf", CE | BIAS),
    ("cross-entropy-etf", CE | PENALISED),
    ("cross-entropy-etf", CE | {"feature_dim": 2}),
    ("label-smoothing-etf", SMOOTH | BIAS),
    ("focal-etf", FOCAL),
    ("focal-etf", FOCAL | BIAS),
    ("cross-entropy-two-groups", CE | STEP),
    ("cross-entropy-two-groups", CE | STEP | BIAS | {"feature_dim": 2}),
    ("cross-entropy-two-groups", CE | STEP | PENALISED),
    ("cross-entropy-two-groups", CE | STEP | STRONG),
    ("cross-entropy-complete-collapse", CE | IMBALANCED | STRONG),
    ("cross-entropy-complete-collapse", CE | IMBALANCED | STRONG | BIAS),
    ("cross-entropy-nonnegative", CE | POSITIVE),
    ("cross-entropy-nonnegative", CE | POSITIVE | IMBALANCED),
    ("layer-peeled-two-groups", CE | BALL | STEP),
    ("layer-peeled-two-groups", CE | BALL | STEP | BIAS),
    ("layer-peeled-etf", CE | BALL),
    ("layer-peeled-etf", CE | BALL | BIAS),
]
UNCOVERED = [
    (PENALISED | IMBALANCED, "squared-error-penalised-bias", "equal class counts"),
    (BIAS | POSITIVE, "squared-error-etf", "features of any sign"),
    (BALL, "squared-error-orthogonal-frame", "the regularizer WeightDecay"),
    (TWO | PENALISED | IMBALANCED, "deep-linear-free-bias", "a bias without penalty"),
    (TWO | PENALISED | IMBALANCED, "deep-linear-penalised-bias", "equal class counts"),
    (THREE | RELU, "deep-relu-two-classes", "K = 2"),
    (THREE | RELU, "deep-relu-low-rank", "(L = 3, K >= 10) or (L >= 4, K >= 6)"),
    (CE | TWO | BIAS, "deep-cross-entropy-etf", "to give the minimiser"),
    (CE | TWO, "deep-cross-entropy-low-rank", "(K >= 4, L >= 3) or (K >= 6, L = 2)"),
    (
        STRONG | THREE | RELU,
        "deep-relu-low-rank",
        "penalties at which deep neural collapse beats zero",
    ),
    (TWO | RELU | IMBALANCED, "extended-relu-orthogonal-frame", "equal class counts"),
    (TWO | RELU | {"feature_dim": 2}, "extended-relu-orthogonal-frame", "all widths >= K"),
    (THREE | RELU, "extended-relu-orthogonal-frame", "L = 2"),
    (
        TWO
        | RELU
        | {"class_counts": (5.0,) * 4, "regularizer": ufm.WeightDecay(weights=0.05, features=0.05)},
        "extended-relu-orthogonal-frame",
        "K <= 3, or K <= 10 and K^3 n lH l1 l2 <= 1/100",
    ),
    (THREE | RELU, "deep-linear-general-orthogonal-frame", "linear layers"),
    (CE | IMBALANCED, "cross-entropy-etf", "equal class counts"),
    (CE | {"feature_dim": 1}, "cross-entropy-etf", "d >= K - 1"),
    (CE | TWO, "cross-entropy-etf", "L = 1"),
    (CE | POSITIVE | BIAS, "cross-entropy-etf", "features of any sign"),
    (CE | POSITIVE | BIAS, "cross-entropy-nonnegative", "no bias"),
    (CE | POSITIVE | {"feature_dim": 2}, "cross-entropy-nonnegative", "all widths >= K"),
    (CE | IMBALANCED, "cross-entropy-two-groups", "two different class counts"),
    (
        CE | IMBALANCED,
        "cross-entropy-complete-collapse",
        "N sqrt(lW lH) >= ||(I - p 1') D^(1/2)||_2, p = softmax(b)",
    ),
    (CE | BALL | IMBALANCED, "layer-peeled-two-groups", "two different class counts"),
    (SMOOTH | BALL, "layer-peeled-etf", "the loss CrossEntropy"),
    (CE | BALL | IMBALANCED, "layer-peeled-etf", "equal class counts"),
    ({"loss": ufm.CDT(0.0)}, "cross-entropy-etf", "the loss CrossEntropy"),
    (
        FOCAL
        | BIAS
        | {
            "class_counts": ufm.ClassGroups.balanced(30, 1.0),
            "feature_dim": 30,
            "regularizer": ufm.WeightDecay(weights=0.05, features=0.05),
        },
        "focal-etf",
        "no bias, or -phi'(0) <= 1 or (K-1) sqrt(n lW lH) <= 1",
    ),
]


class TestCoverage:
    @for_each(("name", "changes"), COVERED)
    def test_the_most_specific_theorem_answers(self, name, changes):
        prediction = predict(problem(**changes))
        assert prediction.theorem == name
        assert theorems[name].applies(problem(**changes))

    @for_each(("changes", "name", "statement"), UNCOVERED)
    def test_every_theorem_says_why_not(self, changes, name, statement):
        with pytest.raises(NoPrediction) as caught:
            predict(problem(**changes))
        failures = caught.value.failures
        about_minima = [theorem.name for theorem in theorems if theorem.about == "minimum"]
        assert list(failures) == about_minima
        assert all(failures.values())
        assert statement in [condition.statement for condition in failures[name]]
        for theorem, failing in failures.items():
            assert theorem in str(caught.value)
            for condition in failing:
                assert isinstance(condition, Condition)
                assert f"needs {condition.statement}; found {condition.found}" in str(caught.value)
            # The rest of the theorem's conditions do hold; what holds but is no theorem says that
            # it is none.
            applies = theorems[theorem].applies(problem(**changes))
            assert failing == applies.failing or (applies and not theorems[theorem].predictive)

    def test_no_prediction_is_a_value_error_and_travels(self):
        with pytest.raises(ValueError, match="d = 1, K = 3") as caught:
            predict(problem(**CE, feature_dim=1))
        copied = pickle.loads(pickle.dumps(caught.value))
        assert str(copied) == str(caught.value)

    def test_one_theorem_lists_only_its_own_conditions(self):
        with pytest.raises(NoPrediction) as caught:
            theorems["cross-entropy-etf"].predict(problem())
        assert [c.statement for c in caught.value.failures["cross-entropy-etf"]] == [
            "the loss CrossEntropy"
        ]
        assert list(caught.value.failures) == ["cross-entropy-etf"]

    def test_applicability_explains_itself(self):
        good = theorems["squared-error-etf"].applies(problem(**BIAS))
        assert good
        assert str(good) == "applies"
        bad = theorems["squared-error-etf"].applies(problem(**PENALISED))
        assert not bad
        assert str(bad) == "needs a bias without penalty; found a bias with penalty 0.1"

    def test_what_is_not_a_problem_is_refused(self):
        with pytest.raises(ValueError, match=r"`problem` must be a ufm\.Problem"):
            predict("cross-entropy")

    def test_counts_equal_to_rounding_are_balanced(self):
        assert (
            predict(problem(class_counts=(0.3, 0.1 + 0.2, 0.3))).theorem
            == "squared-error-orthogonal-frame"
        )


class TestAtlas:
    def test_every_file_of_theorems_is_in_it(self):
        folder = pathlib.Path(families.__file__).parent
        files = sorted(path.stem for path in folder.glob("[!_]*.py"))
        found = [importlib.import_module(f"{families.__name__}.{name}").THEOREMS for name in files]
        assert {theorem for of_file in found for theorem in of_file} == set(theorems)

    def test_a_theorem_of_a_new_file_is_found(self, tmp_path, monkeypatch):
        text = """
            import dataclasses
            from ufm.theory.theorems.cross_entropy import THEOREMS as others
            THEOREMS = (dataclasses.replace(others[0], name="a-new-one"),)
        """
        (tmp_path / "a_new_file.py").write_text(textwrap.dedent(text))
        monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path)])
        name = f"{families.__name__}.a_new_file"
        specification = importlib.util.spec_from_file_location("atlas_again", atlas.__file__)
        again = importlib.util.module_from_spec(specification)
        try:
            specification.loader.exec_module(again)
        finally:
            sys.modules.pop(name, None)
        assert set(again.theorems.names) == {*theorems.names, "a-new-one"}
        assert again.theorems["a-new-one"].predictive

    def test_what_is_about_something_else_predicts_nothing(self):
        claim = theorems["squared-error-no-spurious-minima"]
        assert claim.applies(claim.examples[0].problem)
        with pytest.raises(NoPrediction, match="a theorem about landscape"):
            claim.predict(claim.examples[0].problem)
        with pytest.raises(NoPrediction, match="d > K"):
            claim.predict(problem(feature_dim=3))
        assert not theorems["condensation"].applies(problem())

    def test_names_are_unique_and_look_up_their_theorem(self):
        assert len(set(theorems.names)) == len(theorems) == len(list(theorems))
        for theorem in theorems:
            assert theorems[theorem.name] is theorem
            assert theorem.name in theorems
            assert theorem in theorems
        assert "nonsense" not in theorems

    def test_an_unknown_name_lists_the_known_ones(self):
        with pytest.raises(ValueError, match="'nonsense'") as caught:
            theorems["nonsense"]
        assert all(name in str(caught.value) for name in theorems.names)

    def test_it_prints_and_renders(self):
        assert len(str(theorems).splitlines()) == len(theorems)
        assert repr(theorems).startswith(f"<atlas of {len(theorems)} theorems>")
        page = theorems._repr_html_()
        assert page.count("<tr>") == len(theorems) + 1
        assert "arXiv:2202.08087" in page
        assert "d >= K" not in page  # escaped

    @for_each("theorem", theorems)
    def test_every_theorem_is_documented_and_has_examples(self, theorem):
        assert "arXiv:" in theorem.reference or theorem.about == "dynamics"
        assert theorem.name in str(theorem)
        assert theorem.statement in str(theorem)
        assert (theorem.formula is None) == (theorem.evidence is not None)
        if theorem.formula is None:
            for example in theorem.examples:
                assert not isinstance(example.problem, ufm.Problem) or theorem.applies(
                    example.problem
                )
            return
        assert len(theorem.examples) >= 3
        for example in theorem.examples:
            answer = predict if theorem.predictive else theorem.predict
            assert answer(example.problem).theorem == theorem.name
        if theorem.predictive and not theorem.name.startswith("layer-peeled"):
            assert any(theorem.predict(example.problem).collapsed for example in theorem.examples)


ARRAYS = (
    "objective",
    "logits",
    "weight_gram",
    "feature_gram",
    "bias",
    "layer_norms",
    "singular_values",
)


class TestPrediction:
    @for_each(("name", "changes"), COVERED)
    @for_each("x64", [False, True])
    def test_leaves_are_numpy_float64_in_any_process(self, name, changes, x64):
        with jax.enable_x64(x64) if hasattr(jax, "enable_x64") else double_precision():
            prediction = predict(problem(**changes))
        for leaf in jax.tree.leaves(prediction):
            assert isinstance(leaf, np.ndarray)
        K, L = 3, problem(**changes).num_layers
        shapes = [(), (K, K), (K, K), (K, K), (K,), (L + 1,), (K,)]
        for field, shape in zip(ARRAYS, shapes, strict=True):
            value = getattr(prediction, field)
            if value is not None:
                assert value.dtype == np.float64
                assert value.shape == shape
                assert np.all(np.isfinite(value))
        assert (prediction.bias is None) == ("use_bias" not in changes)
        assert np.all(np.diff(prediction.singular_values) <= 0)
        assert prediction.rank.dtype == np.int32
        assert prediction.collapsed.dtype == np.bool_
        assert all(np.isfinite(value) for value in prediction.constants.values())

    def test_it_is_printed_on_one_line(self):
        text = str(predict(problem(**CE)))
        assert text.startswith("cross-entropy-etf: objective = ")
        assert "rank 2" in text
        assert "margin = " in text
        assert "\n" not in text
        collapsed = predict(problem(regularizer=ufm.WeightDecay(weights=1.0, features=1.0)))
        assert "collapsed" in str(collapsed)

    def test_it_is_a_pytree_that_can_be_copied_and_changed(self):
        prediction = predict(problem())
        assert copy.deepcopy(prediction).theorem == prediction.theorem
        changed = eqx.tree_at(lambda tree: tree.objective, prediction, prediction.objective * 1.01)
        assert changed.objective != prediction.objective

    def test_collapsed_vectors_have_no_direction(self):
        prediction = predict(problem(regularizer=ufm.WeightDecay(weights=1.0, features=1.0)))
        assert np.all(prediction.weight_norms == 0)
        assert np.all(np.isnan(prediction.alignment))


def phase_boundary(theorem):
    """The theorem's first example, and factors from far below to far above its collapse."""
    base = theorem.examples[0].problem
    if (
        theorem.name == "extended-relu-orthogonal-frame"
    ):  # which more classes leave before they collapse
        base = dataclasses.replace(base, class_counts=ufm.ClassGroups.balanced(3, 50))
    return base, np.geomspace(1, 1e4, 9)


def scaled(base, scale):
    regularizer = dataclasses.replace(
        base.regularizer,
        weights=base.regularizer.weights * scale,
        features=base.regularizer.features * scale,
    )
    return rebuilt(base, regularizer=regularizer)


def quantities(theorem, one):
    """Six numbers that depend on every array of a prediction, (6,)."""
    prediction = theorem.formula(one)
    xp = np if isinstance(prediction.logits, np.ndarray) else jnp
    weights, rows = (np.arange(size) + 1.0 for size in (one.num_outputs, one.num_rows))
    return xp.stack(
        [
            prediction.objective,
            weights @ prediction.weight_gram @ weights,
            rows @ prediction.feature_gram @ rows,
            rows @ prediction.logits @ weights**2,
            xp.sum(prediction.layer_norms),
            xp.sum(prediction.singular_values),
        ]
    )


# One theorem for every piece of code that has a derivative of its own; the others when time allows.
REPRESENTATIVE = ("focal-etf",)
REPRESENTATIVE_FIRST = [
    pytest.param(
        theorem,
        id=theorem.name,
        marks=() if theorem.name in REPRESENTATIVE else pytest.mark.nightly,
    )
    for theorem in theorems.predictive
]


LONG_TO_COMPILE = (
    "layer-peeled-two-groups",  # the same solver as the other theorem of two groups
    "deep-linear-penalised-bias",  # as the free bias
    "cross-entropy-two-groups",
    "cross-entropy-symmetric-targets",
    "pick-all-labels-nonnegative",  # as pick-all-labels
    "binary-cross-entropy-rows-complete-collapse",  # as that of cross-entropy
    "binary-cross-entropy-tags",  # as the balanced one
    "regression-collapse",  # as all target rows of squared error
)
OF_EACH_KIND = (
    "squared-error-free-bias",
    "focal-etf",
    "deep-relu-two-classes",
    "squared-error-target-rows",
)


def marks_of(name):
    """One theorem of each kind by default."""
    if name in LONG_TO_COMPILE:
        return pytest.mark.nightly
    return () if name in OF_EACH_KIND else pytest.mark.slow


SLOW_LAST = [
    pytest.param(
        theorem,
        id=theorem.name,
        marks=marks_of(theorem.name),
    )
    for theorem in theorems.predictive
]


class TestPureFunctions:
    @pytest.mark.slow
    def test_conditions_of_traced_problems_are_traced(self):
        def holds(one, theorem):
            return [jnp.asarray(c.holds) for c in theorem.applies(one).conditions]

        for theorem in theorems.predictive:
            if theorem.any_targets:
                for example in theorem.examples:
                    jax.eval_shape(functools.partial(holds, theorem=theorem), example.problem)

    @pytest.mark.parametrize("theorem", SLOW_LAST)
    def test_vmap_over_the_phase_boundary_is_a_loop_of_predictions(self, theorem):
        base, scales = phase_boundary(theorem)
        with double_precision():
            batch = jax.jit(jax.vmap(lambda scale: theorem.formula(scaled(base, scale))))(scales)
            batch = jax.tree.map(np.asarray, batch)
        assert isinstance(batch, Prediction)
        loop = [theorem.predict(scaled(base, scale)) for scale in scales]
        one_phase = theorem.name.startswith("layer-peeled") or theorem.name.endswith(
            "complete-collapse"
        )
        assert one_phase or {bool(one.collapsed) for one in loop} == {True, False}
        assert "batch" in str(batch)
        for i, one in enumerate(loop):
            for field in (*ARRAYS, "rank", "collapsed"):
                left, right = getattr(one, field), getattr(batch, field)
                assert (left is None) == (right is None)
                if left is not None:
                    size = max(np.max(np.abs(left)), 1e-6)
                    np.testing.assert_allclose(
                        left, right[i], rtol=0, atol=1e-11 * size, err_msg=field
                    )
            for constant, value in one.constants.items():
                np.testing.assert_allclose(value, batch.constants[constant][i], rtol=1e-12)

    @pytest.mark.parametrize("theorem", REPRESENTATIVE_FIRST)
    def test_gradients_are_finite_and_right_on_both_sides(self, theorem):
        base, scales = phase_boundary(theorem)
        # One direction through all leaves at once: counts, penalties, and the parameters of the
        # loss.
        rng = np.random.default_rng(0)
        direction = jax.tree.map(lambda leaf: leaf * rng.uniform(0.5, 1, np.shape(leaf)), base)
        weights = np.linspace(1, 2, 6)

        def along(scale, step):
            return quantities(
                theorem,
                jax.tree.map(lambda leaf, d: leaf + step * d, scaled(base, scale), direction),
            )

        @jax.jit
        @jax.vmap
        def slopes(scale):
            forward = jax.jvp(lambda step: along(scale, step), (0.0,), (1.0,))[1]
            return forward, jax.grad(lambda step: weights @ along(scale, step))(0.0)

        with double_precision():
            forward, backward = map(np.asarray, slopes(scales))
        assert np.all(np.isfinite(forward))
        np.testing.assert_allclose(forward @ weights, backward, rtol=1e-9, atol=1e-9)
        step = 1e-6
        for i, scale in enumerate(scales):
            difference = (along(scale, step) - along(scale, -step)) / (2 * step)
            size = np.abs(difference) + np.abs(along(scale, 0.0)) + 1e-6
            assert np.all(np.abs(forward[i] - difference) <= 1e-6 * size)

    @pytest.mark.parametrize("theorem", REPRESENTATIVE_FIRST)
    def test_float32_processes_get_a_float32_formula(self, theorem):
        base, _ = phase_boundary(theorem)
        rough = jax.jit(theorem.formula)(base)
        exact = theorem.predict(base)
        if not jax.config.jax_enable_x64:
            assert rough.objective.dtype == jnp.float32
        np.testing.assert_allclose(rough.objective, exact.objective, rtol=2e-4)


def test_a_prediction_too_large_for_its_matrices_is_refused() -> None:
    million = ufm.Problem(
        class_counts=ufm.ClassGroups((990, 10), (500_000, 500_000)),
        feature_dim=10**6,
        loss=ufm.CrossEntropy(),
        regularizer=ufm.WeightDecay(weights=1e-9, features=1e-9),
    )
    for of_problem in (ufm.predict, ufm.theorems["cross-entropy-two-groups"].predict):
        with pytest.raises(ValueError, match="1000000 classes would take"):
            of_problem(million)


@pytest.mark.slow
def test_predictions_by_groups_are_those_of_classes() -> None:
    compared = 0
    for theorem in theorems.predictive:
        for example in theorem.examples:
            problem = example.problem
            if problem.num_layers > 1 or problem.nonnegative_features:
                continue
            if problem.targets is not None:
                continue
            groups = np.unique(np.asarray(problem.class_counts), return_inverse=True)[1]
            found, expected = theorem.predict_groups(problem, groups), theorem.predict(problem)
            for name in ("logits", "weight_gram", "feature_gram"):
                ours, theirs = getattr(found, name), getattr(expected, name)
                if theirs is None:
                    assert ours is None
                else:
                    dense = ours.dense(groups) if isinstance(ours, Blocks) else ours
                    np.testing.assert_allclose(
                        dense, theirs, rtol=1e-12, atol=1e-12, err_msg=f"{theorem.name} {name}"
                    )
                    compared += isinstance(ours, Blocks)
            np.testing.assert_allclose(
                found.singular_values, expected.singular_values, rtol=1e-12, atol=1e-14
            )
    assert compared > 60


def test_theorems_about_target_rows_do_not_write_out_a_million_classes() -> None:
    problem = ufm.Problem(
        class_counts=ufm.ClassGroups.balanced(10**6, 5),
        feature_dim=10**6,
        loss=ufm.SquaredError(),
        regularizer=ufm.WeightDecay(1e-9, 1e-9),
    )
    about_rows = [one for one in ufm.theorems if one.any_targets]
    assert about_rows
    for theorem in about_rows:
        assert "entries of target rows" in str(theorem.applies(problem))
