import numpy as np
import pytest
from landscape_models import (
    LH,
    LW,
    N_PER_CLASS,
    K,
    linear,
    plain_objective,
    random_point,
    shifted,
    simplex_minimiser,
)
from tables import for_each

import ufm
from ufm.landscape import gradient, hessian_product, hessian_spectrum
from ufm.problems import Parameters, Problem

RELU = Problem(
    class_counts=(3.0, 2.0, 1.5),
    feature_dim=2,
    loss=ufm.SquaredError(),
    regularizer=ufm.WeightDecay(weights=(0.02, 0.03), features=0.01, bias=0.05),
    use_bias=True,
    hidden_dims=(4,),
    activation="relu",
)


def inner(a: Parameters, b: Parameters) -> float:
    blocks = zip((*a.weights, a.features), (*b.weights, b.features), strict=True)
    return sum(float(np.sum(x * y)) for x, y in blocks) + (
        0.0 if a.bias is None else float(a.bias @ b.bias)
    )


@for_each("problem", [linear(), RELU])
def test_gradient_and_products_are_those_of_the_plain_objective(problem: Problem) -> None:
    point, step, other = (random_point(problem, seed) for seed in range(3))

    def slope(p: Parameters, direction: Parameters, size: float = 1e-4) -> float:
        ends = [plain_objective(problem, shifted(p, direction, sign * size)) for sign in (1, -1)]
        return (ends[0] - ends[1]) / (2 * size)

    found = gradient(problem, point)
    assert inner(found, step) == pytest.approx(slope(point, step), rel=1e-6)
    product = hessian_product(problem, point, step)
    ends = [gradient(problem, shifted(point, step, sign * 1e-5)) for sign in (1, -1)]
    by_difference = (inner(ends[0], other) - inner(ends[1], other)) / 2e-5
    assert inner(product, other) == pytest.approx(by_difference, rel=1e-6)
    assert inner(product, other) == pytest.approx(
        inner(hessian_product(problem, point, other), step), rel=1e-12
    )


def test_the_spectrum_at_the_minimiser_is_in_balanced_coordinates() -> None:
    """W = s_W V, sqrt(n) H = s_H U with s_W s_H = 1, at equal penalties tau.

    Eigenvalues there are those of differences of the plain objective.
    """
    problem, point = linear(), simplex_minimiser()
    s_W = (LH / LW) ** 0.25
    size = point.weights[0].size

    def objective(x: np.ndarray) -> float:
        V, U = x[:size].reshape(K, -1), x[size:].reshape(K, -1)
        return plain_objective(
            problem, Parameters((s_W * V,), U / s_W / np.sqrt(N_PER_CLASS), None)
        )

    x = np.concatenate(
        [(point.weights[0] / s_W).ravel(), (point.features * s_W * np.sqrt(N_PER_CLASS)).ravel()]
    )
    steps, f = 1e-4 * np.eye(x.size), objective(x)
    ahead = [objective(x + a) for a in steps]
    forward = np.array([[objective(x + a + b) for a in steps] for b in steps])
    values = (forward - np.add.outer(ahead, ahead) + f) / 1e-8
    spectrum = hessian_spectrum(problem, point)
    np.testing.assert_allclose(spectrum.eigenvalues, np.linalg.eigvalsh(values), atol=2e-5)
    assert spectrum.complete
    assert (spectrum.num_unknowns, spectrum.num_held) == (x.size, 0)
    # Eigenvectors are changes of the parameters along which the second difference is the
    # eigenvalue.
    for index in (-1, -5):
        step = Parameters(
            (spectrum.directions.weights[0][index],), spectrum.directions.features[index], None
        )
        ends = [plain_objective(problem, shifted(point, step, t)) for t in (1e-3, 0, -1e-3)]
        assert (ends[0] - 2 * ends[1] + ends[2]) / 1e-6 == pytest.approx(
            spectrum.eigenvalues[index], abs=1e-7
        )


def test_only_the_product_of_the_penalties_counts() -> None:
    point, ratio = simplex_minimiser(), 7.0
    moved = Parameters((point.weights[0] / ratio,), point.features * ratio, None)
    other = linear(regularizer=ufm.WeightDecay(weights=LW * ratio**2, features=LH / ratio**2))
    expected = hessian_spectrum(linear(), point).eigenvalues
    np.testing.assert_allclose(hessian_spectrum(other, moved).eigenvalues, expected, atol=1e-14)


def test_lanczos_finds_both_ends() -> None:
    point = random_point(linear(), 3)
    whole = hessian_spectrum(linear(), point).eigenvalues
    ends = hessian_spectrum(linear(), point, number=6)
    np.testing.assert_allclose(ends.eigenvalues, np.concatenate([whole[:3], whole[-3:]]), rtol=1e-9)
    assert ends.residual < 1e-9
    assert not ends.complete


@pytest.mark.nightly
def test_norm_balls_have_no_radial_directions() -> None:
    problem = linear(regularizer=ufm.NormBall(weights=1.0, features=2.0))
    W, H = np.sqrt(K / (K - 1)) * simplex_minimiser().weights[0], simplex_minimiser().features
    W, H = (
        W / np.sqrt(np.mean(np.sum(W**2, axis=1))),
        H / np.sqrt(np.mean(np.sum(H**2, axis=1)) / 2),
    )
    spectrum = hessian_spectrum(problem, Parameters((W,), H, None))
    assert (spectrum.num_unknowns, spectrum.num_held) == (2 * W.size + 2, 2)
    # The ETF on both boundaries is the minimiser: nothing negative, and only rotations are flat.
    assert np.sum(np.abs(spectrum.eigenvalues) < 1e-12) == 3 + 3 * 3
    assert spectrum.eigenvalues[0] > -1e-12
    with pytest.raises(ValueError, match="inside the norm balls"):
        hessian_spectrum(problem, Parameters((2 * W,), H, None))


def test_bad_input_is_named() -> None:
    point = simplex_minimiser()
    with pytest.raises(ValueError, match="`number` must be a whole number"):
        hessian_spectrum(linear(), point, number=0)
    with pytest.raises(ValueError, match="`direction` must have the shapes"):
        hessian_product(linear(), point, point._replace(features=point.features[:, :2]))
    with pytest.raises(ValueError, match="must not be negative"):
        gradient(linear(nonnegative_features=True), point)
    with pytest.raises(ValueError, match=r"`problem` must be a ufm\.Problem"):
        gradient("cross-entropy", point)  # type: ignore[arg-type]


def test_results_are_float64_in_either_process_precision(process_x64: bool) -> None:
    spectrum = hessian_spectrum(linear(), simplex_minimiser())
    assert spectrum.eigenvalues.dtype == np.float64
    assert spectrum.directions.features.dtype == np.float64
    assert gradient(linear(), simplex_minimiser()).features.dtype == np.float64
