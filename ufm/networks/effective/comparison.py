r"""`compare_with_model`: a trained network against the certified minimiser of its effective model.

A network never is a minimiser of the model to nine digits, so no tolerance is asked for. Errors are
stated, with what they are relative to, and graded at fixed levels,

    "agrees" up to 1 %,   "close" up to 10 %,   "rough" up to 30 %,   "differs" above.

The model has one number that was fitted, the feature decay. So of the two scales ||W|| and ||H||,
their ratio agrees by construction, and the other one is predicted.
"""

import html
import textwrap
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from ufm._support import (
    ArgumentError,
    as_dict,
    check_one_of,
    checked_key,
    html_table,
    plain,
    printed,
    rebuilt,
    table_lines,
)
from ufm.networks.effective.balance import EffectiveModel, effective_model
from ufm.networks.effective.report_text import (
    LEGEND,
    LINE,
    Agreement,
    agreement_of,
    percent,
)
from ufm.networks.effective.rows import Difference, differences_of
from ufm.networks.effective.state import State, measured_state, predicted_state
from ufm.networks.effective.trained_network import TrainedNetwork
from ufm.problems import Parameters, Problem
from ufm.solving import MatrixPoint, Solution, choose_resolution, matrix_point, solve, solve_groups
from ufm.theory import NoPrediction, Prediction, predict

__all__ = [
    "ModelComparison",
    "ModelComparisons",
    "compare_with_model",
    "compare_with_models",
]


@printed
class ModelComparison(NamedTuple):
    """A trained network against its effective model. It prints as a table.

    Attributes:
        name: The name of the model.
        trained: The network.
        effective: Its model, with the balance.
        solution: The model's certified minimiser.
        prediction: The prediction of the theorem that covers the model, or None.
        measured: The state of the network.
        predicted: The state of the minimiser.
        rows: Their differences.
        agreement: The verdict.
        groups: The group of each class or label, (K,). Those of one group are averaged.
    """

    name: str
    trained: TrainedNetwork
    effective: EffectiveModel
    solution: Solution
    prediction: Prediction | None
    measured: State
    predicted: State
    rows: tuple[Difference, ...]
    agreement: Agreement
    groups: np.ndarray

    @property
    def excess(self) -> float:
        """The network's objective less the certified lower bound of the minimum.

        Where there is no bound, the lowest value known takes its place.
        """
        certificate = self.solution.certificate
        lowest = self.solution.objective if certificate is None else certificate.lower_bound
        return self.measured.loss.total - lowest

    def __getitem__(self, quantity: Any) -> Any:
        """Return the row of a quantity by its name (or a field by its index, as tuples do)."""
        return (
            self.row(quantity) if isinstance(quantity, str) else tuple.__getitem__(self, quantity)
        )

    def row(self, quantity: str) -> Difference:
        """Return the row of a quantity by its name."""
        return checked_key("quantity", quantity, {row.quantity: row for row in self.rows})

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings, ready for JSON."""
        certificate = self.solution.certificate
        regularizer: Any = self.effective.problem.regularizer
        return {
            "model": self.name,
            "verdict": as_dict(self.agreement) | {"describes": self.agreement.describes},
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
            "targets": self.trained.kind,
            "row_counts": self.trained.row_counts.tolist(),
            "rows": plain(self.rows),
            "measured": self.measured.to_dict(),
            "predicted": self.predicted.to_dict(),
        }

    def facts(self) -> list[tuple[str, str]]:
        """Return what the comparison rests on, as names and texts."""
        balance, certificate = self.effective.balance, self.solution.certificate
        regularizer: Any = self.effective.problem.regularizer
        decays = ", ".join(f"{decay:.4g}" for decay in self.trained.weight_decay)
        trained = self.trained
        assumed = (
            "assumed, as none was given; `loss`, or --loss, says another"
            if trained.loss_assumed
            else "given"
        )
        found = [
            ("model", self.name),
            ("loss", f"{trained.loss.label} ({assumed})"),
            (
                "network",
                f"{_sizes(trained)}, N = {trained.num_samples:g}, d = "
                f"{trained.weights[0].shape[1]} features",
            ),
            (
                "weight decay",
                f"{decays}; implied by the last layer {balance.implied_weight_decay:.4g}",
            ),
            (
                "feature decay",
                f"{float(regularizer.features):.4g} (balance: traces {balance.feature_decay:.4g}, "
                f"least squares {balance.least_squares:.4g})",
            ),
            (
                "balance",
                f"residual {balance.residual:.2g}, cosine {balance.cosine:.4f} "
                f"({_BALANCED[balance.by]})",
            ),
        ]
        for index, (whole, units) in enumerate(zip(balance.layers, balance.units, strict=True)):
            apart = f"penalties differ by {percent(abs(whole))}, unit by unit by {percent(units)}"
            found.append((f"layers {index + 1}, {index + 2}", apart))
        left = f"{balance.stationarity:.2g} (gradient of the last layer over that of its penalty)"
        found.append(("stationarity", left))
        found.append(("minimum", str(certificate or "no lower bound is known for this model")))
        if not self.solution.status.ok:
            found.append(("solver", self.solution.status.message))
        covered = "none covers this model" if self.prediction is None else self.prediction.theorem
        found.append(("theorem", covered))
        found += [("note", note) for note in self.effective.notes]
        return found

    def table(self) -> list[tuple[str, ...]]:
        """Return the rows as texts, the head first."""
        head: tuple[str, ...] = (
            "quantity",
            "measured",
            "predicted",
            "error",
            "by group",
            "relative to",
            "level",
        )
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
        legend = [textwrap.fill(line, LINE) for line in LEGEND]
        return "\n".join(
            [
                f"verdict: {self.agreement.words}",
                "",
                *table_lines(self.facts()),
                "",
                *table_lines(self.table()),
                "",
                *legend,
            ]
        )

    def _repr_html_(self) -> str:
        legend = "".join(f"<p>{html.escape(line)}</p>" for line in LEGEND)
        facts = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>"
            for name, text in self.facts()
        )
        words = f"<p><b>{html.escape(self.agreement.words)}</b></p>"
        return f"{words}<table>{facts}</table>{html_table(self.table())}{legend}"


def _sizes(trained: TrainedNetwork) -> str:
    """Return how many labels and rows there are, and of how many samples."""
    kind, counts, K = trained.of_kind, trained.row_counts, trained.num_classes
    label = kind.words[0]
    if not kind.named_rows:
        return f"K = {K} {label}{'s' if K > 1 else ''}"
    least, most = counts.min(), counts.max()
    sizes = f"{least:g}" if least == most else f"{least:g} to {most:g}"
    both = "K" if kind.rows_are_labels else f"K = {K} {label}s, R"
    return f"{both} = {counts.size} {kind.rows} of {sizes} samples"


_BALANCED = {"matrix": "of matrices", "units": "unit by unit, as features are non-negative"}


def compare_with_model(
    trained: TrainedNetwork,
    *,
    feature_decay: float | None = None,
    groups: Sequence[int] | None = None,
    restarts: int | None = None,
    key: Any = None,
    start: Literal["model", "network"] = "model",
    solution: Solution | None = None,
) -> ModelComparison:
    """Compare a trained network with the minimiser of its effective model.

    Where a model is not convex in its logits, its lowest minimum can be far from neural collapse
    (deep ReLU models, losses that are not convex) and from where training ends. `start="network"`
    descends from the network itself and compares it with the minimum nearby.

    Args:
        trained: The network, from the last layer on or from an earlier one: one layer is the plain
            model, two with a ReLU the extended one.
        feature_decay: lambda_H; from the balance of the first layer by default.
        groups: A number per class, (K,); classes of the same number are averaged. By default
            classes of equal counts are. For other targets, a number per label, and by default
            nothing is averaged.
        restarts: Initial points of the solve, as in `ufm.solve`.
        key: Of the solve, as there.
        start: "model" solves as `ufm.solve` does by itself; "network" descends from the network's
            class means and weights.
        solution: Of the effective problem, to save a second solve.

    Raises:
        ValueError: Arguments do not fit, or the feature decay cannot be estimated.
    """
    K = trained.num_classes
    if groups is None:
        alike = trained.class_counts if trained.of_kind.rows_are_labels else np.arange(K)
        groups_of = _groups(alike, K)
    else:
        groups_of = _groups(groups, K)
    effective = effective_model(trained, feature_decay=feature_decay)
    best = (
        _solved(trained, effective.problem, restarts, key, start) if solution is None else solution
    )
    try:
        prediction = predict(effective.problem)
    except NoPrediction:
        prediction = None
    measured = measured_state(trained, effective.problem)
    predicted = predicted_state(effective.problem, trained.of_kind, best, measured)
    with_samples = trained.collapse is not None
    rows = tuple(differences_of(measured, predicted, groups_of, with_samples, trained.of_kind))
    return ModelComparison(
        name=_name(effective.problem) + (", minimum nearby" if start == "network" else ""),
        trained=trained,
        effective=effective,
        solution=best,
        prediction=prediction,
        measured=measured,
        predicted=predicted,
        rows=rows,
        agreement=agreement_of(trained, effective, best, predicted, rows),
        groups=groups_of,
    )


@printed
class ModelComparisons(NamedTuple):
    """One network against several models, side by side in what they share. It prints as a table.

    Attributes:
        reports: The comparison with each model.
    """

    reports: tuple[ModelComparison, ...]

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
        rows: list[tuple[str, ...]] = [
            ("error", *(report.name for report in self.reports), "relative to")
        ]
        for name in self.quantities:
            errors = self.errors(name)
            least = np.nanmin(errors) if np.any(np.isfinite(errors)) else np.nan
            cells = (f"{error:.2g}" + ("*" if error == least else "") for error in errors)
            rows.append((name, *cells, self.reports[0].row(name).relative_to))
        rows.append(
            (
                "balance",
                *(f"{report.effective.balance.residual:.2g}" for report in self.reports),
                "the larger side",
            )
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


def compare_with_models(
    trained: TrainedNetwork,
    *,
    groups: Sequence[int] | None = None,
    restarts: int | None = None,
    key: Any = None,
) -> ModelComparisons:
    """Compare a network of several layers with the models of its last 1, 2, ..., L layers.

    The models of several layers are solved twice: for the lowest minimum known, and for the one
    near the network.

    Args:
        trained: The network, of at least two layers.
        groups: Classes to average, as in `compare_with_model`.
        restarts: Initial points of the solves, as in `ufm.solve`.
        key: Of the solves, as there.

    Raises:
        ValueError: Only one layer of the network is given.
    """
    L = len(trained.weights)
    if L < 2:
        raise ArgumentError(
            "trained",
            "must have at least two layers, to be compared with models of one and more; got one",
        )
    reports = [
        compare_with_model(trained.from_layer(-1), groups=groups, restarts=restarts, key=key)
    ]
    for layer in range(L - 2, -1, -1):
        view = trained.from_layer(layer)
        reports.append(compare_with_model(view, groups=groups, restarts=restarts, key=key))
        reports.append(compare_with_model(view, groups=groups, start="network"))
    return ModelComparisons(tuple(reports))


def _solved(
    trained: TrainedNetwork, problem: Problem, restarts: int | None, key: Any, start: str
) -> Solution:
    check_one_of("start", start, ("model", "network"))
    if start == "model":
        narrow = _narrowed(problem)
        if narrow.layer_dims != problem.layer_dims:
            found = _minimum(narrow, restarts, key)
            certificate = found.certificate
            if problem.num_layers > 1 or (certificate is not None and certificate.holds):
                return _widened(problem, found)
        return _minimum(problem, restarts, key)
    means = trained.inputs[0].means
    features = problem.feature_cone.project(means)
    initial: Any = {"weights": trained.weights, "features": features, "bias": trained.bias}
    return solve(problem, initial=Parameters(**initial), resolution="classes")


def _narrowed(problem: Problem) -> Problem:
    """Return the problem without the widths that its minimisers are not known to need.

    `solve` keeps these widths. A point of a narrower model is one of the wider model, its other
    units zero. For one layer the lower bound does not depend on the width either, so a certificate
    of the narrower model is one of the wider. For more layers, what is found is the lowest known in
    any case.
    """
    K = problem.num_classes
    if problem.num_layers == 1:
        return (
            rebuilt(problem, feature_dim=min(problem.feature_dim, K))
            if problem.nonnegative_features
            else problem
        )
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
    solution = solution.lift()

    def widened(point: Any) -> MatrixPoint:
        return matrix_point(problem, point.parameters, point.logits, point.class_features)

    return rebuilt(
        solution,
        problem=problem,
        point=widened(solution.point),
        minima=tuple(one._replace(point=widened(one.point)) for one in solution.minima),
    )


def _minimum(problem: Problem, restarts: int | None, key: Any) -> Solution:
    """Solve a problem of which features may be non-negative.

    Many classes of few sizes are solved as groups also where features are non-negative, if the
    groups fit into the dimensions.
    """
    nonnegative = problem.nonnegative_features
    if nonnegative and choose_resolution(problem, nonnegative=True) == "groups":
        try:
            return solve_groups(problem)
        except ValueError:  # too few dimensions
            pass
    return solve(problem, restarts=restarts, key=key)


def _name(problem: Problem) -> str:
    signs = ", h >= 0" if problem.nonnegative_features else ""
    if problem.num_layers == 1:
        return f"one layer{signs}"
    return f"{problem.num_layers} layers, {problem.activation}{signs}"


def _groups(given: Any, K: int) -> np.ndarray:
    values = np.asarray(given)
    if values.shape != (K,):
        raise ArgumentError(
            "groups", f"must be one number per class ({K}); got shape {values.shape}"
        )
    return np.unique(values, return_inverse=True)[1]
