r"""`held_against_model`: a trained network against the certified minimiser of its effective model, each difference with its size.

A network never is a minimiser of the model to nine digits, so no tolerance is asked for: errors are stated, with what they are relative to, and
graded at fixed levels,

    "agrees" up to 1 %,   "close" up to 10 %,   "rough" up to 30 %,   "differs" above.

Everything compared is invariant under rotations of feature space, and bias and logits are freed of the shift that the loss does not see. Classes of
equal size are interchangeable in the model, but not in the world: every error is given class by class, and of the averages over classes of one
group (for a matrix, averages over pairs of classes of two groups, and over single classes).

The model has one number that was fitted, the feature decay, so of the two scales ||W|| and ||H|| their ratio agrees by construction, and the
other one is predicted.
"""

import dataclasses
import html
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ufm import geometry
from ufm._support import double_precision, html_table, is_numeric, rebuilt, table_lines
from ufm.metrics import NeuralCollapse, neural_collapse
from ufm.networks.effective.trained_network import (
    EffectiveModel,
    TrainedNetwork,
    effective_model,
    is_stationary,
    loss_of_classes,
)
from ufm.problems import Loss, Parameters, Problem, class_columns, has_group_form, padded, zero_padded
from ufm.solving import GroupSolution, Solution, grouping_pays, solve, solve_groups
from ufm.theory import NoPrediction, Prediction, predict

__all__ = [
    "LEGEND",
    "LEVELS",
    "UNBALANCED",
    "Agreement",
    "HeldAgainstModel",
    "HeldAgainstModels",
    "LossTerms",
    "Row",
    "State",
    "held_against_model",
    "held_against_models",
]

LEVELS = (("agrees", 0.01), ("close", 0.1), ("rough", 0.3))
WORST = "differs"
LINE = 120  # characters of a line below a table
LEGEND = (
    "measured, predicted: a number as it is; of vectors and matrices over classes, what `shown as` says: the mean, the mean over pairs of different "
    "classes (j != k), or the root of the mean square of all entries (rms).",
    "error: root mean square of the differences, entry by entry, in units of what `relative to` says; so equal means may have an error. by group: "
    "the same of averages over classes of one group (of equal counts, unless groups were given).",
    "level: of the error; "
    + ", ".join(f"{level} up to {100 * bound:g} %" for level, bound in LEVELS)
    + f", {WORST} above. Parts of the objective have the whole minimum for their unit: what weighs little in it agrees, even where it is off by "
    "a factor.",
)
TRACES = 1e-9  # of a typical norm, what a solver leaves of a vector that is zero
UNBALANCED = 0.5  # from this residual of the balance on, no model of this kind describes the last layers


class LossTerms(NamedTuple):
    """The objective, in parts that sum to `total`; all with their factors 1/N and 1/2.

    data: the mean loss. data_at_means: the loss at the class means instead (not a part). weights: (L,), penalties of the layers. features: penalty of
    all samples' features. bias: penalty of the biases.
    """

    data: float
    data_at_means: float
    weights: Float[np.ndarray, " L"]
    features: float
    bias: float

    @property
    def total(self) -> float:
        """The objective."""
        return self.data + float(np.sum(self.weights)) + self.features + self.bias


class State(NamedTuple):
    """A point of the model, measured or predicted; class means are those of what enters the last layer.

    mean_norms, weight_norms: (K,). mean_gram, weight_gram: (K, K). mean_cosines, centred_cosines, weight_cosines: (K, K); centred at the mean of
    class means. alignment: (K,), cos(w_k, mu_k). logits: (K, K), row k of class k; less their mean where the loss does not see it. margins: (K,),
    logit of the own class less the largest other. bias: (K,), less its mean likewise, zeros without one. weight_spectrum, mean_spectrum: (min(K,
    D),), singular values of W_L and of the class means. loss: the objective in parts. collapse: NC1 to NC4; NC1 and NC4 are None where only moments
    are known.
    """

    mean_norms: Float[np.ndarray, " K"]
    weight_norms: Float[np.ndarray, " K"]
    mean_gram: Float[np.ndarray, "K K"]
    weight_gram: Float[np.ndarray, "K K"]
    mean_cosines: Float[np.ndarray, "K K"]
    centred_cosines: Float[np.ndarray, "K K"]
    weight_cosines: Float[np.ndarray, "K K"]
    alignment: Float[np.ndarray, " K"]
    logits: Float[np.ndarray, "K K"]
    margins: Float[np.ndarray, " K"]
    bias: Float[np.ndarray, " K"]
    weight_spectrum: Float[np.ndarray, " r"]
    mean_spectrum: Float[np.ndarray, " r"]
    loss: LossTerms
    collapse: NeuralCollapse

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings, ready for JSON; the (K, K) matrices stay attributes."""
        vectors = {
            name: value for name, value in self._asdict().items() if isinstance(value, np.ndarray) and value.ndim == 1
        }
        plain = {name: value.tolist() for name, value in vectors.items()}
        loss = {name: np.asarray(value).tolist() for name, value in self.loss._asdict().items()}
        return plain | {"loss": loss | {"total": self.loss.total}, "collapse": self.collapse.to_dict()}


class Row(NamedTuple):
    """One quantity: measured and predicted, and how they differ.

    shown_as: what both are of an array: "mean", "mean j != k" over pairs of different classes, "rms", the root of the mean square; "" of a number.
    error: class by class. group_error: of averages over classes of one group; the same for a number. relative_to: what both are
    divided by, "1 (...)" for differences as they are. level: of the error, one of "agrees", "close", "rough", "differs".
    """

    quantity: str
    measured: float
    predicted: float
    error: float
    group_error: float
    relative_to: str
    level: str
    shown_as: str = ""


class Agreement(NamedTuple):
    """What it comes to.

    kind: "not balanced" where the balance of the first layer is off by half or more, so that the model does not describe this network; otherwise the
    level of the worst of the aspects. aspects: by name, their errors. averages: the errors of angles, norms and logits averaged over classes of one
    group. words: the verdict in words.
    """

    kind: str
    aspects: dict[str, float]
    averages: dict[str, float]
    words: str

    @property
    def describes(self) -> bool:
        """Whether the model describes the network: every aspect agrees or is close."""
        return self.kind in ("agrees", "close")


class HeldAgainstModel(NamedTuple):
    """A trained network against its effective model. Prints as a table.

    name: of the model. trained: the network. effective: its model, with the balance. solution: the model's certified minimiser. prediction: of the
    theorem that covers the model, or None. measured, predicted: the network and the minimiser. rows: their differences. agreement: the verdict.
    groups: (K,), which classes are averaged.
    """

    name: str
    trained: TrainedNetwork
    effective: EffectiveModel
    solution: Solution
    prediction: Prediction | None
    measured: State
    predicted: State
    rows: tuple[Row, ...]
    agreement: Agreement
    groups: np.ndarray

    @property
    def excess(self) -> float:
        """The network's objective less the certified lower bound of the minimum (less the lowest value known, where there is no bound)."""
        certificate = self.solution.certificate
        lowest = self.solution.objective if certificate is None else certificate.lower_bound
        return self.measured.loss.total - lowest

    def __getitem__(self, quantity: Any) -> Any:
        """Return the row of a quantity by its name (or a field by its index, as tuples do)."""
        return self.row(quantity) if isinstance(quantity, str) else tuple.__getitem__(self, quantity)

    def row(self, quantity: str) -> Row:
        """Return the row of a quantity by its name."""
        for row in self.rows:
            if row.quantity == quantity:
                return row
        raise ValueError(f"`quantity` must be one of {', '.join(row.quantity for row in self.rows)}; got {quantity!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings, ready for JSON."""
        certificate = self.solution.certificate
        regularizer: Any = self.effective.problem.regularizer
        return {
            "model": self.name,
            "verdict": self.agreement._asdict() | {"describes": self.agreement.describes},
            "feature_decay": float(regularizer.features),
            "weight_decay": self.trained.weight_decay.tolist(),
            "bias_decay": self.trained.bias_decay,
            "balance": self.effective.balance.to_dict(),
            "notes": list(self.effective.notes),
            "solution": {
                "objective": self.solution.objective,
                "status": str(self.solution.status),
                "lower_bound": None if certificate is None else certificate.lower_bound,
                "certified": certificate is not None and certificate.holds,
            },
            "excess": self.excess,
            "theorem": None if self.prediction is None else self.prediction.theorem,
            "groups": self.groups.tolist(),
            "class_counts": self.trained.class_counts.tolist(),
            "rows": [row._asdict() for row in self.rows],
            "measured": self.measured.to_dict(),
            "predicted": self.predicted.to_dict(),
        }

    def facts(self) -> list[tuple[str, str]]:
        """Return what the comparison rests on, as names and texts."""
        balance, certificate = self.effective.balance, self.solution.certificate
        regularizer: Any = self.effective.problem.regularizer
        decays = ", ".join(f"{decay:.4g}" for decay in self.trained.weight_decay)
        trained, counts = self.trained, self.trained.class_counts
        sizes = f"{counts.min():g}" if np.all(counts == counts[0]) else f"{counts.min():g} to {counts.max():g}"
        assumed = "assumed, as none was given; `loss`, or --loss, says another" if trained.loss_assumed else "given"
        found = [
            ("model", self.name),
            ("loss", f"{_loss_words(trained.loss)} ({assumed})"),
            (
                "network",
                f"K = {counts.size} classes of {sizes} samples, N = {trained.num_samples:g}, d = {trained.weights[0].shape[1]} features",
            ),
            ("weight decay", f"{decays}; implied by the last layer {balance.implied_weight_decay:.4g}"),
            (
                "feature decay",
                f"{float(regularizer.features):.4g} (balance: traces {balance.feature_decay:.4g}, least squares {balance.least_squares:.4g})",
            ),
            ("balance", f"residual {balance.residual:.2g}, cosine {balance.cosine:.4f} ({_BALANCED[balance.by]})"),
        ]
        for index, (whole, units) in enumerate(zip(balance.layers, balance.units, strict=True)):
            found.append(
                (
                    f"layers {index + 1}, {index + 2}",
                    f"penalties differ by {_percent(abs(whole))}, unit by unit by {_percent(units)}",
                )
            )
        found.append(
            ("stationarity", f"{balance.stationarity:.2g} (gradient of the last layer over that of its penalty)")
        )
        found.append(("minimum", str(certificate or "no lower bound is known for this model")))
        if not self.solution.status.ok:
            found.append(("solver", self.solution.status.message))
        found.append(("theorem", "none covers this model" if self.prediction is None else self.prediction.theorem))
        found += [("note", note) for note in self.effective.notes]
        return found

    def table(self) -> list[tuple[str, ...]]:
        """Return the rows as texts, the head first."""
        head: tuple[str, ...] = ("quantity", "measured", "predicted", "error", "by group", "relative to", "level")
        head = (head[0], "shown as", *head[1:])
        return [head] + [
            (
                row.quantity,
                row.shown_as,
                f"{row.measured:.5g}",
                f"{row.predicted:.5g}",
                f"{row.error:.2g}",
                f"{row.group_error:.2g}",
                row.relative_to,
                row.level,
            )
            for row in self.rows
        ]

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.facts())
        facts = [f"{name:<{width}}  {text}" for name, text in self.facts()]
        legend = [textwrap.fill(line, LINE) for line in LEGEND]
        return "\n".join([f"verdict: {self.agreement.words}", "", *facts, "", *table_lines(self.table()), "", *legend])

    def _repr_html_(self) -> str:
        legend = "".join(f"<p>{html.escape(line)}</p>" for line in LEGEND)
        facts = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in self.facts()
        )
        return (
            f"<p><b>{html.escape(self.agreement.words)}</b></p><table>{facts}</table>{html_table(self.table())}{legend}"
        )


_BALANCED = {"matrix": "of matrices", "units": "unit by unit, as features are non-negative"}


def held_against_model(
    trained: TrainedNetwork,
    *,
    feature_decay: float | None = None,
    groups: Sequence[int] | None = None,
    restarts: int | None = None,
    key: Any = None,
    start: Literal["model", "network"] = "model",
    solution: Solution | None = None,
) -> HeldAgainstModel:
    """Hold a trained network against the minimiser of its effective model.

    Where a model is not convex in its logits, its lowest minimum can be far from neural collapse (deep ReLU models, losses that are not convex) and
    from where training ends; `start="network"` descends from the network itself and holds it against the minimum nearby.

    Args:
        trained: the network, from the last layer on or from an earlier one: one layer is the plain model, two with a ReLU the extended one.
        feature_decay: lambda_H; if not given, from the balance of the first layer.
        groups: (K,), a number per class; classes of the same number are averaged. If not given, classes of equal counts are.
        restarts: initial points of the solve, as in `ufm.solve`.
        key: of the solve, as there.
        start: "model" solves as `ufm.solve` does by itself; "network" descends from the network's class means and weights.
        solution: of the effective problem, to save a second solve.

    Raises:
        ValueError: for bad arguments, and where the feature decay cannot be estimated.
    """
    K = trained.num_classes
    groups_of = _groups(trained.class_counts if groups is None else groups, K)
    effective = effective_model(trained, feature_decay=feature_decay)
    best = _solved(trained, effective.problem, restarts, key, start) if solution is None else solution
    try:
        prediction = predict(effective.problem)
    except NoPrediction:
        prediction = None
    measured = _measured(trained, effective.problem)
    predicted = _predicted(effective.problem, best, measured)
    rows = tuple(_rows(measured, predicted, groups_of, trained.collapse is not None))
    return HeldAgainstModel(
        name=_name(effective.problem) + (", minimum nearby" if start == "network" else ""),
        trained=trained,
        effective=effective,
        solution=best,
        prediction=prediction,
        measured=measured,
        predicted=predicted,
        rows=rows,
        agreement=_agreement(trained, effective, best, predicted, rows),
        groups=groups_of,
    )


class HeldAgainstModels(NamedTuple):
    """One network against several models, what they have in common side by side. Prints as a table."""

    reports: tuple[HeldAgainstModel, ...]

    @property
    def quantities(self) -> tuple[str, ...]:
        """What all reports compare."""
        first, *others = ({row.quantity: None for row in report.rows} for report in self.reports)
        return tuple(name for name in first if all(name in other for other in others))

    def errors(self, quantity: str) -> np.ndarray:
        """Return the error of a quantity in every model."""
        return np.array([report.row(quantity).error for report in self.reports])

    def best(self, quantity: str) -> str:
        """Return the name of the model that predicts a quantity best."""
        return self.reports[int(np.argmin(self.errors(quantity)))].name

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings, ready for JSON."""
        return {
            "models": [report.name for report in self.reports],
            "errors": {name: self.errors(name).tolist() for name in self.quantities},
            "reports": [report.to_dict() for report in self.reports],
        }

    def table(self) -> list[tuple[str, ...]]:
        """Return the errors as texts, the head first."""
        rows: list[tuple[str, ...]] = [("error", *(report.name for report in self.reports), "relative to")]
        for name in self.quantities:
            errors = self.errors(name)
            least = np.nanmin(errors) if np.any(np.isfinite(errors)) else np.nan
            cells = (f"{error:.2g}" + ("*" if error == least else "") for error in errors)
            rows.append((name, *cells, self.reports[0].row(name).relative_to))
        rows.append(
            ("balance", *(f"{report.effective.balance.residual:.2g}" for report in self.reports), "the larger side")
        )
        return rows

    def __str__(self) -> str:
        verdicts = [f"{report.name}: {report.agreement.words}" for report in self.reports]
        return "\n".join([*verdicts, "", *table_lines(self.table()), "*: the least error"])

    def _repr_html_(self) -> str:
        verdicts = "".join(
            f"<p><b>{html.escape(report.name)}</b>: {html.escape(report.agreement.words)}</p>"
            for report in self.reports
        )
        return verdicts + html_table(self.table())


def held_against_models(
    trained: TrainedNetwork, *, groups: Sequence[int] | None = None, restarts: int | None = None, key: Any = None
) -> HeldAgainstModels:
    """Hold a network of several layers against the one-layer model of its last layer, and against models of more and more of its layers.

    The models of several layers are solved twice: for the lowest minimum known, and for the one near the network.

    Args:
        trained: with at least two layers.
        groups: classes to average, as in `held_against_model`.
        restarts: initial points of the solves, as in `ufm.solve`.
        key: of the solves, as there.

    Raises:
        ValueError: for a network of which one layer only is given.
    """
    L = len(trained.weights)
    if L < 2:
        raise ValueError("`trained` must have at least two layers to be held against models of one and more; got one.")
    reports = [held_against_model(trained.from_layer(-1), groups=groups, restarts=restarts, key=key)]
    for layer in range(L - 2, -1, -1):
        view = trained.from_layer(layer)
        reports.append(held_against_model(view, groups=groups, restarts=restarts, key=key))
        reports.append(held_against_model(view, groups=groups, start="network"))
    return HeldAgainstModels(tuple(reports))


def _solved(trained: TrainedNetwork, problem: Problem, restarts: int | None, key: Any, start: str) -> Solution:
    if start not in ("model", "network"):
        raise ValueError(f"`start` must be 'model' or 'network', got {start!r}.")
    if start == "model":
        narrow = _narrowed(problem)
        if narrow.layer_dims != problem.layer_dims:
            found = _minimum(narrow, restarts, key)
            certificate = found.certificate
            if problem.num_layers > 1 or (certificate is not None and certificate.holds):
                return _widened(problem, found)
        return _minimum(problem, restarts, key)
    means = trained.inputs[0].means
    features = np.maximum(means, 0) if problem.nonnegative_features else means
    initial: Any = {"weights": trained.weights, "features": features, "bias": trained.bias}
    return solve(problem, initial=Parameters(**initial), resolution="classes")  # type: ignore[return-value]


def _narrowed(problem: Problem) -> Problem:
    """Return the problem without the widths that its minimisers are not known to need, where `solve` keeps them.

    A point of a narrower model is one of the wider model, its other units zero. For one layer the lower bound does not depend on the width either, so
    that a certificate of the narrower model is one of the wider; for more, what is found is the lowest known in any case.
    """
    K = problem.num_classes
    if problem.num_layers == 1:
        return rebuilt(problem, feature_dim=min(problem.feature_dim, K)) if problem.nonnegative_features else problem
    if problem.activation != "relu":
        return problem
    width = 2 * K
    return rebuilt(
        problem,
        feature_dim=min(problem.feature_dim, width),
        hidden_dims=tuple(min(dim, width) for dim in problem.hidden_dims),
    )


def _widened(problem: Problem, solution: Solution) -> Solution:
    """Return a solution of a narrower problem as one of `problem`."""
    parameters = padded(problem, solution.parameters)
    return rebuilt(
        solution,
        problem=problem,
        weights=parameters.weights,
        features=parameters.features,
        class_features=zero_padded(solution.class_features, (problem.num_classes, problem.layer_dims[-2])),
        minima=tuple(one._replace(parameters=padded(problem, one.parameters)) for one in solution.minima),
    )


def _minimum(problem: Problem, restarts: int | None, key: Any) -> Solution:
    """Solve, many classes of few sizes as groups also where features are non-negative, if these fit into the dimensions that there are."""
    sizes = np.unique(np.asarray(problem.class_counts)).size
    if problem.nonnegative_features and has_group_form(problem) and grouping_pays(problem, sizes):
        try:
            return solve_groups(problem).lift()
        except ValueError:  # too few dimensions
            pass
    found = solve(problem, restarts=restarts, key=key)
    return found.lift() if isinstance(found, GroupSolution) else found


def _name(problem: Problem) -> str:
    signs = ", h >= 0" if problem.nonnegative_features else ""
    if problem.num_layers == 1:
        return f"one layer{signs}"
    return f"{problem.num_layers} layers, {problem.activation}{signs}"


def _groups(given: Any, K: int) -> np.ndarray:
    values = np.asarray(given)
    if values.shape != (K,):
        raise ValueError(f"`groups` must be one number per class ({K}); got shape {values.shape}.")
    return np.unique(values, return_inverse=True)[1]


def _measured(trained: TrainedNetwork, problem: Problem) -> State:
    last, first = trained.inputs[-1], trained.inputs[0]
    counts, N = trained.class_counts, trained.num_samples
    at_means = float(counts @ loss_of_classes(trained)) / N
    squares = counts @ (np.sum(first.means**2, axis=1) + first.variances)
    biases = [bias for bias in (*trained.hidden_biases, trained.bias) if bias is not None]
    regularizer: Any = problem.regularizer
    loss = LossTerms(
        data=at_means if trained.samples is None else float(counts @ trained.samples.loss) / N,
        data_at_means=at_means,
        weights=_penalties(trained.weight_decay, trained.weights),
        features=0.5 * float(regularizer.features * squares),
        bias=0.5 * trained.bias_decay * float(sum(np.sum(bias**2) for bias in biases)),
    )
    state = _state(problem, last.means, trained.weights[-1], trained.bias, trained.logits, loss)
    if trained.collapse is None:
        return state
    return state._replace(collapse=_with(state.collapse, trained.collapse))


def _with(means: NeuralCollapse, samples: NeuralCollapse) -> NeuralCollapse:
    """Return the metrics of means with those that need samples."""
    return NeuralCollapse(
        means.class_counts, samples.nc1, means.nc2_features, means.nc2_weights, means.nc3, samples.nc4, means.centre
    )


def _predicted(problem: Problem, solution: Solution, measured: State) -> State:
    counts = np.asarray(problem.class_counts, np.float64)
    bias = solution.bias
    regularizer: Any = problem.regularizer
    with double_precision():
        columns = class_columns(problem.class_counts, jnp.float64)
        data = float(problem.data_term(jnp.asarray(solution.logits), columns))
    features = np.asarray(solution.features)
    loss = LossTerms(
        data=data,
        data_at_means=data,
        weights=_penalties(np.asarray(regularizer.per_layer(problem.num_layers)), solution.weights),
        features=0.5 * float(regularizer.features * (counts @ np.sum(features**2, axis=1))),
        bias=0.0 if bias is None else 0.5 * float(regularizer.bias) * float(np.sum(np.asarray(bias) ** 2)),
    )
    return _state(
        problem,
        _without_traces(np.asarray(solution.class_features), measured.mean_norms),
        _without_traces(np.asarray(solution.weights[-1]), measured.weight_norms),
        None if bias is None else np.asarray(bias),
        np.asarray(solution.logits),
        loss,
    )


def _without_traces(rows: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """Return rows with zeros in place of what the solver leaves of those that vanish; `norms` say what is large."""
    return np.where(np.linalg.norm(rows, axis=1, keepdims=True) > TRACES * np.max(norms), rows, 0.0)


def _penalties(decays: np.ndarray, weights: Any) -> np.ndarray:
    return np.array([0.5 * decay * float(np.sum(np.asarray(W) ** 2)) for decay, W in zip(decays, weights, strict=True)])


def _state(
    problem: Problem, means: np.ndarray, W: np.ndarray, bias: np.ndarray | None, logits: np.ndarray, loss: LossTerms
) -> State:
    counts = np.asarray(problem.class_counts, np.float64)
    K = counts.size
    offsets = np.zeros(K) if bias is None else bias
    if problem.loss.shift_invariant:
        offsets, logits = offsets - np.mean(offsets), logits - np.mean(logits, axis=1, keepdims=True)
    others = np.where(np.eye(K, dtype=bool), -np.inf, logits)
    return State(
        mean_norms=np.asarray(geometry.vector_norms(means)),
        weight_norms=np.asarray(geometry.vector_norms(W)),
        mean_gram=means @ means.T,
        weight_gram=W @ W.T,
        mean_cosines=np.asarray(geometry.cosines(means)),
        centred_cosines=np.asarray(geometry.cosines(means - means.mean(axis=0))),
        weight_cosines=np.asarray(geometry.cosines(W)),
        alignment=np.sum(geometry.normalise_rows(W) * geometry.normalise_rows(means), axis=1),
        logits=logits,
        margins=np.diagonal(logits) - np.max(others, axis=1),
        bias=offsets,
        weight_spectrum=np.linalg.svd(W, compute_uv=False),
        mean_spectrum=np.linalg.svd(means, compute_uv=False),
        loss=loss,
        collapse=neural_collapse(means, np.arange(K), W, bias, sample_weights=counts),
    )


def _rows(measured: State, predicted: State, groups: np.ndarray, with_samples: bool) -> list[Row]:
    m, p = measured, predicted
    average = _averages(groups)
    objective = p.loss.total

    def of(name: str) -> tuple[Any, Any]:
        return getattr(m, name), getattr(p, name)

    found = [_row("objective", m.loss.total, objective, None, objective, "the whole minimum")]
    terms = [
        ("data term", m.loss.data, p.loss.data),
        ("data term at class means", m.loss.data_at_means, p.loss.data_at_means),
    ]
    names = (
        ["weight penalty"]
        if m.loss.weights.size == 1
        else [f"penalty of layer {i + 1}" for i in range(m.loss.weights.size)]
    )
    terms += list(zip(names, m.loss.weights, p.loss.weights, strict=True))
    terms += [("feature penalty", m.loss.features, p.loss.features), ("bias penalty", m.loss.bias, p.loss.bias)]
    found += [_row(name, a, b, None, objective, "the whole minimum") for name, a, b in terms]
    for name in ("mean_norms", "weight_norms", "mean_gram", "weight_gram"):
        found.append(_row(name.replace("_", " "), *of(name), average))
    for name in ("mean_cosines", "centred_cosines", "weight_cosines", "alignment"):
        text = "centred mean cosines" if name == "centred_cosines" else name.replace("_", " ")
        shown_as = "mean" if name == "alignment" else "mean j != k"
        found.append(_row(text, *of(name), average, 1.0, "1 (root mean square)", shown_as))
    found.append(_row("logits", *of("logits"), average))
    found.append(_row("margins", *of("margins"), average, shown_as="mean"))
    scale = float(np.sqrt(np.mean(p.logits**2)))
    found.append(_row("bias", *of("bias"), average, scale, "root mean square of the logits"))
    for name in ("mean_spectrum", "weight_spectrum"):
        found.append(_row(name.replace("_", " "), *of(name), None))
    return found + _collapse_rows(m.collapse, p.collapse, with_samples)


def _collapse_rows(m: NeuralCollapse, p: NeuralCollapse, with_samples: bool) -> list[Row]:
    pairs: list[tuple[str, Any, Any]] = []
    if with_samples:
        pairs.append(("NC1 tr(S_W S_B^+)/K", m.nc1.pinv, p.nc1.pinv))
    assert m.nc2_weights is not None
    assert p.nc2_weights is not None
    assert m.nc3 is not None
    assert p.nc3 is not None
    pairs += [
        ("NC2 means to ETF", m.nc2_features.etf_distance, p.nc2_features.etf_distance),
        ("NC2 means to frame", m.nc2_features.orthogonal_distance, p.nc2_features.orthogonal_distance),
        ("NC2 weights to ETF", m.nc2_weights.etf_distance, p.nc2_weights.etf_distance),
        ("NC3 |W/|W| - M/|M||^2", m.nc3.squared_distance, p.nc3.squared_distance),
    ]
    if with_samples and m.nc4 is not None and p.nc4 is not None:
        pairs.append(("NC4 mismatch", m.nc4.mismatch, p.nc4.mismatch))
    return [_row(name, float(a), float(b), None, 1.0, "1 (difference)") for name, a, b in pairs]


def _row(
    quantity: str,
    measured: Any,
    predicted: Any,
    average: Callable[[np.ndarray], np.ndarray] | None,
    scale: float | None = None,
    relative_to: str = "the predicted norm",
    shown_as: str = "rms",
) -> Row:
    """Return a row; a root mean square error is divided by `scale`, or that of the prediction (of what is measured, where that is zero)."""
    a, b = np.atleast_1d(np.asarray(measured, np.float64)), np.atleast_1d(np.asarray(predicted, np.float64))

    def error(a: np.ndarray, b: np.ndarray) -> float:
        difference, unit = _size(a - b), scale
        if unit is None:
            unit = _size(b) if _size(b) > 0 else _size(a)
        return difference / unit if unit > 0 else (0.0 if difference == 0 else np.inf)

    single = error(a, b)
    shown_as = "" if np.ndim(measured) == 0 else shown_as
    shown = _SHOWN[shown_as](a), _SHOWN[shown_as](b)
    grouped = single if average is None else error(average(a), average(b))
    return Row(quantity, *shown, single, grouped, relative_to, _level(single), shown_as)


def _size(array: np.ndarray) -> float:
    """Return the root of the mean square."""
    return float(np.sqrt(np.mean(array**2)))


def _mean_of_pairs(matrix: np.ndarray) -> float:
    """Return the mean of the entries off the diagonal, of cosines; zero where only rounding is left of it."""
    mean = float(np.mean(matrix[~np.eye(len(matrix), dtype=bool)]))
    return mean if abs(mean) > TRACES else 0.0


_SHOWN: dict[str, Callable[[np.ndarray], float]] = {
    "": lambda array: float(array[0]),
    "rms": _size,
    "mean": lambda array: float(np.mean(array)),
    "mean j != k": _mean_of_pairs,
}


def _loss_words(loss: Loss) -> str:
    """Return the name of a loss, with its numbers."""
    parts = []
    for field in dataclasses.fields(loss):
        value = getattr(loss, field.name)
        if isinstance(value, Loss):
            parts.append(f"{field.name}={_loss_words(value)}")
        elif value is not None:
            shown = f"{float(value):g}" if is_numeric(value) and np.ndim(value) == 0 else "..."
            parts.append(f"{field.name}={shown}")
    return type(loss).__name__ + (f"({', '.join(parts)})" if parts else "")


def _level(error: float) -> str:
    return next((level for level, bound in LEVELS if error <= bound), WORST)


def _averages(groups: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return the average over permutations of classes within their groups, of vectors and matrices over classes."""
    member = (groups[:, None] == np.arange(groups.max() + 1)[None, :]).astype(np.float64)
    sizes = member.sum(axis=0)
    pairs = np.outer(sizes, sizes) - np.diag(sizes)

    def average(values: np.ndarray) -> np.ndarray:
        if values.ndim == 1:
            return ((values @ member) / sizes)[groups]
        diagonal = np.diagonal(values)
        off = member.T @ (values - np.diag(diagonal)) @ member
        between = (off / np.where(pairs > 0, pairs, 1))[np.ix_(groups, groups)]
        between[np.diag_indices(groups.size)] = ((diagonal @ member) / sizes)[groups]
        return between

    return average


def _agreement(
    trained: TrainedNetwork, effective: EffectiveModel, solution: Solution, predicted: State, rows: Sequence[Row]
) -> Agreement:
    errors, averages = ({row.quantity: getattr(row, name) for row in rows} for name in ("error", "group_error"))
    last = trained.inputs[-1]
    within = float(trained.class_counts @ last.variances)
    total = within + float(trained.class_counts @ np.sum(last.means**2, axis=1))
    balance = effective.balance
    aspects = {
        "balance": balance.residual,
        "variability within classes": within / total if total > 0 else 0.0,
        **_of_means(errors),
        "objective": errors["objective"],
    }
    if len(balance.layers):
        aspects["balance between layers"] = float(np.max(np.abs(balance.layers)))
    worst = max(aspects, key=lambda name: aspects[name] if np.isfinite(aspects[name]) else np.inf)
    kind = _level(aspects[worst])
    if not balance.residual < UNBALANCED:
        kind = "not balanced"
    by_group = _of_means(averages)
    still = ""
    if not is_stationary(trained, balance):
        implied = f"its loss implies {balance.implied_weight_decay:.3g}, not {trained.weight_decay[-1]:.3g}"
        still = f"; its last layer is not stationary at this weight decay ({implied})"
    words = _words(kind, worst, aspects, by_group, solution, still)
    if not np.any(predicted.weight_norms):
        words += "; at these weight decays the minimum of the model is zero"
    return Agreement(kind, aspects, by_group, words)


def _of_means(errors: dict[str, float]) -> dict[str, float]:
    return {
        "angles": max(errors["mean cosines"], errors["weight cosines"]),
        "norms": max(errors["mean norms"], errors["weight norms"]),
        "logits": errors["logits"],
    }


_VERDICTS = {
    "agrees": "the model describes this network: everything agrees to 1 %",
    "close": "the model describes this network closely, to 10 %",
    "rough": "the model describes this network roughly, to 30 %",
    "differs": "the model does not describe this network",
    "not balanced": "not balanced: the model does not describe this network",
}


def _words(
    kind: str, worst: str, aspects: dict[str, float], averages: dict[str, float], solution: Solution, still: str
) -> str:
    listed = ", ".join(f"{name} {_percent(error)}" for name, error in aspects.items())
    where = "" if kind in ("agrees", "not balanced") else f" (worst: {worst})"
    certificate = solution.certificate
    proof = "" if certificate is not None and certificate.holds else "; the minimum is the lowest found, not certified"
    proof += "" if solution.status.ok else ", and its solve has not converged"
    grouped = ""
    if any(averages[name] < aspects[name] / 2 for name in averages):
        listed_averages = ", ".join(f"{name} {_percent(error)}" for name, error in averages.items())
        grouped = f"; averaged over groups of classes: {listed_averages}"
    layers = solution.problem.num_layers
    which = (
        "" if kind != "not balanced" else "the last layer is " if layers == 1 else f"layer 1 of the last {layers} is "
    )
    return f"{which}{_VERDICTS[kind]}{where}{still}. Off by: {listed}{grouped}{proof}"


def _percent(share: float) -> str:
    if not np.isfinite(share):
        return "infinity"
    if share >= 10:
        return f"a factor of {share:.3g}"
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"
