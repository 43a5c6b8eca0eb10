"""The same checkpoint, the same noise: Tintype's fp32 pictures are those of diffusers' StableDiffusionPipeline."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import tintype
from tintype.sampling import noise_source

pytestmark = [
    pytest.mark.reference,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning"),  # diffusers with numpy 2
]

PROMPT = "a red sailboat on a calm sea at sunset"
NEGATIVE = "snow"
SEED = 7
GATE_DB = 50.0

# clip_sample is what Stable Diffusion's own config says; diffusers' default for ddim is for models of pixels.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {"use_beta_sigmas": True}),
    "tcd": ("TCDScheduler", {}),
}
ASKED: dict[str, dict[str, Any]] = {"lms": {"sigmas": "beta"}, "tcd": {"eta": 0.0}}  # diffusers' pipelines' own eta
SIZES = {(64, 64): list(SCHEDULERS), (96, 40): ["euler", "ddim", "dpmpp_2m"]}


@pytest.fixture(scope="module")
def reference(tiny_checkpoint):
    diffusers = pytest.importorskip("diffusers")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tiny_checkpoint, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, pipeline.scheduler.config


@pytest.fixture(scope="module")
def pipeline(tiny_bundle):
    with tintype.load(tiny_bundle, provider="cpu") as opened:
        yield opened


def draw_with_diffusers(reference: Any, sampler: str, width: int, height: int) -> np.ndarray:
    """20 steps at guidance 7.5 from the noise that torch-cpu draws for SEED."""
    import diffusers
    import torch

    diffusers_pipeline, scheduler_config = reference
    noise = noise_source("torch-cpu", [SEED]).draw((1, 4, height // 4, width // 4))
    kind, settings = SCHEDULERS[sampler]
    diffusers_pipeline.scheduler = getattr(diffusers, kind).from_config(scheduler_config, **settings)
    pictures = diffusers_pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        width=width,
        height=height,
        num_inference_steps=20,
        guidance_scale=7.5,
        latents=torch.from_numpy(noise),
    ).images
    return np.asarray(pictures[0])


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    error = float(np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


@pytest.mark.parametrize(
    ("sampler", "size"), [(name, size) for size, names in SIZES.items() for name in names], ids=str
)
def test_whole_pictures_are_those_of_diffusers(pipeline, reference, sampler, size):
    width, height = size
    result = pipeline.generate(
        PROMPT,
        negative_prompt=NEGATIVE,
        width=width,
        height=height,
        num_inference_steps=20,
        guidance_scale=7.5,
        sampler=sampler,
        noise="torch-cpu",
        seed=SEED,
        **ASKED.get(sampler, {}),
    )
    ours = np.asarray(result.image)
    theirs = draw_with_diffusers(reference, sampler, width, height)
    assert ours.shape == theirs.shape == (height, width, 3)
    assert ours.std() > 5  # a grey picture would be near any other
    measured = psnr_db(ours, theirs)
    print(f"{sampler} {width}x{height}: {measured:.1f} dB")
    assert measured >= GATE_DB


def test_the_noise_is_torchs_own():
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(SEED)
    theirs = torch.randn((1, 4, 16, 16), generator=generator).numpy()
    np.testing.assert_array_equal(noise_source("torch-cpu", [SEED]).draw((1, 4, 16, 16)), theirs)


def test_token_ids_are_those_of_the_checkpoints_tokenizer(pipeline, reference):
    from tintype.prompt import PromptTokenizer, encode_prompt

    facts = pipeline.bundle.manifest.tokenizer
    tokenizer = PromptTokenizer.open(
        pipeline.bundle.path(facts.file),
        max_length=facts.max_length,
        bos_token_id=facts.bos_token_id,
        eos_token_id=facts.eos_token_id,
        pad_token_id=facts.pad_token_id,
    )
    for prompt in ("", PROMPT, "A  Red\tSailboat, 👍 日本; it's 12", "x " * 75):
        theirs = reference[0].tokenizer(prompt, padding="max_length", max_length=77, truncation=True).input_ids
        assert encode_prompt(tokenizer, prompt).input_ids[0].tolist() == theirs, prompt
