"""DirectML for real, on Windows with onnxruntime-directml; what can be shown elsewhere is in tests/kernels."""

from __future__ import annotations

import platform

import numpy as np
import pytest

import tintype

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.system() != "Windows", reason="DirectML exists on Windows only"),
]
REQUEST = {"seed": 7, "num_inference_steps": 4, "watermark": False}
PROMPT = "a red sailboat on a calm sea at sunset"


@pytest.fixture(autouse=True)
def _works(usable_target):
    usable_target("directml")


def test_the_picture_is_the_processors_and_the_same_twice():
    pictures = []
    for provider in ("directml", "directml", "cpu"):
        with tintype.load("postcard", provider=provider) as pipeline:
            pictures.append(np.asarray(pipeline.generate(PROMPT, **REQUEST).image, np.float64))
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert 10 * np.log10(255**2 / np.mean((pictures[0] - pictures[2]) ** 2)) >= 45.0


def test_a_balanced_picture_is_the_same_twice_and_says_where_it_was_made():
    results = []
    for _ in range(2):
        with tintype.load("postcard", provider="directml") as pipeline:
            results.append(pipeline.generate(PROMPT, **REQUEST, exactness="balanced"))
    assert results[0].image.tobytes() == results[1].image.tobytes()
    assert results[0].record.made_with.target == "directml"
    assert results[0].timings.device_bytes > 0
