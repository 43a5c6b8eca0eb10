"""Four bits: which layers have them, what graphs make of them, and how far from the checkpoint they may be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from tintype.arrays import psnr_db
from tintype.bundle import open_bundle
from tintype.engine import run_graph
from tintype.export import Effort, export_bundle
from tintype.export.calls import Call
from tintype.export.fallback import Choice, Trial, Unit, choose, until_it_passes, with_layers
from tintype.export.parity import GATES_DB, QUANTIZED, Gate, GraphReport, judge
from tintype.export.progress import Silent
from tintype.export.quantization import (
    Layer,
    Scales,
    find_layers,
    linear_scales,
    quantize_graph,
    stored_precision,
    weight_scales,
)
from tintype.export.roles import GRAPH_FILES, has_four_bits
from tintype.export.simulation import quantized
from tintype.export.storage import load_graph, save_graph
from tintype.export.switchable import SwitchableGraph

WIDE, NARROW = 64, 40  # inputs that blocks fit, and that they don't


class Small(torch.nn.Module):
    """Words, and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(2048, WIDE)
        self.first = torch.nn.Linear(WIDE, NARROW, bias=False)
        self.second = torch.nn.Linear(NARROW, 24, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.second(torch.nn.functional.gelu(self.first(self.table(ids))))
        return made


@pytest.fixture(scope="module")
def module() -> Small:
    torch.manual_seed(0)
    return Small().eval().requires_grad_(False)


@pytest.fixture
def model(module: Small) -> ir.Model:
    state = {"table.weight": module.table.weight.numpy()}
    for name in ("first", "second"):
        state[f"{name}.weight_T"] = np.ascontiguousarray(module.get_submodule(name).weight.numpy().T)
    floats = ir.TensorType(ir.DataType.FLOAT)
    weights = {name: ir.Value(name=name, const_value=ir.tensor(array, name=name)) for name, array in state.items()}
    for name, value in weights.items():
        value.shape, value.type = ir.Shape(state[name].shape), floats
    ids = ir.Value(name="ids", shape=ir.Shape(["batch"]), type=ir.TensorType(ir.DataType.INT64))
    rows = ir.node("Gather", [weights["table.weight"], ids])
    first = ir.node("MatMul", [rows.outputs[0], weights["first.weight_T"]], name="first/MatMul")
    gelu = ir.node("Gelu", [first.outputs[0]])
    second = ir.node("MatMul", [gelu.outputs[0], weights["second.weight_T"]], name="second/MatMul")
    nodes = [rows, first, gelu, second]
    for node, width in zip(nodes, (WIDE, NARROW, NARROW, 24), strict=True):
        node.outputs[0].shape, node.outputs[0].type = ir.Shape(["batch", width]), floats
        node.outputs[0].name = f"{node.op_type}_{width}"
    second.outputs[0].name = "out"
    graph = ir.Graph(
        [ids], second.outputs, nodes=nodes, initializers=list(weights.values()), opset_imports={"": 23}, name="g"
    )
    return ir.Model(graph, ir_version=10)


def scales_of(module: Small, layers: tuple[Layer, ...]) -> dict[str, Scales]:
    found = {}
    for layer in layers:
        weight = module.get_submodule(layer.module).weight
        assert isinstance(weight, torch.Tensor)
        found[layer.module] = Scales(weight_scales(weight), blocks=linear_scales(weight.numpy(), layer))
    return found


IDS = {"ids": np.array([3, 2047, 0, 77, 1024])}


def test_linear_layers_of_whole_blocks_have_four_bits_where_that_is_asked_for(model: ir.Model) -> None:
    assert [layer.bits for layer in find_layers(model)] == [8, 8]
    layers = find_layers(model, four_bits=True)
    assert [(layer.module, layer.bits) for layer in layers] == [("first", 4), ("second", 8)]
    assert layers[0].finer() == find_layers(model)[0]
    assert layers[1].finer() is None
    assert [stored_precision(each) for each in (layers, layers[1:], ())] == ["int4", "int8", "fp16"]


def test_decoders_and_encoders_of_pictures_have_none() -> None:
    four = [role for role in GRAPH_FILES if has_four_bits(role, "int4")]
    assert four == ["text_encoder", "text_encoder_2", "denoiser"]
    assert has_four_bits("controlnet", "int4")
    assert not any(has_four_bits(role, "int8") for role in GRAPH_FILES)


def test_the_graph_is_what_the_simulation_says_in_plain_onnx_runtime_too(
    module: Small, model: ir.Model, tmp_path: Path
) -> None:
    path, whole = tmp_path / "whole/model.onnx", tmp_path / "small/model.onnx"
    path.parent.mkdir()
    whole.parent.mkdir()
    save_graph(model, path)
    layers = find_layers(model, four_bits=True)
    scales = scales_of(module, layers)
    exact = module(torch.from_numpy(IDS["ids"])).numpy()
    chosen = [layers[0]]
    with torch.inference_mode(), quantized(module, chosen, scales):
        simulated = module(torch.from_numpy(IDS["ids"])).numpy()
    assert 20 < psnr_db(exact, simulated) < 50
    np.testing.assert_array_equal(module(torch.from_numpy(IDS["ids"])).numpy(), exact)  # as it was

    switched = SwitchableGraph(path, layers, scales)
    call = Call(dict(IDS), exact)
    assert psnr_db(simulated, switched.run(chosen, [call])[0]) > 100
    assert psnr_db(exact, switched.run([], [call])[0]) > 100
    eight = layers[0].finer()
    assert eight is not None
    with torch.inference_mode(), quantized(module, [eight], scales):
        expected = module(torch.from_numpy(IDS["ids"])).numpy()
    assert psnr_db(expected, switched.run([eight], [call])[0]) > 60
    assert psnr_db(exact, expected) > psnr_db(exact, simulated) + 10

    small = load_graph(path)
    quantize_graph(small, chosen, scales)
    save_graph(small, whole)
    session = onnxruntime.InferenceSession(str(whole), providers=["CPUExecutionProvider"])
    by_itself = session.run(None, dict(IDS))[0]
    ours = run_graph(whole, IDS)["out"]
    for found in (by_itself, ours):  # both may round the input; and the table is int8 here
        assert psnr_db(simulated, found) > psnr_db(exact, simulated) + 6


def test_the_file_has_half_a_byte_a_weight_and_the_table_a_byte(module: Small, model: ir.Model, tmp_path: Path) -> None:
    layers = find_layers(model, four_bits=True)[:1]
    quantize_graph(model, layers, scales_of(module, layers))
    save_graph(model, tmp_path / "model.onnx")
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    found = {name: value.const_value for name, value in load_graph(tmp_path / "model.onnx").graph.initializers.items()}
    kinds = {name: (tensor.dtype.name, tensor.nbytes) for name, tensor in found.items() if tensor is not None}
    assert kinds["first.weight_T_uint4"] == ("UINT4", WIDE * NARROW // 2)
    assert kinds["first.weight_T_scale"] == ("FLOAT16", WIDE // 32 * NARROW * 2)
    assert kinds["first.weight_T_zero_point"] == ("UINT4", WIDE // 32 * NARROW // 2)
    assert kinds["table.weight_int8"] == ("INT8", 2048 * WIDE)
    tensor = found["first.weight_T_uint4"]
    assert tensor is not None
    assert tensor.numpy().dtype == ml_dtypes.uint4


def test_eight_bits_leave_the_table_as_it_is(module: Small, model: ir.Model) -> None:
    layers = find_layers(model)
    quantize_graph(model, layers, scales_of(module, layers))
    assert "table.weight" in model.graph.initializers


def report(psnr: float) -> GraphReport:
    rough = np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)
    noise = np.float32(np.ptp(rough) * 10 ** (-psnr / 20))
    parity = judge(Gate("denoiser", 30.0), [rough], [rough + noise])
    return GraphReport("denoiser", "int4", parity, 1)


def test_layers_that_miss_the_gate_get_eight_bits_before_any_is_float() -> None:
    order = tuple(
        Unit(name, (Layer(kind, name, name, 1, bits),))
        for name, kind, bits in (("a", "linear", 4), ("b", "conv", 8), ("c", "linear", 4))
    )
    choice, tried = Choice(order, 0), list[list[tuple[str, int]]]()

    def attempt(layers: list[Layer]) -> GraphReport:
        tried.append(sorted((layer.module, layer.bits) for layer in layers))
        return with_layers(report(29.0 if layers else 60.0), choice, layers)

    found = until_it_passes(choice, attempt)  # type: ignore[arg-type]
    assert tried == [
        [("a", 4), ("b", 8), ("c", 4)],
        [("a", 8), ("b", 8), ("c", 4)],
        [("a", 8), ("c", 4)],
        [("a", 8), ("c", 8)],
        [],
    ]
    assert (found.quantized_layers, found.four_bit_layers, found.quantizable_layers) == (0, 0, 3)
    assert found.float_layers == ("a", "b", "c")


def test_what_costs_the_fewest_bits_for_the_damage_goes_finer_first() -> None:
    four, eight = (Unit(name, (Layer("linear", name, name, 1000, bits),)) for name, bits in (("four", 4), ("eight", 8)))
    assert (four.growth, eight.growth) == (4000, 8000)
    layers = [*four.layers, *eight.layers]
    exact = np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)

    def run(chosen: Sequence[Layer], calls: Sequence[Call]) -> list[np.ndarray]:
        """Each of them does the same damage."""
        noise = np.random.default_rng(1).standard_normal((2, 64)).astype(np.float32)
        return [call.reference + np.float32(0.05 * sum(layer in layers for layer in chosen)) * noise for call in calls]

    choice = choose(Trial(run, [Call({}, exact)], Gate("denoiser", 35.0)), layers, 60.0, "", Silent())
    assert [unit.name for unit in choice.order] == ["four", "eight"]
    assert [(layer.module, layer.bits) for layer in choice.quantized] == [("four", 8), ("eight", 8)]


def test_every_gate_of_four_bits_is_stated_and_none_is_nearer_than_of_eight() -> None:
    assert QUANTIZED == ("int8", "int4")
    assert set(GATES_DB["int4"]) == set(GATES_DB["int8"])
    assert all(GATES_DB["int4"][role] <= gate for role, gate in GATES_DB["int8"].items())
    assert GATES_DB["int4"]["vae_decoder"] == GATES_DB["int8"]["vae_decoder"]
    four, eight = (Gate.of("denoiser", precision).guidance_error for precision in ("int4", "int8"))
    assert four is not None
    assert eight is not None
    assert 1 > four >= eight


@pytest.mark.slow
def test_an_export_of_four_bits_passes_its_gates_and_is_smaller(four_bit_bundle: Path, tiny_bundle: Path) -> None:
    bundle = open_bundle(four_bit_bundle)
    for parity in bundle.manifest.parity:
        assert parity.gate_db == GATES_DB["int4"][parity.graph]
        assert parity.passed
        assert parity.psnr_db >= parity.gate_db
    precisions = {role: graphs["full"].precision for role, graphs in bundle.manifest.graphs.items()}
    print(precisions, [(parity.graph, parity.psnr_db) for parity in bundle.manifest.parity])
    assert precisions["denoiser"] == "int4"
    assert precisions["vae_decoder"] in ("int8", "fp16")
    assert precisions["vae_encoder"] == "fp16"
    four = [
        value
        for value in load_graph(bundle.graph_path("denoiser")).graph.initializers.values()
        if value.dtype == ir.DataType.UINT4 and str(value.name).endswith("_uint4")
    ]
    assert four
    assert not [value.name for value in four if "time_emb" in str(value.name)]
    sizes = [
        sum(file.bytes for file in open_bundle(path).manifest.files.values()) for path in (four_bit_bundle, tiny_bundle)
    ]
    assert sizes[0] < 0.5 * sizes[1]


@pytest.mark.slow
def test_a_folder_of_graphs_has_four_bits_too(onnx_folder: Path, tmp_path: Path) -> None:
    """Chosen by trials in ONNX Runtime."""
    effort = Effort(steps=2, calibration_prompts=1, gate_prompts=1, gate_calls=2, latent_size=8, damage_seconds=1.0)
    made = export_bundle(onnx_folder, tmp_path / "bundle", precision="int4", effort=effort)
    assert made.passed
    found = {graph.role: graph for graph in made.graphs}
    print({role: (graph.precision, graph.parity.psnr_db, graph.four_bit_layers) for role, graph in found.items()})
    assert found["denoiser"].precision == found["text_encoder"].precision == "int4"
    assert found["denoiser"].four_bit_layers > 10
    assert found["vae_decoder"].four_bit_layers == 0
