"""OpenVINO through the same interface: plain operators, every heavy node placed, the processor's picture.

Runs where onnxruntime-openvino is installed in place of onnxruntime (see `make test-openvino`).
"""

from __future__ import annotations

import numpy as np
import pytest

import tintype
from tintype.bench.devices import UNDECIDED
from tintype.bundle import open_bundle
from tintype.engine import ensure_build, list_devices, open_session
from tintype.engine.device.providers import TARGETS
from tintype.errors import ProviderError

pytestmark = pytest.mark.slow

OPENVINO = TARGETS["openvino"]


@pytest.fixture(autouse=True)
def _works(usable_target):
    usable_target("openvino")


PROMPT = "a red sailboat on a calm sea at sunset"


def _psnr_db(result, reference):
    error = np.mean((np.asarray(result, np.float64) - np.asarray(reference)) ** 2)
    return 10 * np.log10(255**2 / error) if error else np.inf


@pytest.mark.parametrize("steps", [1, 4, 20])
def test_the_picture_is_the_processors_and_the_same_twice(steps):
    request = {"seed": 7, "num_inference_steps": steps, "watermark": False}
    pictures = []
    for _ in range(2):
        with tintype.load("postcard", provider="openvino") as pipeline:
            result = pipeline.generate(PROMPT, **request)
            pictures.append(np.asarray(result.image))
            assert result.record.made_with.target == "openvino"
    with tintype.load("postcard", provider="cpu") as pipeline:
        expected = pipeline.generate(PROMPT, **request).image
    np.testing.assert_array_equal(*pictures)
    assert _psnr_db(pictures[0], expected) >= 45.0


@pytest.mark.parametrize("prompt", UNDECIDED)
def test_a_prompt_whose_first_steps_could_go_either_way_goes_the_processors(prompt):
    """Rounding to 8 bits makes another picture of these on the processor, 20 to 40 dB away: see kernels/FINDINGS.md."""
    pictures = []
    for provider in ("openvino", "cpu"):
        with tintype.load("postcard", provider=provider) as pipeline:
            pictures.append(pipeline.generate(prompt, seed=7, watermark=False).image)
    assert _psnr_db(*pictures) >= 45.0


def test_balanced_is_the_same_picture_within_what_8_bits_cost_the_processor():
    """OpenVINO takes no integers, so its picture is the exact one, however far those of a processor are from it."""
    drawn = {}
    for provider in ("openvino", "cpu"):
        with tintype.load("postcard", provider=provider) as pipeline:
            for exactness in ("exact", "balanced"):
                request = {"seed": 7, "exactness": exactness, "watermark": False}
                drawn[provider, exactness] = pipeline.generate(PROMPT, **request).image
    cost_db = _psnr_db(drawn["cpu", "balanced"], drawn["cpu", "exact"])
    assert 35 < cost_db < 60  # integers were rounded there
    assert _psnr_db(drawn["openvino", "balanced"], drawn["cpu", "balanced"]) >= cost_db - 1
    assert _psnr_db(drawn["openvino", "balanced"], drawn["cpu", "exact"]) >= 45


@pytest.mark.parametrize("role", ["text_encoder", "denoiser", "vae_decoder"])
def test_every_node_is_openvinos(role):
    with open_session(ensure_build(open_bundle("postcard"), role, OPENVINO), OPENVINO) as session:
        assert list(session.placement.nodes) == ["OpenVINOExecutionProvider"]


def test_a_graph_that_openvino_cannot_take_is_an_error_not_another_device():
    with pytest.raises(ProviderError, match="OpenVINOExecutionProvider"):
        open_session(open_bundle("postcard").graph_path("denoiser"), OPENVINO)


def test_devices_lists_it():
    (device,) = [device for device in list_devices() if device.target == "openvino"]
    assert device.usable
    assert "onnxruntime" in device.version
