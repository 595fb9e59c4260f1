"""Theorems about gradient flows: laws, closed forms and limits.

The mathematics and the derivations are those of the files of `ufm.dynamics`, whose checks are the
evidence.
"""

from typing import Any, NamedTuple

import numpy as np

from ufm.problems import CrossEntropy, Loss, Problem, SquaredError
from ufm.theory import conditions as needs
from ufm.theory.examples import example_problem
from ufm.theory.theorem import Condition, Example, Theorem

__all__ = ["THEOREMS", "Fit"]

COUNTS = (3.0, 2.0, 2.0)
SIZES = (1e-3, 3e-3, 1e-4)  # singular values of an aligned start

Conditions = tuple[Condition, ...]


def _one_layer(kind: type[Loss], problem: Problem) -> Conditions:
    return (*needs.one_layer(problem, kind), needs.signed_features(problem))


def _problem(loss: Loss, counts: Any = COUNTS, bias: Any = None) -> Problem:
    return example_problem(loss, counts, 1e-2, 1e-2, 4, bias)


# Laws.


def _flow_conditions(problem: Problem) -> Conditions:
    return (needs.weight_decay(problem), needs.signed_features(problem))


def _law_examples() -> tuple[Example, ...]:
    return (Example("squared error, n=(3,2,2), d=4, 1e-2", _problem(SquaredError())),)


def _flow(dynamics: Any, problem: Problem) -> Any:
    return dynamics.gradient_flow(problem, times=(1.0, 10.0, 100.0), scale=0.5)


energy = Theorem(
    name="flow-energy",
    title="gradient flow: the objective never increases",
    reference="the chain rule; integrated as in `ufm.dynamics.gradient_flow`",
    statement="dF/dt = -||gradient||^2 along the flow, with the features in the metric of samples.",
    conditions=_flow_conditions,
    make_examples=_law_examples,
    about="dynamics",
    evidence=lambda dynamics, problem: dynamics.energy_check(_flow(dynamics, problem)),
)

balance = Theorem(
    name="flow-balance",
    title="gradient flow: the balance of neighbouring factors is conserved, or decays",
    reference=(
        "Arora, Cohen & Hazan (ICML 2018), arXiv:1802.06509, and Du, Hu & Lee (NeurIPS 2018), "
        "arXiv:1806.00900; the decay is derived here"
    ),
    statement=(
        "With one penalty l on all factors, Q_1 = W1' W1 - sum_i h_i h_i' and Q_(l+1) = W(l+1)' "
        "W(l+1) - Wl Wl' decay as exp(-2 l t); only their diagonals between ReLU layers."
    ),
    conditions=lambda problem: (*_flow_conditions(problem), needs.equal_penalties(problem)),
    make_examples=_law_examples,
    about="dynamics",
    evidence=lambda dynamics, problem: dynamics.conservation_check(_flow(dynamics, problem)),
)


# Closed forms.


def _logistic_conditions(problem: Problem) -> Conditions:
    return (
        *_one_layer(SquaredError, problem),
        needs.no_bias(problem),
        needs.wide(problem),
        needs.equal_penalties(problem),
    )


def _logistic(dynamics: Any, problem: Problem) -> Any:
    start = dynamics.aligned_start(problem, SIZES)
    flow = dynamics.gradient_flow(problem, times=np.linspace(1, 100, 12), initial=start)
    return dynamics.exact_flow_check(flow)


logistic = Theorem(
    name="flow-logistic-modes",
    title="squared error from an aligned start: singular values on logistic curves",
    reference=(
        "Saxe, McClelland & Ganguli (ICLR 2014), arXiv:1312.6120; weight decay and class sizes are "
        "derived here"
    ),
    statement=(
        "One linear layer, no bias, d >= K, penalties l on weights and features, U = W = "
        "diag(sqrt(s)) R at the start with U = D^(1/2) H: s_k' = (2/N) s_k (sqrt(n_k) - N l - s_k)."
    ),
    conditions=_logistic_conditions,
    make_examples=lambda: (
        Example("n=(3,2,2), d=4, 1e-2", _problem(SquaredError())),
        Example("one class vanishes: n=(3,2,2), 0.202", _vanishing()),
    ),
    about="dynamics",
    evidence=_logistic,
)


def _vanishing() -> Problem:
    """Return a problem in which the smaller classes have no capacity: sqrt(2) = 7 * 0.202..."""
    decay = np.sqrt(2) / 7
    return example_problem(SquaredError(), COUNTS, decay, decay, 4)


def _clock_conditions(problem: Problem) -> Conditions:
    return (
        *_one_layer(CrossEntropy, problem),
        needs.no_bias(problem),
        needs.wide(problem),
        needs.balanced(problem),
    )


def _clock(dynamics: Any, problem: Problem) -> Any:
    start = dynamics.aligned_start(problem, 0.01)
    flow = dynamics.gradient_flow(
        problem, times=np.geomspace(0.1, 1e10, 14), initial=start, penalty_factor=0.0
    )
    return dynamics.exact_flow_check(flow)


clock = Theorem(
    name="flow-entropy-clock",
    title="balanced cross-entropy without penalties, from an aligned ETF: the margin's clock",
    reference="derived here; the rate is that of Lyu & Li (ICLR 2020), arXiv:1906.05890",
    statement=(
        "One linear layer, no bias, d >= K, no penalties, a simplex ETF U = W at the start: it "
        "stays one, and its margin m has Ei(m) + (K-1) log m = 2 t / sqrt(n) + constant. The loss "
        "falls as 1 / (t log t)."
    ),
    conditions=_clock_conditions,
    make_examples=lambda: (Example("K=3, n=4, d=4", _problem(CrossEntropy(), (4.0, 4.0, 4.0))),),
    about="dynamics",
    evidence=_clock,
)


# Limits.


def _margin_conditions(problem: Problem) -> Conditions:
    return (
        *_one_layer(CrossEntropy, problem),
        needs.no_bias(problem),
        needs.centred_dims(problem),
    )


def _margin(dynamics: Any, problem: Problem) -> Any:
    flow = dynamics.gradient_flow(
        problem, times=np.geomspace(0.1, 1e12, 40), penalty_factor=0.0, scale=1e-2
    )
    return dynamics.direction_check(flow)


margin = Theorem(
    name="flow-largest-margin",
    title="cross-entropy without penalties: the flow turns to the largest margin",
    reference=(
        "Ji et al. (ICLR 2022), arXiv:2110.02796, and Lyu & Li (ICLR 2020), arXiv:1906.05890; the "
        "limit for any class sizes is measured here"
    ),
    statement=(
        "One linear layer, no bias, d >= K - 1, no penalties: weights and features grow without "
        "bound, their direction tends to a KKT point of the hard-margin problem, here to its "
        "solution, and the loss times t times the margin tends to a constant."
    ),
    conditions=_margin_conditions,
    make_examples=lambda: (Example("n=(3,2,2), d=4", _problem(CrossEntropy())),),
    about="dynamics",
    evidence=_margin,
)


def _small_start_conditions(problem: Problem) -> Conditions:
    found = "a bias" if problem.use_bias else "no bias"
    return (
        *_one_layer(SquaredError, problem),
        Condition("a bias", problem.use_bias, found),
        needs.balanced(problem),
    )


small_starts = Theorem(
    name="flow-small-starts",
    title="squared error with a bias, without penalties: small starts end near strong collapse",
    reference="Mixon, Parshall & Pi (2020), arXiv:2011.11619; the rate is derived here",
    statement=(
        "One linear layer, balanced classes: flows from starts of size e end at a relative "
        "distance of order e from the subspace of no variation within classes, mean feature zero, "
        "W = sqrt(n) times the class means, and b = 1/K."
    ),
    conditions=_small_start_conditions,
    make_examples=lambda: (
        Example("K=3, n=2, d=4", _problem(SquaredError(), (2.0, 2.0, 2.0), bias=0.0)),
    ),
    about="dynamics",
    evidence=lambda dynamics, problem: dynamics.small_start_check(problem, (1e-1, 1e-3), key=1),
)


def _path_conditions(problem: Problem) -> Conditions:
    d, rest = problem.feature_dim, problem.num_samples - problem.num_classes
    return (
        *_one_layer(SquaredError, problem),
        needs.free_bias(problem),
        needs.balanced(problem),
        needs.centred_dims(problem),
        Condition("d <= N - K", d <= rest, f"d = {d}, N - K = {needs.number(rest)}"),
    )


def _path(dynamics: Any, problem: Problem) -> Any:
    draws = np.random.default_rng(0)
    K, d, n = (
        problem.num_classes,
        problem.feature_dim,
        int(problem.num_samples) // problem.num_classes,
    )
    means = np.geomspace(0.5, 2, K)[:, None] * draws.standard_normal((K, d))
    features = draws.standard_normal((K * n, d)) + np.repeat(means, n, axis=0)
    path = dynamics.central_path(features, K, times=np.geomspace(1, 1e5, 10))
    return dynamics.central_path_check(path)


path = Theorem(
    name="central-path",
    title="the central path of squared error: singular values keep time, singular vectors stand",
    reference="Han, Papyan & Donoho (ICLR 2022), arXiv:2106.02073; constants are derived here",
    statement=(
        "Balanced classes of n samples, no penalties, W and b always the least-squares ones, the "
        "flow of the features projected onto within-class covariance I: the singular vectors of "
        "the signal-to-noise matrix stand still, and its singular values sqrt(K) v have log v + "
        "v^2 + v^4/4 = t / (n K^2) + constant. Their ratios tend to one."
    ),
    conditions=_path_conditions,
    make_examples=lambda: (
        Example("K=3, n=6, d=4", _problem(SquaredError(), (6.0, 6.0, 6.0), bias=0.0)),
    ),
    about="dynamics",
    evidence=_path,
)


class Fit(NamedTuple):
    """A task for a small two-layer network.

    Attributes:
        activation: The activation of the network.
        inputs: (n, 2).
        targets: (n,).
    """

    activation: str
    inputs: Any
    targets: Any


def _fit(activation: str) -> Fit:
    x = np.linspace(-1, 1, 8)
    return Fit(activation, np.stack([x, np.ones(8)], axis=1), np.sin(3 * x) - 0.6 * x)


def _no_network(problem: Problem) -> Conditions:
    found = "features without weights before them"
    return (Condition("a two-layer network of inputs", False, found),)


condensing = Theorem(
    name="condensation",
    title="a two-layer network from small weights: units condense to at most 2p directions",
    reference="Zhou et al. (NeurIPS 2022), arXiv:2105.11686; the directions are derived here",
    statement=(
        "sum_j a_j s(w_j . x), s of multiplicity p, squared error, two-dimensional inputs: while "
        "the network is small, w_j turns to a maximum or minimum of sum_i y_i (w . x_i)^p on the "
        "circle, of which there are at most 2p."
    ),
    conditions=_no_network,
    make_examples=lambda: (
        Example("x^2 tanh x, p=3, 8 inputs", _fit("x2tanh")),
        Example("tanh, p=1, 8 inputs", _fit("tanh")),
    ),
    about="dynamics",
    evidence=lambda dynamics, fit: dynamics.condensation(*fit, width=40),
)

THEOREMS = (energy, balance, logistic, clock, margin, small_starts, path, condensing)
