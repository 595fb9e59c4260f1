"""Solves over orbits of target rows, held against solves and certificates row by row."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mpmath import mp
from tables import for_each

import ufm
from ufm import Targets
from ufm.problems import LabelClass
from ufm.solving import SolveError
from ufm.solving.orbit_resolution import (
    orbit_reduction,
    orbits_pay,
    reduced_under,
    solve_orbits,
    solve_representatives,
)

CYCLE = np.array([0.5, 0.2, 0.1, 0.15, 0.05])
CIRCULANT = np.stack([np.roll(CYCLE, shift) for shift in range(5)])
HALVES = [tags for tags in itertools.combinations(range(5), 2) if min(tags) < 3 <= max(tags)]
ROWS = {
    "classes": Targets.one_hot(ufm.ClassGroups((100, 10), (3, 3))),
    "tags": Targets.multi_label(5, {1: 50, 2: 30}),
    "mixup": Targets.mixup(4, 10.0, {0.3: 2.0, 0.15: 1.0}),
    "groups": Targets.multi_label(5, tag_sets=[*HALVES, (3,), (4,)]),
    "rotations": Targets(np.concatenate([CIRCULANT, CIRCULANT[:, ::-1]]), np.repeat([3.0, 1.0], 5)),
    "hierarchy": Targets.hierarchy(2, 3, 0.6, 0.1),
}
FEW = ("groups", "rotations")


def a_problem(targets: Targets, decay: float = 5e-2, **changes: Any) -> ufm.Problem:
    scale = decay / float(np.sqrt(targets.num_samples))
    fields: dict[str, Any] = {
        "targets": targets,
        "feature_dim": targets.num_outputs + 1,
        "loss": ufm.CrossEntropy(),
        "regularizer": ufm.WeightDecay(2 * scale, scale / 2),
    }
    return ufm.Problem(**(fields | changes))


def by_orbits(problem: ufm.Problem) -> ufm.Solution:
    reduction = orbit_reduction(problem)
    assert reduction is not None
    return solve_orbits(reduction)


def objections(problem: ufm.Problem) -> list[str]:
    """Return what is wrong with a solution over orbits, in view of a certificate row by row."""
    solution = by_orbits(problem)
    whole, found = ufm.certify(problem, solution.parameters), solution.certificate
    assert whole is not None
    assert found is not None
    size = abs(solution.objective)
    checks = {
        "certificate over orbits": found.holds and found.relative_gap < 1e-10,
        "certificate row by row": whole.holds,
        "objective": abs(whole.objective - solution.objective) <= 1e-11 * size,
        "bounds": found.lower_bound <= whole.objective + 1e-13 * size,
        "resolution": solution.resolution == "orbits" and solution.check() is solution,
    }
    return [name for name, good in checks.items() if not good]


@pytest.mark.parametrize(
    "rows",
    [pytest.param(name, marks=() if name in FEW else pytest.mark.slow) for name in ROWS],
)
def test_every_kind_of_symmetry_is_certified_row_by_row(rows: str) -> None:
    assert objections(a_problem(ROWS[rows])) == []


@pytest.mark.slow
@pytest.mark.parametrize("rows", list(ROWS))
def test_every_loss_bias_and_regularizer_is_certified_row_by_row(rows: str) -> None:
    losses = (ufm.CrossEntropy(), ufm.BinaryCrossEntropy(), ufm.SquaredError(), ufm.Huber(0.5))
    found = {}
    for loss, bias in itertools.product(losses, (None, 0.0, 1e-2)):
        decay = 5e-2 / float(np.sqrt(ROWS[rows].num_samples))
        regularizers = [ufm.WeightDecay(decay, decay, bias or 0.0)]
        # In balls a squared error can vanish, and nothing but rounding is left to compare.
        if not bias and loss in losses[:2]:
            regularizers.append(ufm.NormBall(2.0, 0.5))
        for regularizer in regularizers:
            problem = a_problem(
                ROWS[rows], loss=loss, use_bias=bias is not None, regularizer=regularizer
            )
            found[loss.label, bias, regularizer.words] = objections(problem)
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


def own_cross_entropy(z: Any, y: Any) -> Any:
    return jnp.sum(y) * jax.nn.logsumexp(z) - jnp.sum(y * z)


@pytest.mark.slow
@pytest.mark.parametrize("rows", ["classes", "tags", "groups"])
@pytest.mark.parametrize("bias", [None, 0.0, 1e-2])
def test_a_loss_of_your_own_is_certified_without_a_conjugate(rows: str, bias: float | None) -> None:
    loss = ufm.losses.from_function(own_cross_entropy)
    decay = 5e-2 / float(np.sqrt(ROWS[rows].num_samples))
    problem = a_problem(
        ROWS[rows],
        loss=loss,
        use_bias=bias is not None,
        regularizer=ufm.WeightDecay(decay, decay, bias or 0.0),
    )
    assert objections(problem) == []


def test_the_minimiser_row_by_row_is_the_same() -> None:
    """The minimiser of cross-entropy is unique, up to shifts, so it has all symmetries."""
    problem = a_problem(ROWS["tags"])
    ours, whole = by_orbits(problem), ufm.solve(problem, resolution="classes", tol=1e-12)
    assert ours.objective == pytest.approx(whole.objective, rel=1e-11)
    for solution in (ours, whole):
        assert solution.problem is problem
    centred = [
        np.asarray(one.logits) - np.mean(one.logits, axis=1, keepdims=True) for one in (ours, whole)
    ]
    assert np.allclose(*centred, rtol=0, atol=1e-6)
    assert np.allclose(ours.margins, whole.margins, rtol=0, atol=1e-6)
    assert np.allclose(ours.weight_norms, whole.weight_norms, rtol=0, atol=1e-6)
    assert ours.rank == whole.rank
    lifted = ours.lift()
    assert lifted.resolution == "classes"
    assert np.array_equal(lifted.logits, ours.logits)
    assert "10 target rows" not in str(ours)
    assert "in 2 orbits" in str(ours)


def test_equal_rows_are_merged_and_lifted_again() -> None:
    rows, counts = np.asarray(ROWS["tags"].rows), np.asarray(ROWS["tags"].counts)
    doubled = Targets(np.concatenate([rows, rows]), np.concatenate([counts, counts]) / 2)
    one, two = by_orbits(a_problem(ROWS["tags"])), by_orbits(a_problem(doubled))
    assert two.objective == pytest.approx(one.objective, rel=1e-13)
    assert np.array_equal(two.logits, np.tile(two.logits[:15], (2, 1)))
    assert np.allclose(two.logits[:15], one.logits, atol=1e-12)


def test_features_that_are_penalised_once_have_their_own_price() -> None:
    cycle = np.array([10, 4, 2, 3, 1])
    rows = np.stack([np.roll(cycle, shift) for shift in range(5)])
    contexts = Targets.contexts(np.concatenate([rows, rows[:, ::-1]]), [3.0] * 5 + [1.0] * 5)
    assert objections(a_problem(contexts)) == []


def _root(increasing: Any, high: float) -> Any:
    """Return the root in (0, high) to forty digits, by halving."""
    low, top = mp.mpf(0), mp.mpf(high)
    for _ in range(150):
        middle = (low + top) / 2
        low, top = (low, middle) if increasing(middle) > 0 else (middle, top)
    return (low + top) / 2


def test_the_value_of_all_pairs_and_singles_in_forty_digits() -> None:
    """Logits are a_m P 1_S, and both equations are solved exactly."""
    K, counts, decay = 5, {1: 50, 2: 30}, 5e-2
    solution = by_orbits(a_problem(Targets.multi_label(K, counts), decay))
    certificate = solution.certificate
    assert certificate is not None
    with mp.workdps(45):
        N, tau = mp.mpf(80), mp.mpf(solution.price)
        theta = {m: mp.mpf(n) * m * (K - m) / (K * (K - 1)) for m, n in counts.items()}

        def coefficient(m: int, rho: Any) -> Any:
            return _root(lambda a: a * (m * mp.exp(a) + K - m) - rho, 60)

        def lacking(rho: Any) -> Any:
            part = sum(theta[m] / (m * mp.exp(coefficient(m, rho)) + K - m) ** 2 for m in counts)
            return (N * tau / K) ** 2 - part

        rho = _root(lacking, 1000)
        a = {m: coefficient(m, rho) for m in counts}
        loss = sum(n * m * (mp.log(m + (K - m) * mp.exp(-a[m]))) for m, n in counts.items()) / N
        exact = loss + tau * (K - 1) * mp.sqrt(sum(theta[m] * a[m] ** 2 for m in counts))
        assert mp.mpf(certificate.lower_bound) <= exact
        assert abs(mp.mpf(solution.objective) - exact) <= mp.mpf("1e-12") * exact
        assert exact - mp.mpf(certificate.lower_bound) <= mp.mpf("1e-11") * exact


def test_auto_takes_orbits_where_they_pay_and_groups_asks_for_them() -> None:
    few, many = a_problem(ROWS["tags"]), a_problem(Targets.multi_label(8, {1: 8, 2: 28}))
    for problem, pays in ((few, False), (many, True)):
        reduction = orbit_reduction(problem)
        assert reduction is not None
        assert orbits_pay(reduction) == pays
    assert ufm.solve(many).resolution == "orbits"
    assert ufm.solve(few, resolution="groups").resolution == "orbits"


@for_each(
    "changes",
    [
        {"feature_dim": 2},
        {"nonnegative_features": True},
        {"hidden_dims": (6,)},
        {"loss": ufm.CrammerSinger()},
        {"loss": ufm.Focal(2.0)},
    ],
)
def test_what_is_not_exact_is_left_alone(changes: dict[str, Any]) -> None:
    assert orbit_reduction(a_problem(Targets.one_hot((5.0,) * 6), **changes)) is None


def test_one_row_that_breaks_the_symmetry_is_not_averaged_away() -> None:
    targets = Targets.multi_label(5, {1: 5, 2: 10})
    rows = np.concatenate([targets.rows, [[0.05, 0.1, 0.2, 0.3, 0.35]]])
    problem = a_problem(Targets(rows, np.append(targets.counts, 3.0)))
    assert orbit_reduction(problem) is None
    with pytest.raises(ufm.ArgumentError, match="leave the targets alone"):
        reduced_under(problem, [LabelClass(np.arange(5))])
    with pytest.raises(ufm.ArgumentError, match="signed features"):
        reduced_under(a_problem(targets, feature_dim=2), [LabelClass(np.arange(5))])


def test_a_stated_group_serves_as_well_as_the_one_that_is_found() -> None:
    """A subgroup has more unknowns and the same minimum."""
    problem = a_problem(Targets.multi_label(4, {1: 40, 2: 30}))
    whole = by_orbits(problem)
    for classes in ([LabelClass(np.arange(3))], [LabelClass(np.arange(4), blocks=2)]):
        part = solve_orbits(reduced_under(problem, classes))
        assert part.certificate is not None
        assert part.certificate.holds
        assert part.objective == pytest.approx(whole.objective, rel=1e-11)

    def lopsided(z: Any, y: Any) -> Any:
        return jnp.sum((1 + 0.1 * jnp.arange(4.0)) * (z - y) ** 2)

    other = a_problem(problem.targets, loss=ufm.losses.from_function(lopsided))  # type: ignore[arg-type]
    with pytest.raises(ufm.ArgumentError, match="leave the loss alone"):
        reduced_under(other, [LabelClass(np.arange(4))])


@for_each(
    "regularizer", [ufm.WeightDecay(1e-2, 1e-3), ufm.NormBall(1.0, 0.5), ufm.WeightDecay(1e-1, 1.0)]
)
def test_rows_need_not_be_listed(regularizer: ufm.Regularizer) -> None:
    listed = a_problem(Targets.multi_label(5, {1: 50, 2: 30}), regularizer=regularizer)
    few = Targets([[1.0, 0, 0, 0, 0], [1.0, 1, 0, 0, 0]], [50.0, 30.0])
    found = solve_representatives(
        a_problem(few, regularizer=regularizer), [LabelClass(np.arange(5))]
    )
    whole = by_orbits(listed)
    assert found.certificate.holds
    assert found.objective == pytest.approx(whole.objective, rel=1e-11)
    assert list(found.sizes) == [5, 10]
    assert np.allclose(np.sort(found.logits[0]), np.sort(whole.logits[0]), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_all_pairs_of_a_thousand_labels_are_two_orbits() -> None:
    K, rows = 1000, np.zeros((2, 1000))
    rows[0, 0] = rows[1, 0] = rows[1, 1] = 1
    problem = a_problem(Targets(rows, [1e5, 1e6]), feature_dim=K, decay=1.0)
    found = solve_representatives(problem, [LabelClass(np.arange(K))])
    assert found.certificate.holds
    assert list(found.sizes) == [K, K * (K - 1) // 2]
    with pytest.raises(ufm.ArgumentError, match="two are of one"):
        solve_representatives(
            a_problem(Targets([[1.0, 0, 0], [0.0, 1, 0]])), [LabelClass(np.arange(3))]
        )


def test_a_path_that_is_cut_short_certifies_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from ufm.solving import orbit_resolution
    from ufm.solving.methods import follow_orbit_path

    problem = a_problem(ROWS["tags"])
    reduction = orbit_reduction(problem)
    assert reduction is not None
    monkeypatch.setattr(
        orbit_resolution, "follow_orbit_path", lambda data, tol: follow_orbit_path(data, tol, 3)
    )
    solution = solve_orbits(reduction)
    assert solution.certificate is not None
    assert not solution.certificate.holds
    with pytest.raises(SolveError, match="relative gap"):
        solution.check()
    # The solve row by row takes over.
    other = solve_orbits(reduction, by_classes=lambda: ufm.solve(problem, resolution="classes"))
    assert other.resolution == "classes"
    assert other.check() is other
