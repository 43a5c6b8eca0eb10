"""diffusers on torch, channels last: the reference that people have, at its best on a processor and on a GPU.

The checkpoint's pipeline in fp32; or, on the device that a job names, one of a bundle's shape with random weights that
are drawn there, in float16 (on `cpu` in float32), and with torch.compile where the job asks for it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from tintype.bench.job import Job, needed_checkpoint
from tintype.bench.peers import TINY_VAE
from tintype.bench.worker import Draw, Figures


def load(job: Job, kind: str) -> Draw:
    """The checkpoint's pipeline as its own documentation loads it, or one of the bundle's shape on the job's device."""
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    if job.device is not None:
        pipeline = random_pipeline(Path(job.model), job.device)
    else:
        folder = needed_checkpoint(job, kind)
        pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
        if job.decoder == "tiny":
            tiny = diffusers.AutoencoderTiny.from_pretrained(folder, subfolder=TINY_VAE, dtype=torch.float32)
            pipeline.vae = tiny
        if job.sampler == "euler":
            walk_by_euler(pipeline)
    for part in (pipeline.unet, pipeline.vae):
        part.to(memory_format=torch.channels_last)
    pipeline.set_progress_bar_config(disable=True)
    if job.compile is not None:
        options: dict[str, Any] = {"backend": "eager"} if job.compile == "eager" else {"mode": job.compile}
        pipeline.unet = torch.compile(pipeline.unet, fullgraph=True, **options)
        pipeline.vae.decode = torch.compile(pipeline.vae.decode, **options)
    device = job.device or "cpu"
    on_cuda = device.startswith("cuda")
    synchronize = torch.cuda.synchronize if on_cuda else lambda: None

    def draw(seed: int, job: Job) -> Figures:
        ends: list[float] = []

        def note_step(_pipeline: Any, step: int, _timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            if step in (0, job.num_inference_steps - 1):  # a GPU is ahead of Python: between these it is left alone
                synchronize()
            ends.append(time.perf_counter())
            return kwargs

        started = time.perf_counter()
        (picture,) = pipeline(
            job.prompt, num_inference_steps=job.num_inference_steps, guidance_scale=job.guidance_scale,
            width=job.width, height=job.height, generator=torch.Generator(device).manual_seed(seed),
            callback_on_step_end=note_step,
        ).images  # fmt: skip
        synchronize()
        # The first step has no start to measure from, so the rate of the others stands for all; of one step, nothing.
        a_step = (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else ends[0] - started
        reserved = float(torch.cuda.max_memory_reserved()) if on_cuda else None
        return {"denoise_seconds": a_step * len(ends), "torch_reserved_bytes": reserved, "picture": picture}

    return draw


def random_pipeline(bundle: Path, device: str) -> Any:
    """A diffusers pipeline of a bundle's shape with random weights, float16 on a GPU; sampled by Euler."""
    transformers.logging.set_verbosity_error()  # it remarks on parts that aren't used here
    index, parts, usual = diffusers.DiffusionPipeline.load_config(bundle), dict[str, Any](), torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if device == "cpu" else torch.float16)
    try:
        with torch.device(device):
            for name in ("unet", "vae"):
                kind = getattr(diffusers, index[name][1])
                config = kind.load_config(bundle, subfolder="vae_decoder" if name == "vae" else name)
                parts[name] = kind.from_config(config).eval()
            for name in (name for name in index if name.startswith("text_encoder")):
                config = transformers.CLIPTextConfig.from_pretrained(bundle, subfolder=name)
                parts[name] = getattr(transformers, index[name][1])(config).eval()
    finally:
        torch.set_default_dtype(usual)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(bundle, **parts, local_files_only=True)
    # XL's own VAE is decoded in float32 by default, these weights need it as little as the fixed VAEs that people use.
    pipeline.vae.register_to_config(force_upcast=False)
    walk_by_euler(pipeline)
    return pipeline.to(device)


def walk_by_euler(pipeline: Any) -> None:
    """One call of the UNet a step; where its scheduler walks otherwise."""
    if "Euler" not in type(pipeline.scheduler).__name__:
        pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
