"""A denoiser lowered for the processor with kernels of our own, saved, and run on the same noise each time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.bundle import open_bundle
from tintype.engine import run_graph
from tintype.kernels.base import Kernel
from tintype.kernels.graph.dims import pin
from tintype.kernels.registry import kernels_for, lower


def run_lowered(
    bundle: Path, dims: Mapping[str, int], own: Sequence[Kernel], path: Path
) -> tuple[ir.Model, NDArray[Any]]:
    """The denoiser of an `exact` build with these kernels wherever they match, saved, and its first output."""
    model = ir.load(open_bundle(bundle).graph_path("denoiser"))
    pin(model, dims)
    lower(model, "cpu", kernels=kernels_for("cpu", exactness="exact", choosing=True))
    lower(model, "cpu", kernels=own)
    ir.save(model, path, external_data=f"{path.stem}.data")
    random = np.random.default_rng(3)
    feed = {
        str(value.name): random.standard_normal([int(str(dim)) for dim in value.shape or ()], np.float32)
        for value in model.graph.inputs
    }
    return model, next(iter(run_graph(path, feed, lowered=False).values()))
