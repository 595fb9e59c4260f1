r"""Theorems: conditions on a problem, and the conclusions, with scale.

The formula of a theorem about global minimisers is a pure function of the problem. It can be passed
to `jit`, `vmap` and `grad`, on both sides of every phase boundary, because the collapse to zero is
a value in its result and not an error. What the theorem leaves open at a problem's values (the Gram
matrices where a cut in rank falls among equal modes) is NaN there. `Theorem.predict` checks the
conditions, and returns None for what is left open.

Formulas are written once for two array modules: JAX where the problem's leaves are traced, NumPy
where they are numbers, so that a single prediction is float64 in any process and has nothing to
compile.

Letters: K outputs, R target rows with n_r samples each, L weight matrices, W_L the last of them,
mu_r the mean over row r of the features that W_L multiplies (those of the last layer, after the
activation). One-hot classes are R = K rows, row k that of class k.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, final

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ufm._support import Module, array_module, check_instance, is_concrete, printed
from ufm.problems import Blocks, Construction, Problem, check_dense
from ufm.theory import matrices

__all__ = [
    "Applicability",
    "Condition",
    "Example",
    "NoPrediction",
    "Prediction",
    "Theorem",
]


Subject = Literal["minimum", "landscape", "dynamics", "hard margins"]
# What kind of theorem one is, in the order of the atlas. This is no outcome of a computation.
Standing = Literal["theorem", "upper bound", "disputed", "landscape", "dynamics", "hard margins"]
MOST_ENTRIES = 2**25  # of target rows that theorems read, a quarter of a gigabyte


class Condition(NamedTuple):
    """One hypothesis of a theorem, checked against a problem.

    Attributes:
        statement: What the theorem needs, such as "d >= K - 1".
        holds: Whether the problem has it; a traced boolean if the problem's leaves are traced.
        found: What the problem has instead, such as "d = 3, K = 10".
    """

    statement: str
    holds: bool | Bool[Array, ""]
    found: str

    def __str__(self) -> str:
        return f"needs {self.statement}; found {self.found}"


@final
@dataclass(frozen=True)
class Applicability:
    """Whether a theorem covers a problem: true where all its conditions hold."""

    conditions: tuple[Condition, ...]

    @property
    def failing(self) -> tuple[Condition, ...]:
        """The conditions that do not hold."""
        return tuple(condition for condition in self.conditions if not condition.holds)

    def __bool__(self) -> bool:
        return not self.failing

    def __str__(self) -> str:
        return "applies" if self else "; ".join(map(str, self.failing))


@printed
class Prediction(Module):
    """What a theorem says about the global minimiser of a problem.

    None (NaN inside a traced formula) stands for what the theorem does not determine.

    Attributes:
        theorem: Name of the theorem.
        objective: The minimal value, ().
        logits: The logits of every target row, bias included, (R, K).
        weight_gram: W_L W_L^T, (K, K).
        feature_gram: <mu_r, mu_s> of the row means of the last layer's features, (R, R). Also None
            where R is too large for the matrix.
        bias: The bias, (K,); None in a model without bias.
        layer_norms: ||W_1||^2, ..., ||W_L||^2, and the sum of ||h_i||^2 over all samples of the
            first features, (L + 1,).
        singular_values: Singular values of the N x K matrix of all samples' logits less the bias,
            descending, (min(R, K),). They are those of the rows' logits, row r times sqrt(n_r).
        rank: How many of them are not zero, ().
        collapsed: Whether all of them are zero, (): only a bias is left.
        constants: Named scalars of the theorem, such as a margin or a threshold.
        bound: "exact", or "upper" if the minimum is only known to be at most `objective`. Then
            everything else but the constants is None.
    """

    theorem: str = eqx.field(static=True)
    objective: Float[Array, ""]
    logits: Float[Array, "R K"] | None
    weight_gram: Float[Array, "K K"] | None
    feature_gram: Float[Array, "R R"] | None
    bias: Float[Array, " K"] | None
    layer_norms: Float[Array, " q"] | None
    singular_values: Float[Array, " r"] | None
    rank: Int[Array, ""] | None
    collapsed: Bool[Array, ""] | None
    constants: dict[str, Float[Array, ""]]
    bound: Literal["exact", "upper"] = eqx.field(static=True, default="exact")

    @property
    def weight_norms(self) -> Float[Array, " K"] | None:
        """||w_k|| of the last layer's rows, (K,)."""
        return _row_norms(self.weight_gram)

    @property
    def feature_norms(self) -> Float[Array, " R"] | None:
        """||mu_r|| of the last layer's row means, (R,)."""
        return _row_norms(self.feature_gram)

    @property
    def alignment(self) -> Float[Array, " K"] | None:
        """<w_k, mu_k> / (||w_k|| ||mu_k||), (K,); NaN for a class whose vectors vanish.

        None where rows are not one for each output.
        """
        if self.logits is None or self.weight_norms is None or self.feature_norms is None:
            return None
        if np.shape(self.logits)[-2] != np.shape(self.logits)[-1]:
            return None
        xp = array_module(self)
        logits = self.logits if self.bias is None else self.logits - self.bias[None, :]
        lengths = self.weight_norms * self.feature_norms
        cosines = xp.diagonal(logits) / xp.where(lengths > 0, lengths, 1)
        return xp.where(lengths > 0, cosines, xp.nan)

    def __str__(self) -> str:
        if not is_concrete(self):
            return repr(self)
        if np.ndim(self.objective) > 0:
            return f"{self.theorem}: a batch of predictions of shape {np.shape(self.objective)}"
        scalars = [f"{name} = {float(value):.6g}" for name, value in self.constants.items()]
        if self.bound == "upper" or self.rank is None:
            return "; ".join(
                [f"{self.theorem}: objective <= {float(self.objective):.12g}", *scalars]
            )
        state = "collapsed" if self.collapsed else f"rank {int(self.rank)}"
        open_fields = [
            name
            for name in ("logits", "weight_gram", "feature_gram")
            if getattr(self, name) is None
        ]
        left_open = [f"not determined: {', '.join(open_fields)}"] if open_fields else []
        return "; ".join(
            [
                f"{self.theorem}: objective = {float(self.objective):.12g}",
                state,
                *scalars,
                *left_open,
            ]
        )


class NoPrediction(ValueError):  # noqa: N818 - the name of the outcome, not of a mistake
    """No theorem covers the problem.

    Attributes:
        failures: For each theorem, by name, the conditions that do not hold.
    """

    failures: Mapping[str, tuple[Condition, ...]]

    def __init__(self, failures: Mapping[str, tuple[Condition, ...]]):
        super().__init__(failures)
        self.failures = failures

    def __str__(self) -> str:
        lines = [
            f"  {name}: {'; '.join(map(str, failing))}" for name, failing in self.failures.items()
        ]
        return "\n".join(["no theorem covers this problem:", *lines])


class Example(NamedTuple):
    """A published or otherwise telling setting of a theorem.

    Attributes:
        label: What to call it.
        problem: The problem; what the theorem's evidence takes, if it is about another model.
    """

    label: str
    problem: Any


@final
@dataclass(frozen=True, eq=False)
class Theorem:
    """A theorem, executable.

    Most theorems give the global minimiser by a formula. Others exclude a point as the minimiser.
    Their formula is an upper bound, which an explicit point, the witness, attains. A published
    claim that is contradicted is a theorem too, with the point that contradicts it as its witness.
    Theorems about the landscape, dynamics or hard margins have no formula, but evidence: a check
    that can fail.

    Attributes:
        name: How to look it up.
        title: One line.
        reference: Authors, year, venue, arXiv number.
        statement: The mathematics, normalisation included.
        conditions: The hypotheses, checked against a problem.
        make_examples: Makes the settings at which the theorem is verified.
        formula: The prediction for a problem that meets the conditions, as a pure function that
            checks nothing. It computes in JAX where leaves of the problem are traced, otherwise in
            NumPy and float64. Only theorems that are `predictive` can be traced.
        by_groups: Whether the formula is made of `ufm.theory.matrices` alone.
        any_targets: Whether the conditions are about targets of any kind. Without it the theorem is
            about one-hot classes.
        bound: "exact", or "upper" where the minimum is at most what the formula says.
        witness: Returns the point that shows it; None for a theorem that needs none.
        dispute: Who contradicts the claim, and how; empty for a theorem.
        about: "minimum", or what the evidence is about.
        evidence: Makes the check of a problem from the functions of the room that deals with this.
            The result has `holds`, and its text says what was found.
    """

    name: str
    title: str
    reference: str
    statement: str
    conditions: Callable[[Problem], tuple[Condition, ...]] = field(repr=False)
    make_examples: Callable[[], tuple[Example, ...]] = field(repr=False)
    formula: Callable[[Problem], Prediction] | None = field(repr=False, default=None)
    by_groups: bool = field(repr=False, default=False)
    any_targets: bool = field(repr=False, default=False)
    bound: Literal["exact", "upper"] = "exact"
    witness: Callable[[Problem], Construction] | None = field(repr=False, default=None)
    dispute: str = ""
    about: Subject = "minimum"
    evidence: Callable[[Any, Any], Any] | None = field(repr=False, default=None)

    @property
    def status(self) -> Standing:
        """Its kind: about the minimiser, a bound, contradicted, or about something else."""
        if self.about != "minimum":
            return self.about
        if self.dispute:
            return "disputed"
        return "theorem" if self.bound == "exact" else "upper bound"

    @property
    def predictive(self) -> bool:
        """Whether `ufm.predict` uses it: it is undisputed and gives the minimiser."""
        return self.status == "theorem"

    @property
    def mark(self) -> str:
        """The status in brackets, with a space after it; empty if the theorem is predictive."""
        return "" if self.predictive else f"[{self.status}] "

    @property
    def no_minimiser(self) -> Condition:
        """The condition that a theorem which is not predictive does not meet."""
        kind = {"upper bound": "an upper bound", "disputed": "a disputed claim"}
        found = kind.get(self.status, f"a theorem about {self.about}")
        return Condition("to give the minimiser", False, found)

    def applies(self, problem: Problem) -> Applicability:
        """Return whether the theorem covers `problem`, and if not, why."""
        check_instance("problem", problem, Problem)
        return Applicability(self.checked(problem))

    def checked(self, problem: Problem) -> tuple[Condition, ...]:
        """Return the conditions at a problem, which may be traced.

        Targets beyond one-hot classes fail the theorems that are not about them.
        """
        if not (problem.one_hot or self.any_targets):
            found = f"{problem.num_rows} target rows"
            return (Condition("one-hot classes", False, found),)
        entries = problem.num_rows * problem.num_classes
        if self.any_targets and entries > MOST_ENTRIES:
            needed = f"at most {MOST_ENTRIES:,} entries of target rows, which it reads one by one"
            return (Condition(needed, False, f"{entries:,}"),)
        return self.conditions(problem)

    def predict(self, problem: Problem) -> Prediction:
        """Return what the theorem says about `problem`, with NumPy float64 leaves.

        Raises:
            NoPrediction: If conditions do not hold, or the theorem predicts nothing.
            ValueError: If K is too large for the K x K matrices of a prediction.
        """
        applicability = self.applies(problem)
        check_dense(problem.num_classes)
        return self._predicted(problem, applicability)

    def predict_groups(self, problem: Problem, groups: np.ndarray) -> Prediction:
        """Return what `predict` does, over groups of interchangeable classes.

        K x K matrices are `Blocks` where the formula allows it.

        Args:
            problem: The problem.
            groups: (K,), the group 0, ..., G - 1 of every class.

        Raises:
            NoPrediction: If conditions do not hold, or the theorem predicts nothing.
            ValueError: If the formula needs explicit matrices, and K is too large for them.
        """
        if not self.by_groups:
            return self.predict(problem)
        with matrices.by_groups(groups):
            return self._predicted(problem, self.applies(problem))

    def _predicted(self, problem: Problem, applicability: Applicability) -> Prediction:
        missing = applicability.failing or (() if self.formula else (self.no_minimiser,))
        if missing or self.formula is None:
            raise NoPrediction({self.name: missing})
        return _without_open_fields(jax.tree.map(np.asarray, self.formula(problem)))

    @property
    def examples(self) -> tuple[Example, ...]:
        """The settings at which the theorem is verified."""
        return self.make_examples()

    def __str__(self) -> str:
        mark = f" {self.mark}".rstrip()
        dispute = f"\nDisputed: {self.dispute}" if self.dispute else ""
        return f"{self.name}{mark}: {self.title} ({self.reference})\n{self.statement}{dispute}"


def _without_open_fields(prediction: Prediction) -> Prediction:
    def determined(value: Any) -> Any:
        numbers = value.between if isinstance(value, Blocks) else value
        return None if value is None or np.all(np.isnan(numbers)) else value

    def matrices(tree: Prediction) -> tuple[Any, ...]:
        return tree.logits, tree.weight_gram, tree.feature_gram

    return eqx.tree_at(
        matrices,
        prediction,
        tuple(map(determined, matrices(prediction))),
        is_leaf=lambda leaf: leaf is None,
    )


def _row_norms(gram: Any) -> Any:
    if isinstance(gram, Blocks):
        raise ValueError(
            "norms of a prediction by groups are those of its blocks: `weight_gram.own`, one per "
            "group."
        )
    return None if gram is None else array_module(gram).sqrt(array_module(gram).diagonal(gram))
