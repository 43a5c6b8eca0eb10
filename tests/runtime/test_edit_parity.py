"""Pictures from pictures: Tintype's fp32 pictures are those of diffusers' img2img and inpainting pipelines at the same
noise and the encoder's mean."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

import tintype

pytestmark = [
    pytest.mark.reference,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # diffusers with numpy 2
    pytest.mark.filterwarnings("ignore:.*max_length.*"),
]

PROMPT, NEGATIVE = "a red sailboat on a calm sea at sunset", "snow"
SEED, STEPS = 7, 10
GATE_DB = 50.0
SIZES = [(64, 64), (96, 40)]
STRENGTHS = [0.3, 0.75, 1.0]
# clip_sample is what Stable Diffusion's own config says; diffusers' default for ddim is for models of pixels.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
}
PIPELINES = {
    "sd": ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"),
    "xl": ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
}


@pytest.fixture(scope="module", params=["sd", "xl"])
def pair(request):
    """Tintype's pipeline, and diffusers' two."""
    diffusers = pytest.importorskip("diffusers")
    family = request.param
    checkpoint, bundle = (
        request.getfixturevalue(f"{'tiny' if family == 'sd' else 'xl'}_{what}") for what in ("checkpoint", "bundle")
    )
    plain, *edits = (getattr(diffusers, name) for name in PIPELINES[family])
    extra = {"safety_checker": None} if family == "sd" else {"add_watermarker": False}
    base = plain.from_pretrained(checkpoint, **extra)
    if family == "sd":
        extra = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    opened = [edit(**{**base.components, **extra}) for edit in edits]
    for each in opened:
        each.set_progress_bar_config(disable=True)
    with tintype.load(bundle, provider="cpu") as ours:
        yield ours, opened[0], opened[1]


@pytest.fixture(autouse=True)
def _mean_of_the_encoder(monkeypatch):
    """The encoder's distribution enters by its mean."""
    vae = pytest.importorskip("diffusers.models.autoencoders.vae")
    monkeypatch.setattr(
        vae.DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode(), raising=True
    )


def picture(width: int, height: int) -> Image.Image:
    """Soft blotches of colour."""
    noise = np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)
    blurred = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(4))
    values = np.asarray(blurred, np.float32)
    return Image.fromarray(np.clip((values - values.mean()) * 5 + 128, 0, 255).astype(np.uint8))


def mask(width: int, height: int) -> Image.Image:
    """White in the middle, on the borders of latent cells."""
    values = np.zeros((height, width), np.uint8)
    values[8 : height - 16, 16 : width - 24] = 255
    return Image.fromarray(values)


def asked(sampler: str, size: tuple[int, int], strength: float) -> dict[str, Any]:
    width, height = size
    return {
        "negative_prompt": NEGATIVE,
        "width": width,
        "height": height,
        "num_inference_steps": STEPS,
        "guidance_scale": 7.5,
        "sampler": sampler,
        "noise": "torch-cpu",
        "seed": SEED,
        "image": picture(*size),
        "strength": strength,
    }


def theirs(reference: Any, sampler: str, strength: float, **more: Any) -> np.ndarray:
    import diffusers
    import torch

    kind, settings = SCHEDULERS[sampler]
    reference.scheduler = getattr(diffusers, kind).from_config(reference.scheduler.config, **settings)
    made = reference(
        PROMPT,
        negative_prompt=NEGATIVE,
        num_inference_steps=STEPS,
        guidance_scale=7.5,
        strength=strength,
        generator=torch.Generator().manual_seed(SEED),
        **more,
    )
    return np.asarray(made.images[0])


def psnr_db(one: Any, other: Any) -> float:
    error = float(np.mean((np.asarray(one, np.float64) - np.asarray(other, np.float64)) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_image_to_image_is_that_of_diffusers(pair, sampler, strength, size):
    ours, reference, _ = pair
    made = np.asarray(ours.generate(PROMPT, **asked(sampler, size, strength)).image)
    expected = theirs(reference, sampler, strength, image=picture(*size))
    assert made.std() > 5  # a grey picture would be near any other
    measured = psnr_db(made, expected)
    print(f"{measured:.1f} dB")
    assert measured >= GATE_DB


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_inpainting_is_that_of_diffusers(pair, sampler, strength, size):
    ours, _, reference = pair
    made = np.asarray(ours.generate(PROMPT, mask=mask(*size), **asked(sampler, size, strength)).image)
    more = {"image": picture(*size), "mask_image": mask(*size), "width": size[0], "height": size[1]}
    expected = theirs(reference, sampler, strength, **more)
    measured = psnr_db(made, expected)
    print(f"{measured:.1f} dB")
    assert measured >= GATE_DB
