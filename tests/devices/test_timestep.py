"""A denoiser whose timestep is a scalar, as they are exported now, answers on a device as one whose timestep is (1,).

Runs on the device that TINTYPE_TEST_DEVICE names, as `make test-webgpu`, `test-openvino` and `test-cuda` do.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tintype.engine import graph_session
from tintype.engine.run.binding import TensorBinding
from tintype.export.storage import load_graph, save_graph
from tintype.export.timestep import take_scalar_timestep

DEVICE = os.environ.get("TINTYPE_TEST_DEVICE", "")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DEVICE, reason="TINTYPE_TEST_DEVICE names no device")]

DENOISER = Path(__file__).parents[2] / "models/postcard/bundle/unet/model.onnx"
SAMPLE = (2, 4, 16, 16)


def test_a_scalar_timestep_is_as_a_row(usable_target, tmp_path: Path) -> None:
    target = usable_target(DEVICE)
    model = load_graph(DENOISER)
    take_scalar_timestep(model)
    save_graph(model, tmp_path / "model.onnx")
    random = np.random.default_rng(0)
    words = {"encoder_hidden_states": random.standard_normal((2, 77, 128), np.float32)}
    sample = {"sample": random.standard_normal(SAMPLE, np.float32)}
    answers = {}
    for path, shape in ((DENOISER, (1,)), (tmp_path / "model.onnx", ())):
        with graph_session(path, target.name) as session:
            held = session.hold(words)
            answers[shape] = [
                held.run({**sample, "timestep": np.full(shape, time, np.float32)})["out_sample"]
                for time in (901.0, 31.5)
            ]
            feed = {**words, **sample, "timestep": np.full(shape, 31.5, np.float32)}
            inputs = {name: (array.shape, array.dtype.type) for name, array in feed.items()}
            with TensorBinding(session.inner, target, inputs, {"out_sample": (SAMPLE, np.float32)}) as bound:
                bound.write_all(feed)
                bound.run()
                np.testing.assert_array_equal(bound.read("out_sample"), answers[shape][1])
    assert not np.array_equal(*answers[()])  # the timestep is read
    np.testing.assert_array_equal(answers[()], answers[(1,)])
