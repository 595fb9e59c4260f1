r"""The rows of a trained network: what its samples are fitted to, and what enters a layer by row.

A row is a class, a tag set, or a context with the distribution of what follows it. Samples of one
row face the same problem, so the model has one feature for each, and the rest of the features is
variability within rows.

A regression has as many rows as samples. Its moments are those of n + 1 rows: with (mu, m) the
means of features and targets, C their covariance, and C_yy = V diag(l) V^T,

$$y_r = m + \sqrt{n+1} \sum_i q_{ri} \sqrt{l_i} v_i, \qquad
h_r = \mu + C_{hy} C_{yy}^+ (y_r - m),$$

where the columns of q are an orthonormal basis of the vectors of mean zero. They have the mean and
the covariance of the targets, which is all that squared error sees of them, and at every minimiser
features are an affine function of their targets. What is left of the features,
C_hh - C_hy C_yy^+ C_yh, has mean zero and no correlation with the targets: it is the variability
within rows, of every row alike. So objective, gradients and penalties are those of all samples
exactly. Any other basis q would do as well, so the rows themselves have no meaning; what is
compared is what does not depend on q.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ufm import geometry, metrics
from ufm._support import ArgumentError, printed
from ufm.metrics import (
    ClassStatistics,
    ContextStatistics,
    NeuralCollapse,
    RegressionStatistics,
    TagStatistics,
)
from ufm.problems import CrossEntropy, Loss, Problem, SquaredError, Targets, WeightDecay, compressed

__all__ = [
    "KINDS",
    "Inputs",
    "RowMoments",
    "SampleRows",
    "TargetKind",
    "check_quadratic",
    "collapse_of_samples",
    "outline",
    "row_moments",
    "rows_of_samples",
]

ANGLES = ("mean cosines", "weight cosines")
NORMS = ("mean norms", "weight norms")
OF_ROWS = {"angles": ANGLES, "norms": NORMS, "logits": ("logits",)}
# The rows of a regression have no meaning of their own, but their Gram matrix has eigenvalues.
OF_MOMENTS = {"features": ("mean gram",), "weights": ("weight gram",), "logits": ("logits",)}


@printed
class Inputs(NamedTuple):
    """What enters a layer, by row: by class, tag set, context, or row of a regression.

    Attributes:
        means: Means over the samples of each row, (R, d).
        variances: The mean over each row of ||h - mu_r||^2, (R,).
        within: The covariance within rows, the mean over all N samples (over all rows where the
            penalty counts rows), (d, d). None where it is not known.
    """

    means: Float[np.ndarray, "R d"]
    variances: Float[np.ndarray, " R"]
    within: Float[np.ndarray, "d d"] | None


class RowMoments(NamedTuple):
    """The rows of a network from its moments.

    Attributes:
        kind: A name of `KINDS`.
        targets: What the rows are fitted to; None for classes.
        counts: Samples of each row, (R,).
        inputs: What enters the layer, by row.
        collapse: Measures the collapse from a head's weights and bias; None where moments cannot.
        quadratic: Whether moments give the loss of all samples, as they do for squared error.
    """

    kind: str
    targets: Targets | None
    counts: Float[np.ndarray, " R"]
    inputs: Inputs
    collapse: Callable[[Any, Any], Any] | None
    quadratic: bool = False


class SampleRows(NamedTuple):
    """The rows of single samples.

    Attributes:
        targets: What the rows are fitted to; None for classes.
        counts: Samples of each row, (R,).
        origins: The row of each sample, (N,).
        tokens: The token of each sample, (N,), where that and not its row is its target.
    """

    targets: Targets | None
    counts: Float[np.ndarray, " R"]
    origins: Int[np.ndarray, " N"]
    tokens: Int[np.ndarray, " N"] | None = None

    @property
    def penalty_shares(self) -> Float[np.ndarray, " N"] | None:
        """What each sample has of its row's penalty; None where it is 1 for all."""
        weights = None if self.targets is None else self.targets.feature_weights
        return None if weights is None else (np.asarray(weights) / self.counts)[self.origins]


class Compared(NamedTuple):
    """A metric that is compared.

    Attributes:
        quantity: The name of its row.
        key: Its name among the numbers of the collapse.
        of_samples: Whether it needs samples, or their moments.
    """

    quantity: str
    key: str
    of_samples: bool = False


class TargetKind(NamedTuple):
    """What there is to say about targets of a kind.

    Attributes:
        words: What a label and a row are called.
        loss: The loss where none is given.
        collapse: Returns the collapse of features by row from the problem, the features, the head's
            weights and bias, and the variances within rows, none if not given.
        numbers: Returns the numbers of a collapse by name.
        metrics: Those that are compared.
        aspects: The rows of the report that the verdict rests on, by aspect.
        named_rows: Whether each row has a meaning of its own.
        rows_are_labels: Whether rows are the labels themselves, so that groups of labels are groups
            of rows.
        centres: Whether the collapse is about a mean, so that moving all features changes nothing.
        joined: Returns what the collapse of means and that of samples say together.
    """

    words: tuple[str, str]
    loss: Loss
    collapse: Callable[..., Any]
    numbers: Callable[[Any], dict[str, Any]]
    metrics: tuple[Compared, ...]
    aspects: Mapping[str, tuple[str, ...]] = OF_ROWS
    named_rows: bool = True
    rows_are_labels: bool = False
    centres: bool = True
    joined: Callable[[Any, Any], Any] = lambda of_rows, of_samples: of_samples

    @property
    def rows(self) -> str:
        """What several rows are called."""
        return self.words[1] + ("es" if self.words[1].endswith("s") else "s")


def outline(targets: Targets | None, counts: Any, loss: Loss, dim: int) -> Problem:
    """Return a problem with these rows and this loss, whose penalties stand for any.

    Raises:
        ValueError: The loss does not take the targets.
    """
    rows: Any = {"class_counts": counts} if targets is None else {"targets": targets}
    return Problem(**rows, feature_dim=dim, loss=loss, regularizer=WeightDecay(1.0, 1.0))


def rows_of_samples(
    kind: str, labels: Any, contexts: Any, size: int, num_labels: int
) -> SampleRows:
    """Return the rows of samples from their labels.

    Args:
        kind: "classes", "multi-label" or "contexts".
        labels: Classes (N,), multi-hot rows (N, K), or next tokens (N,).
        contexts: The context of each sample, (N,); of "contexts" alone.
        size: N.
        num_labels: K.

    Raises:
        ValueError: Labels or contexts do not fit, or are missing.
    """
    if (contexts is None) == (kind == "contexts"):
        raise ArgumentError(
            "contexts",
            'must be given with targets="contexts", integers (N,), and only there',
            remedy="ufm.networks.prefix_contexts has them from sequences",
        )
    if kind == "multi-label":
        found = metrics.multi_hot(labels, size, num_labels)
        rows, origins = np.unique(found, axis=0, return_inverse=True)
        origins = origins.reshape(-1)
        counts = np.bincount(origins).astype(np.float64)
        return SampleRows(Targets(rows.astype(np.float64), counts), counts, origins)
    if kind == "contexts":
        tokens = metrics.whole_numbers("labels", labels, size, num_labels)
        numbers = metrics.whole_numbers("contexts", contexts, size)
        present, origins = np.unique(numbers, return_inverse=True)
        table = np.zeros((len(present), num_labels))
        np.add.at(table, (origins, tokens), 1.0)
        return SampleRows(Targets.contexts(table), table.sum(axis=1), origins, tokens)
    y = metrics.class_labels(labels, size, num_labels)
    metrics.check_present("labels", np.unique(y), num_labels)
    return SampleRows(None, np.bincount(y, minlength=num_labels).astype(np.float64), y)


def row_moments(moments: Any, num_labels: int) -> RowMoments:
    """Return the rows of moments of any kind.

    Args:
        moments: `RegressionMoments`, `TagMoments`, `ContextMoments`, their statistics, or anything
            with `counts`, `means`, `within` and `within_trace` by class.
        num_labels: K, to which the tokens of contexts are completed.

    Raises:
        ValueError: The moments are none of these.
    """
    found = getattr(moments, "statistics", moments)
    found = found(num_labels) if callable(found) else found
    of_kind = _OF_STATISTICS.get(type(found))
    return _of_classes(found) if of_kind is None else of_kind(found)


def _of_classes(moments: Any) -> RowMoments:
    try:
        with np.errstate(
            all="ignore"
        ):  # a class without samples has a mean of NaN, which is said later
            given = (moments.counts, moments.means, moments.within_trace, moments.within)
        counts, *parts = (None if part is None else np.asarray(part, np.float64) for part in given)
    except (AttributeError, TypeError, ValueError) as error:
        raise ArgumentError(
            "moments",
            "must have `counts`, `means`, `within` and `within_trace`, such as "
            "ufm.metrics.ClassStatistics or ufm.networks.ClassMoments; got "
            f"{type(moments).__name__}: {error}",
        ) from None
    measure = getattr(moments, "measure", None)
    if isinstance(moments, ClassStatistics):
        measure = functools.partial(metrics.collapse_metrics, moments)
    return RowMoments("classes", None, counts, Inputs(*parts), measure)  # type: ignore[arg-type]


def _of_tags(found: TagStatistics) -> RowMoments:
    return RowMoments(
        "multi-label",
        Targets(found.tag_sets.astype(np.float64), found.counts),
        found.counts,
        Inputs(found.means, found.variances, None),
        lambda weights, bias: metrics.multi_label_collapse_from(found, weights, bias),
    )


def _of_contexts(found: ContextStatistics) -> RowMoments:
    return RowMoments(
        "contexts",
        Targets.contexts(found.rows),
        found.counts,
        Inputs(found.means, found.variances, None),
        lambda weights, bias: metrics.context_collapse_from(found, weights, bias),
    )


def _of_regression(found: RegressionStatistics) -> RowMoments:
    """Return n + 1 rows with the moments of a regression."""
    d, n = len(found.feature_mean), len(found.target_mean)
    C = found.covariance
    values, vectors = np.linalg.eigh(C[d:, d:])
    alive = values > n * np.finfo(np.float64).eps * max(float(values[-1]), 0.0)
    roots = np.sqrt(np.where(alive, values, 0.0))
    basis = np.sqrt(n + 1) * geometry.centred_basis(n + 1)
    slopes = np.where(alive, 1 / np.where(alive, roots, 1.0), 0.0)[:, None] * (
        vectors.T @ C[d:, :d]
    )
    within = C[:d, :d] - slopes.T @ slopes
    counts = np.full(n + 1, found.weight / (n + 1))
    return RowMoments(
        "regression",
        Targets(found.target_mean + basis @ (roots[:, None] * vectors.T), counts),
        counts,
        Inputs(
            found.feature_mean + basis @ slopes,
            np.full(n + 1, max(float(np.trace(within)), 0.0)),
            within,
        ),
        lambda weights, bias: metrics.regression_collapse_from(found, weights, bias),
        quadratic=True,
    )


_OF_STATISTICS: dict[type, Callable[[Any], RowMoments]] = {
    TagStatistics: _of_tags,
    ContextStatistics: _of_contexts,
    RegressionStatistics: _of_regression,
}


def collapse_of_samples(
    kind: str, problem: Problem, statistics: ClassStatistics, W: np.ndarray, bias: np.ndarray | None
) -> Any:
    """Return the collapse of features split by row.

    Args:
        kind: A name of `KINDS`.
        problem: The rows.
        statistics: The features, by row.
        W: The last layer.
        bias: Its bias, or None.
    """
    if problem.targets is None:
        return metrics.collapse_metrics(statistics, W, bias)
    means, variances = np.asarray(statistics.means), np.asarray(statistics.within_trace)
    return KINDS[kind].collapse(problem, means, W, bias, variances)


def check_quadratic(loss: Loss, num_outputs: int) -> None:
    """Refuse a loss of which the mean and the covariance of the targets do not say everything.

    Rows of such a loss are compressed, so that is what is asked.
    """
    probe = Targets(np.ones((num_outputs + 2, num_outputs)))
    if compressed(outline(probe, None, loss, 1)).lift is None:
        raise ArgumentError(
            "loss",
            "must be ufm.SquaredError() for a regression, whose moments tell nothing of other "
            f"losses, got {loss.label}",
        )


def _of_class_means(
    problem: Problem, features: np.ndarray, W: Any, bias: Any, variances: Any = None
) -> NeuralCollapse:
    counts = np.asarray(problem.row_counts, np.float64)
    return metrics.neural_collapse(features, np.arange(counts.size), W, bias, sample_weights=counts)


def _with_samples(means: NeuralCollapse, samples: NeuralCollapse) -> NeuralCollapse:
    """Return the metrics of means with those that need samples."""
    return NeuralCollapse(
        means.class_counts,
        samples.nc1,
        means.nc2_features,
        means.nc2_weights,
        means.nc3,
        samples.nc4,
        means.centre,
    )


def _of_tag_sets(
    problem: Problem, features: np.ndarray, W: Any, bias: Any, variances: Any = None
) -> Any:
    counts, rows = np.asarray(problem.row_counts), problem.target_rows(np.float64, np)
    within = np.zeros(counts.size) if variances is None else variances
    found = TagStatistics(np.asarray(rows) > 0, counts, features, within)
    return metrics.multi_label_collapse_from(found, W, bias)


def _of_context_rows(
    problem: Problem, features: np.ndarray, W: Any, bias: Any, variances: Any = None
) -> Any:
    counts, rows = np.asarray(problem.row_counts), problem.target_rows(np.float64, np)
    pairs = np.argwhere(rows)
    seen = (counts[:, None] * rows)[pairs[:, 0], pairs[:, 1]]
    within = np.zeros(counts.size) if variances is None else variances
    found = ContextStatistics(counts, features, within, pairs, np.asarray(seen), rows.shape[1])
    return metrics.context_collapse_from(found, W, bias)


def _of_regression_rows(
    problem: Problem, features: np.ndarray, W: Any, bias: Any, variances: Any = None
) -> Any:
    counts, rows = np.asarray(problem.row_counts), problem.target_rows(np.float64, np)
    found = metrics.regression_statistics(features, np.asarray(rows), counts)
    return metrics.regression_collapse_from(found, W, bias)


def _explained(collapse: Any) -> dict[str, Any]:
    """Return the numbers that have a formula and were measured."""
    known = {name: getattr(collapse, name) for name in collapse.CONVENTIONS}
    return {name: value for name, value in known.items() if value is not None}


KINDS: dict[str, TargetKind] = {
    "classes": TargetKind(
        words=("class", "class"),
        loss=CrossEntropy(),
        collapse=_of_class_means,
        numbers=lambda collapse: collapse.to_dict(),
        rows_are_labels=True,
        joined=_with_samples,
        metrics=(
            Compared("NC1 tr(S_W S_B^+)/K", "nc1_pinv", True),
            Compared("NC2 means to ETF", "nc2_features_etf_distance"),
            Compared("NC2 means to frame", "nc2_features_orthogonal_distance"),
            Compared("NC2 weights to ETF", "nc2_weights_etf_distance"),
            Compared("NC3 |W/|W| - M/|M||^2", "nc3_squared_distance"),
            Compared("NC4 mismatch", "nc4_mismatch", True),
        ),
    ),
    "multi-label": TargetKind(
        words=("tag", "tag set"),
        loss=CrossEntropy(),
        collapse=_of_tag_sets,
        numbers=_explained,
        metrics=(
            Compared("NC1 within over between tag sets", "nc1_trace_ratio", True),
            Compared("NC2 single-tag means to ETF", "nc2_features_etf_distance"),
            Compared("NC2 weights to ETF", "nc2_weights_etf_distance"),
            Compared("NC3 |W/|W| - M/|M||^2 of single tags", "nc3_squared_distance"),
            Compared("scaled averages of means, residual", "residual_of_means"),
            Compared("scaled averages of weights, residual", "residual_of_weights"),
            Compared("tags on top", "tags_on_top"),
        ),
    ),
    "contexts": TargetKind(
        words=("token", "context"),
        loss=CrossEntropy(),
        collapse=_of_context_rows,
        numbers=_explained,
        metrics=(
            Compared("excess over the entropy floor", "excess"),
            Compared("log-odds error", "log_odds_error"),
            Compared("variability within contexts", "context_variability", True),
            Compared("variability within equal rows", "row_variability"),
            Compared("variability within supports", "support_variability"),
        ),
    ),
    "regression": TargetKind(
        words=("output", "row"),
        loss=SquaredError(),
        collapse=_of_regression_rows,
        numbers=_explained,
        metrics=(
            Compared("NRC1", "nrc1", True),
            Compared("NRC2", "nrc2", True),
            Compared("NRC3", "nrc3"),
            Compared("NRC3, soft-thresholded", "nrc3_soft"),
            Compared("deep NRC1 outside n directions", "deep_nrc1", True),
            Compared("deep NRC2 alignment with targets", "deep_nrc2", True),
            Compared("deep NRC3 subspaces of S and W", "deep_nrc3", True),
            Compared("deep NRC4 linear prediction error", "deep_nrc4", True),
            Compared("error of the head over tr Sigma", "model_error", True),
        ),
        aspects=OF_MOMENTS,
        named_rows=False,
        centres=False,
    ),
}
