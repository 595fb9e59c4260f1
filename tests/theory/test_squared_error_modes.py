"""The scalar problem of a singular value: its root, its threshold, and its minimum on a grid."""

import numpy as np
from tables import for_each

import ufm
from ufm.theory import predict
from ufm.theory.squared_error_modes import shrinkage, threshold


@for_each("num_layers", [1, 2, 3, 6, 30])
def test_the_root_solves_its_equation(num_layers):
    top = threshold(num_layers)
    beta = np.append(top * np.geomspace(1e-12, 1, 200)[:-1], top * (1 - 1e-12))
    e = shrinkage(beta, num_layers)
    exponent = (num_layers - 1) / (num_layers + 1)
    np.testing.assert_allclose(e * (1 - e) ** exponent, beta, rtol=1e-14)
    assert np.all(np.diff(e) > 0)
    np.testing.assert_allclose(e[-1], 1 / num_layers, rtol=1e-10)


@for_each("num_layers", [1, 2, 4])
def test_the_threshold_is_the_paper_s(num_layers):
    # Dang et al. use beta_k = M N (N lH prod l)^(1/M) / n_k and (M-1)^((M-1)/M) / M, with M
    # layers.
    M, N, n, decays = num_layers, 30.0, 5.0, np.linspace(0.01, 0.03, num_layers + 1)
    theirs = M * N * (N * np.prod(decays)) ** (1 / M) / n
    ours = N * np.prod(decays) ** (1 / (M + 1)) / n ** (M / (M + 1))
    np.testing.assert_allclose(theirs, M * ours ** ((M + 1) / M))
    np.testing.assert_allclose((M - 1) ** ((M - 1) / M) / M, M * threshold(M) ** ((M + 1) / M))


@for_each("sigma", [0.5, 2.0])
@for_each("lam", [1e-3, 3e-2, 0.1])
def test_each_mode_against_a_fine_grid(sigma, lam):
    single = ufm.Problem(
        class_counts=(sigma**2, 40.0),
        feature_dim=5,
        loss=ufm.SquaredError(),
        regularizer=ufm.WeightDecay(weights=(lam, 2 * lam, lam / 3), features=lam),
        hidden_dims=(6, 6),
    )
    prediction = predict(single)
    N, Lam, q = 40.0 + sigma**2, lam * (2 / 3) ** 0.25, 4
    s = np.linspace(0, 7, 200001)[:, None]
    costs = (s - np.array([sigma, np.sqrt(40.0)])) ** 2 / (2 * N) + q / 2 * Lam * s ** (2 / q)
    assert prediction.objective <= costs.min(axis=0).sum() + 1e-14
    np.testing.assert_allclose(prediction.objective, costs.min(axis=0).sum(), rtol=1e-8)
    np.testing.assert_allclose(
        np.sort(prediction.singular_values), np.sort(s[costs.argmin(axis=0), 0]), atol=1e-4
    )
