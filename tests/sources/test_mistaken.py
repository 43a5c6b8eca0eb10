"""What is given in a wrong place is called by what it is, with how it is used: adapters, checkpoints, addresses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tintype.adapters.files import open_adapter
from tintype.adapters.ip_adapter import open_ip_adapter
from tintype.bundle import open_bundle
from tintype.bundle.opening import open_control_bundle
from tintype.errors import BundleError, RequestError, TintypeError
from tintype.sources.embedding import read_embedding

ONES = np.ones((2, 2), np.float32)
FILES = {
    "a LoRA": (["lora_unet_x.lora_down.weight", "lora_unet_x.lora_up.weight"], "--lora FILE"),
    "an IP-Adapter": (["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"], "--ip-adapter FILE"),
    "a textual inversion": (["emb_params"], "--embedding FILE"),
    "a ControlNet": (["controlnet_cond_embedding.conv_in.weight", "b"], "which --control takes"),
    "a T2I-Adapter": (["adapter.body.0.weight", "b"], "which --control takes"),
}
READERS = {
    "a LoRA": open_adapter,
    "an IP-Adapter": open_ip_adapter,
    "a textual inversion": lambda path: read_embedding(Path(path)),
    "a ControlNet": open_control_bundle,
    "a model": open_bundle,
}


@pytest.mark.parametrize(
    ("kind", "reader"), [(kind, reader) for kind in FILES for reader in READERS if kind != reader or "Net" in kind]
)
def test_a_file_of_another_kind_is_called_by_what_it_is(tmp_path, kind, reader):
    names, fix = FILES[kind]
    file = tmp_path / "x.safetensors"
    save_file(dict.fromkeys(names, ONES), file)
    with pytest.raises(TintypeError) as refusal:
        READERS[reader](file)
    assert f"is {kind}, " in refusal.value.message
    assert fix in refusal.value.fix


CHECKPOINTS = {
    "a ControlNet's checkpoint": ("config.json", {"_class_name": "ControlNetModel"}),
    "a T2I-Adapter's checkpoint": ("config.json", {"_class_name": "T2IAdapter"}),
    "an image encoder's checkpoint": ("config.json", {"model_type": "clip_vision_model"}),
    "a checkpoint": ("model_index.json", {"_class_name": "StableDiffusionPipeline"}),
}


@pytest.mark.parametrize("opener", [open_bundle, open_control_bundle], ids=["model", "control"])
@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_checkpoint_in_place_of_a_bundle_is_to_be_exported(tmp_path, kind, opener):
    name, config = CHECKPOINTS[kind]
    (tmp_path / name).write_text(json.dumps(config))
    with pytest.raises(BundleError) as refusal:
        opener(tmp_path)
    assert f"is {kind}, not a bundle" in refusal.value.message
    assert f"tintype export {tmp_path} BUNDLE" in refusal.value.fix


def test_a_folder_of_anything_is_no_checkpoint(tmp_path):
    for text in ("{}", "[]", "{", '{"_class_name": 3}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(BundleError, match="there is no bundle"):
            open_bundle(tmp_path)


def test_an_address_on_the_hub_comes_with_how_it_is_fetched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for opener in (open_bundle, open_control_bundle):
        with pytest.raises(BundleError, match="there is no bundle") as refusal:
            opener("lllyasviel/sd-controlnet-canny")
        assert "tintype export lllyasviel/sd-controlnet-canny BUNDLE" in refusal.value.fix
    for given, fetched in (
        ("latent-consistency/lcm-lora-sdv1-5", "hf download latent-consistency/lcm-lora-sdv1-5 FILE "),
        ("h94/IP-Adapter/models/ip-adapter_sd15.safetensors", "hf download h94/IP-Adapter models/ip-adapter_sd15"),
    ):
        for reader in (open_adapter, open_ip_adapter):
            with pytest.raises(RequestError, match="cannot be read") as refused:
                reader(given)
            assert fetched in refused.value.fix


def test_a_path_that_is_mistyped_is_no_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loras").mkdir()
    for given in ("loras/gone", "folder/gone.safetensors", "gone.safetensors", str(tmp_path / "gone"), "x" * 5000):
        with pytest.raises(RequestError, match="cannot be read") as refused:
            open_adapter(given)
        assert "hf download" not in refused.value.fix
