"""Trained networks: how collapsed they are, and what the models predict for them.

`measure` computes NC1 to NC4 from batches of features, of any number of samples. `ClassMoments` and
`SecondPass` are its two passes, for workers that merge. `collect` runs a PyTorch or Flax module for
the features, and `measure_model` measures it. `TrainedNetwork` is a network as the models see it,
from arrays or from moments. `effective_model` is its unconstrained features model, with the feature
decay that the balance of its layers implies. `compare_with_model` compares the network with that
model's certified minimiser.

With `targets="regression"`, "multi-label" or "contexts", `measure` and `measure_model` measure
heads for real targets, for several tags and for next tokens, by `RegressionMoments`, `TagMoments`
and `ContextMoments`; the formulas are those of `ufm.metrics`. `TrainedNetwork` takes all of them,
and `compare_with_model` holds such networks against their own models.

The `neural-collapse` package (R. Wu, github.com/rhubarbwu/neural-collapse) and this one compute the
same numbers under other names. Its functions take class means M, (K, d), a vector m_G to centre
them at, the pooled within-class covariance V_intra, (d, d), within-class variances V, (K,), and the
classifier's weights W, (K, d). Below, `nc1` to `nc4` are those of a `NeuralCollapse`, and
`moments` is a `ClassMoments(K, d)`.

| neural-collapse | here |
|---|---|
| `MeanAccumulator(K, d).accumulate(X, Y)` | `moments.update(X, Y)` |
| `MeanAccumulator.compute()` | `moments.means`, and `moments.means.mean(axis=0)` for m_G |
| `VarNormAccumulator` (a second pass) | `moments.within_trace`, `nc1.within_variance` |
| `CovarAccumulator` (a second pass) | `moments.within` |
| `DecAccumulator` (a second pass) | `SecondPass(moments, W)` |
| `covariance_ratio(V_intra, M, m_G, "pinv")`, `"svd"` | `nc1.pinv` |
| `covariance_ratio(V_intra, M, m_G, "quotient")` | `nc1.trace_ratio` |
| `variability_cdnv(V, M)` | `nc1.cdnv` |
| `mean_norms(M, m_G)` | `norms = nc2_features.norms` |
| `interference_grid(M, m_G)` | `nc2_features.cosines * np.outer(norms, norms)` |
| `simplex_etf_error(M, m_G)` | `nc2_features.etf_distance` |
| `dist_kernel` of the centred unit means | `r = np.sqrt(2 - 2 * nc2_features.cosines)` |
| `log_kernel` of these | `-np.log(r)` |
| `riesz_kernel` of these | `np.sign(d - 2) * r ** (2 - d)`, 1 for d = 2 |
| `kernel_stats(M, m_G, kernel)` | mean and variance of the kernel over pairs of classes |
| `self_duality_error(W, M, m_G)` | `nc3.product_etf_distance` |
| `similarities(W, M, m_G, cos=True)` | `nc3.alignment` |
| `similarities(W, M, m_G)` | `s = nc3.alignment * nc2_weights.norms * norms` |
| `distance_norms(W, M, m_G)` | `np.sqrt(2 - 2 * nc3.alignment)` |
| `distance_norms(W, M, m_G, norm=False)` | `np.sqrt(nc2_weights.norms**2 + norms**2 - 2 * s)` |
| `clf_ncc_agreement(dec_accum)` | `1 - nc4.mismatch` |
| `clf_ncc_agreement(dec_accum, weighted=False)` | `1 - nc4.mismatch_per_class.mean()` |
| `orthogonality_deviation(M, m_G_ood)` | mean of the absolute cosines of `moments.means` and it |

`ufm.metrics.linguistic_collapse` has the mean of `log_kernel` as `gnc2`.

What differs:

- Its accumulators compute in float32 by default, where NC1 by a pseudo-inverse can come out
  negative or off by orders of magnitude; sums of features far from the origin lose digits as well.
  Here all is float64, and NC1 has an explicit rank.
- Its m_G is the mean of the class means unless one asks for `weighted=True`: `centre="classes"`
  here, and `centre="samples"` with weights.
- Older versions divide the between-class covariance by d where newer ones divide by K, which makes
  "pinv" and "quotient" d/K times as large, and their "svd" leaves out the division by K.
- Its "svd" keeps the K - 1 largest singular values, however small. `nc1.pinv` leaves out those that
  are rounding error.
- Its classifier for NC4 has no bias, so its agreement is that of `SecondPass(moments, W)`. With a
  bias in the network, give it to `SecondPass(moments, W, b)`, which gives the network's decisions.
- Norms in its denominators have the machine epsilon added. Here they have not; a zero vector has
  cosine 0.

References:
    - Papyan, Han and Donoho (2020), PNAS: `covariance_ratio`, "pinv".
    - Tirer, Huang and Niles-Weed (2023), ICML: "quotient".
    - Galanti, György and Hutter (2022), ICLR: `variability_cdnv`.
    - Kothapalli (2023), TMLR: `simplex_etf_error` and `self_duality_error`.
    - Liu et al. (2023), ICLR (hyperspherical uniformity): `kernel_stats`.
    - Wu and Papyan (2024), NeurIPS (linguistic collapse): `similarities`, whose variance is uniform
      duality.
    - Ammar et al. (2024), ICLR: `orthogonality_deviation`.
"""

from ufm.networks.effective.balance import Balance, EffectiveModel, effective_model
from ufm.networks.effective.comparison import (
    ModelComparison,
    ModelComparisons,
    compare_with_model,
    compare_with_models,
)
from ufm.networks.effective.report_text import LEGEND, Agreement, AgreementKind
from ufm.networks.effective.rows import LEVELS, Difference
from ufm.networks.effective.state import LossTerms, State
from ufm.networks.effective.target_rows import Inputs
from ufm.networks.effective.trained_network import OnSamples, TrainedNetwork
from ufm.networks.measure.batches import prefix_contexts
from ufm.networks.measure.by_group import GroupCollapse, by_group
from ufm.networks.measure.class_moments import ClassMoments
from ufm.networks.measure.collect import Collected, collect, last_linear, measure_model
from ufm.networks.measure.last_layer import LastLayer
from ufm.networks.measure.measurement import Measurement, measure, measure_layers
from ufm.networks.measure.second_pass import SecondPass
from ufm.networks.measure.target_measurement import (
    LanguageMeasurement,
    MultiLabelMeasurement,
    RegressionMeasurement,
)
from ufm.networks.measure.target_moments import ContextMoments, RegressionMoments, TagMoments

__all__ = [
    "LEGEND",
    "LEVELS",
    "Agreement",
    "AgreementKind",
    "Balance",
    "ClassMoments",
    "Collected",
    "ContextMoments",
    "Difference",
    "EffectiveModel",
    "GroupCollapse",
    "Inputs",
    "LanguageMeasurement",
    "LastLayer",
    "LossTerms",
    "Measurement",
    "ModelComparison",
    "ModelComparisons",
    "MultiLabelMeasurement",
    "OnSamples",
    "RegressionMeasurement",
    "RegressionMoments",
    "SecondPass",
    "State",
    "TagMoments",
    "TrainedNetwork",
    "by_group",
    "collect",
    "compare_with_model",
    "compare_with_models",
    "effective_model",
    "last_linear",
    "measure",
    "measure_layers",
    "measure_model",
    "prefix_contexts",
]
