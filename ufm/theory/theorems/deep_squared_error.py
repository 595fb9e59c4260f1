r"""Squared error with several layers.

The theorems are about linear layers of any number, two layers with a ReLU between them, and two
classes with ReLUs between any number of layers.

    (1/2N) ||Z - Y||_F^2 + sum_l (lambda_l/2) ||W_l||^2 + (lambda_H/2) ||H||^2,
    Z = H W_1^T ... W_L^T (+ 1 b^T).

Modes of the targets stay orthogonal and shrink one by one, now with a jump: see modes.py for the
scalar problem that each of them solves. Zero is a local minimum at any depth L >= 2, so it is the
comparison of values that decides.
"""

import dataclasses
import functools

from ufm.problems import ClassGroups, Problem, SquaredError
from ufm.theory import conditions as needs
from ufm.theory.examples import example_problem
from ufm.theory.optimal_factors import letters
from ufm.theory.squared_error_modes import (
    free_bias_prediction,
    no_bias_prediction,
    penalised_bias_prediction,
)
from ufm.theory.theorem import Condition, Example, Prediction, Theorem

__all__ = ["THEOREMS"]


def _deep(problem: Problem) -> tuple[Condition, ...]:
    return (needs.loss_is(problem, SquaredError), needs.weight_decay(problem))


def _extended_linear_conditions(problem: Problem) -> tuple[Condition, ...]:
    return (
        *_deep(problem),
        needs.num_layers(problem, exactly=2),
        needs.linear(problem),
        needs.no_bias(problem),
        needs.balanced(problem),
    )


def _extended_relu_conditions(problem: Problem) -> tuple[Condition, ...]:
    return (
        *_deep(problem),
        needs.num_layers(problem, exactly=2),
        needs.relu(problem),
        needs.no_bias(problem),
        needs.wide(problem),
        needs.balanced(problem),
        _few_classes_and_small_penalties(problem),
    )


def _few_classes_and_small_penalties(problem: Problem) -> Condition:
    """The orthogonal frame is still the best that a ReLU can do.

    The published theorem assumes ||relu(Z_1)||_* <= ||Z_1||_* at the optimum (Z_1 = H W_1^T). That
    fails: layers of low rank before the ReLU, of full rank after it, lie below the frame for K >= 4
    near its threshold (K = 4 at c = 0.99 / 16, K = 5 at 0.85 / 16, K = 10 at 0.5 / 16) and for K =
    16 at every c. The bounds here are where minimisation from many starts found nothing lower; they
    are no proof.
    """
    statement = "K <= 3, or K <= 10 and K^3 n lH l1 l2 <= 1/100"
    if not needs.weight_decay(problem).holds or problem.num_layers != 2:
        return Condition(statement, False, "another model")
    K = problem.num_classes
    c = K**2 * problem.num_samples * problem.regularizer.decays(2).prod()
    return Condition(
        statement, (K <= 3) | ((K <= 10) & (c <= 1 / 100)), f"K = {K}, c = {needs.number(c)}"
    )


def _deep_linear_conditions(problem: Problem) -> tuple[Condition, ...]:
    return (
        *_deep(problem),
        needs.num_layers(problem, at_least=2),
        needs.linear(problem),
        needs.no_bias(problem),
    )


def _deep_free_bias_conditions(problem: Problem) -> tuple[Condition, ...]:
    return (
        *_deep(problem),
        needs.num_layers(problem, at_least=2),
        needs.linear(problem),
        needs.free_bias(problem),
        needs.signed_features(problem),
    )


def _deep_penalised_bias_conditions(problem: Problem) -> tuple[Condition, ...]:
    return (
        *_deep(problem),
        needs.num_layers(problem, at_least=2),
        needs.linear(problem),
        needs.penalised_bias(problem),
        needs.signed_features(problem),
        needs.balanced(problem),
    )


def _two_classes_conditions(problem: Problem) -> tuple[Condition, ...]:
    K = problem.num_classes
    return (
        *_deep(problem),
        needs.num_layers(problem, at_least=2),
        needs.relu(problem),
        needs.no_bias(problem),
        needs.wide(problem),
        needs.balanced(problem),
        Condition("K = 2", K == 2, f"K = {K}"),
    )


def _two_classes_formula(problem: Problem) -> Prediction:
    """Return the deep prediction, with the threshold of c = n lambda_H lambda_1 ... lambda_L."""
    numbers = letters(problem)
    L = numbers.num_layers
    c = numbers.mean_count * numbers.decay ** (L + 1)
    threshold = (L - 1) ** (L - 1) / (2 ** (L + 1) * L ** (2 * L))
    constants = {"c": c, "threshold": numbers.xp.full_like(c, threshold)}
    return dataclasses.replace(
        no_bias_prediction("deep-relu-two-classes", problem), constants=constants
    )


def _extended_formula(name: str, problem: Problem) -> Prediction:
    """Return the deep prediction, with the threshold of c = K^3 n lambda_H lambda_1 lambda_2."""
    numbers = letters(problem)
    c = numbers.num_classes**3 * numbers.mean_count * numbers.decay**3
    constants = {"c": c, "threshold": numbers.xp.full_like(c, 1 / 16)}
    return dataclasses.replace(no_bias_prediction(name, problem), constants=constants)


_problem = functools.partial(example_problem, SquaredError())


def _extended_linear_examples() -> tuple[Example, ...]:
    classes = ClassGroups.balanced(4, 50)
    return (
        Example("K=4, n=50, widths 20, 5e-3, 1e-5", _problem(classes, 5e-3, 1e-5, dims=(20, 20))),
        Example(
            "unequal: (5e-3, 1e-3), 1e-4", _problem(classes, (5e-3, 1e-3), 1e-4, dims=(20, 20))
        ),
        Example("collapsed: 1e-1", _problem(classes, 1e-1, 1e-1, dims=(20, 20))),
        Example("hidden width 2", _problem(classes, 5e-3, 1e-5, dims=(20, 2))),
    )


def _extended_relu_examples() -> tuple[Example, ...]:
    relu = functools.partial(_problem, dims=(20, 20), activation="relu")
    four, three = ClassGroups.balanced(4, 50), ClassGroups.balanced(3, 50)
    return (
        Example("K=4, n=50, widths 20, 5e-3, 1e-5", relu(four, 5e-3, 1e-5)),
        Example("unequal: (5e-3, 1e-3), 1e-4", relu(four, (5e-3, 1e-3), 1e-4)),
        Example("collapsed: K=3, 1e-1", relu(three, 1e-1, 1e-1)),
    )


def _two_classes_examples() -> tuple[Example, ...]:
    relu = functools.partial(_problem, dims=(4, 4, 4), activation="relu")
    classes = ClassGroups.balanced(2, 50)
    return (
        Example("K=2, n=50, 5e-3, 1e-4, L=3", relu(classes, 5e-3, 1e-4)),
        Example("unequal: (5e-3, 1e-3, 2e-3), 1e-4, L=3", relu(classes, (5e-3, 1e-3, 2e-3), 1e-4)),
        Example("collapsed: 1e-1, L=3", relu(classes, 1e-1, 1e-1)),
    )


IMBALANCED = (200.0, 100.0, 50.0, 50.0)


def _deep_linear_examples() -> tuple[Example, ...]:
    classes = ClassGroups.balanced(4, 100)
    return (
        Example("K=4, n=100, d=64, 5e-4, L=3", _problem(classes, 5e-4, 5e-4, dims=(64,) * 3)),
        Example("K=4, n=100, d=64, 5e-4, L=6", _problem(classes, 5e-4, 5e-4, dims=(64,) * 6)),
        Example(
            "n=(200,100,50,50), d=64, 5e-4, L=3", _problem(IMBALANCED, 5e-4, 5e-4, dims=(64,) * 3)
        ),
        Example(
            "two classes dropped: 1.5e-2, L=3", _problem(IMBALANCED, 1.5e-2, 1.5e-2, dims=(64,) * 3)
        ),
        Example("collapsed: 5e-2, L=3", _problem(IMBALANCED, 5e-2, 5e-2, dims=(64,) * 3)),
        Example("width 2, L=3", _problem(IMBALANCED, 5e-4, 5e-4, dims=(64, 2, 64))),
    )


def _deep_free_bias_examples() -> tuple[Example, ...]:
    deep = functools.partial(_problem, bias=0.0)
    return (
        Example(
            "K=4, n=50, widths 20, 5e-3, 1e-5",
            deep(ClassGroups.balanced(4, 50), 5e-3, 1e-5, dims=(20, 20)),
        ),
        Example("n=(200,100,50,50), d=64, 5e-4, L=2", deep(IMBALANCED, 5e-4, 5e-4, dims=(64, 64))),
        Example("n=(200,100,50,50), d=64, 5e-4, L=3", deep(IMBALANCED, 5e-4, 5e-4, dims=(64,) * 3)),
        Example("collapsed: 5e-2, L=3", deep(IMBALANCED, 5e-2, 5e-2, dims=(64,) * 3)),
    )


def _deep_penalised_bias_examples() -> tuple[Example, ...]:
    deep = functools.partial(_problem, ClassGroups.balanced(4, 50))
    return (
        Example("K=4, n=50, widths 4, 5e-3, 1e-5, bias 3e-2, L=2", deep(5e-3, 1e-5, (4, 4), 3e-2)),
        Example("ETF: bias 1e-2, L=2", deep(5e-3, 1e-5, (4, 4), 1e-2)),
        Example("collapsed: 1e-1, L=2", deep(1e-1, 1e-1, (4, 4), 1.0)),
    )


extended_linear = Theorem(
    name="extended-linear-orthogonal-frame",
    title="balanced squared error, two linear layers: an orthogonal frame",
    reference="Tirer & Bruna (ICML 2022), arXiv:2202.08087",
    statement=(
        "(1/2N)||H W1' W2' - Y||^2 + (l1/2)||W1||^2 + (l2/2)||W2||^2 + (lH/2)||H||^2, K classes "
        "of n samples: W2 and the class means before it are orthogonal frames while K^3 n lH l1 "
        "l2 < 1/16, and everything is zero from there on."
    ),
    conditions=_extended_linear_conditions,
    formula=functools.partial(_extended_formula, "extended-linear-orthogonal-frame"),
    make_examples=_extended_linear_examples,
)

extended_relu = Theorem(
    name="extended-relu-orthogonal-frame",
    title=(
        "balanced squared error, two layers with a ReLU between them: an orthogonal frame after "
        "the ReLU"
    ),
    reference=(
        "Tirer & Bruna (ICML 2022), arXiv:2202.08087; the range of validity is numerical, found "
        "here"
    ),
    statement=(
        "(1/2N)||relu(H W1') W2' - Y||^2 + (l1/2)||W1||^2 + (l2/2)||W2||^2 + (lH/2)||H||^2, K "
        "classes of n samples, widths >= K: while nuclear norms do not grow under the ReLU at the "
        "optimum, the value, W2 and the features after the ReLU are those of the linear model. "
        "That holds for K <= 3, and for K <= 10 far below the threshold c = K^3 n lH l1 l2 = 1/16 "
        "(lower values exist near it from K = 4 on, and at every c for K = 16). Before the ReLU "
        "the class means are not unique: orthogonal frame, simplex ETF and a continuum between "
        "cost the same."
    ),
    conditions=_extended_relu_conditions,
    formula=functools.partial(_extended_formula, "extended-relu-orthogonal-frame"),
    make_examples=_extended_relu_examples,
)

deep_linear = Theorem(
    name="deep-linear-general-orthogonal-frame",
    title="squared error, several linear layers, any class sizes: a general orthogonal frame",
    reference="Dang et al. (ICML 2023), arXiv:2301.00437",
    statement=(
        "(1/2N)||H W1'...WL' - Y||^2 + sum_l (ll/2)||Wl||^2 + (lH/2)||H||^2: classes are "
        "orthogonal, and z_kk = 1 - e_k with e_k (1-e_k)^((L-1)/(L+1)) = N Lam / n_k^(L/(L+1)), "
        "Lam the geometric mean of all L + 1 penalties, while the right-hand side is below "
        "(1/L)((L-1)/L)^((L-1)/(L+1)); class k vanishes from there on, jumping from z_kk = "
        "(L-1)/L. With widths below K the largest classes are kept."
    ),
    conditions=_deep_linear_conditions,
    formula=functools.partial(no_bias_prediction, "deep-linear-general-orthogonal-frame"),
    make_examples=_deep_linear_examples,
)

deep_free_bias = Theorem(
    name="deep-linear-free-bias",
    title=(
        "squared error, several linear layers, a free bias, any class sizes: the centred targets "
        "by modes"
    ),
    reference="Liu (2024), arXiv:2411.17278; the closed form for every depth is derived here",
    statement=(
        "(1/2N)||H W1'...WL' + 1b' - Y||^2 + sum_l (ll/2)||Wl||^2 + (lH/2)||H||^2: b = n/N, and "
        "the logits without b keep the singular vectors of Y less its mean row; each singular "
        "value s shrinks to s (1-e), e (1-e)^((L-1)/(L+1)) = N Lam / s^(2L/(L+1)), or vanishes, "
        "as in the model without a bias."
    ),
    conditions=_deep_free_bias_conditions,
    formula=functools.partial(free_bias_prediction, "deep-linear-free-bias"),
    make_examples=_deep_free_bias_examples,
)

deep_penalised_bias = Theorem(
    name="deep-linear-penalised-bias",
    title=(
        "balanced squared error, several linear layers, a penalised bias: between ETF and "
        "orthogonal frame"
    ),
    reference="derived here, after Dang et al. (ICML 2023), arXiv:2301.00437",
    statement=(
        "(1/2N)||H W1'...WL' + 1b' - Y||^2 + sum_l (ll/2)||Wl||^2 + (lH/2)||H||^2 + "
        "(lb/2)||b||^2, K classes of n samples, theta = lb/(1+lb): class logits y (I - J/K) + y1 "
        "J/K, y the share that is kept without a bias and y1 the share at 1/theta times the "
        "penalties, zero first; b = (1 - y1) / (K (1 + lb))."
    ),
    conditions=_deep_penalised_bias_conditions,
    formula=functools.partial(penalised_bias_prediction, "deep-linear-penalised-bias"),
    make_examples=_deep_penalised_bias_examples,
)

deep_relu_two_classes = Theorem(
    name="deep-relu-two-classes",
    title=(
        "squared error, two balanced classes, ReLU between any number of layers: orthogonal class "
        "means"
    ),
    reference="Sukenik, Mondelli & Lampert (NeurIPS 2023), arXiv:2305.13165",
    statement=(
        "(1/2N)||relu(...relu(H W1')...) WL' - Y||^2 + sum_l (ll/2)||Wl||^2 + (lH/2)||H||^2, two "
        "classes of n samples, widths >= 2: after every ReLU the class means are orthogonal, and "
        "value, WL and the features before it are those of the linear model, while n lH l1...lL < "
        "(L-1)^(L-1) / (2^(L+1) L^(2L)); everything is zero from there on. Before a ReLU the "
        "class means are not unique."
    ),
    conditions=_two_classes_conditions,
    formula=_two_classes_formula,
    make_examples=_two_classes_examples,
)

THEOREMS = (
    extended_linear,
    deep_relu_two_classes,
    extended_relu,
    deep_linear,
    deep_free_bias,
    deep_penalised_bias,
)
