"""diffusers on a GPU in float16: SDPA attention, channels last, and torch.compile where the job asks for it.

Random weights are drawn on the device from the configs of a bundle, so that the peer needs no checkpoint on disk. Not
run on a GPU yet; on a processor it computes in float32.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from tintype.bench.job import Job
from tintype.bench.worker import Figures

# By component, where a bundle keeps its config.json.
PLACES = {"unet": "unet", "vae": "vae_decoder", "text_encoder": "text_encoder", "text_encoder_2": "text_encoder_2"}


class TorchPeer:
    def __init__(self, pipeline: Any, job: Job, device: str) -> None:
        self._pipeline, self._job, self._device = pipeline, job, device

    def picture(self, seed: int, steps: int | None = None) -> Figures:
        import torch

        wanted = self._job.num_inference_steps if steps is None else steps
        ends: list[float] = []

        def note_step(_pipeline: Any, step: int, _timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            if step in (0, wanted - 1):  # a GPU is ahead of Python: between these two it is left alone
                self._synchronize()
            ends.append(time.perf_counter())
            return kwargs

        started = time.perf_counter()
        self._pipeline(
            self._job.prompt,
            num_inference_steps=wanted,
            guidance_scale=self._job.guidance_scale,
            width=self._job.width,
            height=self._job.height,
            generator=torch.Generator(self._device).manual_seed(seed),
            callback_on_step_end=note_step,
        )
        self._synchronize()
        # The first step has no start to measure from, so the rate of the others stands for all; of one step, nothing.
        a_step = (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else ends[0] - started
        return {"denoise_seconds": a_step * len(ends), "torch_reserved_bytes": self._reserved()}

    def _synchronize(self) -> None:
        import torch

        if self._device.startswith("cuda"):
            torch.cuda.synchronize()

    def _reserved(self) -> float | None:
        import torch

        return float(torch.cuda.max_memory_reserved()) if self._device.startswith("cuda") else None


def load(job: Job) -> TorchPeer:
    """The pipeline of the bundle's shape, on the job's device."""
    import torch

    device = job.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    pipeline = random_pipeline(Path(job.model), device)
    pipeline.set_progress_bar_config(disable=True)
    if job.compile is not None:
        told: dict[str, Any] = {"backend": "eager"} if job.compile == "eager" else {"mode": job.compile}
        pipeline.unet = torch.compile(pipeline.unet, fullgraph=True, **told)
        pipeline.vae.decode = torch.compile(pipeline.vae.decode, **told)
    return TorchPeer(pipeline, job, device)


def random_pipeline(bundle: Path, device: str) -> Any:
    """A diffusers pipeline of a bundle's shape with random weights, float16 on a GPU; sampled by Euler."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it remarks on parts that aren't used here
    import diffusers
    import torch
    import transformers

    index = json.loads((bundle / "model_index.json").read_text(encoding="utf-8"))
    kind = torch.float32 if device == "cpu" else torch.float16
    parts: dict[str, Any] = {}
    usual = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        with torch.device(device):
            for name, place in PLACES.items():
                if name in index:
                    config = json.loads((bundle / place / "config.json").read_text(encoding="utf-8"))
                    library, class_name = index[name]
                    home = diffusers if library == "diffusers" else transformers
                    parts[name] = _made(getattr(home, class_name), config)
    finally:
        torch.set_default_dtype(usual)
    for name in ("tokenizer", "tokenizer_2"):
        if name in index:
            parts[name] = transformers.CLIPTokenizer.from_pretrained(bundle / name, local_files_only=True)
    parts["unet"].to(memory_format=torch.channels_last)
    parts["vae"].to(memory_format=torch.channels_last)
    # XL's own VAE is decoded in float32 by default, these weights need it as little as the fixed VAEs that people use.
    parts["vae"].register_to_config(force_upcast=False)
    parts["scheduler"] = _scheduler(bundle)
    if index["_class_name"] == "StableDiffusionPipeline":
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return getattr(diffusers, index["_class_name"])(**parts).to(device)


def _made(kind: Any, config: dict[str, Any]) -> Any:
    import transformers

    if hasattr(kind, "from_config") and not issubclass(kind, transformers.PreTrainedModel):
        return kind.from_config(config).eval()
    return kind(transformers.CLIPTextConfig(**config)).eval()


def _scheduler(bundle: Path) -> Any:
    import diffusers

    config = json.loads((bundle / "scheduler/scheduler_config.json").read_text(encoding="utf-8"))
    ancestral = "Ancestral" in config.get("_class_name", "")
    kind = diffusers.EulerAncestralDiscreteScheduler if ancestral else diffusers.EulerDiscreteScheduler
    return kind.from_config({name: value for name, value in config.items() if not name.startswith("_")})
