r"""Networks trained on handwritten digits past zero training error, compared with their models.

The digits are those that ship with scikit-learn: 1797 images of 8 x 8 pixels, from the UCI
repository (Alpaydin & Kaynak 1998). A network of three hidden ReLU layers, without biases unless
asked for, minimises

    mean loss + sum_l (lambda_l / 2) ||W_l||^2 + (mu / 2) mean ||h||^2,

whose parts are chosen by how many of the last layers are *peeled* off:

    peeled = 1      lambda for the last layer, mu for what enters it: the penalties of the
                    unconstrained features model itself, mu = N lambda_H
                    (Zhu et al. 2021). The layers below have next to no weight decay: what is left
                    to differ is that features come from a network.
    peeled = 2      the same for the last two layers and what enters them: the model extended by a
                    layer.
    peeled = None   lambda for all layers, mu = 0: weight decay as practitioners have it. That
                    features are penalised is now an assumption, too.

The objective is that of weight decay as an L2 penalty (PyTorch's SGD), not of decoupled weight
decay, which has none. Training is full-batch Adam with a cosine schedule, in float32; measurement
is in float64.

    python notebooks/digits.py --out DIR            # all runs: minutes on two cores
    python notebooks/digits.py --out DIR --quick    # a few short ones, to see that everything works

writes NAME.npz for every run (features, labels, weights, loss, weight decay, the path of the
metrics: `ufm measure` reads it), a page NAME/index.html that holds it against its models,
summary.csv, and figures. Ctrl-C keeps all that was computed, and the same command goes on from
there.
"""

import argparse
import csv
import functools
import json
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.nn import relu
from jaxtyping import Array, Float, Int

import ufm
from ufm import networks

CLASSES = 10
PIXELS = 64
LOSS_OF = {"ce": ufm.CrossEntropy(), "mse": ufm.SquaredError()}
LOWER_DECAY = 1e-6  # of the layers below the peeled ones, so that the objective has a minimum
CHUNK = 50  # steps between looks at the network
PADDING = 256  # numbers of samples are rounded up to its multiples: fewer compilations
MAJORITY = 150
RATIOS = (1, 3, 10, 30, 75)
EPSILON = 1e-5  # of layer normalisation, as in PyTorch


class Split(NamedTuple):
    """Training and test samples: inputs in [0, 1], (N, 64) float32, and labels, (N,)."""

    inputs: Float[np.ndarray, "N 64"]
    labels: Int[np.ndarray, " N"]
    test_inputs: Float[np.ndarray, "T 64"]
    test_labels: Int[np.ndarray, " T"]


def step_counts(
    imbalance_ratio: float, majority: int = MAJORITY, num_minority: int = 5
) -> tuple[int, ...]:
    """Return class counts of a step: `majority`, and the number nearest to majority / ratio.

    Raises:
        ValueError: A ratio that leaves less than half a sample, or a number of minority classes
            that there cannot be.
    """
    if not (imbalance_ratio >= 1 and majority / imbalance_ratio >= 0.5):
        raise ValueError(
            f"`imbalance_ratio` must be from 1 to {2 * majority}, got {imbalance_ratio}."
        )
    if not 0 <= num_minority <= CLASSES:
        raise ValueError(f"`num_minority` must be from 0 to {CLASSES}, got {num_minority}.")
    minority = max(1, round(majority / imbalance_ratio))
    return (majority,) * (CLASSES - num_minority) + (minority,) * num_minority


def load(class_counts: Sequence[int], seed: int = 0) -> Split:
    """Return the digits, `class_counts[k]` training samples of digit k at random, others to test.

    The samples of a smaller count are among those of a larger one.

    Raises:
        ValueError: Not ten counts, or a count that there are not as many digits for.
    """
    from sklearn.datasets import load_digits

    images, digits = load_digits(return_X_y=True)
    available = np.bincount(digits, minlength=CLASSES)
    counts = np.asarray(class_counts)
    if counts.shape != (CLASSES,) or counts.dtype.kind not in "iu":
        raise ValueError(
            f"`class_counts` must be {CLASSES} integers, one for each digit, got {class_counts}."
        )
    if np.any(counts < 1) or np.any(counts > available):
        wrong = int(np.flatnonzero((counts < 1) | (counts > available))[0])
        raise ValueError(
            f"`class_counts` must be from 1 to {available.tolist()}, the numbers of images of each "
            f"digit, got {counts[wrong]} for digit {wrong}."
        )
    generator = np.random.default_rng(seed)
    order = [generator.permutation(np.flatnonzero(digits == k)) for k in range(CLASSES)]
    train = np.concatenate([order[k][: counts[k]] for k in range(CLASSES)])
    test = np.concatenate([order[k][counts[k] :] for k in range(CLASSES)])
    inputs = (images / images.max()).astype(np.float32)
    return Split(inputs[train], digits[train], inputs[test], digits[test])


class Setting(NamedTuple):
    """One run.

    name: of its files. class_counts: (10,). loss: "ce" or "mse". peeled: how many of the last
    layers are penalised together with what enters them; None for weight decay of all layers.
    weight_decay: lambda. feature_decay: mu, of the mean squared norm, N lambda_H in the convention
    of `ufm.WeightDecay`. normalise: layer normalisation, without parameters, before every ReLU.
    bias: in every layer, penalised with its weights. hidden: widths. seed: of the digits chosen and
    of the initial weights.
    """

    name: str
    class_counts: tuple[int, ...]
    loss: str = "ce"
    peeled: int | None = 1
    weight_decay: float = 5e-3
    feature_decay: float = 5e-3
    normalise: bool = False
    bias: bool = False
    hidden: tuple[int, ...] = (128, 128, 128)
    steps: int = 3000
    learning_rate: float = 2e-3
    seed: int = 0

    @property
    def layer_decays(self) -> tuple[float, ...]:
        """The weight decay of each layer, first layer first."""
        count = len(self.hidden) + 1
        peeled = count if self.peeled is None else self.peeled
        return (LOWER_DECAY,) * (count - peeled) + (self.weight_decay,) * peeled

    @property
    def output_decays(self) -> tuple[float, ...]:
        """The penalty mu of the outputs of each hidden layer, zero but for one."""
        count = len(self.hidden)
        return tuple(
            self.feature_decay if self.peeled is not None and layer == count - self.peeled else 0.0
            for layer in range(count)
        )


class Layer(NamedTuple):
    """A layer's weights, (out, in), and bias, (out,), or None."""

    weights: Array
    bias: Array | None


def checked(setting: Setting) -> Setting:
    """Return the setting.

    Raises:
        ValueError: An unknown loss, a number of peeled layers that there are not, or a penalty that
            is not positive.
    """
    if setting.loss not in LOSS_OF:
        raise ValueError(f"`loss` must be one of {[*LOSS_OF]}, got {setting.loss!r}.")
    if setting.peeled is not None and not 1 <= setting.peeled <= len(setting.hidden):
        raise ValueError(
            f"`peeled` must be from 1 to {len(setting.hidden)}, or None for all layers, "
            f"got {setting.peeled}."
        )
    for name in ("weight_decay", "feature_decay", "learning_rate", "steps"):
        if not getattr(setting, name) > 0:
            raise ValueError(f"`{name}` must be positive, got {getattr(setting, name)}.")
    return setting


def initial(setting: Setting) -> tuple[Layer, ...]:
    """Return random weights of variance 2 / in (He et al. 2015) and biases of zero, float32."""
    sizes = (PIXELS, *setting.hidden, CLASSES)
    keys = jax.random.split(jax.random.key(setting.seed), len(sizes) - 1)
    return tuple(
        Layer(
            jax.random.normal(key, (fan_out, fan_in), jnp.float32)
            * np.float32(np.sqrt(2 / fan_in)),
            jnp.zeros(fan_out, jnp.float32) if setting.bias else None,
        )
        for key, fan_in, fan_out in zip(keys, sizes[:-1], sizes[1:], strict=True)
    )


def outputs(layers: Sequence[Layer], inputs: Array, normalise: bool = False) -> list[Array]:
    """Return what every layer puts out: after the ReLU, and the logits last."""
    rows = [inputs]
    for layer in layers:
        values = rows[-1] @ layer.weights.T
        if layer.bias is not None:
            values = values + layer.bias[None, :]
        if layer is not layers[-1]:
            if normalise:
                values = values - values.mean(axis=1, keepdims=True)
                values = values * jax.lax.rsqrt(
                    (values**2).mean(axis=1, keepdims=True) + np.float32(EPSILON)
                )
            values = relu(values)
        rows.append(values)
    return rows[1:]


class _Data(NamedTuple):
    """Padded samples: shares are 1/N, and zero for padding."""

    inputs: Array
    targets: Array
    shares: Array


class _Penalties(NamedTuple):
    layers: Array
    outputs: Array


def _padded(inputs: np.ndarray, labels: np.ndarray) -> _Data:
    missing = -len(labels) % PADDING
    shares = np.pad(np.full(len(labels), 1 / len(labels), np.float32), (0, missing))
    targets = np.eye(CLASSES, dtype=np.float32)[labels]
    arrays = (
        np.pad(inputs, ((0, missing), (0, 0))),
        np.pad(targets, ((0, missing), (0, 0))),
        shares,
    )
    return _Data(*(jnp.asarray(array, jnp.float32) for array in arrays))


def objective(
    layers: Sequence[Layer], data: _Data, penalties: _Penalties, loss: str, normalise: bool
) -> Array:
    """Return the objective that training minimises."""
    *hidden, logits = outputs(layers, data.inputs, normalise)
    if loss == "ce":
        losses = jax.nn.logsumexp(logits, axis=1) - (logits * data.targets).sum(axis=1)
    else:
        losses = ((logits - data.targets) ** 2).sum(axis=1) / 2
    total = data.shares @ losses
    for index, layer in enumerate(layers):
        total += (
            penalties.layers[index] / 2 * sum((leaf**2).sum() for leaf in jax.tree.leaves(layer))
        )
    for index, rows in enumerate(hidden):
        total += penalties.outputs[index] / 2 * (data.shares @ (rows**2).sum(axis=1))
    return total


_ADAM = optax.scale_by_adam()


@functools.partial(jax.jit, static_argnames=("loss", "normalise"))
def _advance(
    layers: Any,
    state: Any,
    data: _Data,
    penalties: _Penalties,
    rates: Array,
    *,
    loss: str,
    normalise: bool,
) -> Any:
    """Take a step of Adam at each of the rates."""

    def step(carry: Any, rate: Array) -> Any:
        layers, state = carry
        updates, state = _ADAM.update(
            jax.grad(objective)(layers, data, penalties, loss, normalise), state
        )
        return (
            jax.tree.map(lambda leaf, update: leaf - rate * update, layers, updates),
            state,
        ), None

    return jax.lax.scan(step, (layers, state), rates)[0]


@functools.partial(jax.jit, static_argnames=("loss", "normalise"))
def _state_of(
    layers: Any, data: _Data, penalties: _Penalties, *, loss: str, normalise: bool
) -> tuple[Array, Array]:
    """Return the objective and the norm of its gradient."""
    value, gradient = jax.value_and_grad(objective)(layers, data, penalties, loss, normalise)
    return value, jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(gradient)))


_outputs = jax.jit(outputs, static_argnames="normalise")


def learning_rates(setting: Setting) -> np.ndarray:
    """Return the rate of every step, (steps,): up for 100 steps, then a cosine to a thousandth."""
    step = np.arange(setting.steps)
    cosine = 0.001 + 0.999 * (1 + np.cos(np.pi * step / setting.steps)) / 2
    return (setting.learning_rate * np.minimum(1, (step + 1) / 100) * cosine).astype(np.float32)


class Run(NamedTuple):
    """A network, trained or on its way.

    setting: what was asked for. weights, biases: of every layer, biases None without. features:
    what every hidden layer puts out on the training samples. labels: of the training samples.
    history: by name, values along training: `step`, `seconds`, `objective`, `gradient`, `error`,
    `test_error`, (T,); metrics of `ufm.metrics.NeuralCollapse.to_dict` for every hidden layer, (T,
    layers), and of the last one, (T,). seconds: of training and measuring.
    """

    setting: Setting
    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray | None, ...]
    features: tuple[np.ndarray, ...]
    labels: np.ndarray
    history: dict[str, np.ndarray]
    seconds: float

    @property
    def complete(self) -> bool:
        """Whether all steps were taken."""
        return bool(self.history["step"][-1] == self.setting.steps)


EVERY_LAYER = (
    "nc1_pinv",
    "nc1_trace_ratio",
    "nc1_cdnv",
    "nc2_features_etf_distance",
    "nc2_features_orthogonal_distance",
    "nc2_features_norm_variation",
)
LAST_LAYER = (
    "nc2_weights_etf_distance",
    "nc2_weights_norm_variation",
    "nc3_squared_distance",
    "nc4_mismatch",
)


def layer_name(index: int) -> str:
    """Return the name of a hidden layer."""
    return f"hidden {index + 1}"


def measure(
    layers: Sequence[Layer], setting: Setting, split: Split, batch: int = 512
) -> dict[str, Any]:
    """Return the collapse of every hidden layer, measured in batches, and the shares of errors.

    Returns:
        By the layer's name its `ufm.networks.Measurement`; `error` and `test_error`, shares of
        samples.
    """

    def batches() -> Iterable[tuple[dict[str, Array], np.ndarray]]:
        for start in range(0, len(split.labels), batch):
            part = slice(start, start + batch)
            rows = _outputs(layers, jnp.asarray(split.inputs[part]), normalise=setting.normalise)
            yield (
                {layer_name(index): block for index, block in enumerate(rows[:-1])},
                split.labels[part],
            )

    last = layer_name(len(setting.hidden) - 1)
    bias = layers[-1].bias
    found: dict[str, Any] = networks.measure_layers(
        batches, CLASSES, {last: layers[-1].weights}, None if bias is None else {last: bias}
    )
    logits = _outputs(layers, jnp.asarray(split.test_inputs), normalise=setting.normalise)[-1]
    found["error"] = 1 - float(found[last].collapse.nc4.accuracy)
    found["test_error"] = float(np.mean(np.argmax(np.asarray(logits), axis=1) != split.test_labels))
    return found


def _record(found: dict[str, Any], setting: Setting, **numbers: float) -> dict[str, Any]:
    metrics = [found[layer_name(index)].collapse.to_dict() for index in range(len(setting.hidden))]
    row: dict[str, Any] = {**numbers, "error": found["error"], "test_error": found["test_error"]}
    row |= {name: [one[name] for one in metrics] for name in EVERY_LAYER}
    return row | {name: metrics[-1][name] for name in LAST_LAYER}


def train(setting: Setting, looks: int = 20, show: Callable[[str], None] | None = None) -> Run:
    """Train a network, and look at it `looks` times along the way, at steps that grow like powers.

    An interruption (KeyboardInterrupt) ends the training: the run is returned as far as it has
    come.

    Args:
        setting: what to train.
        looks: how often to measure, the beginning and the end included.
        show: called with a line after every look.
    """
    setting, began = checked(setting), time.monotonic()
    split = load(setting.class_counts, setting.seed)
    data = _padded(split.inputs, split.labels)
    penalties = _Penalties(
        *(
            jnp.asarray(decays, jnp.float32)
            for decays in (setting.layer_decays, setting.output_decays)
        )
    )
    kind = {"loss": setting.loss, "normalise": setting.normalise}
    layers, rates = initial(setting), learning_rates(setting)
    state: Any = _ADAM.init(layers)
    history: list[dict[str, Any]] = []

    def look(step: int) -> None:
        value, gradient = _state_of(layers, data, penalties, **kind)
        numbers = {
            "objective": float(value),
            "gradient": float(gradient),
            "seconds": time.monotonic() - began,
        }
        history.append(_record(measure(layers, setting, split), setting, step=step, **numbers))
        if show:
            row = history[-1]
            place = f"{setting.name}: step {step}, {row['seconds']:.1f} s"
            show(
                f"{place}, objective {row['objective']:.6f}, error {row['error']:.4f}, "
                f"NC1 {row['nc1_pinv'][-1]:.1e}"
            )

    chunks, step = -(-setting.steps // CHUNK), 0
    looked = np.unique(np.round(np.geomspace(1, chunks, max(looks - 1, 1))).astype(int))
    try:
        look(0)
        for chunk in range(1, chunks + 1):
            block = jnp.asarray(rates[step : step + CHUNK])
            layers, state = jax.block_until_ready(
                _advance(layers, state, data, penalties, block, **kind)
            )
            step += len(block)
            if chunk in looked:
                look(step)
    except KeyboardInterrupt:
        if show:
            show(f"{setting.name}: interrupted after {step} of {setting.steps} steps")
        if not history or history[-1]["step"] != step:
            look(step)
    rows = _outputs(layers, jnp.asarray(split.inputs), normalise=setting.normalise)
    return Run(
        setting,
        tuple(np.asarray(layer.weights) for layer in layers),
        tuple(None if layer.bias is None else np.asarray(layer.bias) for layer in layers),
        tuple(np.asarray(block) for block in rows[:-1]),
        split.labels,
        {name: np.array([row[name] for row in history]) for name in history[0]},
        time.monotonic() - began,
    )


def save(run: Run, path: Path) -> None:
    """Write a run to an .npz file, whole or not at all, in the form that `ufm measure` reads."""
    setting = run.setting
    arrays: dict[str, Any] = {
        "features": run.features[-1],
        "labels": run.labels,
        "weights": run.weights[-1],
        "weight_decay": setting.layer_decays[-1],
        "loss": setting.loss,
        "nonnegative": True,
        "setting": json.dumps(setting._asdict()),
        "seconds": run.seconds,
    }
    arrays |= {f"features_{index}": rows for index, rows in enumerate(run.features[:-1])}
    arrays |= {f"weights_{index}": matrix for index, matrix in enumerate(run.weights[:-1])}
    if setting.bias:
        arrays |= {"bias": run.biases[-1]} | {
            f"bias_{index}": bias for index, bias in enumerate(run.biases[:-1])
        }
    arrays |= {f"history_{name}": values for name, values in run.history.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(partial, path)


def restore(path: Path) -> Run:
    """Return a run from its file. Nothing in it is unpickled.

    Raises:
        ValueError: The file does not hold a run.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        fields = json.loads(str(arrays["setting"]))
        setting = Setting(
            **fields | {name: tuple(fields[name]) for name in ("class_counts", "hidden")}
        )
        count = len(setting.hidden)

        def of_layers(name: str, last: int) -> tuple[Any, ...]:
            return tuple(
                arrays.get(name if index == last else f"{name}_{index}")
                for index in range(last + 1)
            )

        history = {
            name.removeprefix("history_"): array
            for name, array in arrays.items()
            if name.startswith("history_")
        }
        return Run(
            setting,
            of_layers("weights", count),
            of_layers("bias", count),
            of_layers("features", count - 1),
            arrays["labels"],
            history,
            float(arrays["seconds"]),
        )
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"`path` must be a file of a run, got {os.fspath(path)!r}: {error}; remove it."
        ) from error


def seen(run: Run, layers: int = 1) -> networks.TrainedNetwork:
    """Return the last layers of a run as the models see them.

    Raises:
        ValueError: More layers than there are, or two and more of a network that normalises between
            them.
    """
    if not 1 <= layers <= len(run.features) or (layers > 1 and run.setting.normalise):
        raise ValueError(
            f"`layers` must be 1, or up to {len(run.features)} without normalisation, got {layers}."
        )
    return networks.TrainedNetwork.from_features(
        run.features[-layers],
        run.labels,
        run.weights[-layers:],
        run.biases[-1],
        weight_decay=run.setting.layer_decays[-layers:],
        loss=LOSS_OF[run.setting.loss],
        hidden_biases=run.biases[-layers:-1],
        nonnegative=True,
    )


def against_models(run: Run) -> dict[str, networks.ModelComparison]:
    """Hold a run against models of its last layers, by name.

    "linear": the last layer and free features. "ReLU": the same with non-negative features, as
    these left a ReLU. "extended linear": the last two layers, without the ReLU between them.
    "extended ReLU": with it, and non-negative features. The feature decay of each is fitted by the
    balance of its first layer. The extended models have several minima: it is the one that descent
    from the network finds. They are left out where the last layer but one has no weight decay to
    speak of, or normalises.
    """
    one = seen(run)
    found = {
        "linear": networks.compare_with_model(one._replace(nonnegative=False)),
        "ReLU": networks.compare_with_model(one),
    }
    if run.setting.peeled != 1 and not run.setting.normalise:
        two = seen(run, 2)
        linear = two._replace(nonnegative=False, activation="linear")
        found["extended linear"] = networks.compare_with_model(linear, start="network")
        found["extended ReLU"] = networks.compare_with_model(two, start="network")
    return found


def group_cosines(cosines: np.ndarray, num_minority: int = 5) -> tuple[float, float, float]:
    """Return mean cosines: of two majority classes, of two minority classes, of one of each."""
    first = len(cosines) - num_minority
    parts = cosines[:first, :first], cosines[first:, first:]
    within = [float(part[~np.eye(len(part), dtype=bool)].mean()) for part in parts]
    return within[0], within[1], float(cosines[:first, first:].mean())


class Curve(NamedTuple):
    """Predictions along imbalance ratios, (R,).

    Cosines of classifiers, norms of minority over majority classes, certified relative gaps.
    """

    ratios: np.ndarray
    majority: np.ndarray
    minority: np.ndarray
    across: np.ndarray
    weight_norms: np.ndarray
    mean_norms: np.ndarray
    gaps: np.ndarray


def predicted(setting: Setting, ratios: Iterable[float], nonnegative: bool = True) -> Curve:
    """Return what the model of one peeled layer predicts for steps of five classes, nothing fitted.

    Raises:
        ValueError: Another number of peeled layers, for which the penalties of the features are not
            known.
    """
    if setting.peeled != 1:
        raise ValueError(
            f"`setting` must have one peeled layer, got {setting.peeled}: "
            "its feature decay is not known."
        )
    rows = []
    for ratio in ratios:
        counts = np.array([MAJORITY, MAJORITY / ratio])
        problem = ufm.Problem(
            class_counts=ufm.ClassGroups(tuple(counts.tolist()), (5, 5)),
            feature_dim=setting.hidden[-1],
            loss=LOSS_OF[setting.loss],
            regularizer=ufm.WeightDecay(
                setting.weight_decay, setting.feature_decay / (5 * counts.sum())
            ),
            use_bias=setting.bias,
            nonnegative_features=nonnegative,
        )
        solution = ufm.solve(problem, resolution="groups")
        cosines, gap = (
            solution.weight_cosines,
            solution.certificate.relative_gap,
        )  # for equal counts, of one group
        norms, means = (
            values[-1] / values[0] for values in (solution.weight_norms, solution.feature_norms)
        )
        rows.append((ratio, cosines[0, 0], cosines[-1, -1], cosines[0, -1], norms, means, gap))
    return Curve(*np.array(rows, dtype=np.float64).T)


PEELED = {  # stronger for squared error, which is the slower the weaker they are
    "ce": {},
    "mse": {"weight_decay": 2e-2, "feature_decay": 2e-2},
}
PLAIN = {  # weight decay of all layers: what reaches the terminal phase in 3000 steps
    "ce": {"peeled": None, "weight_decay": 1e-3, "learning_rate": 5e-3},
    "mse": {"peeled": None, "weight_decay": 1e-3, "learning_rate": 1e-2},
}


def settings(quick: bool = False) -> list[Setting]:
    """Return all runs: both losses and both kinds of penalties along the ratios.

    Balanced classes have two peeled layers, and normalisation, besides.
    """
    found = []
    for ratio in (1, 30) if quick else RATIOS:
        counts = step_counts(ratio)
        for loss in LOSS_OF:
            found.append(Setting(f"{loss}-peeled1-ratio{ratio}", counts, loss, **PEELED[loss]))
            found.append(Setting(f"{loss}-plain-ratio{ratio}", counts, loss, **PLAIN[loss]))
            if ratio == 1:
                found.append(
                    Setting(f"{loss}-peeled2-ratio1", counts, loss, peeled=2, **PEELED[loss])
                )
    normalised = {"peeled": None, "normalise": True, "weight_decay": 4e-3, "learning_rate": 1e-2}
    found.append(Setting("ce-normalised-ratio1", step_counts(1), **normalised))
    return (
        [setting._replace(steps=200, hidden=(64, 64, 64)) for setting in found] if quick else found
    )


def ratio_of(setting: Setting) -> float:
    """Return the largest class count over the smallest."""
    return max(setting.class_counts) / min(setting.class_counts)


def draw_training(runs: Sequence[Run]) -> Any:
    """Return a figure along training, a row for each run.

    It shows NC1 of every hidden layer, NC2 to NC4 of the last, and errors.
    """
    import matplotlib.pyplot as plt

    from ufm import plots

    colors = [
        plots.PALETTE[name] for name in ("sky", "green", "blue", "vermillion", "purple", "orange")
    ]
    figure, axes = plt.subplots(
        len(runs), 3, figsize=(12, 2.5 * len(runs)), layout="constrained", squeeze=False
    )
    for row, run in zip(axes, runs, strict=True):
        history = {
            name: values[1:] for name, values in run.history.items()
        }  # a logarithmic axis has no place for step 0
        steps = history["step"]
        for index, color in zip(range(len(run.features)), colors, strict=False):
            row[0].loglog(
                steps, history["nc1_pinv"][:, index], color=color, label=layer_name(index)
            )
        row[0].set(ylabel=run.setting.name, title=r"NC1: $\mathrm{tr}(S_W S_B^+)/K$")
        for (name, label), color in zip(_GEOMETRY.items(), colors[2:], strict=False):
            values = history[name]
            row[1].loglog(
                steps, values[:, -1] if values.ndim == 2 else values, color=color, label=label
            )
        row[1].set(title="NC2 and NC3 of the last layer")
        for (name, label), color in zip(_ERRORS.items(), colors[3:], strict=False):
            row[2].plot(steps, 100 * history[name], color=color, label=label)
        row[2].set(title="share of samples, %", xscale="log", ylim=(-1, 30))
        for axis in row:
            axis.legend(fontsize="x-small")
            axis.set_xlabel("step")
    return figure


_GEOMETRY = {
    "nc2_features_etf_distance": "NC2 means to ETF",
    "nc2_weights_etf_distance": "NC2 classifiers to ETF",
    "nc3_squared_distance": r"NC3 $|W/|W| - M/|M||^2$",
}
_ERRORS = {"error": "training error", "test_error": "test error", "nc4_mismatch": "NC4 mismatch"}


def draw_imbalance(
    reports: dict[str, networks.ModelComparison], curves: dict[str, Curve] | None = None
) -> Any:
    """Return a figure of angles and norms along the imbalance ratio.

    Measured numbers are filled, those predicted for each network open, and curves are lines.

    Args:
        reports: by name, networks held against one model, of different ratios.
        curves: by name, what models predict without a network.
    """
    import matplotlib.pyplot as plt

    from ufm import plots

    blue, vermillion = plots.PALETTE["blue"], plots.PALETTE["vermillion"]
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    for style, (name, curve) in zip(("-", ":", "--"), (curves or {}).items(), strict=False):
        axes[0].semilogx(
            curve.ratios, curve.minority, style, color=vermillion, label=f"minority, {name}"
        )
        axes[0].semilogx(curve.ratios, curve.majority, style, color=blue, label=f"majority, {name}")
        axes[1].semilogx(curve.ratios, curve.weight_norms, style, color=blue, label=name)
        axes[2].semilogx(curve.ratios, curve.mean_norms, style, color=blue, label=name)
    for index, report in enumerate(reports.values()):
        ratio = float(report.trained.class_counts.max() / report.trained.class_counts.min())
        for state, marker in ((report.measured, "filled"), (report.predicted, "open")):
            what = {"filled": "measured", "open": "predicted from this network"}[marker]
            majority, minority, _ = group_cosines(state.weight_cosines)
            points = [
                (axes[0], minority, vermillion, f"minority, {what}"),
                (axes[0], majority, blue, f"majority, {what}"),
            ]
            for axis, norms in ((axes[1], state.weight_norms), (axes[2], state.mean_norms)):
                points.append((axis, float(norms[5:].mean() / norms[:5].mean()), blue, what))
            for axis, value, color, label in points:
                face = color if marker == "filled" else "none"
                size = 6 if marker == "filled" else 9
                axis.semilogx(
                    ratio,
                    value,
                    "o",
                    color=color,
                    markerfacecolor=face,
                    markersize=size,
                    label=None if index else label,
                )
    axes[0].set(ylabel="cosine between two classifiers")
    axes[1].set(ylabel=r"$\|w_{min}\|\,/\,\|w_{maj}\|$")
    axes[2].set(ylabel=r"$\|\mu_{min}\|\,/\,\|\mu_{maj}\|$")
    for axis in axes:
        axis.set_xlabel("imbalance ratio $R$")
        axis.legend(fontsize="x-small")
    return figure


QUANTITIES = ("objective", "weight cosines", "mean cosines", "weight norms", "mean norms", "logits")
HEAD = (
    "run",
    "loss",
    "penalties",
    "ratio",
    "steps",
    "training error",
    "test error",
    "NC1",
    "model",
    "verdict",
    "balance",
    "minority cosine",
)


def summary(run: Run, reports: dict[str, networks.ModelComparison]) -> list[tuple[Any, ...]]:
    """Return a row for each model: what was measured, then errors of `QUANTITIES`.

    Errors are those of single classes and of averages over groups of classes.
    """
    setting, history = run.setting, run.history
    penalties = "all layers" if setting.peeled is None else f"last {setting.peeled}"
    start = (setting.name, setting.loss, penalties, ratio_of(setting), int(history["step"][-1]))
    start += (
        float(history["error"][-1]),
        float(history["test_error"][-1]),
        float(history["nc1_pinv"][-1, -1]),
    )
    rows = []
    for name, report in reports.items():
        measured = group_cosines(report.measured.weight_cosines)[1]
        found = (name, report.agreement.kind, report.effective.balance.residual, measured)
        minority = group_cosines(report.predicted.weight_cosines)[1]
        errors = [
            error
            for quantity in QUANTITIES
            for error in (report[quantity].error, report[quantity].group_error)
        ]
        rows.append((*start, *found, minority, *errors))
    return rows


def summary_head() -> tuple[str, ...]:
    """Return the names of the columns of `summary`."""
    errors = [
        text
        for quantity in QUANTITIES
        for text in (f"{quantity} error", f"{quantity} error of groups")
    ]
    return (*HEAD, "minority cosine predicted", *errors)


def _kept(path: Path, setting: Setting) -> Run | None:
    """Return the run that a file holds, if it is this one and complete."""
    if not path.exists():
        return None
    run = restore(path)
    return run if run.setting == setting and run.complete else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Train all runs, and write files, pages and figures.

    Returns:
        The exit status: 130 after an interruption, 2 for bad input.
    """
    parser = argparse.ArgumentParser(
        description="Train networks on handwritten digits, and hold them against their models."
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="where everything is written, made if it is not there; runs that are there are kept",
    )
    parser.add_argument(
        "--quick", action="store_true", help="few and short runs, far from collapse"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these runs alone")
    parser.add_argument("--list", action="store_true", help="name the runs, and stop")
    options = parser.parse_args(arguments)
    chosen = settings(options.quick)
    if options.list:
        print(*(setting.name for setting in chosen), sep="\n")
        return 0
    if not options.out:
        print("--out must be given: the folder to write to", file=sys.stderr)
        return 2
    unknown = set(options.only or ()) - {setting.name for setting in chosen}
    if unknown:
        print(
            f"--only must name runs that `--list` lists, got {sorted(unknown)[0]!r}",
            file=sys.stderr,
        )
        return 2
    wanted = [setting for setting in chosen if not options.only or setting.name in options.only]
    try:
        folder = writable(options.out)
        kept = {setting.name: _kept(folder / f"{setting.name}.npz", setting) for setting in wanted}
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        interrupted = not _run_all(wanted, kept, folder, options.quick)
    except OSError as error:
        print(
            f"--out {options.out}: {error}; the same command goes on from what was written before",
            file=sys.stderr,
        )
        return 2
    if interrupted:
        print(
            f"interrupted: what was computed is in {options.out}; "
            "the same command goes on from there",
            file=sys.stderr,
        )
    return 130 if interrupted else 0


def writable(folder: str) -> Path:
    """Return a folder that files can be written to; it is made if it is not there.

    Raises:
        ValueError: It cannot be made, or nothing can be written there.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(
            f"--out {folder}: not a folder that can be written to ({reason}); "
            "name another, or a path where one can be made"
        ) from error
    return path


def _run_all(
    chosen: Sequence[Setting], kept: dict[str, Run | None], folder: Path, quick: bool
) -> bool:
    """Train what is not there yet, and write everything.

    Return whether it came to the end without an interruption.
    """
    done: dict[str, Run] = {}
    interrupted = False
    try:
        for setting in chosen:
            run = kept[setting.name] or train(setting, show=lambda line: print(line, flush=True))
            save(run, folder / f"{setting.name}.npz")
            done[setting.name] = run
            interrupted = not run.complete
            if interrupted:
                break
    except KeyboardInterrupt:
        interrupted = True
    try:
        write(done, folder, quick)
    except KeyboardInterrupt:
        interrupted = True
    return not interrupted


def trained_as(run: Run, quick: bool = False) -> str:
    """Return in words how a network was trained and where it ended; `quick` says a short trial."""
    setting, history = run.setting, run.history
    name = {"ce": "cross-entropy", "mse": "squared error"}[setting.loss]
    if setting.peeled is None:
        decay = f"weight decay {setting.weight_decay:g} of all layers"
    else:
        layers = "the last layer" if setting.peeled == 1 else f"the last {setting.peeled} layers"
        decay = (
            f"weight decay {setting.weight_decay:g} of {layers} and "
            f"{setting.feature_decay:g} / {len(run.labels)} of the features that enter, "
            f"{LOWER_DECAY:g} below"
        )
    words = (
        f"Hidden ReLU layers of {', '.join(map(str, setting.hidden))} units"
        f"{', normalised' if setting.normalise else ''}, "
        f"{'with biases' if setting.bias else 'no biases'}, {name}, {decay}. "
        "Training samples of the digits: "
        f"{', '.join(map(str, setting.class_counts))}. "
        f"After {setting.steps} steps of full-batch Adam the training error is "
        f"{history['error'][-1]:.2%}, the test error {history['test_error'][-1]:.2%}."
    )
    if quick:
        words += (
            "\n\nThis is a short trial (--quick), to see that everything works: "
            "the network is far from collapse, and its model need not "
            "describe it."
        )
    return words


def side_by_side(found: dict[str, networks.ModelComparison]) -> list[tuple[str, ...]]:
    """Return the errors of all models as texts, the head first.

    A star marks those that read as the least of a row, unless all of it do.
    """
    head, *rows = networks.ModelComparisons(tuple(found.values())).table()
    table = [("error", *found, head[-1])]
    for name, *cells, relative_to in rows:
        numbers = [cell.removesuffix("*") for cell in cells]
        least = (
            {cell.removesuffix("*") for cell in cells if cell.endswith("*")}
            if len(set(numbers)) > 1
            else set()
        )
        table.append((name, *(number + "*" * (number in least) for number in numbers), relative_to))
    return table


def write(runs: dict[str, Run], folder: Path, quick: bool = False) -> None:
    """Write a page for every run, summary.csv and the figures; `quick` marks pages as trials."""
    from ufm.plots import report as pages

    by_name, rows = {}, []
    for name, run in runs.items():
        if not run.complete:
            continue
        found = by_name[name] = against_models(run)
        rows += summary(run, found)
        verdicts = "\n\n".join(f"{model}: {one.agreement.words}" for model, one in found.items())
        caption = (
            "Errors of the models; stars mark the least of a row to two digits, where not all are"
        )
        pages.write_page(
            folder / name,
            pages.Section("How the network was trained", [trained_as(run, quick)]),
            ufm.metrics.neural_collapse(
                run.features[-1], run.labels, run.weights[-1], run.biases[-1]
            ),
            found["ReLU"],
            pages.Section(
                "All models side by side", [verdicts, pages.Table(side_by_side(found), caption)]
            ),
            title=f"Digits: {name}{' (a short trial)' if quick else ''}",
        )
        print(
            f"{name}: "
            f"{'; '.join(f'{model}: {one.agreement.kind}' for model, one in found.items())}",
            flush=True,
        )
    if not rows:
        return
    with open(folder / "summary.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([summary_head(), *rows])
    balanced = [run for run in runs.values() if run.complete and ratio_of(run.setting) == 1]
    if balanced:
        draw_training(balanced).savefig(folder / "training.png", dpi=120)
    for loss in LOSS_OF:
        for kind in ("peeled1", "plain"):
            chosen = {
                name: found["ReLU"]
                for name, found in by_name.items()
                if name.startswith(f"{loss}-{kind}")
            }
            if chosen:
                curves = {}
                if kind == "peeled1":
                    setting = runs[next(iter(chosen))].setting
                    curves["certified"] = predicted(setting, np.geomspace(1, max(RATIOS), 25))
                draw_imbalance(chosen, curves).savefig(
                    folder / f"imbalance-{loss}-{kind}.png", dpi=120
                )


if __name__ == "__main__":
    sys.exit(main())
