"""Weights of 8 bits in one file, as ComfyUI stores them: fp8 is multiplied by its scale, other formats are refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from one_file import UNET, parts_of, write_one_file

from tintype.errors import ExportError
from tintype.export.checkpoint import Checkpoint, demand_tensors, load_unet, open_checkpoint
from tintype.export.sources.source import SourceOptions
from tintype.sources.facts import describe

Published = Callable[[str], Path]
QUANTIZED = "out.2."  # a layer of the tests' files
SCALED = [("scale_weight", "scale_input"), ("weight_scale", "input_scale")]  # ComfyUI's older files, and newer ones


def opened(path: Path, folder: Path) -> Checkpoint:
    return open_checkpoint(path, SourceOptions(tokenizer=folder))


def mark(**facts: Any) -> torch.Tensor:
    """What ComfyUI says of a layer beside its weight."""
    return torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(("scale_name", "input_name"), SCALED, ids=["older", "newer"])
def test_weights_of_8_bits_are_multiplied_by_the_scales_beside_them(
    published: Published, tmp_path: Path, scale_name: str, input_name: str
) -> None:
    """As ComfyUI stores them: linear layers scaled to the largest number of fp8, and what says so."""
    folder = published("sd1")

    def scaled(state: dict[str, Any]) -> None:
        for name in [name for name in state if name.startswith(UNET) and name.endswith("to_q.weight")]:
            scale = state[name].float().abs().max() / 448.0
            state[name] = (state[name].float() / scale).to(torch.float8_e4m3fn)
            layer = name.removesuffix("weight")
            state |= {f"{layer}{scale_name}": scale, f"{layer}{input_name}": torch.ones(())}
            if scale_name == "weight_scale":
                state[f"{layer}comfy_quant"] = mark(format="float8_e4m3fn", full_precision_matrix_mult=True)
        if scale_name == "scale_weight":
            state[f"{UNET}scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)

    path = write_one_file(folder, tmp_path / "one.safetensors", "sd1", change=scaled)
    checkpoint = opened(path, folder)
    demand_tensors(checkpoint, "unet")
    found, expected = load_unet(checkpoint).state_dict(), parts_of(folder)["unet"]
    names = [name for name in expected if name.endswith("to_q.weight")]
    assert names
    for name, tensor in expected.items():
        scale = tensor.float().abs().max() / 448.0
        stored = (tensor.float() / scale).to(torch.float8_e4m3fn).float() * scale if name in names else tensor.float()
        assert torch.equal(found[name], stored), name
    assert describe(path).need is None


def as_fp8(state: dict[str, Any], **more: Any) -> None:
    weight = state[f"{UNET}{QUANTIZED}weight"]
    state[f"{UNET}{QUANTIZED}weight"] = weight.to(torch.float8_e4m3fn)
    state |= {f"{UNET}{QUANTIZED}{name}": tensor for name, tensor in {"weight_scale": torch.ones(()), **more}.items()}


@pytest.mark.parametrize(
    ("more", "dtype", "named"),
    [
        ({"weight_scale": torch.ones(4, 1)}, torch.int8, "int8"),
        ({"weight_scale_2": torch.ones(())}, torch.uint8, "nvfp4"),
        ({}, torch.uint8, r"integers \(U8\)"),
        ({"weight_scale": torch.ones(4, 2, dtype=torch.uint8)}, None, "mxfp8"),
        ({"weight_scale": torch.ones(4, 1)}, None, r"fp8 \(e4m3fn\) with 4 scales a weight"),
    ],
    ids=["int8", "nvfp4", "integers", "mxfp8", "by rows"],
)
def test_other_formats_of_few_bits_are_refused_by_name(
    published: Published, tmp_path: Path, more: dict[str, Any], dtype: torch.dtype | None, named: str
) -> None:
    """By types and shapes, so that `info` says it too, without reading a tensor."""

    def change(state: dict[str, Any]) -> None:
        as_fp8(state, **more)
        if dtype is not None:
            state[f"{UNET}{QUANTIZED}weight"] = torch.zeros(state[f"{UNET}{QUANTIZED}weight"].shape, dtype=dtype)

    path = write_one_file(published("sd1"), tmp_path / "one.safetensors", "sd1", change=change)
    with pytest.raises(ExportError, match=f"has weights in {named}, which isn't read here") as caught:
        opened(path, published("sd1"))
    assert "fp16, bf16 or scaled fp8" in caught.value.fix
    assert re.search(f"its weights are in {named}, which isn't read here: export the same", describe(path).need or "")


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (mark(format="int8_tensorwise"), "has weights in int8_tensorwise, which isn't read"),
        (mark(format="float8_e4m3fn", convrot=True), "has weights in float8_e4m3fn with convrot, which isn't read"),
        (mark(format="float8_e5m2"), r"out\.2\.weight isn't in float8_e5m2 with a scale"),
        (mark(scale=1), "a layer has no format"),
        (torch.ones(8), "is no text"),
        (torch.zeros(5000, dtype=torch.uint8), "is no text"),
        (mark()[:1], "it is not JSON"),
    ],
    ids=["int8", "turned", "another type", "no format", "no bytes", "too long", "no JSON"],
)
def test_what_a_layers_mark_says_is_held_to(
    published: Published, tmp_path: Path, told: torch.Tensor, words: str
) -> None:
    path = write_one_file(
        published("sd1"), tmp_path / "one.safetensors", "sd1", change=lambda state: as_fp8(state, comfy_quant=told)
    )
    with pytest.raises(ExportError, match=words):
        opened(path, published("sd1"))


def test_scales_and_what_the_header_says_of_layers_have_to_fit(published: Published, tmp_path: Path) -> None:
    folder, path = published("sd1"), tmp_path / "one.safetensors"

    def header(text: str) -> dict[str, str]:
        return {"_quantization_metadata": text}

    fp8, other = ({"out": {"format": name}} for name in ("float8_e4m3fn", "nvfp4"))
    write_one_file(folder, path, "sd1", change=as_fp8, metadata=header(json.dumps({"layers": fp8})))
    demand_tensors(opened(path, folder), "unet")
    for change, metadata, words in (
        (lambda state: state.update({f"{UNET}nothing.scale_weight": torch.ones(())}), {}, "which isn't there"),
        (lambda state: as_fp8(state, scale_weight=torch.ones(())), {}, "has two scales"),
        (lambda state: as_fp8(state), header(json.dumps({"layers": other})), "has weights in nvfp4"),
        (lambda state: as_fp8(state), header("[]"), "it has no layers by name"),
        (lambda state: as_fp8(state), header("{"), "it is not JSON"),
    ):
        write_one_file(folder, path, "sd1", change=change, metadata=metadata)
        with pytest.raises(ExportError, match=words):
            opened(path, folder)
