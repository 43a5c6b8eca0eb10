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

        self._job = job
        self._model = stable_diffusion_cpp.StableDiffusion(
            model_path=job.checkpoint,
            n_threads=job.threads if job.threads is not None else -1,
            vae_decode_only=True,
            verbose=False,
        )

    def picture(self, seed: int, steps: int | None = None) -> Figures:
        """Steps are told apart by the callback at each one's end; so is what comes before and after them."""
        job = self._job
        ends: list[tuple[int, int, float]] = []

        def note(step: int, total: int, _seconds: float) -> None:
            ends.append((step, total, time.perf_counter()))

        chosen = job.num_inference_steps if steps is None else steps
        self._model.generate_image(
            prompt=job.prompt,
            width=job.width or SIDE,
            height=job.height or SIDE,
            sample_method="euler",
            sample_steps=chosen,
            cfg_scale=job.guidance_scale,
            seed=seed,
            progress_callback=note,
        )
        return loop_figures([(step, when) for step, total, when in ends if total == chosen], chosen)


def loop_figures(ends: list[tuple[int, float]], steps: int) -> dict[str, float | None]:
    """The loop's seconds from when steps ended; where the start wasn't told, the others' rate stands for the first."""
    seen = {step: when for step, when in ends if 0 <= step <= steps}
    if len(seen) < 2:
        return {"denoise_seconds": None}
    first, last = min(seen), max(seen)
    return {"denoise_seconds": (seen[last] - seen[first]) * steps / (last - first)}


def load(job: Job) -> SdcppPeer:
    if job.checkpoint is None:
        raise click.UsageError("the stable-diffusion.cpp peer needs the checkpoint's folder")
    return SdcppPeer(job)
