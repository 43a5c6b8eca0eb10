"""Graphs as CUDA gets them, run by the processor. The fixture `cuda` is this module: its functions, for the tests."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema
from plain_form import expand, in_float

from tintype.kernels.graph.half import complete_types, to_half
from tintype.kernels.graph.ranges import mark
from tintype.kernels.registry import LoweringReport, kernels_for, lower

BUNDLE = Path(__file__).parents[3] / "models/postcard/bundle"
ROLES = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
FLOAT_GATE_DB, HALF_GATE_DB = 80.0, 50.0
ABLE = ("attention", "float16")  # what a GPU is taken to be able to do
ONNX_TYPES = {
    ir.DataType.FLOAT: "float",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.INT64: "int64",
    ir.DataType.UINT8: "uint8",
    ir.DataType.BOOL: "bool",
}


def lowered_for_cuda(
    model: ir.Model, *, half: bool, exactness: str = "balanced", largest: Mapping[str, float] | None = None
) -> LoweringReport:
    """Lower in place, as the child that makes builds does."""
    mark(model, largest or {})
    report = lower(model, "cuda", kernels=kernels_for("cuda", ABLE, exactness=exactness))
    if half:
        to_half(model)
    complete_types(model)
    return report


def plain(model: ir.Model) -> dict[str, int]:
    """Make a lowered graph one that the processor runs, rounding as a GPU would; what was written out."""
    in_float(model)
    return dict(expand(model))


def run(model: ir.Model, feed: Mapping[str, Any], folder: Path) -> list[Any]:
    """Every output, by the processor, unoptimized: ONNX Runtime would leave out roundings that follow one another."""
    path = folder / "model.onnx"
    ir.save(model, path, external_data="model.data")
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.enable_mem_pattern = 4, False
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, dict(feed))


def canonical(source: Path, feed: Mapping[str, Any], folder: Path) -> Any:
    """A canonical graph's first output in float32, integers of activations left out: what CUDA's has to come near."""
    model = ir.load(source)
    lower(model, "openvino", kernels=kernels_for("openvino", []))
    return run(model, feed, folder)[0]


def psnr_db(result: Any, reference: Any) -> float:
    error = np.mean((result.astype(np.float64) - reference) ** 2)
    return float(np.inf) if error == 0 else float(10 * np.log10(np.ptp(reference) ** 2 / error))


def feed_of(role: str, random: np.random.Generator) -> dict[str, Any]:
    """Small inputs for a graph of postcard."""
    if role in ("vae_decoder", "vae_encoder"):
        name, channels = {"vae_decoder": ("latent_sample", 4), "vae_encoder": ("sample", 3)}[role]
        return {name: random.standard_normal((1, channels, 16, 16), np.float32)}
    if role == "text_encoder":
        return {"input_ids": random.integers(0, 900, (2, 77))}
    return {
        "sample": random.standard_normal((2, 4, 16, 16), np.float32),
        "timestep": np.array([601.0], np.float32),
        "encoder_hidden_states": random.standard_normal((2, 77, 128), np.float32),
    }


class KernelTable:
    """The kernels of onnxruntime-gpu's wheel, and the schemas that say which type each input has."""

    def __init__(self) -> None:
        told = json.loads((Path(__file__).parents[1] / "golden/cuda-kernels.json").read_text())
        self._kernels = told["kernels"]
        self._schemas: dict[tuple[str, str], Any] = {}
        for schema in get_all_operator_schema():
            key = schema.domain, schema.name
            if schema.domain != "" or schema.since_version <= 23:
                known = self._schemas.get(key)
                if known is None or schema.since_version > known.since_version:
                    self._schemas[key] = schema

    def has(self, node: ir.Node) -> bool:
        """Whether CUDA has a kernel of this operator, at this version, for these element types."""
        schema = self._schemas[node.domain, node.op_type]
        inputs = list(schema.inputs)
        types = [
            (inputs[min(index, len(inputs) - 1)].typeStr, ONNX_TYPES.get(value.dtype))
            for index, value in enumerate(node.inputs)
            if value is not None
        ]
        return any(
            (domain, name) == (node.domain, node.op_type)
            and first <= schema.since_version <= last
            and all(kind in told[letter] for letter, kind in types if letter in told)
            for domain, name, first, last, told in self._kernels
        )


@pytest.fixture(scope="session")
def cuda() -> ModuleType:
    return sys.modules[__name__]


@pytest.fixture(scope="session")
def table() -> KernelTable:
    return KernelTable()
