"""The denoiser's timestep is a scalar in what is exported now, and (1,) in older bundles: both mean the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from tintype.engine import run_graph
from tintype.export.storage import load_graph, save_graph
from tintype.export.timestep import take_scalar_timestep

DENOISER = Path(__file__).parents[2] / "models/postcard/bundle/unet/model.onnx"


def shape_of_timestep(model: ir.Model) -> tuple[int, ...]:
    (value,) = (value for value in model.graph.inputs if value.name == "timestep")
    assert value.shape is not None
    return tuple(value.shape.numpy())


def test_a_row_becomes_a_scalar_and_answers_stay_byte_for_byte(tmp_path: Path) -> None:
    model = load_graph(DENOISER)
    assert shape_of_timestep(model) == (1,)
    take_scalar_timestep(model)
    nodes = len(model.graph)
    assert shape_of_timestep(model) == ()
    take_scalar_timestep(model)  # a scalar already
    assert len(model.graph) == nodes
    save_graph(model, tmp_path / "model.onnx")
    random = np.random.default_rng(0)
    feed = {
        "sample": random.standard_normal((2, 4, 16, 16), np.float32),
        "encoder_hidden_states": random.standard_normal((2, 77, 128), np.float32),
    }
    for time in (601.0, 1.5):
        row = run_graph(DENOISER, {**feed, "timestep": np.array([time], np.float32)})["out_sample"]
        scalar = run_graph(tmp_path / "model.onnx", {**feed, "timestep": np.array(time, np.float32)})["out_sample"]
        np.testing.assert_array_equal(row, scalar)


def test_a_graph_without_a_timestep_stays_as_it_is() -> None:
    model = load_graph(DENOISER.parents[1] / "vae_decoder/model.onnx")
    before = ir.to_proto(model).SerializeToString()
    take_scalar_timestep(model)
    assert ir.to_proto(model).SerializeToString() == before
