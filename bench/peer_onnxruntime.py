"""Plain ONNX Runtime: the bundle's canonical graphs with default settings, as a first program opens them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tintype.bench.graphs import Run, bare_peer
from tintype.bench.job import Job
from tintype.bench.worker import Peer
from tintype.bundle import open_bundle


def load(job: Job) -> Peer:
    """Only the thread count is shared with the others."""
    return bare_peer(job, _open_graph)


def _open_graph(job: Job) -> Run:
    session = plain_session(open_bundle(job.model).graph_path(job.role or ""), job.threads)
    return lambda inputs: np.asarray(session.run(None, dict(inputs))[0])


def plain_session(model: Path | bytes, threads: int | None) -> Any:
    """Of a file, or of a graph in memory."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
