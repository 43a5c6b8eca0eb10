"""Scales and ranges that lose least, and graphs that do what the simulation says they do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from tintype.arrays import psnr_db
from tintype.engine import run_graph
from tintype.export.quantization import (
    Layer,
    Range,
    Scales,
    best_range,
    find_layers,
    halve_weights,
    quantize_graph,
    rounded_weight,
    weight_scales,
)
from tintype.export.simulation import ActivationStatistics, layer_scales, quantized, round_to
from tintype.export.storage import save_graph

RANDOM = np.random.default_rng(7)


class Small(torch.nn.Module):
    """A convolution between two others, an embedding and a linear layer: what quantization meets in a UNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = torch.nn.Conv2d(3, 16, 3, padding=1)
        self.middle = torch.nn.Conv2d(16, 24, 3, padding=1)
        self.table = torch.nn.Embedding(300, 24)
        self.mix = torch.nn.Linear(24, 40, bias=True)

    def forward(self, image: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.middle(torch.nn.functional.silu(self.conv_in(image)))
        tokens = hidden.flatten(2).transpose(1, 2) + self.table(ids)[:, None]
        return self.mix(tokens)


@pytest.fixture(scope="module")
def module() -> Small:
    torch.manual_seed(0)
    return Small().eval().requires_grad_(False)


@pytest.fixture
def model(module: Small) -> ir.Model:
    """The canonical graph of `Small`, written by hand, names as the tracer gives them."""
    state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    state["mix.weight_T"] = np.ascontiguousarray(state.pop("mix.weight").T)
    floats = ir.TensorType(ir.DataType.FLOAT)
    image = ir.Value(name="image", shape=ir.Shape(["batch", 3, 8, 8]), type=floats)
    ids = ir.Value(name="ids", shape=ir.Shape(["batch"]), type=ir.TensorType(ir.DataType.INT64))
    weights = {name: ir.Value(name=name, const_value=ir.tensor(array, name=name)) for name, array in state.items()}
    for name, value in weights.items():
        value.shape, value.type = ir.Shape(state[name].shape), floats
    to_tokens = ir.Value(name="to_tokens", const_value=ir.tensor(np.array([0, 24, 64], np.int64), name="to_tokens"))
    one = ir.Value(name="one", const_value=ir.tensor(np.array([1], np.int64), name="one"))
    pads = {"pads": [1, 1, 1, 1]}
    first = ir.node("Conv", [image, weights["conv_in.weight"], weights["conv_in.bias"]], pads)
    gate = ir.node("Sigmoid", [first.outputs[0]])
    silu = ir.node("Mul", [first.outputs[0], gate.outputs[0]])
    middle = ir.node("Conv", [silu.outputs[0], weights["middle.weight"], weights["middle.bias"]], pads)
    flat = ir.node("Reshape", [middle.outputs[0], to_tokens])
    turned = ir.node("Transpose", [flat.outputs[0]], {"perm": [0, 2, 1]})
    rows = ir.node("Gather", [weights["table.weight"], ids])
    wide = ir.node("Unsqueeze", [rows.outputs[0], one])
    added = ir.node("Add", [turned.outputs[0], wide.outputs[0]])
    mixed = ir.node("MatMul", [added.outputs[0], weights["mix.weight_T"]])
    biased = ir.node("Add", [mixed.outputs[0], weights["mix.bias"]])
    nodes = [first, gate, silu, middle, flat, turned, rows, wide, added, mixed, biased]
    shapes = [(16, 8, 8)] * 3 + [(24, 8, 8), (24, 64), (64, 24), (24,), (1, 24), (64, 24), (64, 40), (64, 40)]
    for index, (node, shape) in enumerate(zip(nodes, shapes, strict=True)):
        output = node.outputs[0]
        output.name, output.type, output.shape = f"value{index}", floats, ir.Shape(["batch", *shape])
    biased.outputs[0].name = "out"
    initializers = [*weights.values(), to_tokens, one]
    graph = ir.Graph([image, ids], [biased.outputs[0]], nodes=nodes, initializers=initializers, opset_imports={"": 23})
    return ir.Model(graph, ir_version=10)


@pytest.fixture
def feed() -> dict[str, np.ndarray]:
    return {"image": RANDOM.standard_normal((2, 3, 8, 8)).astype(np.float32), "ids": np.array([3, 299])}


def answer(module: Small, feed: dict[str, np.ndarray]) -> np.ndarray:
    with torch.inference_mode():
        return module(torch.from_numpy(feed["image"]), torch.from_numpy(feed["ids"])).numpy()


def calibrated(module: Small, layers: tuple[Layer, ...]) -> dict[str, Scales]:
    statistics = ActivationStatistics(module, layers, 8)
    with torch.inference_mode(), statistics.watching():
        for _ in range(8):
            module(torch.from_numpy(RANDOM.standard_normal((2, 3, 8, 8)).astype(np.float32)), torch.tensor([1, 2]))
    with torch.inference_mode():
        return layer_scales(module, layers, statistics, lambda _units: None)


def test_the_first_convolution_and_the_time_embedding_are_never_asked(model: ir.Model) -> None:
    assert [layer.module for layer in find_layers(model)] == ["middle", "mix"]
    weight = model.graph.initializers["mix.weight_T"]
    del model.graph.initializers["mix.weight_T"]
    weight.name = "time_embedding.linear_1.weight_T"
    model.graph.initializers.add(weight)
    assert [layer.module for layer in find_layers(model)] == ["middle"]


def test_the_int8_graph_answers_as_the_simulation(
    module: Small, model: ir.Model, feed: dict[str, np.ndarray], tmp_path: Path
) -> None:
    layers = find_layers(model)
    scales = calibrated(module, layers)
    exact = answer(module, feed)
    with quantized(module, layers, scales):
        simulated = answer(module, feed)
    quantize_graph(model, layers, scales)
    save_graph(model, tmp_path / "model.onnx")
    found = run_graph(tmp_path / "model.onnx", feed)["out"]
    assert psnr_db(exact, found) > 35.0
    assert psnr_db(simulated, found) > psnr_db(exact, found) + 6.0  # what's left is rounding at the edge of steps


def test_the_canonical_int8_graph_keeps_linear_activations_float(
    module: Small, model: ir.Model, feed: dict[str, np.ndarray], tmp_path: Path
) -> None:
    layers = find_layers(model)[1:]
    scales = calibrated(module, layers)
    quantize_graph(model, layers, scales)
    save_graph(model, tmp_path / "model.onnx")
    # Not by ONNX Runtime, which makes an integer product of this graph by itself.
    (found,) = ReferenceEvaluator(str(tmp_path / "model.onnx")).run(None, feed)
    kept = module.mix.weight.data
    module.mix.weight.data = rounded_weight(kept, scales["mix"].weight)
    expected = answer(module, feed)
    module.mix.weight.data = kept
    assert psnr_db(expected, found) > 100.0


def test_a_quantized_module_is_as_before_afterwards(module: Small, feed: dict[str, np.ndarray]) -> None:
    layers = (Layer("conv", "middle", "middle.weight", 1), Layer("linear", "mix", "mix.weight_T", 1))
    before = answer(module, feed)
    with quantized(module, layers, calibrated(module, layers)):
        assert not np.array_equal(answer(module, feed), before)
    np.testing.assert_array_equal(answer(module, feed), before)


def test_fp16_storage_loses_fp16s_rounding_alone(
    module: Small, model: ir.Model, feed: dict[str, np.ndarray], tmp_path: Path
) -> None:
    halve_weights(model)
    save_graph(model, tmp_path / "model.onnx")
    assert psnr_db(answer(module, feed), run_graph(tmp_path / "model.onnx", feed, lowered=False)["out"]) > 65.0
    types = {name: value.dtype for name, value in model.graph.initializers.items()}
    assert types["table.weight_fp16"] == ir.DataType.FLOAT16
    assert types["mix.bias"] == ir.DataType.FLOAT


def test_an_fp16_table_is_cast_after_its_rows_are_taken(model: ir.Model) -> None:
    halve_weights(model)
    gather = next(node for node in model.graph if node.op_type == "Gather")
    assert gather.inputs[0] is model.graph.initializers["table.weight_fp16"]
    assert [use.node.op_type for use in gather.outputs[0].uses()] == ["Cast"]


def test_a_weight_beyond_fp16_stays_fp32(model: ir.Model) -> None:
    weight = model.graph.initializers["middle.weight"]
    weight.const_value = ir.tensor(np.full((24, 16, 3, 3), 1e5, np.float32), name="middle.weight")
    halve_weights(model)
    assert model.graph.initializers["middle.weight"].dtype == ir.DataType.FLOAT


def test_zero_is_exact_in_every_range() -> None:
    for low, high in ((-0.3, 4.0), (0.5, 2.0), (-3.0, -1.0), (0.0, 0.0)):
        span = best_range(np.linspace(low, high, 100, dtype=np.float32), low, high)
        assert span.low <= 0.0 <= span.high
        assert float(round_to(torch.zeros(1), span)) == 0.0


def test_a_long_tail_is_cut_when_that_is_nearer() -> None:
    samples = np.concatenate([RANDOM.standard_normal(50_000), [60.0]]).astype(np.float32)
    span = best_range(samples, float(samples.min()), 60.0)
    whole = Range(float(samples.min()), 60.0)
    error = [np.square(round_to(torch.from_numpy(samples), each).numpy() - samples).mean() for each in (span, whole)]
    assert error[0] <= error[1]


def test_each_channel_has_its_own_scale() -> None:
    weight = torch.from_numpy(RANDOM.standard_normal((4, 50)).astype(np.float32)) * torch.tensor(
        [[1e-3], [1], [10], [0]]
    )
    scales = weight_scales(weight)
    assert scales.shape == (4,)
    error = (rounded_weight(weight, scales) - weight).square().mean(dim=1).sqrt()
    assert torch.all(error[:3] < 0.02 * weight.std(dim=1)[:3])
    assert float(error[3]) == 0.0
