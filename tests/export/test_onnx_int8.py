"""int8 of a folder of ONNX graphs, without torch: ranges, trials and choices are those that torch makes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from exact_sums import hold_sums
from numpy.typing import NDArray

import tintype
from tintype.bundle import Bundle, open_bundle
from tintype.engine import run_graph
from tintype.errors import ExportError
from tintype.export import Effort, export_bundle, onnx_inputs, psnr_db
from tintype.export.calls import Call
from tintype.export.checkpoint import open_checkpoint
from tintype.export.fallback import Trial, choose
from tintype.export.modules import Modules
from tintype.export.onnx_inputs import Walks
from tintype.export.parity import Gate
from tintype.export.plans import trajectory_plan
from tintype.export.progress import Silent
from tintype.export.quantization import Layer, find_layers, quantize_graph, weight_scales, weight_scales_of
from tintype.export.simulation import ActivationStatistics, layer_scales, quantized
from tintype.export.storage import load_graph, save_graph
from tintype.export.switchable import SwitchableGraph
from tintype.export.trajectories import Words, gate_walks
from tintype.export.watched import WatchedGraph
from tintype.sampling import noise_source

pytestmark = [pytest.mark.slow, pytest.mark.long]

WITHOUT_TORCH = """
import json, sys
from pathlib import Path
from tintype.export import Effort, export_bundle
effort = Effort(steps=3, calibration_prompts=1, gate_prompts=1, gate_calls=2, latent_size=8)
report = export_bundle(Path(sys.argv[1]), Path(sys.argv[2]), precision="int8", effort=effort)
print(json.dumps({**report.as_dict(), "torch": "torch" in sys.modules}))
"""


@pytest.fixture(scope="module")
def exported(onnx_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The int8 bundle of a folder of graphs, by a process of its own, and its report."""
    bundle = tmp_path_factory.mktemp("int8") / "bundle"
    command = [sys.executable, "-c", WITHOUT_TORCH, str(onnx_folder), str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return bundle, json.loads(done.stdout.splitlines()[-1])


def test_every_graph_passes_its_gate_without_torch(exported: tuple[Path, dict[str, Any]]) -> None:
    folder, report = exported
    assert report["torch"] is False
    assert report["passed"]
    graphs = {graph["graph"]: graph for graph in report["graphs"]}
    assert {role: graph["precision"] for role, graph in graphs.items()} == {
        "text_encoder": "int8", "denoiser": "int8", "vae_decoder": "int8", "vae_encoder": "fp16",
    }  # fmt: skip
    assert graphs["denoiser"]["guidance_error"] < 0.10
    for parity in open_bundle(folder).manifest.parity:
        assert parity.reference == "the folder's own graph, fp32"
        assert parity.psnr_db >= parity.gate_db
    integers = load_graph(open_bundle(folder).graph_path("denoiser")).graph.initializers.values()
    assert sum(value.dtype == ir.DataType.INT8 for value in integers) == graphs["denoiser"]["quantized_layers"] > 20


def test_it_draws_what_the_checkpoint_does(exported: tuple[Path, dict[str, Any]], tiny_bundle: Path) -> None:
    pictures = []
    for bundle in (exported[0], tiny_bundle):
        with tintype.load(bundle, provider="cpu") as pipeline:
            asked = {"seed": 7, "num_inference_steps": 6, "exactness": "exact", "watermark": False}
            pictures.append(np.asarray(pipeline.generate("a red sailboat on a calm sea", **asked).image, np.float32))
    assert pictures[1].std() > 5
    measured = psnr_db(pictures[1], pictures[0])
    print(f"{measured:.1f} dB")
    assert measured >= 35


def test_a_model_that_takes_a_picture_is_refused_with_what_there_is(onnx_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(onnx_folder, tmp_path / "folder"))
    config = folder / "unet/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "in_channels": 9}))
    with pytest.raises(ExportError, match="is chosen on pictures") as caught:
        export_bundle(folder, tmp_path / "bundle", precision="int8")
    assert "--precision fp32 or fp16" in caught.value.fix


# Each half against torch's


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def parts(tiny_checkpoint: Path) -> Modules:
    return Modules(open_checkpoint(tiny_checkpoint))


def latents(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, 4, 8, 8), np.float32)


def measured(bundle: Bundle, parts: Modules) -> tuple[list[Layer], ActivationStatistics, WatchedGraph]:
    """The decoder's layers, and what went through them on the same calls, by torch and by the graph."""
    path = bundle.graph_path("vae_decoder")
    layers = list(find_layers(load_graph(path)))
    statistics, watched = ActivationStatistics(parts.part("vae"), layers, 2), WatchedGraph(path, layers, 2)
    for seed in (0, 1):
        feed = {"latent_sample": latents(seed)}
        with statistics.watching(), torch.inference_mode():
            expected = parts.wrapped("vae_decoder")(latent_sample=torch.from_numpy(latents(seed))).numpy()
        assert psnr_db(expected, watched.run(feed)["sample"]) >= 80
    return layers, statistics, watched


def test_ranges_and_scales_are_those_that_torch_finds(bundle: Bundle, parts: Modules) -> None:
    layers, statistics, watched = measured(bundle, parts)
    convolutions = [layer for layer in layers if layer.kind == "conv"]
    assert len(convolutions) > 10
    for layer in convolutions:
        for found, expected in zip(watched.ranges(layer.module), statistics.ranges(layer.module), strict=True):
            width = expected.high - expected.low
            assert abs(found.low - expected.low) <= 0.15 * width, layer.module
            assert abs(found.high - expected.high) <= 0.15 * width, layer.module
    for layer in layers:
        weight = parts.part("vae").get_submodule(layer.module).weight
        assert isinstance(weight, torch.Tensor)
        rows = weight.detach().reshape(len(weight), -1).numpy()
        np.testing.assert_allclose(weight_scales_of(rows), weight_scales(weight), rtol=1e-6)


def test_a_switched_graph_answers_as_torch_simulates_and_as_the_int8_graph_does(
    bundle: Bundle, parts: Modules, tmp_path: Path
) -> None:
    layers, statistics, _ = measured(bundle, parts)
    path, module = bundle.graph_path("vae_decoder"), parts.part("vae")
    scales = layer_scales(module, layers, statistics, lambda _: None)
    switched = SwitchableGraph(path, layers, scales)
    call = Call({"latent_sample": latents(0)}, run_graph(path, {"latent_sample": latents(0)}, lowered=False)["sample"])
    assert psnr_db(call.reference, switched.run([], [call])[0]) >= 100

    def simulated_and_found(chosen: list[Layer]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        with torch.inference_mode(), quantized(module, chosen, scales):
            expected = parts.wrapped("vae_decoder")(latent_sample=torch.from_numpy(latents(0))).numpy()
        return expected, switched.run(chosen, [call])[0]

    for layer in layers:
        expected, found = simulated_and_found([layer])
        damage = psnr_db(call.reference, expected)
        assert 20 < damage < 90, layer.module
        assert psnr_db(expected, found) >= damage + 20, layer.module
    # A number that is rounded the other way changes the next layer's: of all together only the damage is the same.
    simulated, found = (psnr_db(call.reference, each) for each in simulated_and_found(layers))
    assert 20 < simulated < 60
    assert abs(simulated - found) <= 1.5
    model = load_graph(path)
    quantize_graph(model, layers, scales)
    hold_sums(model)
    save_graph(model, tmp_path / "model.onnx")
    real = run_graph(tmp_path / "model.onnx", call.feed, lowered=False)["sample"]
    assert abs(psnr_db(call.reference, real) - found) <= 3


def test_walks_are_those_of_diffusers_at_the_same_noise(
    bundle: Bundle, parts: Modules, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_inputs, "noise_source", lambda _mode, seeds: noise_source("torch-cpu", seeds))
    checkpoint, effort = parts.checkpoint, Effort(steps=5, gate_prompts=2, gate_calls=4, latent_size=8)
    plan = trajectory_plan(checkpoint, effort, None, 5.0)
    words = np.random.default_rng(0).standard_normal((3, 77, 64), np.float32)
    calls, finished = gate_walks(
        parts, Words({"encoder_hidden_states": torch.from_numpy(words)}), plan, {}, lambda _: None
    )
    walks = Walks(
        checkpoint, {"encoder_hidden_states": words}, plan, WatchedGraph(bundle.graph_path("denoiser"), [], 1).run
    )
    found = walks.gates()
    assert len(found) == len(calls) == 4
    for call, expected in zip(found, calls, strict=True):
        assert call.feed["timestep"] == expected.feed["timestep"]
        np.testing.assert_array_equal(call.feed["encoder_hidden_states"], expected.feed["encoder_hidden_states"])
        assert psnr_db(expected.feed["sample"], call.feed["sample"]) >= 80
        assert psnr_db(expected.reference, call.reference) >= 70
    for ours, theirs in zip(walks.finished, finished, strict=True):
        assert psnr_db(theirs.numpy(), ours) >= 80


def test_the_layers_that_stay_float_are_those_that_torch_finds(bundle: Bundle, parts: Modules) -> None:
    path, module, random = bundle.graph_path("denoiser"), parts.wrapped("denoiser"), np.random.default_rng(0)
    layers = list(find_layers(load_graph(path)))
    feed = {
        "sample": random.standard_normal((2, 4, 8, 8), np.float32),
        "timestep": np.array(500.0, np.float32),
        "encoder_hidden_states": random.standard_normal((2, 77, 64), np.float32),
    }

    def answer() -> np.ndarray:
        return np.asarray(module(**{name: torch.from_numpy(array) for name, array in feed.items()}))

    def in_torch(chosen: Sequence[Layer], calls: Sequence[Call]) -> list[np.ndarray]:
        with torch.inference_mode(), quantized(parts.part("unet"), chosen, scales):
            return [answer() for _ in calls]

    statistics = ActivationStatistics(parts.part("unet"), layers, 1)
    with torch.inference_mode(), statistics.watching():
        call = Call(feed, answer())
    scales = layer_scales(parts.part("unet"), layers, statistics, lambda _: None)
    gate = Gate("denoiser", psnr_db(call.reference, in_torch(layers, [call])[0]) + 1.0)  # some have to stay float
    expected, found = (
        choose(Trial(run, [call], gate), layers, 1e9, "", Silent())
        for run in (in_torch, SwitchableGraph(path, layers, scales).run)
    )
    floats, otherwise = set(expected.finer_names), set(expected.finer_names) ^ set(found.finer_names)
    print(f"{len(floats)} float of {len(layers)}, {len(otherwise)} otherwise: {sorted(otherwise)}")
    assert 3 <= len(floats) <= len(layers) // 2
    assert len(otherwise) <= len(floats) // 4
