"""Stable Diffusion XL: its checkpoints become bundles whose graphs answer as diffusers' modules do."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from tintype.bundle import Bundle, open_bundle
from tintype.engine import run_graph
from tintype.errors import BundleError, ExportError
from tintype.export import Effort, export_bundle, modules
from tintype.export.checkpoint import Checkpoint, load, load_text_encoder, load_unet, open_checkpoint
from tintype.export.defaults import usual_request
from tintype.export.parity import psnr_db
from tintype.export.storage import load_graph

ROLES = ("text_encoder", "text_encoder_2", "denoiser", "vae_decoder", "vae_encoder")


@pytest.fixture
def bundle(xl_bundle: Path) -> Bundle:
    return open_bundle(xl_bundle)


@pytest.fixture
def copy(xl_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(xl_checkpoint, tmp_path / "checkpoint"))


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_manifest_tells_what_xl_is(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert manifest.family == "stable-diffusion-xl"
    assert manifest.format_version == 1
    assert set(manifest.graphs) == set(ROLES)
    assert manifest.force_zeros_for_empty_prompt
    assert manifest.scaling_factor == 0.13025
    assert manifest.tokenizer_2 is not None
    assert manifest.tokenizer_2.file == "tokenizer_2/tokenizer.json"
    assert manifest.tokenizer_2.pad_token_id != manifest.tokenizer.pad_token_id
    assert (manifest.default_request.guidance_scale, manifest.default_request.width) == (5.0, 64)
    ports = {port.name: port.shape for port in bundle.graph("denoiser").inputs}
    assert ports["encoder_hidden_states"] == ("batch", "sequence", 80)
    assert ports["text_embeds"] == ("batch", 40)
    assert ports["time_ids"] == ("batch", 6)
    skips = ["clip_skip.1", "clip_skip.2"]  # of three layers, one of which is left out as it is
    assert [port.name for port in bundle.graph("text_encoder").outputs] == ["hidden_states", *skips]
    assert [port.name for port in bundle.graph("text_encoder_2").outputs] == ["hidden_states", "text_embeds", *skips]


def test_every_graph_passed_its_fp32_gate(bundle: Bundle) -> None:
    found = {parity.graph: parity for parity in bundle.manifest.parity}
    assert set(found) == set(ROLES)
    assert all(parity.passed and parity.psnr_db >= parity.gate_db == 80.0 for parity in found.values())


def test_the_folder_holds_what_other_tools_look_for(bundle: Bundle, xl_checkpoint: Path) -> None:
    for file in ("tokenizer_2/vocab.json", "tokenizer_2/tokenizer_config.json", "text_encoder_2/config.json"):
        assert bundle.path(file).is_file()
    index = json.loads(bundle.path("model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    assert index.keys() == json.loads((xl_checkpoint / "model_index.json").read_text()).keys()


def test_the_last_layer_of_the_first_text_encoder_is_not_stored(bundle: Bundle) -> None:
    names = set(load_graph(bundle.graph_path("text_encoder")).graph.initializers)
    assert any("encoder.layers.1." in name for name in names)
    assert not any("encoder.layers.2." in name or "final_layer_norm" in name for name in names)


def test_both_text_encoders_give_what_diffusers_takes_from_them(bundle: Bundle, xl_checkpoint: Path) -> None:
    ids = np.random.default_rng(0).integers(3, 300, (2, 77), dtype=np.int64)
    checkpoint = open_checkpoint(xl_checkpoint)
    for role in ("text_encoder", "text_encoder_2"):
        with torch.inference_mode():
            told = load_text_encoder(checkpoint, role)(torch.from_numpy(ids), output_hidden_states=True)
        found = run_graph(bundle.graph_path(role), {"input_ids": ids})
        assert psnr_db(told.hidden_states[-2].numpy(), found["hidden_states"]) >= 80.0
        for skip in (1, 2):
            assert psnr_db(told.hidden_states[-2 - skip].numpy(), found[f"clip_skip.{skip}"]) >= 80.0
        if role == "text_encoder_2":
            assert psnr_db(told.text_embeds.numpy(), found["text_embeds"]) >= 80.0


@pytest.mark.parametrize(("batch", "height", "width", "tokens"), [(1, 16, 16, 77), (3, 4, 22, 154)])
def test_the_denoiser_answers_at_sizes_it_was_not_traced_at(
    bundle: Bundle, xl_checkpoint: Path, batch: int, height: int, width: int, tokens: int
) -> None:
    random = np.random.default_rng(batch)
    feed = {
        "sample": random.standard_normal((batch, 4, height, width)).astype(np.float32),
        "timestep": np.array(31.5, np.float32),
        "encoder_hidden_states": random.standard_normal((batch, tokens, 80)).astype(np.float32),
        "text_embeds": random.standard_normal((batch, 40)).astype(np.float32),
        "time_ids": random.uniform(0, 1024, (batch, 6)).astype(np.float32),
    }
    unet = load_unet(open_checkpoint(xl_checkpoint))
    tensors = {name: torch.from_numpy(array) for name, array in feed.items()}
    added = {name: tensors.pop(name) for name in ("text_embeds", "time_ids")}
    with torch.inference_mode():
        expected = unet(**tensors, added_cond_kwargs=added, return_dict=False)[0].numpy()
    assert psnr_db(expected, run_graph(bundle.graph_path("denoiser"), feed)["out_sample"]) >= 80.0
    other = {**feed, "time_ids": feed["time_ids"] + 300}
    assert psnr_db(expected, run_graph(bundle.graph_path("denoiser"), other)["out_sample"]) < 80.0


@pytest.mark.long
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_smaller_precisions_pass_their_gates_with_one_part_in_memory_at_a_time(
    xl_checkpoint: Path, tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[torch.nn.Module]] = []

    def load_alone(checkpoint: Checkpoint, component: str) -> torch.nn.Module:
        gc.collect()
        assert not [part for part in loaded if part() is not None]
        module = load(checkpoint, component)
        loaded.append(weakref.ref(module))
        return module

    monkeypatch.setattr(modules, "load", load_alone)
    effort = Effort(steps=4, calibration_prompts=2, gate_prompts=1, gate_calls=2, latent_size=8, damage_seconds=1.0)
    report = export_bundle(xl_checkpoint, tmp_path / "b", precision=precision, effort=effort)
    assert report.passed
    assert len(loaded) == 4  # each when its turn comes: that all are sound is known by a tensor at a time
    assert [graph.role for graph in report.graphs] == [
        "text_encoder",
        "text_encoder_2",
        "denoiser",
        "vae_encoder",
        "vae_decoder",
    ]
    print([(graph.role, graph.precision, graph.parity.psnr_db, graph.quantized_layers) for graph in report.graphs])
    manifest = open_bundle(tmp_path / "b").manifest
    assert all(parity.passed for parity in manifest.parity)
    if precision == "int8":
        assert all(graph.precision == "int8" for graph in report.graphs if graph.role != "vae_encoder")
        integers = load_graph(open_bundle(tmp_path / "b").graph_path("denoiser")).graph.initializers
        assert not [n for n, v in integers.items() if "add_embedding" in n and v.dtype == ir.DataType.INT8]


def test_xl_without_its_first_text_encoder_is_refused(copy: Path) -> None:
    change_json(copy / "model_index.json", text_encoder=[None, None])
    with pytest.raises(ExportError, match="text_encoder"):
        open_checkpoint(copy)


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("text_encoder_2/config.json", {"projection_dim": 41}, "belong together"),
        ("text_encoder_2/config.json", {"hidden_size": 64}, "together 96"),
        ("unet/config.json", {"addition_embed_type": None}, "addition_embed_type"),
        ("vae/config.json", {"latents_mean": [0.0] * 4}, "latents_mean"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_named(copy: Path, file: str, changes: dict[str, Any], words: str) -> None:
    change_json(copy / file, **changes)
    with pytest.raises(ExportError, match=words):
        open_checkpoint(copy)


def test_a_missing_second_tokenizer_is_named(copy: Path) -> None:
    shutil.rmtree(copy / "tokenizer_2")
    with pytest.raises(ExportError, match="tokenizer_2"):
        open_checkpoint(copy)


def test_a_checkpoint_distilled_to_few_steps_is_used_as_one(copy: Path) -> None:
    assert usual_request(open_checkpoint(copy)).sampler == "dpmpp_2m"
    change_json(
        copy / "scheduler/scheduler_config.json",
        _class_name="EulerAncestralDiscreteScheduler",
        timestep_spacing="trailing",
    )
    request = usual_request(open_checkpoint(copy))
    assert (request.sampler, request.num_inference_steps, request.guidance_scale) == ("euler_a", 1, 1.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda value: value.pop("tokenizer_2"), "tokenizer_2"),
        (lambda value: value.update(family="stable-diffusion"), "tokenizer_2"),
        (lambda value: value["tokenizer_2"].update(file="../x"), "outside"),
        (lambda value: value["graphs"]["text_encoder_2"]["full"]["outputs"].pop(1), "text_embeds"),
        (lambda value: value["graphs"]["denoiser"]["full"]["inputs"].pop(), "time_ids"),
    ],
)
def test_a_manifest_that_lacks_what_xl_needs_is_refused(
    bundle: Bundle, tmp_path: Path, change: Any, words: str
) -> None:
    value = json.loads((bundle.folder / "tintype.json").read_text())
    change(value)
    (tmp_path / "tintype.json").write_text(json.dumps(value))
    with pytest.raises(BundleError, match=words):
        open_bundle(tmp_path)
