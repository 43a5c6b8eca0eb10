"""The export says how large values get, and what float16 can't hold becomes an island of float32 by that alone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import psutil
import pytest
from plain_form import expand, in_float
from safetensors.numpy import load_file, save_file

from tintype.arrays import psnr_db
from tintype.bundle import Bundle, open_bundle
from tintype.engine import measure_ranges, peak_rss_bytes, run_graph
from tintype.export import Effort, export_bundle
from tintype.kernels.graph.half import to_half
from tintype.kernels.graph.ranges import mark
from tintype.kernels.registry import kernels_for, lower

WEIGHTS = "vae/diffusion_pytorch_model.safetensors"
HALF_GATE_DB = 50.0


def test_a_tame_checkpoint_has_nothing_to_say(tiny_bundle: Path) -> None:
    graphs = open_bundle(tiny_bundle).manifest.graphs
    assert [graph["full"].largest for graph in graphs.values()] == [{}] * 4


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="a peak is begun anew on Linux alone")
def test_values_live_only_as_long_as_they_are_read(tmp_path: Path) -> None:
    """Twenty in turn, 32 MiB each; the largest of each is all that is kept."""
    shape = ir.Shape(["batch", 2**20])
    image = ir.Value(name="x", shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
    nodes, last = [], image
    for number in range(20):
        nodes.append(ir.node("Neg" if number % 2 else "Exp", [last], name=f"node{number}"))
        last = nodes[-1].outputs[0]
        last.name, last.shape, last.type = f"value{number}", shape, ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([image], [last], nodes=nodes, opset_imports={"": 23})
    ir.save(ir.Model(graph, ir_version=10), tmp_path / "model.onnx")
    feed = {"x": np.full((8, 2**20), 9.0, np.float32)}
    measure_ranges(tmp_path / "model.onnx", [{"x": feed["x"][:1]}])  # what a first session leaves
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")
    assert measure_ranges(tmp_path / "model.onnx", [feed])["value0"] == pytest.approx(np.exp(9.0), rel=1e-4)
    assert peak_rss_bytes() - before < 6 * feed["x"].nbytes


@pytest.fixture(scope="module")
def black_vae(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A checkpoint whose decoder goes beyond 65,504 in its middle, as SDXL's does."""
    folder = tmp_path_factory.mktemp("black")
    shutil.copytree(tiny_checkpoint, folder / "checkpoint")
    weights = load_file(folder / "checkpoint" / WEIGHTS)
    weights["decoder.mid_block.resnets.0.conv2.weight"] *= np.float32(1e6)
    save_file(weights, folder / "checkpoint" / WEIGHTS, metadata={"format": "pt"})
    effort = Effort(steps=1, gate_prompts=1, latent_size=8)
    export_bundle(folder / "checkpoint", folder / "bundle", precision="fp32", effort=effort, parity="full")
    return open_bundle(folder / "bundle")


def in_half(bundle: Bundle, largest: dict[str, float], latents: np.ndarray, folder: Path) -> tuple[np.ndarray, int]:
    """The decoder as CUDA would run it in float16, by the processor; and how many nodes stay float32."""
    model = ir.load(bundle.graph_path("vae_decoder"))
    mark(model, largest)
    lower(model, "cuda", kernels=kernels_for("cuda", ["attention", "float16"]))
    whole = len(model.graph)
    kept = whole - to_half(model)
    in_float(model)
    expand(model)
    ir.save(model, folder / "half.onnx", external_data="half.data")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(folder / "half.onnx", options, providers=["CPUExecutionProvider"])
    return session.run(None, {"latent_sample": latents})[0], kept


@pytest.mark.slow
def test_a_vae_that_float16_turns_black_is_right_by_its_ranges(black_vae: Bundle, tmp_path: Path) -> None:
    largest = dict(black_vae.largest("vae_decoder") or {})
    assert max(largest.values()) > 65504
    assert {line.kind for line in black_vae.manifest.parity} == {"full"}
    assert black_vae.largest("denoiser") == {}
    latents = np.random.default_rng(1).standard_normal((1, 4, 8, 8)).astype(np.float32)
    expected = run_graph(black_vae.graph_path("vae_decoder"), {"latent_sample": latents})["sample"]
    black, _ = in_half(black_vae, {}, latents, tmp_path)
    assert not np.isfinite(black).all()
    result, kept = in_half(black_vae, largest, latents, tmp_path)
    assert psnr_db(expected, result) >= HALF_GATE_DB
    assert 3 < kept < 40  # of some hundred nodes: an island, not the whole graph
