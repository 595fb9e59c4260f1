r"""Squared error with one layer: an orthogonal frame without a bias, a simplex ETF with a free one.

    (1/2N) ||Z - Y||_F^2 + (lambda_W/2) ||W||^2 + (lambda_H/2) ||H||^2 (+ (lambda_b/2) ||b||^2),
    Z = H W^T + 1 b^T,

which is the library's default objective with the loss (1/2) ||z - y||^2. For K balanced classes of
n samples

    c = K sqrt(n lambda_W lambda_H)

decides: every mode of the targets shrinks by the factor 1 - c, and all of them vanish from c = 1
on. Other letters as in factors.py.
"""

import functools
from typing import Any

from jaxtyping import Array

from ufm.problems import ClassGroups, Problem, SquaredError
from ufm.theory import conditions as needs
from ufm.theory.examples import example_problem
from ufm.theory.optimal_factors import (
    Letters,
    centred_frame,
    left_open,
    letters,
    orthogonal_frame,
    predicted,
)
from ufm.theory.squared_error_modes import free_bias_prediction, no_bias_prediction
from ufm.theory.theorem import Condition, Example, Prediction, Theorem

__all__ = ["THEOREMS"]


def _collapse_ratio(numbers: Letters) -> Array:
    return numbers.num_classes * numbers.xp.sqrt(numbers.mean_count) * numbers.decay


def _modes_on(numbers: Letters, number: int) -> Array:
    return (numbers.xp.arange(numbers.num_classes) < number).astype(numbers.mean_count.dtype)


def _constants(numbers: Letters, c: Array) -> dict[str, Array]:
    return {"c": c, "threshold": numbers.xp.ones_like(c)}


def _orthogonal_frame_conditions(problem: Problem) -> tuple[Condition, ...]:
    return (
        *needs.one_layer(problem, SquaredError),
        needs.no_bias(problem),
        needs.balanced(problem),
    )


def _orthogonal_frame_formula(problem: Problem) -> Prediction:
    r"""Return the orthogonal frame of r = min(d, K) modes.

        W W^T = sqrt(n lambda_H / lambda_W) (1 - c)_+ I,
        F F^T = sqrt(lambda_W / (n lambda_H)) (1 - c)_+ I,
        Z = (1 - c)_+ I,    objective = (K - r + r c' (2 - c')) / 2K  with c' = min(c, 1).

    The singular values are sqrt(n) (1 - c)_+, r times. For d < K any r-dimensional subspace will
    do: what depends on it is left open. The frame can be turned into the non-negative orthant, so
    the constraint h >= 0 changes nothing.
    """
    numbers = letters(problem)
    xp = numbers.xp
    K, r = numbers.num_classes, min(numbers.width, numbers.num_classes)
    c = _collapse_ratio(numbers)
    lost = xp.minimum(c, 1)
    values = xp.sqrt(numbers.mean_count) * (1 - lost) * _modes_on(numbers, r)
    return predicted(
        "squared-error-orthogonal-frame",
        numbers,
        objective=(K - r + r * lost * (2 - lost)) / (2 * K),
        values=values,
        frame=left_open(numbers, orthogonal_frame(numbers, values), r == K or c >= 1),
        bias=None,
        constants=_constants(numbers, c),
    )


def _etf_conditions(problem: Problem) -> tuple[Condition, ...]:
    return (
        *needs.one_layer(problem, SquaredError),
        needs.free_bias(problem),
        needs.signed_features(problem),
        needs.balanced(problem),
    )


def _etf_formula(problem: Problem) -> Prediction:
    r"""Return the simplex ETF of r = min(d, K - 1) modes; P = I - J/K.

    W W^T = sqrt(n lambda_H / lambda_W) (1 - c)_+ P,
    F F^T = sqrt(lambda_W / (n lambda_H)) (1 - c)_+ P,
    Z = (1 - c)_+ P + 1 b^T,    b = (1/K) 1,
    objective = (K - 1 - r + r c' (2 - c')) / 2K  with c' = min(c, 1).
    """
    numbers = letters(problem)
    xp = numbers.xp
    K, r = numbers.num_classes, min(numbers.width, numbers.num_classes - 1)
    c = _collapse_ratio(numbers)
    lost = xp.minimum(c, 1)
    value = xp.sqrt(numbers.mean_count) * (1 - lost)
    return predicted(
        "squared-error-etf",
        numbers,
        objective=(K - 1 - r + r * lost * (2 - lost)) / (2 * K),
        values=value * _modes_on(numbers, r),
        frame=left_open(numbers, centred_frame(numbers, value), r == K - 1 or c >= 1),
        bias=xp.full((K,), 1 / K, c.dtype),
        constants=_constants(numbers, c),
    )


def _penalised_bias_conditions(problem: Problem) -> tuple[Condition, ...]:
    return (
        *needs.one_layer(problem, SquaredError),
        needs.penalised_bias(problem),
        needs.signed_features(problem),
        needs.balanced(problem),
    )


def _penalised_bias_formula(problem: Problem) -> Prediction:
    r"""Return the frame between the ETF and the orthogonal one, theta = lambda_b / (1 + lambda_b).

    With the best bias for given logits put in, the fit counts the common mode J/K with the weight
    theta:

        Z - 1 b^T = (1 - c)_+ P + (1 - c / theta)_+ J/K,
        b = min(c / theta, 1) / (K (1 + lambda_b)) 1,

    so the frame is a simplex ETF exactly where theta <= c, and tends to the orthogonal one as
    lambda_b grows. A feature dimension d < K gives up the common mode first (theta < 1 makes it the
    least useful), then any K - 1 - d of the others:

        objective = (K - 1 - r + r c' (2 - c') + theta t (2 - t)) / 2K,  r = min(d, K - 1),  c' =
        min(c, 1),

    with t = min(c / theta, 1) for d >= K and t = 1 below. At c >= 1 only the bias is left.
    """
    numbers = letters(problem)
    xp = numbers.xp
    K, r = numbers.num_classes, min(numbers.width, numbers.num_classes - 1)
    theta = numbers.bias / (1 + numbers.bias)
    c = _collapse_ratio(numbers)
    lost = xp.minimum(c, 1)
    common = (theta > c) & (numbers.width >= K)
    lost_common = xp.where(common, c / xp.where(common, theta, 1), 1)
    value, common_value = (
        xp.sqrt(numbers.mean_count) * (1 - share) for share in (lost, lost_common)
    )
    return predicted(
        "squared-error-penalised-bias",
        numbers,
        objective=(K - 1 - r + r * lost * (2 - lost) + theta * lost_common * (2 - lost_common))
        / (2 * K),
        values=xp.append((value * _modes_on(numbers, r))[:-1], common_value),
        frame=left_open(numbers, centred_frame(numbers, value, common_value), r == K - 1 or c >= 1),
        bias=xp.full((K,), 1 / K, c.dtype) * lost_common / (1 + numbers.bias),
        constants={**_constants(numbers, c), "theta": theta},
    )


def _general_orthogonal_frame_conditions(problem: Problem) -> tuple[Condition, ...]:
    return (*needs.one_layer(problem, SquaredError), needs.no_bias(problem))


def _free_bias_conditions(problem: Problem) -> tuple[Condition, ...]:
    return (
        *needs.one_layer(problem, SquaredError),
        needs.free_bias(problem),
        needs.signed_features(problem),
    )


_problem = functools.partial(example_problem, SquaredError())


def _balanced_examples(bias: float | None, truncated: int) -> tuple[Example, ...]:
    classes = ClassGroups.balanced(4, 50)
    published: dict[str, Any] = {"weights": 5e-3, "features": 1e-5, "bias": bias}
    return (
        Example("K=4, n=50, d=20, 5e-3, 1e-5", _problem(classes, dims=20, **published)),
        Example(
            "K=4, n=100, d=64, 5e-4",
            _problem(ClassGroups.balanced(4, 100), 5e-4, 5e-4, dims=64, bias=bias),
        ),
        Example("collapsed: 5e-2, 5e-2", _problem(classes, 5e-2, 5e-2, dims=20, bias=bias)),
        Example(f"d={truncated}", _problem(classes, dims=truncated, **published)),
    )


def _penalised_bias_examples() -> tuple[Example, ...]:
    classes = ClassGroups.balanced(4, 50)
    weaker = _problem(classes, 5e-3, 1e-5, dims=20, bias=1e-3)
    return (*_balanced_examples(1e-2, truncated=2), Example("ETF: bias 1e-3", weaker))


IMBALANCED = (200.0, 100.0, 50.0, 50.0)


def _general_orthogonal_frame_examples() -> tuple[Example, ...]:
    return (
        Example("n=(200,100,50,50), d=64, 5e-4", _problem(IMBALANCED, 5e-4, 5e-4, dims=64)),
        Example("two classes dropped: 2e-2", _problem(IMBALANCED, 2e-2, 2e-2, dims=64)),
        Example("collapsed: 5e-2", _problem(IMBALANCED, 5e-2, 5e-2, dims=64)),
        Example("d=2", _problem(IMBALANCED, 5e-4, 5e-4, dims=2)),
    )


def _free_bias_examples() -> tuple[Example, ...]:
    step = ClassGroups((500, 5), sizes=(5, 5))
    return (
        Example(
            "n=(200,100,50,50), d=64, 5e-4", _problem(IMBALANCED, 5e-4, 5e-4, dims=64, bias=0.0)
        ),
        Example("5x500 + 5x5, d=20, 5e-3, 1e-5", _problem(step, 5e-3, 1e-5, dims=20, bias=0.0)),
        Example("some modes dropped: 2e-2", _problem(IMBALANCED, 2e-2, 2e-2, dims=64, bias=0.0)),
        Example("collapsed: 5e-2", _problem(IMBALANCED, 5e-2, 5e-2, dims=64, bias=0.0)),
        Example("d=1", _problem(IMBALANCED, 5e-4, 5e-4, dims=1, bias=0.0)),
    )


balanced_orthogonal_frame = Theorem(
    name="squared-error-orthogonal-frame",
    title="balanced squared error without a bias: an orthogonal frame",
    reference="Tirer & Bruna (ICML 2022), arXiv:2202.08087",
    statement=(
        "(1/2N)||HW' - Y||^2 + (lW/2)||W||^2 + (lH/2)||H||^2, K classes of n samples, c = K "
        "sqrt(n lW lH): HW' = (1-c)_+ Y with W and the class means orthogonal frames; everything "
        "is zero from c = 1 on. For d < K, any d of the modes."
    ),
    conditions=_orthogonal_frame_conditions,
    formula=_orthogonal_frame_formula,
    make_examples=functools.partial(_balanced_examples, None, truncated=2),
    by_groups=True,
)

balanced_etf = Theorem(
    name="squared-error-etf",
    title="balanced squared error with a free bias: a simplex ETF",
    reference="Tirer & Bruna (ICML 2022), arXiv:2202.08087",
    statement=(
        "(1/2N)||HW' + 1b' - Y||^2 + (lW/2)||W||^2 + (lH/2)||H||^2, K classes of n samples, c = K "
        "sqrt(n lW lH): b = 1/K and HW' = (1-c)_+ (Y - 1/K) with W and the class means simplex "
        "ETFs; W and H are zero from c = 1 on. For d < K - 1, any d of the modes."
    ),
    conditions=_etf_conditions,
    formula=_etf_formula,
    make_examples=functools.partial(_balanced_examples, 0.0, truncated=2),
    by_groups=True,
)

balanced_penalised_bias = Theorem(
    name="squared-error-penalised-bias",
    title="balanced squared error with a penalised bias: between ETF and orthogonal frame",
    reference=(
        "Zhou et al. (ICML 2022), arXiv:2203.01238; the form for every bias penalty is derived here"
    ),
    statement=(
        "(1/2N)||HW' + 1b' - Y||^2 + (lW/2)||W||^2 + (lH/2)||H||^2 + (lb/2)||b||^2, K classes of "
        "n samples, c = K sqrt(n lW lH), theta = lb/(1+lb): class logits (1-c)_+ (I - J/K) + "
        "(1-c/theta)_+ J/K + 1b'; a simplex ETF exactly where theta <= c. For d < K the mode J/K "
        "goes first."
    ),
    conditions=_penalised_bias_conditions,
    formula=_penalised_bias_formula,
    make_examples=_penalised_bias_examples,
    by_groups=True,
)

general_orthogonal_frame = Theorem(
    name="squared-error-general-orthogonal-frame",
    title="squared error without a bias, any class sizes: a general orthogonal frame",
    reference="Dang et al. (ICML 2023), arXiv:2301.00437",
    statement=(
        "(1/2N)||HW' - Y||^2 + (lW/2)||W||^2 + (lH/2)||H||^2, tau = sqrt(lW lH): classes are "
        "orthogonal, ||w_k||^2 = (sqrt(n_k lH/lW) - N lH)_+ and z_kk = (1 - N tau/sqrt(n_k))_+, "
        "so class k vanishes at n_k <= N^2 lW lH. For d < K the d largest classes are kept."
    ),
    conditions=_general_orthogonal_frame_conditions,
    formula=functools.partial(no_bias_prediction, "squared-error-general-orthogonal-frame"),
    make_examples=_general_orthogonal_frame_examples,
    by_groups=True,
)

free_bias = Theorem(
    name="squared-error-free-bias",
    title="squared error with a free bias, any class sizes: the centred targets, mode by mode",
    reference="Liu (2024), arXiv:2411.17278",
    statement=(
        "(1/2N)||HW' + 1b' - Y||^2 + (lW/2)||W||^2 + (lH/2)||H||^2: b = n/N, and the logits "
        "without b keep the singular vectors of Y less its mean row, whose singular values s "
        "shrink to (s - N sqrt(lW lH))_+, the d largest of them."
    ),
    conditions=_free_bias_conditions,
    formula=functools.partial(free_bias_prediction, "squared-error-free-bias"),
    make_examples=_free_bias_examples,
)

THEOREMS = (
    balanced_orthogonal_frame,
    balanced_etf,
    balanced_penalised_bias,
    general_orthogonal_frame,
    free_bias,
)
