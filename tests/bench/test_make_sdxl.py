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

_CLIP = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY_XL = SHAPES["sdxl"].with_depth(1).changed(
    {
        "text_encoder": _CLIP,
        "text_encoder_2": {**_CLIP, "hidden_size": 48, "intermediate_size": 96, "projection_dim": 40},
        "unet": {
            "sample_size": 16, "block_out_channels": [32, 32, 64], "attention_head_dim": [2, 2, 4],
            "cross_attention_dim": 80, "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 88,
        },
        "vae": {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1},
    },
    side=64, steps=3,
)  # fmt: skip


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
