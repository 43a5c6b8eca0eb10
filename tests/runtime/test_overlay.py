"""Overlays: LoRAs of every kind merged into a bundle's weights, which draw as at run time, and as peft merges."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from loras import (
    ATTENTION,
    CONVOLUTIONS,
    TRANSFORMER,
    WORDS,
    pairs,
    peft_unet,
    save_diffusers,
    save_kohya,
    save_peft_unet,
    weights_of,
)
from pictures import PROMPT, psnr_db
from safetensors.numpy import load_file, save_file

import tintype
from tintype.bundle import open_bundle
from tintype.bundle.library import OVERLAY_NAME
from tintype.bundle.merging import merge
from tintype.cli.info import info
from tintype.cli.merge import merge as merge_command
from tintype.errors import BundleError, LoraError, OutputError

pytestmark = pytest.mark.slow  # graphs are built by the dozen

ASKED: dict[str, Any] = {
    "seed": 7, "num_inference_steps": 4, "width": 48, "height": 32, "sampler": "euler", "exactness": "exact",
}  # fmt: skip


@pytest.fixture(scope="module")
def lora(tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    unet = pairs(tiny_checkpoint, "unet", (*TRANSFORMER, *CONVOLUTIONS), 4, seed=1, size=0.5)
    words = pairs(tiny_checkpoint, "text_encoder", WORDS, 4, seed=2, size=0.5)
    return save_kohya(folder / "all.safetensors", {"unet": unet, "text_encoder": words}, alpha=2.0)


@pytest.fixture(scope="module")
def overlay(tiny_bundle, lora, tmp_path_factory):
    folder = tmp_path_factory.mktemp("overlay") / "merged"
    merge(open_bundle(tiny_bundle), [(lora, 0.8)], folder)
    return folder


def drawn(bundle: Path | str, **more: Any) -> tintype.Result:
    with tintype.load(bundle, provider="cpu", threads=1) as pipeline:
        return pipeline.generate(PROMPT, **{**ASKED, **more})


def test_merged_and_at_run_time_it_is_the_same_picture(tiny_bundle, overlay, lora):
    merged, there = drawn(overlay), drawn(tiny_bundle, loras=[(lora, 0.8)])
    near = psnr_db(merged.pixels * 255, there.pixels * 255)
    print(f"{near:.1f} dB")
    assert near >= 60
    assert psnr_db(merged.image, drawn(tiny_bundle).image) < 35


def test_it_is_a_bundle_of_its_own(tiny_bundle, overlay):
    base, opened = open_bundle(tiny_bundle), open_bundle(overlay)
    assert (opened.name, opened.manifest.files) == ("merged", base.manifest.files)
    assert opened.hash != base.hash
    made = drawn(overlay)
    assert (made.record.made_with.bundle, made.record.made_with.bundle_hash) == ("merged", opened.hash)
    with tintype.load(overlay, provider="cpu", threads=1) as pipeline:
        assert pipeline.reproduce(made.record).image.tobytes() == made.image.tobytes()
    assert drawn(tiny_bundle).record.made_with.bundle_hash == base.hash


def test_what_changed_is_written_and_nothing_else(overlay, lora, tiny_checkpoint):
    assert {path.name for path in overlay.iterdir()} == {
        OVERLAY_NAME,
        "denoiser.safetensors",
        "text_encoder.safetensors",
    }
    layers = {name.partition(".lora_")[0] for name in load_file(lora)}
    written = [*load_file(overlay / "denoiser.safetensors"), *load_file(overlay / "text_encoder.safetensors")]
    assert len(written) == len({name.removesuffix(".alpha") for name in layers})
    whole = sum(
        array.nbytes for part in ("unet", "text_encoder") for array in weights_of(tiny_checkpoint, part).values()
    )
    assert sum(path.stat().st_size for path in overlay.iterdir()) < whole


def test_int8_is_rounded_anew_and_says_how_near_it_is(tmp_path):
    """postcard: int8 with one scale a channel, half beside; its convolutions' biases go with the scales."""
    random, tensors = np.random.default_rng(1), {}
    shapes = {
        "down_blocks_0_resnets_0_conv1": (32, 32, 3, 3),
        "down_blocks_0_resnets_0_conv2": (32, 32, 3, 3),
        "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q": (96, 96),
        "down_blocks_1_attentions_0_transformer_blocks_0_ff_net_0_proj": (768, 96),
        "down_blocks_1_attentions_0_proj_in": (96, 96, 1, 1),
    }
    for name, (outputs, inputs, *kernel) in shapes.items():
        tensors[f"lora_unet_{name}.lora_down.weight"] = random.standard_normal((4, inputs, *kernel)).astype(np.float32)
        up = random.standard_normal((outputs, 4, *(1,) * len(kernel))) * 0.08
        tensors[f"lora_unet_{name}.lora_up.weight"] = up.astype(np.float32)
    save_file(tensors, tmp_path / "a.safetensors")
    facts = merge(open_bundle("postcard"), [tmp_path / "a.safetensors"], tmp_path / "out")
    assert facts.changed["denoiser"].layers == len(shapes)
    near = facts.changed["denoiser"].snr_db
    assert near is not None
    assert 30 < near < 60
    fields = {"width": 128, "height": 128}
    plain, there = drawn("postcard", **fields), drawn("postcard", **fields, loras=[tmp_path / "a.safetensors"])
    merged = drawn(tmp_path / "out", **fields)
    assert psnr_db(merged.pixels * 255, there.pixels * 255) > 30
    assert psnr_db(plain.image, there.image) < 25
    balanced = drawn(tmp_path / "out", **{**fields, "exactness": "balanced"})
    assert psnr_db(balanced.pixels * 255, merged.pixels * 255) > 25


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("targets", [ATTENTION, (*ATTENTION, "conv1")], ids=["linear", "convolutions"])
def test_a_dora_is_merged_as_peft_merges_it(tiny_bundle, tiny_checkpoint, tmp_path, targets):
    unet = peft_unet(tiny_checkpoint, target_modules=list(targets), use_dora=True)
    file = save_peft_unet(unet, tmp_path / "dora.safetensors")
    merge(open_bundle(tiny_bundle), [file], tmp_path / "out")
    written = load_file(tmp_path / "out/denoiser.safetensors")
    unet.fuse_lora()
    fused = {name: p.detach().numpy() for name, p in unet.named_parameters() if name.endswith("base_layer.weight")}
    assert len(fused) == len(written) > 4
    for name, expected in fused.items():
        layer = name.removesuffix(".base_layer.weight")
        (found,) = (array for other, array in written.items() if other.startswith(f"{layer}.weight"))
        found = found.T if expected.ndim == 2 else found
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_is_no_pair_is_merged_too(tiny_bundle, tiny_checkpoint, tmp_path):
    """A weight's whole difference; and a LoKr whose second factor is whole, which is a pair of a high rank."""
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    weight = weights_of(tiny_checkpoint, "unet")[layer]
    random = np.random.default_rng(0)
    first, second = (random.standard_normal(shape).astype(np.float32) for shape in ((4, 4), (8, 8)))
    name = f"lora_unet_{layer.replace('.', '_')}"
    for tensors, delta in (
        ({f"{name}.diff": weight * 0.5}, weight * 0.5),
        ({f"{name}.lokr_w1": first, f"{name}.lokr_w2": second}, np.kron(first, second)),
    ):
        path, out = tmp_path / f"{len(tensors)}.safetensors", tmp_path / f"out{len(tensors)}"
        save_file(tensors, path)
        merge(open_bundle(tiny_bundle), [(path, 0.5)], out)
        (found,) = load_file(out / "denoiser.safetensors").values()
        np.testing.assert_allclose(found.T, weight + 0.5 * delta, atol=1e-5)
    with pytest.raises(LoraError, match="changes whole weights"):
        drawn(tiny_bundle, loras=[tmp_path / "1.safetensors"])


def test_the_command_merges_and_says_what_it_wrote(tiny_bundle, lora, tmp_path, monkeypatch):
    out = tmp_path / "out"
    done = CliRunner().invoke(merge_command, [str(tiny_bundle), str(out), "--lora", f"{lora}=0.5"])
    assert done.exit_code == 0, done.output
    assert "denoiser: " in done.stdout
    assert f"--model {out}" in done.stdout
    again = CliRunner().invoke(merge_command, [str(tiny_bundle), str(out) + "2", "--lora", f"{lora}=0.5", "--json"])
    facts = json.loads(again.stdout)
    assert facts["loras"][0]["weight"] == 0.5
    shown = CliRunner().invoke(info, [str(out)]).stdout
    assert f"{lora.stem}, weight 0.5, sha256 {facts['loras'][0]['sha256'][:12]}" in shown
    told = json.loads(CliRunner().invoke(info, [str(out), "--json"]).stdout)["bundle"]["overlay"]
    assert told["loras"] == facts["loras"]
    assert f"denoiser: {told['changed']['denoiser']['layers']} layers" in shown
    assert json.loads(CliRunner().invoke(info, [str(tiny_bundle), "--json"]).stdout)["bundle"]["overlay"] is None
    monkeypatch.setenv("TINTYPE_MODELS", str(tmp_path))
    assert open_bundle("out").name == "out"  # by its name


BROKEN: dict[str, tuple[Any, str]] = {
    "cut": (lambda folder: _write(folder / "denoiser.safetensors", lambda data: data[:-4]), "the manifest says"),
    "changed": (
        lambda folder: _write(folder / "denoiser.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        "its bytes changed",
    ),
    "gone": (lambda folder: (folder / "denoiser.safetensors").unlink(), "is missing"),
    "no JSON": (lambda folder: _write(folder / OVERLAY_NAME, lambda data: data[:-9]), "cannot be read"),
    "of another bundle": (lambda folder: _said(folder, base_hash="0" * 64), "is an overlay of the bundle 000000000000"),
    "of a bundle that went": (lambda folder: _said(folder, base="/nowhere"), "no bundle at '/nowhere'"),
    "of a bundle elsewhere": (lambda folder: _said(folder, base="\\\\host\\share"), "no place of this machine"),
    "outside": (lambda folder: _said(folder, outside=True), "outside the bundle"),
    "a graph that isn't": (lambda folder: _said(folder, role="vae"), "changes vae"),
}


def _write(path: Path, change: Any) -> None:
    path.write_bytes(change(path.read_bytes()))


def _said(folder: Path, *, outside: bool = False, role: str | None = None, **changes: str) -> None:
    facts = json.loads((folder / OVERLAY_NAME).read_text()) | changes
    if outside:
        facts["changed"]["denoiser"]["file"] = "../x.safetensors"
        facts["files"]["../x.safetensors"] = facts["files"].pop("denoiser.safetensors")
    if role is not None:
        facts["changed"][role] = facts["changed"].pop("denoiser")
    (folder / OVERLAY_NAME).write_text(json.dumps(facts))


@pytest.mark.parametrize("harm", BROKEN)
def test_a_damaged_overlay_is_refused_by_name(overlay, tmp_path, harm):
    folder = Path(shutil.copytree(overlay, tmp_path / "merged"))
    do, words = BROKEN[harm]
    do(folder)
    with pytest.raises(BundleError) as refusal:
        open_bundle(folder)
    assert words in refusal.value.message
    assert refusal.value.fix


def test_an_overlay_of_an_overlay_or_of_itself_is_refused(overlay, tmp_path):
    place = tmp_path / "merged"
    shutil.copytree(overlay, place)
    for base in (place, overlay):
        _said(place, base=str(base))
        with pytest.raises(BundleError, match="no bundle"):
            open_bundle(place)


def test_what_cannot_be_merged_is_refused_and_leaves_nothing(tiny_bundle, overlay, lora, tmp_path, tiny_checkpoint):
    bundle, out = open_bundle(tiny_bundle), tmp_path / "out"
    other = save_diffusers(
        tmp_path / "wide.safetensors",
        {"unet": {"mid_block.attentions.0.proj_in": (np.ones((2, 7), np.float32), np.ones((64, 2), np.float32))}},
    )
    for loras, error, words in (
        ([], LoraError, "no LoRA to merge"),
        ([f"{lora}=1@0-0.5"], LoraError, "counts at some steps alone"),
        ([other], LoraError, "doesn't fit tiny"),
        ([tmp_path / "gone.safetensors"], LoraError, "cannot be read"),
    ):
        with pytest.raises(error, match=words):
            merge(bundle, loras, out)
    with pytest.raises(LoraError, match="overlay itself"):
        merge(open_bundle(overlay), [lora], out)
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputError, match="there already"):
        merge(bundle, [lora], tmp_path / "there")
    assert {path.name for path in tmp_path.iterdir()} == {"wide.safetensors", "there"}


def test_models_lists_and_removes_overlays(overlay, tiny_bundle, tmp_path, monkeypatch):
    from tintype.cli.models import models

    monkeypatch.setenv("TINTYPE_MODELS", str(tmp_path))
    folder = Path(shutil.copytree(overlay, tmp_path / "merged"))
    listed = CliRunner().invoke(models, ["--json"])
    rows = {row["name"]: row for row in json.loads(listed.stdout)["models"]}
    assert rows["merged"]["problem"] is None
    assert CliRunner().invoke(models, ["remove", "merged", "--yes"]).exit_code == 0
    assert not folder.exists()
    assert open_bundle(tiny_bundle).name == "tiny"
