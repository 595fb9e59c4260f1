"""The landscape of the objective: what kind of point a point is, how the objective curves there, and what the papers say of it."""

__all__: list[str] = []
