"""Diffusers folders as they are published: what no picture needs is left alone, and an index is held to its word."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from tintype.cli import run
from tintype.errors import ExportError
from tintype.export.checkpoint import open_checkpoint
from tintype.sources.folder import find_weights

POSTCARD = Path(__file__).parents[2] / "models/postcard/checkpoint"
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copytree(POSTCARD, tmp_path / "checkpoint"))


def shard(checkpoint: Path, variant: str = "") -> dict[str, str]:
    """The UNet in two files; what its index should say."""
    state = load_file(checkpoint / UNET)
    (checkpoint / UNET).unlink()
    names, places = sorted(state), {}
    for number in (1, 2):
        file = f"diffusion_pytorch_model{variant}-0000{number}-of-00002.safetensors"
        part = names[number - 1 :: 2]
        save_file({name: state[name] for name in part}, checkpoint / "unet" / file)
        places |= dict.fromkeys(part, file)
    return places


def test_what_no_picture_needs_is_left_alone(checkpoint: Path) -> None:
    index = json.loads((checkpoint / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    index["image_encoder"] = [None, None]
    index["requires_safety_checker"] = True
    (checkpoint / "model_index.json").write_text(json.dumps(index))
    (checkpoint / "safety_checker").mkdir()
    (checkpoint / "safety_checker/pytorch_model.bin").write_bytes(b"\x80\x02a pickle")
    for name in ("unet_ema", "unet/ema"):
        (checkpoint / name).mkdir()
        shutil.copyfile(checkpoint / UNET, checkpoint / name / "diffusion_pytorch_model.safetensors")
    for name in ("diffusion_pytorch_model.non_ema.safetensors", "diffusion_pytorch_model.bin", "unet_ema.safetensors"):
        (checkpoint / "unet" / name).write_bytes(b"never opened")
    opened = open_checkpoint(checkpoint)
    assert opened.weights["unet"] == (checkpoint / UNET,)
    assert opened.sha256() == open_checkpoint(POSTCARD).sha256()
    assert run(["info", str(checkpoint)]) == 0


@pytest.mark.parametrize("name", ["unet_ema.safetensors", "diffusion_pytorch_model.ema.safetensors"])
def test_averaged_weights_alone_are_no_weights(name: str, checkpoint: Path) -> None:
    (checkpoint / UNET).rename(checkpoint / "unet" / name)
    with pytest.raises(ExportError, match=f"has no weights .*{name}"):
        open_checkpoint(checkpoint)


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_shards_are_found_by_the_names_that_diffusers_gives_them(variant: str, checkpoint: Path) -> None:
    places = shard(checkpoint, variant)
    index = f"diffusion_pytorch_model.safetensors.index{variant}.json"
    (checkpoint / "unet" / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    found = open_checkpoint(checkpoint)
    assert [path.name for path in found.weights["unet"]] == sorted(set(places.values()))
    assert found.entries("unet").keys() == places.keys()
    assert found.fp32_bytes("unet") == open_checkpoint(POSTCARD).fp32_bytes("unet")


LIES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a tensor that isn't there": (lambda places: places.update(stray=places["conv_in.bias"]), "lists stray"),
    "a tensor too few": (lambda places: places.pop("conv_in.bias"), "doesn't list conv_in.bias"),
    "a tensor in another file": (
        lambda places: places.update({"conv_in.bias": places["conv_in.weight"]}),
        "lists conv_in.bias",
    ),
    "a file that isn't there": (lambda places: places.update(a="b.safetensors"), "refers to b.safetensors"),
    "a place outside": (
        lambda places: places.update(a="../vae/diffusion_pytorch_model.safetensors"),
        "refers to ../vae",
    ),
    "a pickle": (lambda places: places.update(a="a.bin"), "pickle"),
    "a config": (lambda places: places.update(a="config.json"), "refers to config.json"),
    "no text": (lambda places: places.update(a=["b"]), "refers to"),
    "nothing": (lambda places: places.clear(), "lists no weights"),
    "files without end": (lambda places: places.update({str(n): f"{n}.safetensors" for n in range(2000)}), "the most"),
}


@pytest.mark.parametrize("name", LIES)
def test_an_index_that_lies_is_refused_with_its_lie(name: str, checkpoint: Path) -> None:
    change, told = LIES[name]
    places: dict[str, Any] = dict(shard(checkpoint))
    change(places)
    (checkpoint / f"{UNET}.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(ExportError) as caught:
        find_weights(checkpoint / "unet")
    assert told in caught.value.message
    assert caught.value.fix


def test_an_export_that_is_refused_leaves_nothing(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Headers tell what is missing, so it is known before a weight is read."""
    state = load_file(checkpoint / UNET)
    lacking = sorted(state)[:7]
    save_file({name: value for name, value in state.items() if name not in lacking}, checkpoint / UNET)
    before = sorted(tmp_path.iterdir())
    assert run(["export", str(checkpoint), str(tmp_path / "bundle")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert f"lacks {', '.join(lacking[:5])} and 2 more" in lines[0]
    assert sorted(tmp_path.iterdir()) == before
