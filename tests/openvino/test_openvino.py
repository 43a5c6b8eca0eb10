"""OpenVINO through the same interface: plain operators, every heavy node placed, the processor's picture.

Runs where onnxruntime-openvino is installed in place of onnxruntime (see `make test-openvino`).
"""

from __future__ import annotations

import numpy as np
import pytest

import tintype
from tintype.bundle import open_bundle
from tintype.engine import ensure_build, list_devices, open_session
from tintype.engine.providers import TARGETS, unusable_reason
from tintype.errors import ProviderError
from tintype.pipeline import Pipeline

pytestmark = pytest.mark.slow

OPENVINO = TARGETS["openvino"]


@pytest.fixture(autouse=True)
def _works():
    reason = unusable_reason(OPENVINO)
    if reason is not None:
        pytest.skip(f"OpenVINO: {reason}")


class OnTheProcessor(Pipeline):
    """The graphs that OpenVINO gets, run by ONNX Runtime's own kernels."""

    def open(self, role, options):
        return open_session(ensure_build(self.bundle, role, OPENVINO), TARGETS["cpu"], optimize=True)


def test_the_picture_is_the_processors_and_the_same_twice():
    request = {"seed": 7, "num_inference_steps": 4}
    pictures = []
    for _ in range(2):
        with tintype.load("postcard", provider="openvino") as pipeline:
            result = pipeline.generate("a red sailboat on a calm sea at sunset", **request)
            pictures.append(np.asarray(result.image).astype(np.float64))
            assert result.record.made_with.target == "openvino"
    with OnTheProcessor(open_bundle("postcard"), TARGETS["cpu"]) as pipeline:
        expected = np.asarray(pipeline.generate("a red sailboat on a calm sea at sunset", **request).image)
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert 10 * np.log10(255**2 / np.mean((pictures[0] - expected) ** 2)) >= 45.0


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
