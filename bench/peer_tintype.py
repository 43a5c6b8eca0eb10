"""Tintype as a program uses it: load once, generate many; or one graph, as the loop calls it."""

from __future__ import annotations

from typing import Any

import numpy as np

import tintype
from tintype.bench.graphs import CONDITION, GraphPeer, Run, graph_inputs, graph_options
from tintype.bench.job import Job
from tintype.bench.worker import Figures, Peer
from tintype.bundle import open_bundle
from tintype.engine import open_role, resolve_provider

FIELDS = (
    "num_inference_steps", "guidance_scale", "width", "height", "exactness", "sampler", "count", "batch_size"
)  # fmt: skip


class TintypePeer:
    def __init__(self, job: Job) -> None:
        self._pipeline = tintype.load(job.model, provider=job.device or "auto", memory=job.memory, threads=job.threads)

    def picture(self, seed: int, job: Job) -> Figures:
        fields: dict[str, Any] = {name: getattr(job, name) for name in FIELDS if getattr(job, name) is not None}
        result = self._pipeline.generate(job.prompt, seed=seed, **fields)
        timings = result.timings
        return {
            "denoise_seconds": timings.denoise_seconds,
            "encode_seconds": timings.encode_seconds,
            "decode_seconds": timings.decode_seconds,
            "outside_share": 1.0 - timings.denoise_graph_seconds / timings.denoise_seconds,
            "output": np.asarray(result.image),
        }


def load(job: Job) -> Peer:
    return TintypePeer(job) if job.role is None else GraphPeer(job, _open_graph(job, job.role))


def _open_graph(job: Job, role: str) -> Run:
    """What depends on the prompt alone is computed once, before the calls."""
    session = open_role(open_bundle(job.model), role, resolve_provider("cpu"), options=graph_options(job))
    name = session.output_names[0]
    if role != "denoiser":
        return lambda inputs: session.run(inputs)[name]
    held = session.hold({CONDITION: graph_inputs(job)[CONDITION]})
    return lambda inputs: held.run({each: array for each, array in inputs.items() if each != CONDITION})[name]
