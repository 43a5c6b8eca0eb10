"""The random bundle of SDXL's shape, here with few channels: it opens, it runs, and it is stored as it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import tintype
from tintype.bench import make_sdxl
from tintype.bench.shapes import SHAPES
from tintype.bundle import open_bundle
from tintype.export.storage import load_graph

TINY_XL = SHAPES["tiny-xl"]


@pytest.mark.bench
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_random_bundle_runs_and_is_stored_as_it_says(tmp_path: Path, precision: str) -> None:
    told = make_sdxl.make(tmp_path / "b", precision, 0, TINY_XL, "tiny-xl")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    bundle = open_bundle(tmp_path / "b")
    assert bundle.manifest.family == "stable-diffusion-xl"
    assert bundle.graph("denoiser").precision == precision
    assert bundle.graph("vae_encoder").precision == ("int8" if precision == "int8" else "fp16")
    weights = load_graph(bundle.graph_path("denoiser")).graph.initializers
    integers = [name for name, value in weights.items() if value.dtype == ir.DataType.INT8]
    assert bool(integers) == (precision == "int8")
    assert not [name for name in integers if "add_embedding" in name]
    floats = [name for name, value in weights.items() if value.dtype == ir.DataType.FLOAT and value.shape is not None]
    assert not [name for name in floats if name.endswith("weight_T")]
    assert told["parameters"]["denoiser"] > 100_000
    with tintype.load(tmp_path / "b", threads=2) as pipeline:
        picture = np.asarray(pipeline.generate("a b", seed=1, num_inference_steps=2, width=64, height=64).image)
    assert picture.shape == (64, 64, 3)
    assert picture.std() > 1
