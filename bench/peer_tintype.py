"""Tintype as a program uses it: load once, generate many."""

from __future__ import annotations

import tintype
from tintype.bench.job import Job


class TintypePeer:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._pipeline = tintype.load(job.model, threads=job.threads)

    def picture(self, seed: int) -> float:
        result = self._pipeline.generate(
            self._job.prompt,
            seed=seed,
            num_inference_steps=self._job.num_inference_steps,
            guidance_scale=self._job.guidance_scale,
            width=self._job.width,
            height=self._job.height,
        )
        return result.timings.denoise_seconds


def load(job: Job) -> TintypePeer:
    return TintypePeer(job)
