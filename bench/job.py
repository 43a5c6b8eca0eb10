"""What is drawn or called while it is measured: the same for every runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

PROMPT = "a red sailboat on a calm sea at sunset"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One picture; or with a role one call of that graph, on noise that is the same for every runtime.

    model is a bundle, checkpoint what it came from, in the form that the runtime reads. None is the model's own.
    """

    model: str = "postcard"
    checkpoint: str | None = None
    prompt: str = PROMPT
    seed: int | None = None  # None is another one for each picture
    num_inference_steps: int = 20
    projected_steps: int | None = None  # of the picture whose time is told, where it has more than are made
    guidance_scale: float | None = 7.5
    width: int | None = None  # pixels
    height: int | None = None
    threads: int | None = None
    sampler: str | None = None  # tintype's; the others walk by Euler
    decoder: str = "full"  # or "tiny", which stands beside
    whole: bool = False  # as people ask for pictures: each of other words, and saved as a PNG
    exactness: str | None = None  # tintype's: exact or balanced; OpenVINO's precision, where that isn't f32
    device: str | None = None  # tintype's provider, None is auto; torch's device, None is the processor
    compile: str | None = None  # of diffusers: a mode of torch.compile, or "eager" for its graphs alone
    memory: str | None = None  # tintype's budget
    count: int | None = None  # tintype's, pictures; None is one
    batch_size: int | None = None  # pictures a call; rows of a graph's inputs
    role: str | None = None
    mapped: bool = False  # tintype's: weights used where they lie in their files
    strip_bytes: int | None = None  # tintype's: the VAE in strips of that size
    timed: bool | None = None  # tintype's: True times each layer's kernels, None takes a timed build where there is one
    more: Mapping[str, Any] = field(default_factory=dict)  # tintype's: further fields of its request
    products: Sequence[tuple[int, int, int]] = ()  # of the processor's rates: rows, inner, columns
    output: str | None = None  # a file that the picture's samples or the graph's answer are saved to, as .npy


def needed_checkpoint(job: Job, runtime: str) -> str:
    if job.checkpoint is None:
        raise click.UsageError(
            f"{runtime} needs --checkpoint, the weights that the bundle is of in a form that it reads"
        )
    return job.checkpoint


def with_steps(figures: Mapping[str, Any], job: Job) -> dict[str, Any]:
    """A picture's figures with those of a step. Of a job with fewer steps than projected_steps, its time is projected
    (projected_from_steps): what it took outside the loop, and seconds a step times the steps that are wanted."""
    loop = figures.get("denoise_seconds")
    if loop is None:
        return dict(figures)
    made, wanted = job.num_inference_steps, job.projected_steps or job.num_inference_steps
    told = {**figures, "seconds_a_step": loop / made, "steps_per_second": made / loop}
    if made != wanted:
        projected = figures["seconds"] - loop + wanted * loop / made
        told |= {"measured_seconds": figures["seconds"], "seconds": projected, "projected_from_steps": made}
    return told


def build_arguments(job: Job) -> tuple[str, ...]:
    """`tintype build` for a job's pictures, each layer's kernels timed: Tintype at its best."""
    return ("build", job.model, *_options(job))


def plan_arguments(job: Job) -> tuple[str, ...]:
    return ("plan", job.model, "--json", *_options(job, "num_inference_steps", "memory"))


def generate_arguments(job: Job, picture: Path, *, marked: bool = True) -> tuple[str, ...]:
    """marked: not where pictures are compared, since a watermark follows from the picture."""
    asked = ("generate", job.prompt, "-o", str(picture), "--model", job.model, "--seed", "7", "--json")
    mark = () if marked else ("--no-watermark",)
    return (*asked, *mark, *_options(job, "num_inference_steps", "sampler", "memory"))


def _options(job: Job, *more: str) -> list[str]:
    """What of a job decides its builds, and more of its fields, as options of `tintype`."""
    given = {name: getattr(job, name) for name in (*more, "guidance_scale", "threads", "exactness", "decoder")}
    given |= {"provider": job.device, "size": job.width and job.height and f"{job.width}x{job.height}"}
    given = {f"--{name.replace('_', '-')}": str(value) for name, value in given.items() if value is not None}
    fast = ["--fast"] if job.more.get("fast") else []
    return [*fast, *(word for pair in given.items() for word in pair)]
