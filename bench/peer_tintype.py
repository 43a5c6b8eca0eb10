"""Tintype as a program uses it: load once, generate many."""

from __future__ import annotations

from typing import Any

import tintype
from tintype.bench.job import Job
from tintype.bench.worker import Figures

FIELDS = (
    "num_inference_steps", "guidance_scale", "width", "height", "exactness", "sampler", "count", "batch_size"
)  # fmt: skip


class TintypePeer:
    def __init__(self, job: Job) -> None:
        self._pipeline = tintype.load(job.model, provider=job.device or "auto", memory=job.memory, threads=job.threads)

    def picture(self, seed: int, job: Job) -> Figures:
        fields: dict[str, Any] = {name: getattr(job, name) for name in FIELDS if getattr(job, name) is not None}
        timings = self._pipeline.generate(job.prompt, seed=seed, **fields).timings
        return {
            "denoise_seconds": timings.denoise_seconds,
            "encode_seconds": timings.encode_seconds,
            "decode_seconds": timings.decode_seconds,
            "outside_share": 1.0 - timings.denoise_graph_seconds / timings.denoise_seconds,
        }


def load(job: Job) -> TintypePeer:
    return TintypePeer(job)
