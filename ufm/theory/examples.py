"""The problem of a theorem's example, in one line."""

from typing import Any

from ufm.problems import Loss, Problem, WeightDecay

__all__ = ["example_problem"]


def example_problem(
    loss: Loss,
    counts: Any,
    weights: Any,
    features: Any,
    dims: int | tuple[int, ...],
    bias: Any = None,
    kind: Any = WeightDecay,
    **options: Any,
) -> Problem:
    """Return a problem in one line.

    Args:
        loss: The loss.
        counts: The class counts.
        weights: The penalty or bound of the weights, one number or one for each layer.
        features: The penalty or bound of the features.
        dims: The feature dimension, or all widths: the features' first, then the hidden layers'.
        bias: The penalty of the bias, 0 for a free one, None for no bias.
        kind: The class of the regularizer.
        **options: Further arguments of `Problem`.
    """
    penalties = {"bias": bias} if bias else {}
    feature_dim, *hidden_dims = (dims,) if isinstance(dims, int) else dims
    return Problem(
        class_counts=counts,
        feature_dim=feature_dim,
        loss=loss,
        regularizer=kind(weights=weights, features=features, **penalties),
        use_bias=bias is not None,
        hidden_dims=tuple(hidden_dims),
        **options,
    )
