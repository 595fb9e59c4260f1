"""The scale of differences of objectives."""

__all__ = ["objective_scale"]

SMALLEST = 1e-4  # of the objective at zero logits


def objective_scale(at_zero: float, *values: float) -> float:
    """Return the scale of relative differences between objectives.

    It is the largest of the objectives, in absolute value. Objectives may vanish at a minimum. So
    the scale is at least 1e-4 of the objective at zero logits.

    Args:
        at_zero: The objective at zero logits.
        values: The objectives.
    """
    return max(*(abs(value) for value in values), SMALLEST * abs(at_zero))
