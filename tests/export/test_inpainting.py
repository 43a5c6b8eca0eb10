"""Inpainting checkpoints: a UNet of 9 channels is traced, judged and calibrated on masks and masked pictures."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from tintype.bundle import open_bundle
from tintype.engine import run_graph
from tintype.export import Effort, export_bundle, graphs, modules
from tintype.export.calls import Call
from tintype.export.checkpoint import Checkpoint, load, load_unet, open_checkpoint
from tintype.export.modules import Modules
from tintype.export.parity import psnr_db
from tintype.export.picture_channels import mask, picture, picture_channels
from tintype.export.plans import trajectory_plan

EFFORT = Effort(steps=4, calibration_prompts=2, gate_prompts=1, gate_calls=2, latent_size=8, damage_seconds=1.0)


def test_the_manifest_says_how_many_channels(inpainting_bundle: Path, inpainting_checkpoint: Path) -> None:
    bundle = open_bundle(inpainting_bundle)
    manifest = bundle.manifest
    assert manifest.is_inpainting
    assert manifest.latent_channels == 4
    ports = {port.name: port.shape for port in bundle.graph("denoiser").inputs}
    assert ports["sample"] == ("batch", 9, "height", "width")
    assert bundle.graph("denoiser").outputs[0].shape == ("batch", 4, "height", "width")
    assert all(parity.passed and parity.psnr_db >= parity.gate_db == 80.0 for parity in manifest.parity)
    index = json.loads(bundle.path("model_index.json").read_text())
    assert index["_class_name"] == json.loads((inpainting_checkpoint / "model_index.json").read_text())["_class_name"]
    assert index["_class_name"].endswith("InpaintPipeline")


@pytest.mark.parametrize(("batch", "height", "width", "tokens"), [(1, 16, 16, 77), (3, 4, 22, 154)])
def test_the_denoiser_answers_at_sizes_it_was_not_traced_at(
    inpainting_bundle: Path, inpainting_checkpoint: Path, batch: int, height: int, width: int, tokens: int
) -> None:
    random, bundle = np.random.default_rng(batch), open_bundle(inpainting_bundle)
    dims = {"batch": batch, "height": height, "width": width, "sequence": tokens}
    feed = {
        port.name: random.standard_normal([dims.get(str(dim), dim) for dim in port.shape]).astype(np.float32)
        for port in bundle.graph("denoiser").inputs
    }
    feed["timestep"] = np.array(31.5, np.float32)
    tensors = {name: torch.from_numpy(array) for name, array in feed.items()}
    added = {name: tensors.pop(name) for name in ("text_embeds", "time_ids") if name in tensors}
    with torch.inference_mode():
        unet = load_unet(open_checkpoint(inpainting_checkpoint))
        expected = unet(**tensors, added_cond_kwargs=added or None, return_dict=False)[0].numpy()
    assert expected.shape == (batch, 4, height, width)
    assert psnr_db(expected, run_graph(bundle.graph_path("denoiser"), feed)["out_sample"]) >= 80.0


@pytest.mark.long
@pytest.mark.parametrize("inpainting_checkpoint", ["sd"], indirect=True)  # XL in int8: test_xl.py
def test_int8_passes_its_gates_on_masked_pictures_with_one_part_in_memory_at_a_time(
    inpainting_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[torch.nn.Module]] = []
    judged: dict[str, list[Call]] = {}

    def load_alone(checkpoint: Checkpoint, component: str) -> torch.nn.Module:
        gc.collect()
        assert not [part for part in loaded if part() is not None]
        module = load(checkpoint, component)
        loaded.append(weakref.ref(module))
        return module

    def watched(job, role, calls, precision):  # type: ignore[no-untyped-def]
        judged[role] = list(calls)
        return real(job, role, calls, precision)

    real = graphs._check_parity
    monkeypatch.setattr(graphs, "_check_parity", watched)
    monkeypatch.setattr(modules, "load", load_alone)
    report = export_bundle(inpainting_checkpoint, tmp_path / "b", precision="int8", effort=EFFORT)
    assert report.passed
    print([(graph.role, graph.precision, graph.parity.psnr_db, graph.parity.guidance_error) for graph in report.graphs])
    assert {graph.role: graph.precision for graph in report.graphs}["denoiser"] == "int8"
    assert open_bundle(tmp_path / "b").manifest.is_inpainting
    for call in judged["denoiser"]:
        sample = call.feed["sample"]
        assert sample.shape == (2, 9, 8, 8)
        assert call.reference.shape == (2, 4, 8, 8)
        assert set(np.unique(sample[:, 4])) <= {0.0, 1.0}
        assert sample[:, 5:].std() > 0.0
    assert judged["vae_decoder"][0].feed["latent_sample"].shape == (1, 4, 8, 8)


def test_masked_pictures_are_those_of_the_checkpoints_encoder(inpainting_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(inpainting_checkpoint)
    plan, parts = trajectory_plan(checkpoint, EFFORT, None, 7.5), Modules(checkpoint)
    seed = plan.gate_seeds[0]
    found = picture_channels(parts, plan, plan.gate_seeds)
    assert list(found) == list(plan.gate_seeds)
    assert torch.equal(found[seed], picture_channels(parts, plan, [seed])[seed])
    assert torch.equal(found[seed][:, :1], mask(8, seed))
    factor = checkpoint.vae_scale_factor
    hidden = picture(8 * factor, seed) * (1 - torch.nn.functional.interpolate(mask(8, seed), scale_factor=factor))
    mean = parts.part("vae").encode(hidden).latent_dist.mean * parts.scaling_factor  # type: ignore[operator, union-attr]
    assert torch.allclose(found[seed][:, 1:], mean, atol=1e-5)


def test_masks_are_of_four_kinds_and_pictures_of_one_spectrum() -> None:
    kinds = [mask(8, seed) for seed in range(4)]
    assert [float(kind.mean()) for kind in kinds] == [0.25, 0.5, 0.75, 1.0]
    made = picture(64, 3)
    assert made.shape == (1, 3, 64, 64)
    assert float(made.abs().max()) <= 1.0
    assert 0.3 < float(made.std()) < 0.6
    assert float((made[..., 1:] - made[..., :-1]).std()) < 0.8 * float(made.std())  # of white noise it is 1.4
    assert torch.equal(made, picture(64, 3))
    assert not torch.equal(made, picture(64, 4))
