"""Skipped work on a device: what it draws with a graph that leaves something out is the processor's picture."""

from __future__ import annotations

import os

import pytest
from pictures import psnr_db

import tintype

DEVICE = os.environ.get("TINTYPE_TEST_DEVICE", "")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DEVICE, reason="TINTYPE_TEST_DEVICE names no device")]

ASKED = {"num_inference_steps": 4, "seed": 5, "exactness": "exact", "watermark": False, "width": 64, "height": 64}
WAYS = {"deep": {"cache_interval": 2}, "gated": {"gate_start": 0.5}, "merged": {"token_merging": 0.5}}
if DEVICE == "webgpu":  # by software each takes a minute
    WAYS = {"gated": WAYS["gated"]}


@pytest.fixture(autouse=True)
def _works(usable_target):
    usable_target(DEVICE)


@pytest.mark.parametrize("way", WAYS)
def test_a_picture_with_less_work_is_that_of_the_processor(way):
    with tintype.load("postcard", provider="cpu") as pipeline:
        expected = pipeline.generate("a red sailboat on a calm sea", **ASKED, **WAYS[way]).image
    with tintype.load("postcard", provider=DEVICE) as pipeline:
        made = pipeline.generate("a red sailboat on a calm sea", **ASKED, **WAYS[way])
        whole = pipeline.generate("a red sailboat on a calm sea", **ASKED)
        again = pipeline.reproduce(made.record)
    assert psnr_db(made.image, expected) >= 45.0
    assert psnr_db(whole.image, expected) < 45.0
    assert again.image.tobytes() == made.image.tobytes()
