"""Tensors that stay on the device: a step writes its latents, runs and reads, the embeddings lie there."""

from __future__ import annotations

import numpy as np
import pytest

from tintype.engine import BuildOptions, open_role
from tintype.engine.device.providers import load_onnxruntime, new_session
from tintype.engine.run.binding import TensorBinding

SAMPLE = (1, 4, 4, 4)
SIDES = {"height": 4, "width": 4, "sequence": 77}
INPUTS = {
    "sample": (SAMPLE, np.float32),
    "timestep": ((1,), np.float32),
    "encoder_hidden_states": ((1, 77, 128), np.float32),
}
OUTPUTS = {"out_sample": (SAMPLE, np.float32)}


def test_bound_steps_are_plain_steps_and_lie_on_the_device(webgpu, builds, sessions):
    random = np.random.default_rng(2)
    words = random.standard_normal((1, 77, 128), np.float32)
    inner = new_session(str(builds["denoiser"] / "model.onnx"), load_onnxruntime().SessionOptions(), webgpu)
    with TensorBinding(inner, webgpu, INPUTS, OUTPUTS) as bound:
        assert bound.value("out_sample").device_name() == "webgpu"
        assert bound.device_bytes == 4 * (2 * int(np.prod(SAMPLE)) + 1 + words.size)
        assert bound.host_bytes == 0
        bound.write("encoder_hidden_states", words)
        for time in (901.0, 401.0):
            latents, timestep = random.standard_normal(SAMPLE, np.float32), np.array([time], np.float32)
            bound.write("sample", latents)
            bound.write("timestep", timestep)
            bound.run()
            feed = {"sample": latents, "timestep": timestep, "encoder_hidden_states": words}
            np.testing.assert_array_equal(bound.read("out_sample"), sessions["denoiser"].run(feed)["out_sample"])


def test_what_one_graph_writes_the_next_reads_without_the_host(webgpu, builds, sessions):
    shape = (1, 4, 4, 4)
    decoder = new_session(str(builds["vae_decoder"] / "model.onnx"), load_onnxruntime().SessionOptions(), webgpu)
    denoiser = new_session(str(builds["denoiser"] / "model.onnx"), load_onnxruntime().SessionOptions(), webgpu)
    random = np.random.default_rng(4)
    feed = {
        "sample": random.standard_normal(shape, np.float32),
        "timestep": np.array([501.0], np.float32),
        "encoder_hidden_states": random.standard_normal((1, 77, 128), np.float32),
    }
    pixels = {"sample": ((1, 3, 16, 16), np.float32)}
    with (
        TensorBinding(denoiser, webgpu, INPUTS, OUTPUTS) as first,
        TensorBinding(decoder, webgpu, {"latent_sample": (shape, np.float32)}, pixels) as second,
    ):
        for name, array in feed.items():
            first.write(name, array)
        second.adopt("latent_sample", first.value("out_sample"))
        first.run()
        second.run()
        expected = sessions["denoiser"].run(feed)["out_sample"]
        expected = sessions["vae_decoder"].run({"latent_sample": expected})["sample"]
        np.testing.assert_array_equal(second.read("sample"), expected)


def test_a_session_on_the_device_says_what_its_graph_says(webgpu, bundle):
    """Ids of words too, which WebGPU has no 64 bits for; prompts that change, steps that don't."""
    random = np.random.default_rng(5)
    options = BuildOptions.for_shape({"batch": 1})
    with open_role(bundle, "text_encoder", webgpu, options=options) as session:
        inner = new_session(str(session.path), load_onnxruntime().SessionOptions(), webgpu)
        for _ in range(2):
            feed = {"input_ids": random.integers(0, 900, (1, 77))}
            np.testing.assert_allclose(session.run(feed)["last_hidden_state"], inner.run(None, feed)[0], atol=1e-4)
    options = BuildOptions.for_shape({"batch": 1, "height": 4, "width": 4, "sequence": 77})
    with open_role(bundle, "denoiser", webgpu, options=options) as session:
        steps = [(random.standard_normal(SAMPLE, np.float32), np.array([time], np.float32)) for time in (901.0, 21.0)]
        told = {}
        for prompt in ("one", "another", "one"):
            words = np.random.default_rng(len(prompt)).standard_normal((1, 77, 128), np.float32)
            held = session.hold({"encoder_hidden_states": words})
            found = [held.run({"sample": sample, "timestep": time})["out_sample"] for sample, time in steps]
            np.testing.assert_array_equal(found, told.setdefault(prompt, found))
        assert not np.array_equal(told["one"], told["another"])


@pytest.mark.parametrize("options", [BuildOptions(), BuildOptions.for_shape({"batch": 1, **SIDES})], ids=["any", "one"])
def test_a_held_prompts_steps_lie_on_the_device(webgpu, bundle, sessions, options):
    """Built for one shape, what depends on the words alone is computed once and never comes back to the host."""
    random = np.random.default_rng(6)
    words = random.standard_normal((1, 77, 128), np.float32)
    with open_role(bundle, "denoiser", webgpu, options=options) as session:
        held = session.hold({"encoder_hidden_states": words})
        for time in (701.0, 301.0):
            feed = {"sample": random.standard_normal(SAMPLE, np.float32), "timestep": np.array([time], np.float32)}
            expected = sessions["denoiser"].run({**feed, "encoder_hidden_states": words})["out_sample"]
            np.testing.assert_allclose(held.run(feed)["out_sample"], expected, atol=1e-5)
            plain = session.run({**feed, "encoder_hidden_states": words})["out_sample"]
            np.testing.assert_array_equal(held.run(feed)["out_sample"], plain)
        least = 4 * (2 * int(np.prod(SAMPLE)) + 1)
        assert held.device_bytes >= least + (words.nbytes if not options.dims else 0)
    assert held.device_bytes == 0
