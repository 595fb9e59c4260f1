from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tables import for_each

import ufm
from ufm.metrics import neural_collapse
from ufm.networks import collect, last_linear, measure_model
from ufm.networks.measure.last_layer import Linear, check_affine

pytestmark = pytest.mark.filterwarnings("ignore")  # of the frameworks


class Loader:
    """Three batches of inputs and labels, of unequal size, in one type of array."""

    def __init__(
        self, convert: Any = lambda array: array, shape: tuple[int, ...] = (5,), labels: Any = None
    ):
        rng = np.random.default_rng(0)
        self.labels = np.arange(24) % 3
        self.inputs = rng.normal(size=(24, *shape)).astype(np.float32)
        self.inputs.reshape(24, -1)[:, :3] += 2 * np.eye(3, dtype=np.float32)[self.labels]
        self.convert, self.to_labels = convert, labels or convert

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for part in (slice(0, 10), slice(10, 20), slice(20, 24)):
            yield self.convert(self.inputs[part]), self.to_labels(self.labels[part])


def gathered(batches: Any, layer: str) -> np.ndarray:
    return np.concatenate([np.asarray(features[layer]) for features, *_ in batches])


class Affine:
    def run(self) -> str:
        return "W h + b"


class Renamed(Affine):
    pass


class Cosine(Affine):
    def run(self) -> str:
        return "W h / (|W| |h|) + b"


def test_layers_that_are_not_affine_are_told_from_those_that_are() -> None:
    for layer in (Affine(), Renamed()):
        check_affine("head", layer, Affine, "run", list)
    with pytest.raises(ufm.ArgumentError, match=r"`model` must have a classifier W h .* a Cosine"):
        check_affine("head", Cosine(), Affine, "run", list)
    known = [Linear("last", 4, 3)]
    with pytest.raises(ufm.ArgumentError, match=r"`name` .* got 'head' \(str\); they are last\.$"):
        check_affine("head", "layer", Affine, "run", lambda: known)


# PyTorch


def torch_model(seed: int = 0) -> Any:
    torch = pytest.importorskip("torch")
    torch.manual_seed(seed)
    nn = torch.nn
    return nn.Sequential(
        nn.Linear(5, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(8, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    )


def torch_loader(**options: Any) -> Loader:
    torch = pytest.importorskip("torch")
    return Loader(torch.from_numpy, **options)


def torch_features(model: Any, inputs: np.ndarray, upto: int) -> np.ndarray:
    import torch

    modes = [one.training for one in model.modules()]
    model.eval()
    with torch.no_grad():
        features = model[:upto](torch.from_numpy(inputs)).numpy()
    for one, mode in zip(model.modules(), modes, strict=True):
        one.training = mode
    return features


def test_torch_features_are_the_inputs_of_the_last_linear_layer() -> None:
    model, loader = torch_model(), torch_loader()
    batches = collect(model, loader)
    assert batches.layers == ("6:in",)
    for _ in range(2):  # again and again
        np.testing.assert_array_equal(
            gathered(batches, "6:in"), torch_features(model, loader.inputs, 6)
        )
    last = last_linear(model)
    assert last.name == "6"
    assert last.weights.dtype == np.float64
    np.testing.assert_array_equal(last.weights, model[6].weight.detach().numpy())
    np.testing.assert_array_equal(last.bias, model[6].bias.detach().numpy())
    result = measure_model(model, loader, loss=ufm.CrossEntropy(), groups=[0, 0, 1])["6:in"]
    features = torch_features(model, loader.inputs, 6)
    expected = neural_collapse(features, loader.labels, last.weights, last.bias)
    np.testing.assert_allclose(result.collapse.nc1.pinv, expected.nc1.pinv, rtol=1e-10)
    assert result.collapse.nc4.accuracy == expected.nc4.accuracy
    assert result.loss is not None
    assert result.groups is not None


def test_torch_layers_before_others_work_in_place() -> None:
    model, loader = torch_model(), torch_loader()
    batches = collect(model, loader, ["1", "2", "4:in", "4"])
    for layer, upto in (("1", 2), ("2", 3), ("4:in", 4), ("4", 5)):
        np.testing.assert_array_equal(
            gathered(batches, layer), torch_features(model, loader.inputs, upto), err_msg=layer
        )
    found = measure_model(model, loader, ["0", "4:in", "6:in"], passes=1)
    assert [found[name].moments.dim for name in ("0", "4:in", "6:in")] == [8, 8, 6]
    assert found["4:in"].collapse.nc3 is None  # a hidden layer is no classifier
    assert found["6:in"].collapse.nc3 is not None


def test_torch_model_is_left_as_it_was() -> None:
    torch = pytest.importorskip("torch")
    model, loader = torch_model(), torch_loader()
    model.train()
    model[1].eval()  # frozen, as in fine-tuning
    modes = [one.training for one in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def untouched() -> bool:
        hooks = [len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.modules()]
        return modes == [one.training for one in model.modules()] and not any(hooks)

    iterator = iter(collect(model, loader))
    next(iterator)
    assert untouched()  # in the middle of a pass, too
    broken = [(torch.zeros(4, 7), torch.zeros(4, dtype=torch.int64))]
    with pytest.raises(RuntimeError):
        list(collect(model, broken))
    assert untouched()
    assert torch.is_grad_enabled()
    measure_model(model, loader)
    assert untouched()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_torch_convolutions_are_pooled_as_told() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16, 3)
    )
    loader = torch_loader(shape=(2, 4, 4))
    maps = torch_features(model, loader.inputs, 2)
    np.testing.assert_array_equal(
        gathered(collect(model, loader, "1", pool="flatten"), "1"), maps.reshape(24, -1)
    )
    np.testing.assert_allclose(
        gathered(collect(model, loader, "1", pool="mean"), "1"), maps.mean((2, 3)), rtol=1e-5
    )
    corner = collect(model, loader, "1", pool=lambda h: h[:, :, 0, 0])
    np.testing.assert_array_equal(gathered(corner, "1"), maps[:, :, 0, 0])
    with pytest.raises(
        ValueError,
        match=r"`pool` must be 'flatten', 'mean', 'positions' .*or a function .* "
        r"\(10, 4, 2, 2\) at '1', got None",
    ):
        list(collect(model, loader, "1"))
    with pytest.raises(ValueError, match=r"`pool` must be one of .* got 'max'"):
        collect(model, loader, "1", pool="max")
    sequences = torch.nn.Sequential(
        torch.nn.Conv1d(2, 4, 1), torch.nn.Flatten(), torch.nn.Linear(16, 3)
    )
    with pytest.raises(ValueError, match="`pool` must be a function for the shape"):
        list(collect(sequences, torch_loader(shape=(2, 4)), "0", pool="mean"))


def test_torch_inputs_of_several_arguments() -> None:
    torch = pytest.importorskip("torch")

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(5, 3, bias=False)

        def forward(self, first: Any, second: Any, scale: float = 1.0) -> Any:
            return self.head(input=scale * (first + second))

    model, loader = Model(), Loader()
    assert last_linear(model).bias is None
    pairs = [((torch.from_numpy(x), torch.from_numpy(x)), y) for x, y in loader]
    named = [({"first": x, "second": x}, y, np.ones(len(y))) for x, y in loader]
    for batches in (pairs, named):
        found = gathered(collect(model, batches, keywords={"scale": 2.0}), "head:in")
        np.testing.assert_allclose(found, 4 * loader.inputs, rtol=1e-6)
    assert measure_model(model, lambda: iter(named))["head:in"].collapse.nc3 is not None


def test_torch_bfloat16_models() -> None:
    torch = pytest.importorskip("torch")
    model = torch_model().to(torch.bfloat16)
    loader = Loader(lambda x: torch.from_numpy(x).to(torch.bfloat16), labels=torch.from_numpy)
    assert np.isfinite(measure_model(model, loader)["6:in"].collapse.nc1.pinv)


def two_heads() -> Any:
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8))
            self.one, self.two, self.unused = nn.Linear(8, 3), nn.Linear(8, 4), nn.Linear(2, 2)
            self.unused, self.shared = nn.Identity(), nn.ReLU()

        def forward(self, x: Any) -> Any:
            h = self.shared(self.body(x))
            return self.one(self.shared(h)), self.two(h)

    return Model()


def test_torch_what_is_ambiguous_is_listed() -> None:
    torch = pytest.importorskip("torch")
    model, loader = two_heads(), torch_loader()
    message = (
        "several that may be it: one, two; name one of them .* "
        "linear layers are body.0, body.2, one, two"
    )
    for call in (
        lambda: last_linear(model),
        lambda: collect(model, loader),
        lambda: measure_model(model, loader),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert last_linear(model, name="one").weights.shape == (3, 8)
    named = measure_model(model, loader, "one:in")["one:in"]
    assert named.collapse.nc2_weights is not None
    with pytest.raises(
        ValueError,
        match=r"`name` must be that of a linear layer, got 'shared'.* they are body.0, body.2, one",
    ):
        last_linear(model, name="shared")
    with pytest.raises(
        ValueError,
        match=r"`layers` must be names of layers, got 'three:in'; the layers are body, body.0",
    ):
        collect(model, loader, "three:in")
    with pytest.raises(ValueError, match="`layers` must name at least one layer"):
        collect(model, loader, [])
    with pytest.raises(ValueError, match="used once in each run of the network, got 'shared'"):
        list(collect(model, loader, "shared"))
    with pytest.raises(ValueError, match="must be used when the network runs, got 'unused'"):
        list(collect(model, loader, "unused"))
    with pytest.raises(
        ValueError, match="must have a linear layer, got one with the layers , 0, 1"
    ):
        last_linear(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.ReLU()))
    square = torch.nn.Sequential(*[torch.nn.Linear(3, 3) for _ in range(4)])
    assert last_linear(square).name == "3"
    recurrent = torch.nn.Sequential(torch.nn.LSTM(5, 4))
    with pytest.raises(ValueError, match="`layers` must give arrays, got tuple at '0'"):
        list(collect(recurrent, loader, "0"))


def test_torch_batches_with_indices_and_by_name() -> None:
    torch = pytest.importorskip("torch")
    model, loader = torch_model(), torch_loader()
    expected = measure_model(model, loader)["6:in"].collapse.nc1.pinv
    triples = [(x, y, torch.randperm(len(y)) + 1) for x, y in loader]
    assert measure_model(model, triples)["6:in"].collapse.nc1.pinv == expected
    assert measure_model(model, triples, sample_weights=2)["6:in"].collapse.nc1.pinv != expected
    named = [{"input": x, "labels": y} for x, y in loader]
    assert measure_model(model, named)["6:in"].collapse.nc1.pinv == expected
    other = [{"image": x, "target": y, "path": "elsewhere"} for x, y in loader]
    assert (
        measure_model(model, other, inputs="image", labels="target")["6:in"].collapse.nc1.pinv
        == expected
    )


def test_torch_language_models_are_measured_position_by_position() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    nn = torch.nn

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(11, 6), nn.Linear(6, 11)

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.head(torch.cumsum(self.embed(input_ids) * attention_mask[..., None], dim=1))

    model, tokens = Model(), torch.randint(0, 7, (8, 12))  # 4 tokens of the vocabulary never come

    def next_tokens(batch: Any) -> Any:
        ids = batch["input_ids"]
        return torch.cat([ids[:, 1:], torch.full((len(ids), 1), -100)], dim=1)

    loader = [
        {"input_ids": part, "attention_mask": torch.ones_like(part)}
        for part in (tokens[:5], tokens[5:])
    ]
    options: dict[str, Any] = {"pool": "positions", "labels": next_tokens, "ignore_index": -100}
    with pytest.raises(ValueError, match="got none of class 7, 8, 9, 10"):
        measure_model(model, loader, **options)
    found = measure_model(model, loader, absent="leave out", **options)["head:in"].collapse
    with torch.no_grad():
        features = torch.cumsum(model.embed(tokens), dim=1)[:, :-1].reshape(-1, 6).numpy()
    weights, bias = model.head.weight.detach().numpy(), model.head.bias.detach().numpy()
    expected = neural_collapse(
        features, tokens[:, 1:].reshape(-1).numpy(), weights, bias, absent="leave out"
    )
    np.testing.assert_array_equal(found.absent, [7, 8, 9, 10])
    np.testing.assert_allclose(found.nc1.pinv, expected.nc1.pinv, rtol=1e-5)
    assert found.nc4 is not None
    assert expected.nc4 is not None
    assert found.nc4.accuracy == expected.nc4.accuracy


def test_torch_cosine_heads_are_named() -> None:
    torch = pytest.importorskip("torch")
    nn, loader = torch.nn, torch_loader()

    class Cosine(nn.Linear):
        def forward(self, h: Any) -> Any:
            return 10 * nn.functional.linear(
                nn.functional.normalize(h), nn.functional.normalize(self.weight)
            )

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 3)

        def forward(self, h: Any) -> Any:
            return nn.functional.linear(
                nn.functional.normalize(h), nn.functional.normalize(self.fc.weight)
            )

    with pytest.raises(
        ValueError,
        match=r"the layer '1', a Cosine with a computation of its own, as a cosine head has",
    ):
        measure_model(nn.Sequential(nn.Linear(5, 8), Cosine(8, 3)), loader)
    with pytest.raises(
        ValueError, match=r"got '1.fc:in', which was not called, although '1' ran: a cosine head"
    ):
        measure_model(nn.Sequential(nn.Linear(5, 8), Head()), loader)


# Flax


def linen_model() -> tuple[Any, Any]:
    linen = pytest.importorskip("flax.linen")
    import jax

    class Block(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            return linen.relu(linen.Dense(6)(x))

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x: Any, train: bool = False) -> Any:
            x = linen.BatchNorm(use_running_average=not train)(x)
            for _ in range(11):  # so that the order of names is not that of use
                x = Block()(x)
            return linen.Dense(3)(x)

    model = Model()
    return model, jax.jit(model.init)(jax.random.key(0), np.zeros((2, 5), np.float32))


def test_linen_features_are_the_inputs_of_the_last_dense_layer() -> None:
    model, variables = linen_model()
    loader = Loader()
    batches = collect(
        model, loader, ["Dense_0:in", "Block_10", "Block_3.Dense_0"], variables=variables
    )
    found = gathered(batches, "Dense_0:in")
    np.testing.assert_array_equal(found, gathered(batches, "Block_10"))
    last = last_linear(model, variables=variables, inputs=loader.inputs[:2])
    assert last.name == "Dense_0"
    assert last.weights.shape == (3, 6)
    logits = np.asarray(model.apply(variables, loader.inputs))
    np.testing.assert_allclose(found @ last.weights.T + last.bias, logits, rtol=1e-4, atol=1e-5)
    result = measure_model(model, loader, variables=variables, keywords={"train": False})
    assert list(result) == ["Dense_0:in"]
    expected = neural_collapse(found, loader.labels, last.weights, last.bias)
    np.testing.assert_allclose(result["Dense_0:in"].collapse.nc1.pinv, expected.nc1.pinv, rtol=1e-6)
    with pytest.raises(ValueError, match="`variables` must be given"):
        collect(model, loader)
    with pytest.raises(ValueError, match="`inputs` must be given for a Flax module"):
        last_linear(model, variables=variables)
    with pytest.raises(
        ValueError, match=r"got 'fc'; the layers are BatchNorm_0, Block_0, Block_0.Dense_0"
    ):
        collect(model, loader, "fc", variables=variables)
    with pytest.raises(ValueError, match="`name` must be that of a linear layer, got 'Block_1'"):
        last_linear(model, variables=variables, inputs=loader.inputs[:2], name="Block_1")


@for_each(
    ("options", "change", "message"),
    [
        ({}, lambda y: y[:, None], r"shape \(10, 1\); drop .* `labels.squeeze\(1\)`"),
        ({"ignore_index": 1}, lambda y: y[:, None], r"drop .* `labels.squeeze\(1\)`"),
        ({}, lambda y: np.eye(3, dtype=int)[y], r"`labels.argmax\(axis=1\)`"),
        ({}, lambda y: np.ma.masked_equal(y, 2), "`labels` must not be masked, got .* 3 values"),
        (
            {"ignore_index": 1},
            lambda y: np.ma.masked_equal(y, 2),
            "`labels` must not be masked, got .* 3 values",
        ),
    ],
)
def test_linen_columns_of_labels_and_masked_labels_are_refused(
    options: dict[str, Any], change: Any, message: str
) -> None:
    linen = pytest.importorskip("flax.linen")
    import jax

    model, loader = linen.Sequential([linen.Dense(3)]), Loader()
    variables = model.init(jax.random.key(0), loader.inputs[:1])
    batches = [(inputs, change(labels)) for inputs, labels in loader]
    with pytest.raises(ValueError, match=message):
        measure_model(model, batches, variables=variables, **options)


def test_linen_convolutions_have_their_channels_last() -> None:
    linen = pytest.importorskip("flax.linen")
    import jax

    model = linen.Sequential(
        [linen.Conv(4, (3, 3)), linen.relu, lambda x: x.mean((1, 2)), linen.Dense(3)]
    )
    loader = Loader(shape=(4, 4, 2))
    variables = model.init(jax.random.key(0), loader.inputs[:1])
    pooled = collect(model, loader, ["layers_0"], pool="mean", variables=variables)
    assert gathered(pooled, "layers_0").shape == (24, 4)
    assert gathered(collect(model, loader, variables=variables), "layers_3:in").shape == (24, 4)


def test_nnx_modules_are_measured_as_copies() -> None:
    nnx = pytest.importorskip("flax.nnx")

    class Scaled(nnx.Linear):
        """Calls its base class, which is watched as well."""

        def __call__(self, x: Any) -> Any:
            return super().__call__(2 * x)

    class Model(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.first, self.norm = Scaled(5, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
            self.dropout, self.last = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.last(self.dropout(nnx.relu(self.norm(self.first(x)))))

    model, loader = Model(nnx.Rngs(0)), Loader()
    call = nnx.Linear.__call__
    before = np.asarray(model.norm.mean[...])
    batches = collect(model, loader, ["last:in", "first"])
    found = gathered(batches, "last:in")
    np.testing.assert_array_equal(found, gathered(batches, "last:in"))  # no dropout
    np.testing.assert_allclose(
        gathered(batches, "first"),
        2 * loader.inputs @ np.asarray(model.first.kernel[...]),
        rtol=1e-4,
        atol=1e-5,
    )
    last = last_linear(model, inputs=loader.inputs[:2])
    assert last.name == "last"
    result = measure_model(model, loader)["last:in"]
    expected = neural_collapse(found, loader.labels, last.weights, last.bias)
    np.testing.assert_allclose(result.collapse.nc1.pinv, expected.nc1.pinv, rtol=1e-6)
    assert nnx.Linear.__call__ is call
    assert not model.dropout.deterministic
    np.testing.assert_array_equal(before, model.norm.mean[...])
    with pytest.raises(
        ValueError, match=r"the layer 'first', a Scaled with a computation of its own"
    ):
        last_linear(model, name="first", inputs=loader.inputs[:2])
    with pytest.raises(ValueError, match=r"got 'norm' .BatchNorm.; they are first, last"):
        last_linear(model, name="norm", inputs=loader.inputs[:2])


# Any


def test_other_models_are_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"`model` must be a module of PyTorch, flax.linen or flax.nnx, got function",
    ):
        collect(lambda x: x, Loader())


def test_other_loaders_are_refused() -> None:
    model = torch_model()
    for loader, message in (
        (iter(Loader()), "`loader` must be iterable more than once, got generator"),
        (3, "`loader` must be an iterable of .inputs, labels., got int"),
    ):
        with pytest.raises(ValueError, match=message):
            collect(model, loader)
    with pytest.raises(
        ValueError, match=r"`loader` must hold tuples \(inputs, labels\).* got ndarray"
    ):
        list(collect(model, [np.zeros(3)]))
    assert repr(collect(model, Loader())) == "Collected(layers=('6:in',))"
