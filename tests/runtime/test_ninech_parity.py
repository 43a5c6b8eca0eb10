"""Inpainting models, whose UNet takes 9 channels: Tintype's fp32 pictures are those of diffusers' inpainting pipelines
at the same noise and the encoder's mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edit_parity import GATE_DB, MARKS, SEED, asked, mask, take_the_encoders_mean, theirs
from pictures import PROMPT, photo, psnr_db
from PIL import Image, ImageDraw, ImageFilter

import tintype

pytestmark = MARKS


@pytest.fixture(scope="module")
def pair(inpainting_checkpoint: Path, inpainting_bundle: Path):
    """Tintype's pipeline and diffusers'."""
    diffusers = pytest.importorskip("diffusers")
    if "xl" in inpainting_checkpoint.name:
        kind, extra = diffusers.StableDiffusionXLInpaintPipeline, {"add_watermarker": False}
    else:
        kind, extra = diffusers.StableDiffusionInpaintPipeline, {"safety_checker": None}
    reference = kind.from_pretrained(inpainting_checkpoint, **extra)
    reference.set_progress_bar_config(disable=True)
    with tintype.load(inpainting_bundle, provider="cpu", threads=1) as ours:
        yield ours, reference


@pytest.fixture(autouse=True)
def _mean_of_the_encoder(monkeypatch):
    take_the_encoders_mean(monkeypatch)


def oblique_mask(width: int, height: int) -> Image.Image:
    """A disc with a soft edge, on no borders of cells, and a thin line beside it."""
    made = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(made)
    draw.ellipse((5, 3, width // 2 + 6, height - 7), fill=255)
    draw.line((width - 19, 2, width - 3, height - 5), fill=255, width=2)
    return made.filter(ImageFilter.GaussianBlur(1.5))


def assert_same(made: Any, expected: np.ndarray) -> None:
    assert np.asarray(made).std() > 5  # a grey picture would be near any other
    measured = psnr_db(made, expected)
    print(f"{measured:.1f} dB")
    assert measured >= GATE_DB


@pytest.mark.parametrize("size", [(64, 64), pytest.param((96, 40), marks=pytest.mark.long)], ids=str)
@pytest.mark.parametrize("strength", [0.75, 1.0])
@pytest.mark.parametrize("sampler", ["euler", "ddim", "dpmpp_2m"])
def test_inpainting_is_that_of_diffusers(pair, sampler, strength, size):
    ours, reference = pair
    made = ours.generate(PROMPT, mask=mask(*size), **asked(size, strength, sampler)).image
    assert_same(made, theirs(reference, size, strength, mask(*size), sampler)[0])


@pytest.mark.parametrize("strength", [0.75, 1.0])
def test_a_mask_across_cells_is_taken_as_diffusers_takes_it(pair, strength):
    ours, reference = pair
    size = (96, 40)
    made = ours.generate(PROMPT, mask=oblique_mask(*size), **asked(size, strength)).image
    assert_same(made, theirs(reference, size, strength, oblique_mask(*size))[0])


@pytest.mark.parametrize("strength", [0.75, 1.0])
def test_without_guidance(pair, strength):
    ours, reference = pair
    size = (64, 64)
    made = ours.generate(PROMPT, mask=mask(*size), **{**asked(size, strength), "guidance_scale": 1.0}).image
    assert_same(made, theirs(reference, size, strength, mask(*size), guidance_scale=1.0)[0])


def test_pictures_denoised_together_are_those_of_diffusers(pair):
    import torch

    ours, reference = pair
    size = (64, 64)
    made = ours.generate(PROMPT, mask=mask(*size), count=2, batch_size=2, **asked(size, 0.75)).images
    generators = [torch.Generator().manual_seed(seed) for seed in (SEED, SEED + 1)]
    expected = theirs(reference, size, 0.75, mask(*size), num_images_per_prompt=2, generator=generators)
    for one, other in zip(made, expected, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("strength", [0.75, 1.0])
def test_the_gate_tells_other_masks_and_other_pictures(pair, strength):
    """Or parity would say nothing of the channels that are added."""
    ours, _ = pair
    size = (64, 64)
    fields = {"mask": mask(*size), **asked(size, strength)}
    made = ours.generate(PROMPT, **fields).image
    for change in ({"mask": oblique_mask(*size)}, {"image": photo(*size).rotate(180)}):
        measured = psnr_db(made, ours.generate(PROMPT, **{**fields, **change}).image)
        print(f"{measured:.1f} dB")
        assert measured < GATE_DB - 15


def test_a_mask_of_everything_hides_the_picture(pair):
    ours, reference = pair
    size = (64, 64)
    white = Image.new("L", size, 255)
    fields = asked(size, 1.0)
    made = ours.generate(PROMPT, mask=white, **fields).image
    assert_same(made, theirs(reference, size, 1.0, white)[0])
    other = ours.generate(PROMPT, mask=white, **{**fields, "image": Image.new("RGB", size, "red")}).image
    assert made.tobytes() == other.tobytes()
