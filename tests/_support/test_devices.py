"""Several devices: batches are divided over them, and nothing else changes.

A process whose CPU stands for four devices, and this one.
"""

import json
import os
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest

import ufm
from ufm._support import devices, divisible, shard
from ufm.problems import GroupProblem, Problem, family_of, narrowed
from ufm.solving import class_batch, group_batch

FOUR = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
LENGTHS = (1, 7, 16)
DECAYS, RATIOS = np.geomspace(1e-4, 1e-2, 5), np.array([2.0, 10.0, 100.0])


def problem_of(counts: ufm.ClassGroups) -> Problem:
    penalties = ufm.WeightDecay(weights=1e-3, features=1e-3)
    return ufm.Problem(
        class_counts=counts,
        feature_dim=counts.num_classes,
        loss=ufm.CrossEntropy(),
        regularizer=penalties,
    )


def two_groups() -> Problem:
    return problem_of(ufm.ClassGroups.step(6, 100, imbalance_ratio=10))


def four_counts() -> Problem:
    return problem_of(ufm.ClassGroups((90, 40, 20, 5)))


def over_two_groups(length: int) -> GroupProblem:
    return family_of(two_groups(), {"weight_decay": np.geomspace(1e-4, 1e-2, length)}).over_groups()


def over_classes(length: int) -> Problem:
    return narrowed(
        family_of(four_counts(), {"weight_decay": np.geomspace(1e-4, 1e-2, length)}).over_classes()
    )


def answers() -> dict[str, Any]:
    """Objectives and certificates of both batch solvers and of sweeps.

    Also on how many devices the arguments of their programs were.
    """
    where: dict[str, set[int]] = {"groups": set(), "classes": set()}

    def watched(name: str, program: Any) -> Any:
        def call(*args: Any) -> Any:
            batched = [leaf for leaf in jax.tree.leaves(args) if np.ndim(leaf) > 0]
            where[name] |= {
                len(leaf.sharding.device_set) if isinstance(leaf, jax.Array) else 1
                for leaf in batched
            }
            where[name] |= {
                np.size(leaf) // shard.data.size
                for leaf in batched
                if isinstance(leaf, jax.Array)
                for shard in leaf.addressable_shards
            }
            return program(*args)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            group_batch, "certified_chunk", watched("groups", group_batch.certified_chunk)
        )
        patch.setattr(class_batch, "each_advanced", watched("classes", class_batch.each_advanced))
        found = {
            f"groups {length}": group_batch.solve_batch(over_two_groups(length))
            for length in LENGTHS
        }
        found |= {
            f"classes {length}": class_batch.solve_class_batch(over_classes(length))
            for length in (1, 70)
        }
        rows = {
            name: (minima.objective, minima.relative_gap <= 1e-9) for name, minima in found.items()
        }
        for name, problem, resolution in (
            ("two", two_groups(), "auto"),
            ("four", four_counts(), "classes"),
        ):
            over = (
                {"weight_decay": DECAYS, "imbalance_ratio": RATIOS}
                if name == "two"
                else {"weight_decay": DECAYS}
            )
            points = ufm.sweep(
                problem, over, resolution=resolution, quantities=["objective"], progress=False
            )
            rows[f"sweep {name}"] = points.objective.values, points.certified.values
    return {
        "devices": devices(),
        "sizes": [divisible(size) for size in (1, 4, 6)],
        "where": {name: sorted(counts) for name, counts in where.items()},
        "rows": {name: [np.ravel(part).tolist() for part in parts] for name, parts in rows.items()},
    }


@pytest.mark.slow
def test_four_devices_share_every_batch_and_find_the_same_minima() -> None:
    command = [sys.executable, __file__]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | FOUR
    ) as child:
        try:
            alone = answers()
            output, errors = child.communicate(timeout=300)
        finally:
            child.kill()
    assert child.returncode == 0, errors
    four = json.loads(output.splitlines()[-1])
    assert (four["devices"], four["sizes"]) == (4, [4, 4, 8])
    # On four devices, and a quarter on each.
    assert four["where"] == {"groups": [4], "classes": [4]}
    assert set(four["rows"]) == set(alone["rows"])
    for name, (objective, certified) in four["rows"].items():
        assert all(certified), name
        np.testing.assert_allclose(objective, alone["rows"][name][0], rtol=1e-12, err_msg=name)


@pytest.mark.skipif(devices() > 1, reason="there are several devices")
def test_one_device_takes_the_arrays_as_they_are() -> None:
    tree = {"rows": np.ones((3, 2)), "numbers": np.arange(3)}
    assert shard(tree, 0) is tree
    assert [divisible(size) for size in (1, 4, 7)] == [1, 4, 7]


def test_pieces_are_larger_on_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    few = class_batch.chunk_size(200), group_batch.group_chunk_size(2, 1024, 10**6)
    for module in (class_batch, group_batch):
        monkeypatch.setattr(module, "accelerators", lambda: 2)
    assert class_batch.chunk_size(200) == 2 * class_batch.CHUNK_ON_ACCELERATOR > few[0]
    assert group_batch.group_chunk_size(2, 65_536, 10**6) == 65_536 > few[1]
    assert group_batch.group_chunk_size(32, 65_536, 10**6) < 1024
    assert group_batch.group_chunk_size(2, 65_536, 10_000) == 16_384


if __name__ == "__main__":
    print(json.dumps(answers()))
