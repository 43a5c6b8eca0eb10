"""Pictures from pictures: Tintype's fp32 pictures are those of diffusers' img2img and inpainting pipelines at the same
noise and the encoder's mean."""

from __future__ import annotations

import numpy as np
import pytest
from edit_parity import GATE_DB, MARKS, SCHEDULERS, asked, mask, take_the_encoders_mean, theirs
from pictures import PROMPT, psnr_db

import tintype

pytestmark = MARKS

SIZES = [(64, 64), pytest.param((96, 40), marks=pytest.mark.long)]
CASES = [(sampler, strength) for sampler in SCHEDULERS for strength in (0.3, 0.75, 1.0)]
CASES.remove(("pndm", 1.0))  # nothing is left out: see tests/sampling/test_trajectories.py
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
    with tintype.load(bundle, provider="cpu", threads=1) as ours:
        yield ours, opened[0], opened[1]


@pytest.fixture(autouse=True)
def _mean_of_the_encoder(monkeypatch):
    take_the_encoders_mean(monkeypatch)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("sampler", "strength"), CASES)
def test_image_to_image_is_that_of_diffusers(pair, sampler, strength, size):
    ours, reference, _ = pair
    made = np.asarray(ours.generate(PROMPT, **asked(size, strength, sampler)).image)
    (expected,) = theirs(reference, size, strength, sampler=sampler)
    assert made.std() > 5  # a grey picture would be near any other
    measured = psnr_db(made, expected)
    print(f"{measured:.1f} dB")
    assert measured >= GATE_DB


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("sampler", "strength"), CASES)
def test_inpainting_is_that_of_diffusers(pair, sampler, strength, size):
    ours, _, reference = pair
    made = np.asarray(ours.generate(PROMPT, mask=mask(*size), **asked(size, strength, sampler)).image)
    (expected,) = theirs(reference, size, strength, mask(*size), sampler)
    measured = psnr_db(made, expected)
    print(f"{measured:.1f} dB")
    assert measured >= GATE_DB
