"""Adapters on a device: two LoRAs, a ControlNet and an embedding beside a picture and a mask, all of postcard's."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from embeddings import vectors, write
from pictures import psnr_db

import tintype

DEVICE = os.environ.get("TINTYPE_TEST_DEVICE", "")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DEVICE, reason="TINTYPE_TEST_DEVICE names no device")]

ADAPTERS = Path(__file__).parents[2] / "models/postcard/adapters"
SIDE, WORDS_WIDTH = 64, 128
ASKED = {"num_inference_steps": 2, "seed": 5, "exactness": "exact", "watermark": False}
PROMPT = "a red wobble mushroom on a calm sea"


@pytest.fixture(autouse=True)
def _works(usable_target):
    usable_target(DEVICE)


@pytest.fixture
def brought(tmp_path):
    ramp = np.linspace(0, 255, SIDE, dtype=np.uint8)
    picture = np.stack([np.tile(ramp, (SIDE, 1)), np.tile(ramp[:, None], (1, SIDE)), np.full((SIDE, SIDE), 90)], 2)
    mask, lines = np.zeros((SIDE, SIDE), np.uint8), np.zeros((SIDE, SIDE, 3), np.uint8)
    mask[8:56, 8:60] = 255
    lines[20:22, 8:56] = lines[20:50, 30:32] = 255
    return {
        "image": picture.astype(np.uint8),
        "mask": mask,
        "loras": [(ADAPTERS / "mushroom.safetensors", 0.8), (ADAPTERS / "pixel-art.safetensors", 0.6)],
        "control": [{"model": ADAPTERS / "edges", "image": lines, "weight": 0.9}],
        "embeddings": [write(tmp_path / "wobble.safetensors", emb_params=vectors(2, WORDS_WIDTH, 1))],
    }


def test_all_at_once_is_the_processors_picture_and_each_has_its_part(brought):
    with tintype.load("postcard", provider="cpu") as pipeline:
        expected = pipeline.generate(PROMPT, **brought, **ASKED).image
    with tintype.load("postcard", provider=DEVICE) as pipeline:
        made = pipeline.generate(PROMPT, **brought, **ASKED)
        files = {**brought, "loras": [file for file, _ in brought["loras"]]}
        again = pipeline.reproduce(made.record, **files)
        without = {
            name: psnr_db(pipeline.generate(PROMPT, **{**brought, name: ()}, **ASKED).image, expected)
            for name in ("loras", "control", "embeddings")
        }
    near = psnr_db(made.image, expected)
    print(f"{near:.1f} dB, {without}")
    assert near >= 45.0
    assert max(without.values()) < near - 8.0
    assert again.image.tobytes() == made.image.tobytes()
