"""Plain ONNX Runtime: the bundle's canonical graphs with default settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from tintype.bench.euler_loop import EulerPeer
from tintype.bench.job import Job
from tintype.bundle import open_bundle


def load(job: Job) -> EulerPeer:
    """Sessions as a first program makes them; only the thread count is shared with the others."""
    bundle = open_bundle(job.model)
    sessions = {
        role: plain_session(bundle.graph_path(role), job.threads)
        for role in ("text_encoder", "denoiser", "vae_decoder")
    }

    def run(role: str, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        return np.asarray(sessions[role].run(None, dict(inputs))[0])

    return EulerPeer(bundle, job, run)


def plain_session(model: Path | bytes, threads: int | None) -> Any:
    """Of a file, or of a graph in memory."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
