"""A minimiser over groups of interchangeable classes, in blocks; explicit matrices on demand."""

import functools
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int

from ufm._support import Module
from ufm.geometry import centred_basis
from ufm.metrics import ClassGeometry, factor_grams, geometry_of, margins
from ufm.problems import Blocks, GroupProblem, Parameters, Problem, check_dense
from ufm.solving.nonnegative_groups import Orbits, coordinates, copies_of, entries

__all__ = ["BlockPoint", "block_point"]


class BlockPoint(Module):
    """A point over groups. Matrices of K rows are formed when they are asked for.

    Attributes:
        data: The problem over its groups, without the numbers stated class by class.
        groups: The group of every class, shape (K,).
        feature_dim: d.
        geometry: Logits and Gram matrices in blocks.
        group_bias: The bias of a class of each group, shape (G,), or None.
        orbits: The orbits of non-negative atoms; None for signed features.
    """

    data: GroupProblem
    groups: Int[np.ndarray, " K"]
    feature_dim: int
    geometry: ClassGeometry
    group_bias: Float[np.ndarray, " G"] | None
    orbits: Orbits | None

    def margins(self, problem: Problem) -> Float[np.ndarray, " G"]:
        """Return the own logit less the largest other one of a class of each group."""
        return margins(self.blocks(problem).logits, self.group_bias)

    def blocks(self, problem: Problem) -> ClassGeometry:
        """Return logits and Gram matrices in blocks."""
        return self.geometry

    @functools.cached_property
    def parameters(self) -> Parameters:
        """A lift of the blocks to weights (K, d), features (K, d) and bias (K,).

        Raises:
            ValueError: If K is too large for explicit matrices.
        """
        check_dense(self.groups.size)
        weights, features = _lifted_modes(self) if self.orbits is None else _lifted_orbits(self)
        return Parameters((weights,), features, self.bias)  # type: ignore[arg-type]

    @property
    def bias(self) -> Float[np.ndarray, " K"] | None:
        """The bias of every class."""
        return None if self.group_bias is None else self.group_bias[self.groups]

    @property
    def plain_logits(self) -> Float[np.ndarray, "K K"]:
        """The logits of every class, without the bias."""
        return self.geometry.logits.dense(self.groups)

    @functools.cached_property
    def logits(self) -> Float[np.ndarray, "K K"]:
        """The logits of every class, bias included."""
        return self.plain_logits if self.bias is None else self.plain_logits + self.bias[None, :]

    @property
    def class_features(self) -> Float[Array, "K d"]:
        """The features: all samples of a class have its row."""
        return self.parameters.features


def block_point(
    problem: Problem,
    data: GroupProblem,
    groups: Int[np.ndarray, " K"],
    logits: Blocks,
    bias: Any,
    orbits: Orbits | None,
) -> BlockPoint:
    """Return the point of logits over groups, with the Gram matrices of their balanced factors.

    Args:
        problem: The problem.
        data: The problem over its groups.
        groups: The group of every class.
        logits: Logits without the bias.
        bias: The bias of every group, or None.
        orbits: Of the minimiser with non-negative features; None for signed ones.
    """
    sizes: Any = np.asarray(data.sizes)
    logits = Blocks(logits.within, logits.between, sizes)
    geometry = geometry_of(data, logits, floor=np.max(np.asarray(data.gauge.rows)))
    if orbits is not None:
        s, t, u, v = _orbit_parts(data, orbits)
        others = np.maximum(sizes - 1, 1)
        weights, features = (
            Blocks(np.sum(within**2, axis=1) / others, between @ between.T, sizes)
            for within, between in ((v, u), (t, s))
        )
        weights, features = factor_grams(data, weights, features)
        geometry = geometry._replace(weight_gram=weights, feature_gram=features)
    return BlockPoint(data, groups, problem.feature_dim, geometry, bias, orbits)


def _lifted_modes(point: BlockPoint) -> tuple[np.ndarray, np.ndarray]:
    """Return balanced weights and features, (K, d) each: singular modes of the weighted logits."""
    data, groups, logits = point.data, point.groups, point.geometry.logits
    roots, scale = data.gauge.rows, np.sqrt(data.gauge.split)
    K, d = groups.size, point.feature_dim
    weights, features = np.zeros((K, d)), np.zeros((K, d))
    weighted = logits.scaled_rows(roots)
    left, values, right = np.linalg.svd(np.asarray(weighted.between))
    order = np.argsort(-values)
    column = 0
    unit = 1 / np.sqrt(np.asarray(data.sizes))
    for mode in order[values[order] > 0][:d]:
        amplitude = np.sqrt(values[mode])
        weights[:, column] = scale * amplitude * (right[mode] * unit)[groups]
        features[:, column] = amplitude / scale * (left[:, mode] * unit / roots)[groups]
        column += 1
    for group, strength in enumerate(np.asarray(weighted.within)):
        members = np.flatnonzero(groups == group)
        room = min(members.size - 1, d - column)
        if strength == 0 or room <= 0:
            continue
        basis = np.sqrt(abs(strength)) * centred_basis(members.size)[:, :room]
        weights[members, column : column + room] = np.sign(strength) * scale * basis
        features[members, column : column + room] = basis / (scale * roots[group])
        column += room
    return weights, features


def _orbit_parts(data: GroupProblem, orbits: Any) -> tuple[np.ndarray, ...]:
    """Return s, t, u, v of the orbits, scaled into the norm ball if there is one."""
    sizes = np.asarray(data.sizes)
    s, t = coordinates(sizes, *entries(sizes, orbits.own, orbits.other))
    u, v = orbits.between, np.where(sizes[:, None] > 1, orbits.within, 0)
    if not data.gauge.bounded:
        return s, t, u, v
    # Inside the ball both factors have the same norm, so that each meets its own bound.
    features, weights = np.sum(s**2 + t**2), np.sum(u**2 + v**2)
    total = 0.5 * (features + weights) + float(orbits.slack) ** 2
    factor = float(data.gauge.price) * np.sqrt(features * weights) / total
    grow = [np.sqrt(factor / norm) if norm > 0 else 0.0 for norm in (features, weights)]
    return s * grow[0], t * grow[0], u * grow[1], v * grow[1]


def _lifted_orbits(point: BlockPoint) -> tuple[np.ndarray, np.ndarray]:
    """Return weights and features, (K, d) each: the atoms of every orbit, one dimension each."""
    data, groups, orbits = point.data, point.groups, point.orbits
    assert orbits is not None
    s, t, u, v = _orbit_parts(data, orbits)
    roots, scale = data.gauge.rows, np.sqrt(data.gauge.split)
    sizes = np.asarray(data.sizes).round().astype(int)
    members = [np.flatnonzero(groups == group) for group in range(sizes.size)]
    K, d = groups.size, point.feature_dim
    weights, features = np.zeros((K, d)), np.zeros((K, d))
    column = 0
    for orbit, copies in enumerate(copies_of(np.asarray(data.sizes), orbits)):
        if not copies:
            continue
        marked = [
            g for g in range(sizes.size) if sizes[g] > 1 and (t[g, orbit] != 0 or v[g, orbit] != 0)
        ]
        for choice in np.ndindex(*(sizes[g] for g in marked)):
            h, w = (part[:, orbit] / np.sqrt(sizes) for part in (s, u))
            rows_h, rows_w = h[groups], w[groups]
            for g, index in zip(marked, choice, strict=True):
                # The distinguished class less the mean, normalised.
                direction = np.full(sizes[g], -1 / sizes[g])
                direction[index] += 1
                direction /= np.sqrt((sizes[g] - 1) / sizes[g])
                rows_h[members[g]] += t[g, orbit] * direction
                rows_w[members[g]] += v[g, orbit] * direction
            weights[:, column] = scale * rows_w / np.sqrt(copies)
            features[:, column] = np.maximum(rows_h, 0) / (scale * roots[groups] * np.sqrt(copies))
            column += 1
    return weights, features
