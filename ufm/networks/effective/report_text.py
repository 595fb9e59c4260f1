"""The verdict of a comparison, and the texts of its report."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from ufm._support import printed
from ufm.networks.effective.balance import EffectiveModel, is_stationary
from ufm.networks.effective.rows import LEVELS, WORST, Difference, Level, level_of
from ufm.networks.effective.state import State
from ufm.networks.effective.target_rows import TargetKind
from ufm.networks.effective.trained_network import TrainedNetwork
from ufm.solving import Solution

__all__ = [
    "LEGEND",
    "LINE",
    "UNBALANCED",
    "Agreement",
    "agreement_of",
    "percent",
]


LINE = 120  # characters of a line below a table
LEGEND = (
    "measured, predicted: a number as it is. Vectors and matrices over classes are shown as "
    "`shown as` says: by the mean, by the mean over pairs of different "
    "classes (j != k), or by the root of the mean square of all entries (rms).",
    "error: root mean square of the differences, entry by entry, in the unit that `relative to` "
    "names. So equal means may have an error. by group: "
    "the same of averages over classes of one group (of equal counts, unless groups were given).",
    "level: of the error; "
    + ", ".join(f"{level} up to {100 * bound:g} %" for level, bound in LEVELS)
    + f", {WORST} above. Parts of the objective have the whole minimum for their unit. So a "
    "small part agrees even if it is off by "
    "a factor.",
)
UNBALANCED = 0.5  # from this residual of the balance on, no such model describes the network


AgreementKind = Literal[Level, "not balanced"]


@printed
class Agreement(NamedTuple):
    """The verdict of a comparison.

    Attributes:
        kind: "not balanced" where the balance of the first layer is off by half or more, so that
            the model does not describe this network; otherwise the level of the worst of the
            aspects.
        aspects: The errors by the name of the aspect.
        averages: The errors of angles, norms and logits averaged over the classes of each group.
            For a regression, whose rows have no norms, of the Gram matrices of features and
            weights.
        words: The verdict in words.
    """

    kind: AgreementKind
    aspects: dict[str, float]
    averages: dict[str, float]
    words: str

    @property
    def describes(self) -> bool:
        """Whether the model describes the network: every aspect agrees or is close."""
        return self.kind in ("agrees", "close")


def agreement_of(
    trained: TrainedNetwork,
    effective: EffectiveModel,
    solution: Solution,
    predicted: State,
    rows: Sequence[Difference],
) -> Agreement:
    """Return the verdict of a comparison from its rows."""
    errors, averages = (
        {row.quantity: getattr(row, name) for row in rows} for name in ("error", "group_error")
    )
    last = trained.inputs[-1]
    within = float(trained.row_weights @ last.variances)
    total = within + float(trained.row_weights @ np.sum(last.means**2, axis=1))
    balance = effective.balance
    aspects = {
        "balance": balance.residual,
        f"variability within {trained.of_kind.rows}": within / total if total > 0 else 0.0,
        **_of_means(errors, trained.of_kind),
        "objective": errors["objective"],
    }
    if len(balance.layers):
        aspects["balance between layers"] = float(np.max(np.abs(balance.layers)))
    worst = max(aspects, key=lambda name: aspects[name] if np.isfinite(aspects[name]) else np.inf)
    kind: AgreementKind = level_of(aspects[worst])
    if not balance.residual < UNBALANCED:
        kind = "not balanced"
    by_group = _of_means(averages, trained.of_kind)
    still = ""
    if not is_stationary(trained, balance):
        implied, given = balance.implied_weight_decay, trained.weight_decay[-1]
        still = (
            "; its last layer is not stationary at this weight decay "
            f"(its loss implies {implied:.3g}, not {given:.3g})"
        )
    words = _words(kind, worst, aspects, by_group, solution, still)
    if not np.any(predicted.weight_norms):
        words += "; at these weight decays the minimum of the model is zero"
    return Agreement(kind, aspects, by_group, words)


def _of_means(errors: dict[str, float], kind: TargetKind) -> dict[str, float]:
    """Return the largest error of each aspect; one output has no angles."""
    return {
        aspect: max(errors[name] for name in names if name in errors)
        for aspect, names in kind.aspects.items()
    }


_VERDICTS: dict[AgreementKind, str] = {
    "agrees": "the model describes this network: everything agrees to 1 %",
    "close": "the model describes this network closely, to 10 %",
    "rough": "the model describes this network roughly, to 30 %",
    "differs": "the model does not describe this network",
    "not balanced": "not balanced: the model does not describe this network",
}


def _words(
    kind: AgreementKind,
    worst: str,
    aspects: dict[str, float],
    averages: dict[str, float],
    solution: Solution,
    still: str,
) -> str:
    listed = ", ".join(f"{name} {percent(error)}" for name, error in aspects.items())
    where = "" if kind in ("agrees", "not balanced") else f" (worst: {worst})"
    certificate = solution.certificate
    proof = (
        ""
        if certificate is not None and certificate.holds
        else "; the minimum is the lowest found, not certified"
    )
    proof += "" if solution.status.ok else ", and its solve has not converged"
    grouped = ""
    if any(averages[name] < aspects[name] / 2 for name in averages):
        listed_averages = ", ".join(f"{name} {percent(error)}" for name, error in averages.items())
        grouped = f"; averaged over groups of classes: {listed_averages}"
    layers = solution.problem.num_layers
    which = (
        ""
        if kind != "not balanced"
        else "the last layer is "
        if layers == 1
        else f"layer 1 of the last {layers} is "
    )
    return f"{which}{_VERDICTS[kind]}{where}{still}. Off by: {listed}{grouped}{proof}"


def percent(share: float) -> str:
    """Return a share in percent, or as a factor where it is large."""
    if not np.isfinite(share):
        return "infinity"
    if share >= 10:
        return f"a factor of {share:.3g}"
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"
