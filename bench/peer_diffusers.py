"""diffusers on torch, fp32, channels last: the reference that people have, at its best on a processor."""

from __future__ import annotations

import time
from typing import Any

import click

from tintype.bench.job import Job
from tintype.bench.worker import Figures


class DiffusersPeer:
    def __init__(self, pipeline: Any, job: Job) -> None:
        self._pipeline = pipeline
        self._job = job

    def picture(self, seed: int, steps: int | None = None) -> Figures:
        import torch

        ends: list[float] = []

        def note_step(_pipeline: Any, _step: int, _timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            ends.append(time.perf_counter())
            return kwargs

        self._pipeline(
            self._job.prompt,
            num_inference_steps=self._job.num_inference_steps if steps is None else steps,
            guidance_scale=self._job.guidance_scale,
            width=self._job.width,
            height=self._job.height,
            generator=torch.Generator().manual_seed(seed),
            callback_on_step_end=note_step,
        )
        # The first step has no start to measure from, so the rate of the others stands for all of them.
        return {"denoise_seconds": (ends[-1] - ends[0]) * len(ends) / max(1, len(ends) - 1)}


def load(job: Job) -> DiffusersPeer:
    """The checkpoint's pipeline, as its own documentation loads it, without the progress bar."""
    import torch
    from diffusers import StableDiffusionPipeline

    if job.checkpoint is None:
        raise click.UsageError("the diffusers peer needs --checkpoint, the folder that the bundle was exported from")
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    pipeline = StableDiffusionPipeline.from_pretrained(
        job.checkpoint, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.vae.to(memory_format=torch.channels_last)
    pipeline.set_progress_bar_config(disable=True)
    return DiffusersPeer(pipeline, job)
