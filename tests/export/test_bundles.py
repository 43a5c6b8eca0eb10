"""Whole exports: what the bundles hold, and that their graphs answer as the checkpoint does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from tintype.arrays import psnr_db
from tintype.bundle import Bundle, DefaultRequest, PreviewFactors, open_bundle
from tintype.engine import run_graph
from tintype.errors import ExportError
from tintype.export import Effort, export_bundle, graphs
from tintype.export.checkpoint import load_unet, load_vae, open_checkpoint
from tintype.export.storage import load_graph
from tintype.image.preview import linear_samples

ROLES = ("text_encoder", "denoiser", "vae_decoder", "vae_encoder")
Export = tuple[Path, dict[str, Any]]


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


def operators(path: Path) -> list[str]:
    return [node.op_type for node in load_graph(path).graph]


def test_the_manifest_tells_the_checkpoints_facts(bundle: Bundle, tiny_checkpoint: Path) -> None:
    manifest = bundle.manifest
    assert set(manifest.graphs) == set(ROLES)
    assert manifest.prediction_type == "epsilon"
    assert manifest.vae_scale_factor == 4
    assert manifest.size.multiple == 8  # factor 4, and one halving in the UNet
    assert (manifest.default_request.width, manifest.default_request.height) == (64, 64)
    assert manifest.source.location == tiny_checkpoint.name
    assert manifest.source.sha256 == open_checkpoint(tiny_checkpoint).sha256()
    assert [port.shape for port in bundle.graph("denoiser").inputs] == [
        ("batch", 4, "height", "width"),
        (),  # as optimum feeds it
        ("batch", "sequence", 64),
    ]
    assert bundle.graph("vae_decoder").outputs[0].shape == ("batch", 3, "4*height", "4*width")


def test_the_manifest_has_colours_for_previews(bundle: Bundle) -> None:
    assert bundle.manifest.preview is not None
    assert len(bundle.manifest.preview.weights) == bundle.manifest.latent_channels


def test_colours_are_fitted_to_what_a_decoder_makes_or_there_are_none() -> None:
    rows = ((0.5, -0.25, 0.1), (0.2, 0.3, 0.4), (-0.1, 0.0, 0.6), (0.05, 0.7, -0.3))
    known = PreviewFactors(weights=rows, bias=(0.1, 0.0, -0.2))
    latents = np.random.default_rng(5).normal(size=(2, 4, 6, 6)).astype(np.float32) * 0.1
    samples = linear_samples(latents, known.weights, known.bias).repeat(4, axis=2).repeat(4, axis=3)
    assert graphs._preview(latents, samples) == known
    assert graphs._preview(latents * np.float32(1e-7), samples) is None  # absurd ones, which no manifest may have
    samples[0, 0, 0, 0] = np.nan
    assert graphs._preview(latents, samples) is None


def test_every_graph_passed_its_fp32_gate(bundle: Bundle) -> None:
    found = {parity.graph: parity for parity in bundle.manifest.parity}
    assert set(found) == set(ROLES)
    assert all(parity.passed and parity.psnr_db >= parity.gate_db == 80.0 for parity in found.values())


def test_the_folder_holds_what_optimum_and_diffusers_look_for(bundle: Bundle) -> None:
    for file in (
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "unet/config.json",
        "vae_decoder/config.json",
        "vae_encoder/config.json",
        "text_encoder/config.json",
    ):
        assert bundle.path(file).is_file()
    index = json.loads(bundle.path("model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["safety_checker"] == [None, None]


@pytest.mark.parametrize("role", ROLES)
def test_canonical_graphs_keep_operators_whole_and_name_things_for_people(bundle: Bundle, role: str) -> None:
    model = load_graph(bundle.graph_path(role))
    assert model.opset_imports[""] == 23
    kinds = {node.op_type for node in model.graph}
    assert "Attention" in kinds
    assert "Softmax" not in kinds
    assert role == "text_encoder" or "GroupNormalization" in kinds
    dims = {
        str(dim)
        for node in model.graph
        for value in node.outputs
        for dim in value.shape or ()
        if not isinstance(dim, int)
    }
    assert not [dim for dim in dims if dim.startswith("s") and dim[1:2].isdigit()]
    linear = [node.inputs[1] for node in model.graph if node.op_type == "MatMul"]
    assert linear
    assert all(str(weight.name).endswith(".weight_T") for weight in linear if weight is not None)


@pytest.mark.parametrize("role", ROLES)
def test_graphs_tell_nothing_of_where_they_were_made(bundle: Bundle, role: str) -> None:
    content = bundle.graph_path(role).read_bytes()
    assert b"site-packages" not in content
    assert b"stack_trace" not in content
    assert str(Path.home()).encode() not in content


@pytest.mark.parametrize(("batch", "height", "width", "tokens"), [(1, 16, 16, 77), (3, 4, 22, 154)])
def test_the_denoiser_answers_at_sizes_it_was_not_traced_at(
    bundle: Bundle, tiny_checkpoint: Path, batch: int, height: int, width: int, tokens: int
) -> None:
    random = np.random.default_rng(batch)
    feed = {
        "sample": random.standard_normal((batch, 4, height, width)).astype(np.float32),
        "timestep": np.array(31.5, np.float32),
        "encoder_hidden_states": random.standard_normal((batch, tokens, 64)).astype(np.float32),
    }
    unet = load_unet(open_checkpoint(tiny_checkpoint))
    with torch.inference_mode():
        expected = unet(*map(torch.from_numpy, feed.values()), return_dict=False)[0].numpy()
    assert psnr_db(expected, run_graph(bundle.graph_path("denoiser"), feed)["out_sample"]) >= 80.0


def test_the_decoder_answers_at_sizes_it_was_not_traced_at(bundle: Bundle, tiny_checkpoint: Path) -> None:
    latents = np.random.default_rng(0).standard_normal((2, 4, 6, 18)).astype(np.float32)
    vae = load_vae(open_checkpoint(tiny_checkpoint))
    with torch.inference_mode():
        expected = vae.decode(torch.from_numpy(latents), return_dict=False)[0].numpy()
    assert psnr_db(expected, run_graph(bundle.graph_path("vae_decoder"), {"latent_sample": latents})["sample"]) >= 80.0


@pytest.mark.long
def test_the_int8_export_passes_its_gates(int8_export: Export) -> None:
    folder, printed = int8_export
    found = {parity.graph: parity for parity in open_bundle(folder).manifest.parity}
    assert found["denoiser"].gate_db == 35.0
    assert found["denoiser"].guidance_error is not None
    assert found["denoiser"].guidance_error < 0.10
    assert all(parity.passed and parity.psnr_db >= parity.gate_db for parity in found.values())
    assert printed["passed"] is True
    assert {graph["graph"]: graph["psnr_db"] for graph in printed["graphs"]} == {
        role: parity.psnr_db for role, parity in found.items()
    }


@pytest.mark.long
def test_the_int8_bundle_is_small_and_says_what_it_is(int8_export: Export, tiny_bundle: Path) -> None:
    folder, printed = int8_export
    manifest = open_bundle(folder).manifest
    assert manifest.licence == "Apache-2.0"
    assert [(each.prompt, each.counts) for each in manifest.skew] == [("a house", {"red": 3, "blue": 1})]
    assert manifest.graphs["vae_encoder"]["full"].precision == "fp16"
    small, large = (
        sum(file.bytes for file in open_bundle(path).manifest.files.values()) for path in (folder, tiny_bundle)
    )
    assert small < 0.6 * large
    assert printed["bundle_bytes"] == small + (folder / "tintype.json").stat().st_size


@pytest.mark.long
def test_int8_graphs_are_hybrid(int8_export: Export) -> None:
    folder, printed = int8_export
    for graph in printed["graphs"]:
        if graph["precision"] != "int8":
            continue
        model = load_graph(open_bundle(folder).graph_path(graph["graph"]))
        initializers = model.graph.initializers
        integers = [name for name, value in initializers.items() if value.dtype == ir.DataType.INT8]
        assert len(integers) == graph["quantized_layers"] > 0
        assert not [name for name in integers if "conv_in" in name or "conv_out" in name or "time_emb" in name]
        linear = [node for node in model.graph if node.op_type == "MatMul"]
        sources = [producer.op_type for node in linear if node.inputs[0] and (producer := node.inputs[0].producer())]
        assert "DequantizeLinear" not in sources  # activations of linear layers are the target's affair


def test_a_default_request_that_the_model_cannot_do_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "write_graphs", lambda _job: [])
    request = DefaultRequest(width=65, height=64, num_inference_steps=20, guidance_scale=1.0, sampler="euler")
    effort = Effort(steps=1, gate_prompts=1, latent_size=4)
    with pytest.raises(ExportError, match="width 65"):
        export_bundle(tiny_checkpoint, tmp_path / "b", default_request=request, effort=effort)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_both_exports_come_from_the_same_checkpoint(int8_export: Export, bundle: Bundle) -> None:
    other = open_bundle(int8_export[0]).manifest
    assert other.source == bundle.manifest.source
    assert other.size == bundle.manifest.size
    assert bundle.hash != open_bundle(int8_export[0]).hash
