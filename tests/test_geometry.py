from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tables import for_each

from ufm import geometry
from ufm._support import double_precision

EXACT = 1e-13


@pytest.fixture(params=[False, True], ids=["x32", "x64"])
def process_precision(request: pytest.FixtureRequest) -> Iterator[bool]:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", request.param)
    yield request.param
    jax.config.update("jax_enable_x64", before)


def random_matrix(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def rotation(dim: int) -> np.ndarray:
    return np.linalg.qr(random_matrix(dim, dim, seed=1))[0]


def etf_reference(K: int, scale: float = 1.0) -> np.ndarray:
    return np.where(np.eye(K, dtype=bool), scale**2, -(scale**2) / (K - 1))


# Frames


@pytest.mark.usefixtures("process_precision")
@for_each("seed", [None, 0])
@for_each(("K", "extra"), [(2, -1), (2, 0), (7, -1), (7, 0), (7, 5)])
def test_simplex_etf_has_unit_norms_and_equal_angles(K: int, extra: int, seed: int | None) -> None:
    key = None if seed is None else jax.random.key(seed)
    frame = geometry.simplex_etf(K, K + extra, scale=3.0, key=key)
    assert isinstance(frame, np.ndarray)
    assert (frame.shape, frame.dtype) == ((K, K + extra), np.float64)
    np.testing.assert_allclose(frame @ frame.T, etf_reference(K, 3.0), atol=EXACT)
    np.testing.assert_allclose(geometry.simplex_etf_gram(K, 3.0), etf_reference(K, 3.0), atol=EXACT)
    np.testing.assert_allclose(frame.sum(axis=0), 0.0, atol=EXACT)


def test_simplex_etf_in_its_textbook_form() -> None:
    np.testing.assert_allclose(
        geometry.simplex_etf(4), np.sqrt(4 / 3) * (np.eye(4) - 0.25), atol=EXACT
    )


@pytest.mark.usefixtures("process_precision")
@for_each("seed", [None, 0])
@for_each(
    ("dim", "norms"),
    [(None, 2.0), (9, 1.0), (4, [1.0, 2.0, 3.0, 4.0]), (2, [0, 2, 0, 1]), (1, 0.0)],
)
def test_orthogonal_frame_has_the_norms_asked_for(
    dim: int | None, norms: float | list[float], seed: int | None
) -> None:
    key = None if seed is None else jax.random.key(seed)
    frame = geometry.orthogonal_frame(4, dim, norms, key)
    assert isinstance(frame, np.ndarray)
    assert (frame.shape, frame.dtype) == ((4, 4 if dim is None else dim), np.float64)
    expected = np.diag(np.broadcast_to(np.asarray(norms, np.float64), (4,)) ** 2)
    np.testing.assert_allclose(frame @ frame.T, expected, atol=EXACT)


@for_each("constructor", [geometry.simplex_etf, geometry.orthogonal_frame])
def test_random_rotation_is_reproducible_and_random(constructor: Callable[..., np.ndarray]) -> None:
    first, again, other = (constructor(3, 6, key=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


def test_random_rotation_includes_reflections() -> None:
    signs = {geometry.simplex_etf(2, 1, key=jax.random.key(seed))[0, 0] > 0 for seed in range(12)}
    assert signs == {True, False}


@for_each(
    ("call", "message"),
    [
        (
            lambda: geometry.simplex_etf(4, dim=2),
            r"`dim` must be at least num_vectors - 1 = 3 .* got 2",
        ),
        (lambda: geometry.simplex_etf(1), "`num_vectors` must be at least 2, got 1"),
        (lambda: geometry.simplex_etf(2.0), "`num_vectors` must be an integer, got 2.0"),
        (
            lambda: geometry.simplex_etf(3, scale=-1.0),
            "`scale` must be finite numbers >= 0, got -1.0",
        ),
        (lambda: geometry.simplex_etf(3, scale=float("nan")), "`scale` must be finite"),
        (lambda: geometry.simplex_etf_gram(1), "`num_vectors` must be at least 2, got 1"),
        (
            lambda: geometry.simplex_etf_gram(3, np.inf),
            "`scale` must be finite numbers >= 0, got inf",
        ),
        (lambda: geometry.orthogonal_frame(4, dim=3), "`dim` must be at least 4 .* got 3"),
        (
            lambda: geometry.orthogonal_frame(3, 1, [1.0, 0.0, 2.0]),
            "`dim` must be at least 2 .* got 1",
        ),
        (
            lambda: geometry.orthogonal_frame(3, norms=[1.0, 2.0]),
            r"`norms` must be .* \(3,\).* got shape \(2,\)",
        ),
        (
            lambda: geometry.orthogonal_frame(2, norms=[1.0, -2.0]),
            "`norms` must be finite numbers >= 0",
        ),
        (lambda: geometry.orthogonal_frame(0), "`num_vectors` must be at least 1, got 0"),
        (lambda: geometry.orthogonal_frame_gram(2.0), r"`norms` must be of shape \(K,\)"),
        (lambda: geometry.centering_matrix(0), "`num_vectors` must be at least 1, got 0"),
    ],
)
def test_impossible_frames_are_refused(call: Callable[[], np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_centering_matrix_subtracts_the_mean() -> None:
    P, rows = geometry.centering_matrix(5), random_matrix(5, 3)
    np.testing.assert_allclose(P @ rows, rows - rows.mean(axis=0), atol=EXACT)
    np.testing.assert_allclose(P @ P, P, atol=EXACT)


def test_gram_matrices_of_frames_follow_their_argument() -> None:
    scales = jnp.asarray([0.0, 1.0, 2.0], jnp.float32)
    grams = jax.vmap(lambda scale: geometry.simplex_etf_gram(3, scale))(scales)
    assert grams.dtype == jnp.float32
    np.testing.assert_allclose(grams[2], etf_reference(3, 2.0), rtol=1e-6)
    diagonal = jax.jit(geometry.orthogonal_frame_gram)(scales)
    assert diagonal.dtype == jnp.float32
    np.testing.assert_array_equal(diagonal, np.diag([0.0, 1.0, 4.0]))
    assert isinstance(geometry.simplex_etf_gram(3), np.ndarray)
    assert geometry.orthogonal_frame_gram([1, 2]).dtype == np.float64


# Distances: limits, identities, references, and what each must reject

K = 6
ETF, OF = geometry.simplex_etf(K, 8), geometry.orthogonal_frame(K, 8)
GOF = geometry.orthogonal_frame(K, 8, norms=np.arange(K))
DISTANCES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "etf": lambda G: geometry.etf_error(G, 1.0),
    "etf, any scale": geometry.etf_distance,
    "of": lambda G: geometry.orthogonal_frame_error(G, 1.0),
    "of, any scale": geometry.orthogonal_frame_distance,
    "gof": lambda G: geometry.orthogonal_frame_error(G, np.arange(K)),
    "gof, any norms": geometry.general_orthogonal_frame_distance,
    "random": lambda G: geometry.gram_error(G, geometry.gram(random_matrix(K, K))),
    "random, any scale": lambda G: geometry.shape_distance(G, geometry.gram(random_matrix(K, K))),
}


@for_each(
    ("vectors", "accepted"),
    [
        (ETF, {"etf", "etf, any scale"}),
        (2.0 * ETF, {"etf, any scale"}),
        (OF, {"of", "of, any scale", "gof, any norms"}),
        (0.9 * OF, {"of, any scale", "gof, any norms"}),
        (GOF, {"gof", "gof, any norms"}),
        (random_matrix(K, K), {"random", "random, any scale"}),
        (np.ones((K, 2)), set()),
        (ETF + 1e-6 * random_matrix(K, 8), set()),
    ],
)
def test_each_distance_accepts_its_own_frame_only(vectors: np.ndarray, accepted: set[str]) -> None:
    distances = {name: float(distance(vectors @ vectors.T)) for name, distance in DISTANCES.items()}
    assert {name for name, value in distances.items() if value < 1e-12} == accepted
    assert all(value > 1e-7 for name, value in distances.items() if name not in accepted)


def test_distances_have_their_closed_forms() -> None:
    G, identity = ETF @ ETF.T, OF @ OF.T
    np.testing.assert_allclose(geometry.etf_error(1.21 * G, 1.0), 0.21, rtol=1e-12)
    np.testing.assert_allclose(geometry.orthogonal_frame_error(identity, 2.0), 0.75, rtol=1e-12)
    between = np.sqrt(2 - 2 * np.sqrt((K - 1) / K))
    np.testing.assert_allclose(geometry.etf_distance(identity), between, rtol=1e-12)
    np.testing.assert_allclose(geometry.orthogonal_frame_distance(G), between, rtol=1e-12)
    np.testing.assert_allclose(
        geometry.general_orthogonal_frame_distance(np.ones((K, K))), np.sqrt(K - 1)
    )


@for_each("distance", DISTANCES.values())
def test_distances_do_not_see_rotations(distance: Callable[[np.ndarray], np.ndarray]) -> None:
    vectors = random_matrix(K, 8, seed=3)
    turned = vectors @ rotation(8)
    np.testing.assert_allclose(
        distance(turned @ turned.T), distance(vectors @ vectors.T), rtol=1e-12
    )


def test_distances_agree_with_plain_numpy() -> None:
    A, B = (random_matrix(K, K, seed=seed) for seed in (4, 5))
    G, T = A @ A.T, B @ B.T
    relative = np.linalg.norm(G - T) / np.linalg.norm(T)
    shape = np.linalg.norm(G / np.linalg.norm(G) - T / np.linalg.norm(T))
    np.testing.assert_allclose(geometry.gram_error(G, T), relative, rtol=1e-13)
    np.testing.assert_allclose(geometry.shape_distance(G, T), shape, rtol=1e-13)
    np.testing.assert_allclose(geometry.gram(A), G, rtol=1e-13)
    np.testing.assert_allclose(geometry.vector_norms(A), np.linalg.norm(A, axis=1), rtol=1e-13)
    np.testing.assert_allclose(geometry.frobenius_norm(A), np.linalg.norm(A), rtol=1e-13)
    np.testing.assert_allclose(geometry.normalise(A), A / np.linalg.norm(A), rtol=1e-13)
    unit = A / np.linalg.norm(A, axis=1, keepdims=True)
    np.testing.assert_allclose(geometry.cosines(A), unit @ unit.T, atol=EXACT)


def test_zero_has_documented_values() -> None:
    zero, G = np.zeros((K, K)), ETF @ ETF.T
    assert geometry.gram_error(zero, zero) == 0.0
    assert geometry.gram_error(G, zero) == np.inf
    assert geometry.gram_error(zero, G) == pytest.approx(1.0)
    assert geometry.etf_distance(zero) == pytest.approx(1.0)
    assert geometry.general_orthogonal_frame_distance(zero) == 0.0
    assert geometry.stable_rank(zero) == 0.0
    assert geometry.numerical_rank(zero) == 0
    with_zero = np.vstack([np.zeros(3), random_matrix(2, 3)])
    found = geometry.cosines(with_zero)
    np.testing.assert_array_equal(found[0], 0.0)
    np.testing.assert_array_equal(found[:, 0], 0.0)
    np.testing.assert_allclose(np.diag(found)[1:], 1.0, atol=EXACT)


def test_nan_is_never_hidden() -> None:
    for bad in (np.nan, np.inf):
        broken = np.eye(K)
        broken[0, 0] = bad
        assert not any(np.isfinite(distance(broken)) for distance in DISTANCES.values())
        assert np.isnan(geometry.cosines(broken)[0, 1])
        assert not np.isfinite(geometry.frobenius_norm(broken))
        assert np.isnan(geometry.stable_rank(broken))
        assert geometry.numerical_rank(broken) == 0


def test_ranks() -> None:
    low = random_matrix(7, 3) @ random_matrix(3, 5, seed=1)
    assert geometry.numerical_rank(low) == 3
    assert geometry.numerical_rank(low + 1e-9 * random_matrix(7, 5, seed=2)) == 5
    assert geometry.numerical_rank(low + 1e-9 * random_matrix(7, 5, seed=2), rtol=1e-6) == 3
    assert geometry.numerical_rank(ETF) == K - 1
    np.testing.assert_allclose(geometry.stable_rank(ETF), K - 1, rtol=1e-12)
    np.testing.assert_allclose(geometry.stable_rank(ETF @ ETF.T), K - 1, rtol=1e-12)
    np.testing.assert_allclose(geometry.stable_rank(OF), K, rtol=1e-12)
    values = np.linalg.svd(low, compute_uv=False)
    np.testing.assert_allclose(
        geometry.stable_rank(low), np.sum(values**2) / values[0] ** 2, rtol=1e-12
    )


# Conformance of the pure functions

PURE: dict[str, Callable[..., jax.Array]] = {
    "gram": geometry.gram,
    "cosines": geometry.cosines,
    "vector_norms": geometry.vector_norms,
    "frobenius_norm": geometry.frobenius_norm,
    "normalise": geometry.normalise,
    "normalise_rows": geometry.normalise_rows,
    "stable_rank": geometry.stable_rank,
    "numerical_rank": geometry.numerical_rank,
    "gram_error": lambda G: geometry.gram_error(G, etf_reference(4)),
    "shape_distance": lambda G: geometry.shape_distance(G, etf_reference(4)),
    "etf_error": lambda G: geometry.etf_error(G, 2.0),
    "orthogonal_frame_error": lambda G: geometry.orthogonal_frame_error(G, np.arange(4.0)),
    "etf_distance": geometry.etf_distance,
    "orthogonal_frame_distance": geometry.orthogonal_frame_distance,
    "general_orthogonal_frame_distance": geometry.general_orthogonal_frame_distance,
}


def every_pure_function(matrix: jax.Array) -> dict[str, jax.Array]:
    return {name: function(matrix) for name, function in PURE.items()}


def test_pure_functions_compile_batch_and_keep_the_dtype() -> None:
    matrices = random_matrix(3, 4, 4, seed=6)
    found = jax.jit(jax.vmap(every_pure_function))(jnp.asarray(matrices, jnp.float32))
    for name, values in found.items():
        assert values.dtype == jnp.float32 or (name, values.dtype.kind) == (
            "numerical_rank",
            "i",
        ), name
        looped = [PURE[name](matrix) for matrix in matrices]
        np.testing.assert_allclose(values, looped, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.usefixtures("process_precision")
def test_numpy_stays_in_float64() -> None:
    matrix = random_matrix(4, 4, seed=7)
    with double_precision():
        compiled = jax.jit(every_pure_function)(jnp.asarray(matrix))
    for name, values in every_pure_function(matrix).items():
        assert isinstance(values, np.ndarray | np.generic), name
        assert values.dtype == np.float64 or (name, values.dtype.kind) == ("numerical_rank", "i"), (
            name
        )
        np.testing.assert_allclose(values, compiled[name], rtol=1e-12, atol=1e-14, err_msg=name)


def test_gradients_match_finite_differences() -> None:
    matrix, along, step = random_matrix(4, 4, seed=8), random_matrix(4, 4, seed=9), 1e-6
    smooth = {name: function for name, function in PURE.items() if name != "numerical_rank"}

    def sums(matrix: jax.Array) -> jax.Array:
        return jnp.stack([jnp.sum(function(matrix)) for function in smooth.values()])

    with double_precision():
        gradients = np.asarray(jax.jit(jax.jacrev(sums))(jnp.asarray(matrix)))
    for gradient, (name, function) in zip(gradients, smooth.items(), strict=True):
        difference = np.sum(function(matrix + step * along) - function(matrix - step * along)) / (
            2 * step
        )
        np.testing.assert_allclose(
            np.sum(gradient * along), difference, rtol=1e-6, atol=1e-8, err_msg=name
        )


def test_gradients_are_finite_where_a_distance_is_zero() -> None:
    names = (
        "etf_error",
        "etf_distance",
        "orthogonal_frame_distance",
        "cosines",
    )

    def summed(G: jax.Array) -> jax.Array:
        return jnp.stack([jnp.sum(PURE[name](G)) for name in names])

    points = jnp.asarray(np.stack([etf_reference(4), np.eye(4), np.zeros((4, 4))]), jnp.float32)
    assert np.isfinite(jax.jit(jax.vmap(jax.jacrev(summed)))(points)).all()
