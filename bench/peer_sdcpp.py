"""stable-diffusion.cpp through its Python binding, on the same weights.

Linear layers stay fp32 as on disk; convolutions it keeps in fp16 of its own accord. Its flash attention is off: on a
processor with AVX-512 a step at 512x512 took 22.9 s without and 56.3 s with it. Euler over its own discrete schedule,
guidance as two calls of one picture.
"""

from __future__ import annotations

import time

import click

from tintype.bench.job import Job
from tintype.bench.worker import Figures

SIDE = 512  # pixels, where the job leaves the size out


class SdcppPeer:
    def __init__(self, job: Job) -> None:
        import stable_diffusion_cpp

        if job.checkpoint is None:
            raise click.UsageError("the stable-diffusion.cpp peer needs the checkpoint's folder")
        threads = job.threads if job.threads is not None else -1
        self._model = stable_diffusion_cpp.StableDiffusion(
            model_path=job.checkpoint, n_threads=threads, vae_decode_only=True, verbose=False
        )

    def picture(self, seed: int, job: Job) -> Figures:
        """Steps are told apart by the callback at each one's end; so is what comes before and after them."""
        steps = job.num_inference_steps
        ends: list[tuple[int, float]] = []

        def note(step: int, total: int, _seconds: float) -> None:
            if total == steps:
                ends.append((step, time.perf_counter()))

        self._model.generate_image(
            prompt=job.prompt,
            width=job.width or SIDE,
            height=job.height or SIDE,
            sample_method="euler",
            sample_steps=steps,
            cfg_scale=job.guidance_scale,
            seed=seed,
            progress_callback=note,
        )
        return loop_figures(ends, steps)


def loop_figures(ends: list[tuple[int, float]], steps: int) -> Figures:
    """The loop's seconds from when steps ended; where the start wasn't told, the others' rate stands for the first."""
    times = {step: when for step, when in ends if 0 <= step <= steps}
    if len(times) < 2:
        return {"denoise_seconds": None}
    first, last = min(times), max(times)
    return {"denoise_seconds": (times[last] - times[first]) * steps / (last - first)}


load = SdcppPeer
