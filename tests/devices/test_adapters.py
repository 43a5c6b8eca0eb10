"""Adapters on a device: a LoRA, a DoRA, a ControlNet, an embedding and image prompts beside a picture and a mask, all
for postcard; no torch is there."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
from embeddings import vectors, write
from ip_adapters import adapter_tensors, colours, left_half, save_adapter
from known_image_encoder import write_image_encoder
from pictures import psnr_db
from safetensors.numpy import load_file, save_file

import tintype
from tintype.bundle import open_bundle
from tintype.engine import adaptable_shapes, lengths_with
from tintype.uses import BY_OUTPUT, GraphRef

DEVICE = os.environ.get("TINTYPE_TEST_DEVICE", "")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DEVICE, reason="TINTYPE_TEST_DEVICE names no device")]

ADAPTERS = Path(__file__).parents[2] / "models/postcard/adapters"
SIDE, WORDS_WIDTH = 64, 128
ASKED = {"num_inference_steps": 2, "seed": 5, "exactness": "exact", "watermark": False}
PROMPT = "a red wobble mushroom on a calm sea"


@pytest.fixture(autouse=True)
def _works(usable_target):
    usable_target(DEVICE)


def cross_attentions() -> list[tuple[int, int]]:
    """Those of postcard, in the order of a file: the middle comes last."""
    shapes = adaptable_shapes(open_bundle("postcard"), GraphRef("denoiser")).shapes
    found = {name: shape for name, shape in shapes.items() if name.endswith("attn2.to_k")}
    return [shape for part in ("down", "up", "mid") for name, shape in found.items() if name.startswith(part)]


def dora(path: Path) -> Path:
    """postcard's pixel art as a DoRA, whose rows are 0.9 to 1.1 times as long as those of its weights."""
    bundle, ref, random = open_bundle("postcard"), GraphRef("denoiser"), np.random.default_rng(3)
    tensors = load_file(ADAPTERS / "pixel-art.safetensors")
    starts = sorted({name.partition(".lora")[0] for name in tensors if name.startswith("unet.")})
    sizes = [adaptable_shapes(bundle, ref).shapes[start.removeprefix("unet.")] for start in starts]
    nothing = [
        (start.removeprefix("unet."), BY_OUTPUT, np.zeros((rows, 1), np.float32), np.zeros((1, math.prod(rest)), "f4"))
        for start, (rows, *rest) in zip(starts, sizes, strict=True)
    ]
    for start, lengths in zip(starts, lengths_with(bundle, ref, ["nothing", *starts], lambda: nothing), strict=True):
        factors = random.uniform(0.9, 1.1, len(lengths))
        tensors[f"{start}.lora_magnitude_vector"] = (lengths * factors).astype(np.float32)
    save_file(tensors, path)
    return path


@pytest.fixture
def brought(tmp_path):
    ramp = np.linspace(0, 255, SIDE, dtype=np.uint8)
    picture = np.stack([np.tile(ramp, (SIDE, 1)), np.tile(ramp[:, None], (1, SIDE)), np.full((SIDE, SIDE), 90)], 2)
    mask, lines = np.zeros((SIDE, SIDE), np.uint8), np.zeros((SIDE, SIDE, 3), np.uint8)
    mask[8:56, 8:60] = 255
    lines[20:22, 8:56] = lines[20:50, 30:32] = 255
    write_image_encoder(tmp_path / "encoder")
    return {
        "image": picture.astype(np.uint8),
        "mask": mask,
        "loras": [(ADAPTERS / "mushroom.safetensors", 0.8), (dora(tmp_path / "dora.safetensors"), 0.6)],
        "control": [{"model": ADAPTERS / "edges", "image": lines, "weight": 0.9}],
        "embeddings": [write(tmp_path / "wobble.safetensors", emb_params=vectors(2, WORDS_WIDTH, 1))],
        "ip_adapter": save_adapter(tmp_path / "adapter.safetensors", adapter_tensors(cross_attentions(), "plus")),
        "image_encoder": tmp_path / "encoder",
        "image_prompts": [(colours(), 0.6), {"image": colours(seed=6), "weight": 0.4, "mask": left_half()}],
    }


def _without(brought, name):
    """Of image prompts the adapter and the encoder go with them."""
    gone = ("ip_adapter", "image_encoder", "image_prompts") if name == "image_prompts" else (name,)
    return {each: value for each, value in brought.items() if each not in gone}


def test_all_at_once_is_the_processors_picture_and_each_has_its_part(brought):
    with tintype.load("postcard", provider="cpu") as pipeline:
        expected = pipeline.generate(PROMPT, **brought, **ASKED).image
        without = {
            name: psnr_db(pipeline.generate(PROMPT, **_without(brought, name), **ASKED).image, expected)
            for name in ("loras", "control", "embeddings", "image_prompts")
        }
    with tintype.load("postcard", provider=DEVICE) as pipeline:
        made = pipeline.generate(PROMPT, **brought, **ASKED)
        files = {**brought, "loras": [file for file, _ in brought["loras"]]}
        again = pipeline.reproduce(made.record, **files)
    near = psnr_db(made.image, expected)
    print(f"{near:.1f} dB, {without}")
    assert near >= 45.0
    assert max(without.values()) < near - 8.0
    assert any(name.startswith("image_encoder") for name in made.record.made_with.builds)
    assert again.image.tobytes() == made.image.tobytes()
