"""Metrics by groups of classes against means over their classes, samples and pairs."""

import numpy as np
from scattered import Data

import ufm
from ufm import networks
from ufm.metrics import class_statistics, neural_collapse


def test_groups_are_means_over_their_classes_and_samples() -> None:
    data, of_class = Data(counts=(40, 9, 3, 2, 6)), np.array([0, 1, 0, 1, 2])
    result = data.whole()
    groups = networks.by_group(result, of_class)
    y = of_class[data.labels]
    statistics = class_statistics(data.features, data.labels, 5)
    squares = np.sum(statistics.residuals**2, axis=1)
    for g in range(3):
        classes = np.flatnonzero(of_class == g)
        np.testing.assert_allclose(groups.within_variance[g], squares[y == g].mean())
        assert groups.counts[g] == np.sum(y == g)
        assert groups.num_classes[g] == len(classes)
        np.testing.assert_allclose(groups.mean_norms[g], result.nc2_features.norms[classes].mean())
        np.testing.assert_allclose(
            groups.weight_norms[g], np.linalg.norm(data.weights[classes], axis=1).mean()
        )
        predicted = np.argmax(data.features @ data.weights.T + data.bias, axis=1)
        np.testing.assert_allclose(groups.accuracy[g], np.mean((predicted == data.labels)[y == g]))
        for h in range(3):
            pairs = [(j, k) for j in classes for k in np.flatnonzero(of_class == h) if j != k]
            for found, matrix in (
                (groups.mean_cosines, result.nc2_features.cosines),
                (groups.cdnv, result.nc1.cdnv_pairs),
            ):
                if pairs:
                    np.testing.assert_allclose(
                        found[g, h], np.mean([matrix[pair] for pair in pairs])
                    )
                else:
                    assert np.isnan(found[g, h])
    share = groups.counts / groups.counts.sum()
    np.testing.assert_allclose(share @ groups.trace_ratio, result.nc1.trace_ratio)
    np.testing.assert_allclose(share @ groups.pinv, result.nc1.pinv)
    assert groups.to_dict()["counts"] == groups.counts.tolist()
    assert "mean_cosines" in str(groups)


def test_groups_of_class_groups_and_of_one_pass() -> None:
    data = Data()
    groups = ufm.ClassGroups(counts=(20, 2), sizes=(2, 2))
    one = networks.measure(data.parts([5]), passes=1, groups=groups).groups
    two = networks.by_group(data.whole(), [0, 0, 1, 1])
    assert one is not None
    np.testing.assert_allclose(one.mean_cosines, two.mean_cosines)
    assert np.isnan(one.pinv).all()
    assert np.isnan(one.accuracy).all()


def test_equal_means_of_two_rare_classes_are_seen_in_their_group() -> None:
    data = Data(counts=(20, 20, 5, 5))
    data.features[data.labels == 3] += data.moments().means[2] - data.moments().means[3]
    result = neural_collapse(data.features, data.labels, rtol=1e-12)
    groups = networks.by_group(result, [0, 0, 1, 1])
    assert groups.cdnv[1, 1] == np.inf
    assert np.isfinite(groups.cdnv[0]).all()
    np.testing.assert_allclose(groups.mean_cosines[1, 1], 1.0)
