"""What is drawn or called while it is measured: the same for every runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PROMPT = "a red sailboat on a calm sea at sunset"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One picture; `model` is a bundle, `checkpoint` what it came from, in the form that the runtime reads."""

    model: str = "postcard"
    checkpoint: str | None = None
    prompt: str = PROMPT
    num_inference_steps: int = 20
    guidance_scale: float = 7.5
    width: int | None = None  # pixels; None is the model's own size
    height: int | None = None
    threads: int | None = None
    sampler: str | None = None  # tintype's; the others walk by Euler. None is the model's own
    exactness: str | None = None  # tintype's: exact or balanced. None is the model's own
    device: str | None = None  # tintype's provider, None is auto; torch's device, None is the processor
    compile: str | None = None  # of diffusers on a GPU: a mode of torch.compile, or "eager" for its graphs alone
    memory: str | None = None  # tintype's budget
    count: int | None = None  # tintype's, pictures; None is one
    batch_size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphJob:
    """One graph of a model, called on the same noise by every runtime."""

    runtime: str  # tintype, openvino or onnxruntime
    model: str  # a bundle; a folder of OpenVINO's representations for openvino
    role: str
    batch: int = 1
    height: int = 64  # latent cells; pixels for the VAE's encoder
    width: int = 64
    tokens: int = 77
    embedding: int = 768  # numbers a token
    channels: int = 4  # of latents
    threads: int | None = None
    exactness: str | None = None  # tintype's
    mapped: bool = False  # tintype's: weights used where they lie in their files
    strip_bytes: int | None = None  # tintype's: the VAE in strips of that size
    timed: bool | None = None  # tintype's: True times each layer's kernels, None takes a timed build where there is one
    output: str | None = None  # a file that the first answer is saved to, as .npy


@dataclass(frozen=True, slots=True, kw_only=True)
class RatesJob:
    """What the processor can do at best: matrix products of these sizes, and copying memory."""

    products: tuple[tuple[int, int, int], ...]  # rows, inner, columns
    threads: int | None = None


AnyJob = Job | GraphJob | RatesJob


def build_arguments(job: Job) -> tuple[str, ...]:
    """`tintype build` for a job's pictures, each layer's kernels timed: Tintype at its best."""
    return ("build", job.model, *picture_arguments(job))


def generate_arguments(job: Job, picture: Path) -> list[str]:
    """The job as arguments of `tintype`."""
    arguments = ["generate", job.prompt, "-o", str(picture), "--model", job.model, "--seed", "7", "--json"]
    arguments += ["--num-inference-steps", str(job.num_inference_steps), *picture_arguments(job)]
    return arguments if job.sampler is None else [*arguments, "--sampler", job.sampler]


def picture_arguments(job: Job) -> list[str]:
    """What of a job decides its builds, as options of `tintype generate` and `tintype build`."""
    options = {
        "--guidance-scale": job.guidance_scale,
        "--size": None if job.width is None or job.height is None else f"{job.width}x{job.height}",
        "--threads": job.threads,
        "--exactness": job.exactness,
        "--provider": job.device,
    }
    return [str(word) for pair in options.items() if pair[1] is not None for word in pair]
