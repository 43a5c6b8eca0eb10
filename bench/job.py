"""What is drawn or called while it is measured: the same for every runtime."""

from __future__ import annotations

from dataclasses import dataclass

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
    device: str | None = None  # tintype's provider; torch's device for diffusers on a GPU. None is auto
    compile: str | None = None  # of diffusers on a GPU: a mode of torch.compile, or "eager" for its graphs alone


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphJob:
    """One graph of a model, called on the same noise by every runtime."""

    runtime: str  # tintype, openvino or onnxruntime
    model: str  # a bundle; a folder of OpenVINO's representations for openvino
    role: str  # denoiser or vae_decoder
    batch: int = 1
    height: int = 64  # latent cells
    width: int = 64
    tokens: int = 77
    embedding: int = 768  # numbers a token
    threads: int | None = None
    exactness: str | None = None  # tintype's
    mapped: bool = False  # tintype's: weights used where they lie in their files
    output: str | None = None  # a file that the first answer is saved to, as .npy


@dataclass(frozen=True, slots=True, kw_only=True)
class RatesJob:
    """What the processor can do at best: matrix products of these sizes, and copying memory."""

    products: tuple[tuple[int, int, int], ...]  # rows, inner, columns
    threads: int | None = None
