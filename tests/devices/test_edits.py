"""Pictures from pictures on a device: the processor's picture, and from its record the same bytes again.

Runs on the device that TINTYPE_TEST_DEVICE names, as `make test-webgpu`, `test-openvino` and `test-cuda` do.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

import tintype

DEVICE = os.environ.get("TINTYPE_TEST_DEVICE", "")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DEVICE, reason="TINTYPE_TEST_DEVICE names no device")]

SIDE = 64
ASKED = {"num_inference_steps": 2, "seed": 5, "exactness": "exact", "watermark": False}
PROMPT = "a red sailboat on a calm sea"


@pytest.fixture(autouse=True)
def _works(usable_target):
    usable_target(DEVICE)


@pytest.fixture(scope="module")
def picture():
    ramp = np.linspace(0, 255, SIDE, dtype=np.uint8)
    return np.stack([np.tile(ramp, (SIDE, 1)), np.tile(ramp[:, np.newaxis], (1, SIDE)), np.full((SIDE, SIDE), 90)], 2)


@pytest.fixture(scope="module")
def mask():
    values = np.zeros((SIDE, SIDE), np.uint8)
    values[16:48, 16:56] = 255
    return values


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_a_picture_from_a_picture_is_that_of_the_processor(picture, mask, masked):
    given = {"image": picture.astype(np.uint8), **({"mask": mask} if masked else {})}
    with tintype.load("postcard", provider="cpu") as pipeline:
        expected = pipeline.generate(PROMPT, **given, **ASKED).image
    with tintype.load("postcard", provider=DEVICE) as pipeline:
        made = pipeline.generate(PROMPT, **given, **ASKED)
        again = pipeline.reproduce(made.record, **given)
    error = np.mean((np.asarray(expected, np.float64) - np.asarray(made.image)) ** 2)
    assert 10 * np.log10(255**2 / max(error, 1e-12)) >= 45.0
    assert "vae_encoder" in made.record.made_with.builds
    assert again.image.tobytes() == made.image.tobytes()
