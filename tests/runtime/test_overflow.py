"""What overflows in float16 is run again in float32, and the record says so; what overflows there too is an error.

The graphs are really in float16, lowered as for WebGPU and run by the processor.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

import tintype
from tintype.bundle import open_bundle
from tintype.engine import open_session
from tintype.engine.device.providers import TARGETS
from tintype.errors import NumericError
from tintype.graphs.resident import Graphs
from tintype.kernels.graph.dims import pin
from tintype.kernels.graph.hoist import split_held
from tintype.kernels.registry import finish, kernels_for, lower
from tintype.pipeline import Pipeline
from tintype.record import parse_record, read_record

REQUEST = {"num_inference_steps": 3, "seed": 5, "width": 64, "height": 64}
PROMPT = "a house"


class InHalf(Graphs):
    """`balanced` builds as a device with float16 gets them, `exact` ones as it gets these."""

    def open(self, use, options, device_bytes):
        role = use.name
        folder = self.scratch / f"{role}-{options.exactness}"
        folder.mkdir(exist_ok=True)
        model = ir.load(self.bundle.graph_path(role))
        pin(model, dict(options.dims))
        lower(model, "webgpu", kernels=kernels_for("webgpu", (), exactness=options.exactness))
        halves = finish(model, "webgpu", ["float16"], exactness=options.exactness)
        assert (halves > 0) == (options.exactness == "balanced")
        once = split_held(model) if role == "denoiser" else None
        for graph, name in ((model, "model.onnx"), (once, "once.onnx")):
            if graph is not None:
                ir.save(graph, folder / name, external_data=f"{name}_data")
        self.opened.append((role, options.exactness))
        return open_session(folder, TARGETS["cpu"], threads=1)


@pytest.fixture
def in_half(tmp_path):
    def opened(folder):
        pipeline = Pipeline(open_bundle(folder), TARGETS["cpu"], threads=1)
        pipeline.graphs = graphs = InHalf(pipeline.bundle, pipeline.target, 1)
        graphs.scratch, graphs.opened = tmp_path / "graphs", []
        graphs.scratch.mkdir(exist_ok=True)
        return pipeline

    return opened


@pytest.fixture
def large(tiny_bundle, tmp_path, remake):
    """A copy of the tiny bundle in which one layer's output is larger by a factor, and what reads it finds it so."""

    def scaled(file: str, layer: str, factor: float) -> Path:
        copy = Path(shutil.copytree(tiny_bundle, tmp_path / "large"))
        model = onnx.load(copy / file)
        (weight,) = [tensor for tensor in model.graph.initializer if tensor.name.endswith(layer)]
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(factor), weight.name))
        (copy / f"{file}_data").unlink()
        onnx.save(model, copy / file, save_as_external_data=True, location=f"{Path(file).name}_data")
        remake(copy)
        return copy

    return scaled


def test_what_fits_is_left_in_half_and_nothing_is_noted(in_half, tiny_bundle):
    with in_half(tiny_bundle) as pipeline:
        result = pipeline.generate(PROMPT, **REQUEST)
        assert {exactness for _, exactness in pipeline.graphs.opened} == {"balanced"}
    assert result.record.notes == ()


def test_a_denoiser_that_overflows_goes_on_in_float_and_the_record_says_from_where(in_half, large, tmp_path):
    folder = large("unet/model.onnx", "down_blocks.0.attentions.0.proj_in.weight", 3e5)
    with in_half(folder) as pipeline:
        result = pipeline.generate(PROMPT, **REQUEST)
        again = pipeline.generate(PROMPT, **REQUEST)
        assert pipeline.graphs.opened.count(("denoiser", "exact")) == 2
    assert result.record.notes == ("denoiser was run again in float32 from step 1 on: it had given NaN or infinity",)
    assert again.image.tobytes() == result.image.tobytes()
    (path,) = result.save(tmp_path / "x.png")
    assert read_record(path).notes == result.record.notes
    with tintype.load(folder, threads=1) as pipeline:
        expected = pipeline.generate(PROMPT, **REQUEST, exactness="exact")
    error = np.mean((np.asarray(result.image, np.float64) - np.asarray(expected.image)) ** 2)
    assert 10 * np.log10(255**2 / max(error, 1e-9)) >= 45.0  # the words are read in float16


def test_a_decoder_that_overflows_decodes_in_float(in_half, large):
    folder = large("vae_decoder/model.onnx", "mid_block.attentions.0.to_v.weight_T", 2e5)
    with in_half(folder) as pipeline:
        run = pipeline.steps(PROMPT, **REQUEST)
        list(run)
        result = run.result
        assert pipeline.graphs.opened.count(("vae_decoder", "exact")) == 1
    assert result.record.notes == ("vae_decoder was run again in float32: it had given NaN or infinity",)
    assert np.asarray(result.image).std() > 0
    assert parse_record(result.record.texts()["tintype"]) == result.record


def test_what_overflows_in_float_too_is_an_error_after_one_more_try(in_half, large):
    folder = large("unet/model.onnx", "down_blocks.0.attentions.0.proj_in.weight", np.inf)
    with in_half(folder) as pipeline:
        with pytest.raises(NumericError, match="step 1 of 3"):
            pipeline.generate(PROMPT, **REQUEST)
        assert pipeline.graphs.opened.count(("denoiser", "exact")) == 1
        with pytest.raises(NumericError):
            pipeline.generate(PROMPT, **REQUEST, exactness="exact")
