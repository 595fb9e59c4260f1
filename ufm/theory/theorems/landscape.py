"""Theorems about the landscape: which critical points there are, and how flat minima are.

The mathematics and the derivations are those of `ufm.landscape.theorem_checks`, whose checks are
the evidence.
"""

import functools

from ufm.problems import CrossEntropy, Loss, Problem, SquaredError
from ufm.theory import conditions as needs
from ufm.theory.examples import example_problem
from ufm.theory.theorem import Condition, Example, Theorem

__all__ = ["THEOREMS"]

COUNTS = (3.0, 2.0, 2.0)


def _one_layer_conditions(kind: type[Loss], problem: Problem) -> tuple[Condition, ...]:
    return (
        *needs.one_layer(problem, kind),
        needs.signed_features(problem),
        needs.more_dims_than_classes(problem),
    )


def _one_layer_examples(loss: type[Loss]) -> tuple[Example, ...]:
    # Both settings share their compiled programs.
    unequal, balanced = (
        example_problem(loss(), counts, 2e-2, 4e-3, 4) for counts in (COUNTS, (2.0, 2.0, 2.0))
    )
    return (
        Example("n=(3,2,2), d=4, 2e-2, 4e-3", unequal),
        Example("n=2, K=3, d=4, 2e-2, 4e-3", balanced),
    )


def _no_spurious_minima(name: str, title: str, reference: str, loss: type[Loss]) -> Theorem:
    return Theorem(
        name=name,
        title=title,
        reference=reference,
        statement=(
            "One linear layer, weight decay, d > K, any class sizes, with a bias or without: every "
            "critical point is a global minimum or a strict saddle. Checked at the minimisers with "
            "fewer feature dimensions, from none to K, which are all critical."
        ),
        conditions=functools.partial(_one_layer_conditions, loss),
        make_examples=functools.partial(_one_layer_examples, loss),
        about="landscape",
        evidence=lambda landscape, problem: landscape.no_spurious_minima(problem),
    )


def _spurious_conditions(problem: Problem) -> tuple[Condition, ...]:
    return (
        *needs.one_layer(problem, CrossEntropy),
        needs.nonnegative_features(problem),
        needs.no_bias(problem),
    )


def _spurious_examples() -> tuple[Example, ...]:
    counts = (200.0, 120.0, 70.0, 30.0, 10.0)
    problem = example_problem(CrossEntropy(), counts, 1e-2, 1e-2, 5, nonnegative_features=True)
    return (Example("n=(200,120,70,30,10), d=5, 1e-2", problem),)


def _origin_conditions(problem: Problem) -> tuple[Condition, ...]:
    return (needs.weight_decay(problem), needs.num_layers(problem, at_least=2))


def _origin_examples() -> tuple[Example, ...]:
    problem = example_problem(SquaredError(), COUNTS, 5e-3, 5e-3, (4, 4), activation="relu")
    return (Example("n=(3,2,2), widths 4, 5e-3, L=2, ReLU", problem),)


def _valley_conditions(problem: Problem) -> tuple[Condition, ...]:
    return (
        needs.weight_decay(problem),
        needs.num_layers(problem, exactly=2),
        needs.relu(problem),
        needs.signed_features(problem),
        needs.no_bias(problem),
        needs.wide(problem),
    )


def _valley_examples() -> tuple[Example, ...]:
    problem = example_problem(SquaredError(), COUNTS, 2e-3, 1e-3, (4, 3), activation="relu")
    return (Example("n=(3,2,2), widths (4, 3), 2e-3, 1e-3", problem),)


THEOREMS = (
    _no_spurious_minima(
        "cross-entropy-no-spurious-minima",
        "cross-entropy, one linear layer: global minima and strict saddles only",
        "Zhu et al. (NeurIPS 2021), arXiv:2105.02375",
        CrossEntropy,
    ),
    _no_spurious_minima(
        "squared-error-no-spurious-minima",
        "squared error, one linear layer: global minima and strict saddles only",
        "Zhou et al. (ICML 2022), arXiv:2203.01238",
        SquaredError,
    ),
    Theorem(
        name="nonnegative-spurious-minima",
        title="cross-entropy with non-negative features: local minima above the global one exist",
        reference="found here; with signed features there are none, arXiv:2105.02375",
        statement=(
            "(1/N) sum CE + (lW/2)||W||^2 + (lH/2)||H||^2 with h >= 0 has local minima that are "
            "not global, such as points at which a class is dead. Checked by descents from random "
            "starts, above a certified minimum."
        ),
        conditions=_spurious_conditions,
        make_examples=_spurious_examples,
        about="landscape",
        evidence=lambda landscape, problem: landscape.spurious_minima(problem, starts=6),
    ),
    Theorem(
        name="deep-origin-local-minimum",
        title="three factors or more: the origin is a local minimum, and not the global one",
        reference="derived here; two factors have a saddle there, arXiv:2105.02375",
        statement=(
            "L >= 2 and weight decay, for every loss: at zero weights and features the data term "
            "moves only by the product of all L + 1 factors, and the penalties curve upwards. The "
            "origin is not the global minimum if any solution is lower."
        ),
        conditions=_origin_conditions,
        make_examples=_origin_examples,
        about="landscape",
        evidence=lambda landscape, problem: landscape.origin_is_a_local_minimum(problem),
    ),
    Theorem(
        name="two-layer-relu-valleys",
        title="two layers with a ReLU between them: minima form valleys of known dimension",
        reference="derived here, for the model of Tirer & Bruna (ICML 2022), arXiv:2202.08087",
        statement=(
            "Suppose that at a minimum the outputs of the hidden layer have disjoint supports I_k. "
            "Then the minimisers have K (K-1) + K (d-K) + sum_k (|I_k| - 1) flat directions."
        ),
        conditions=_valley_conditions,
        make_examples=_valley_examples,
        about="landscape",
        evidence=lambda landscape, problem: landscape.valley_dimension(problem),
    ),
)
