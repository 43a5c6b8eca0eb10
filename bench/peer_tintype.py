"""Tintype as a program uses it: load once, generate many."""

from __future__ import annotations

from typing import Any

import tintype
from tintype.bench.job import Job
from tintype.bench.worker import Figures


class TintypePeer:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._pipeline = tintype.load(job.model, provider=job.device or "auto", threads=job.threads)

    def picture(self, seed: int, steps: int | None = None) -> Figures:
        result = self._pipeline.generate(self._job.prompt, seed=seed, **_request_fields(self._job, steps))
        timings = result.timings
        return {
            "denoise_seconds": timings.denoise_seconds,
            "encode_seconds": timings.encode_seconds,
            "decode_seconds": timings.decode_seconds,
            "outside_share": 1.0 - timings.denoise_graph_seconds / timings.denoise_seconds,
        }


def _request_fields(job: Job, steps: int | None) -> dict[str, Any]:
    """The job as the fields of a request."""
    fields: dict[str, Any] = {
        "num_inference_steps": job.num_inference_steps if steps is None else steps,
        "guidance_scale": job.guidance_scale,
        "width": job.width,
        "height": job.height,
        "exactness": job.exactness,
    }
    if job.sampler is not None:
        fields["sampler"] = job.sampler
    return fields


def load(job: Job) -> TintypePeer:
    return TintypePeer(job)
