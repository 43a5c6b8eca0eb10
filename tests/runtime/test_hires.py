"""A smaller picture first, then enlarged and drawn on: the same as doing both by hand, under one record."""

from __future__ import annotations

import numpy as np
import pytest

import tintype
from tintype.errors import RequestError
from tintype.image.resize import resize_latents, resize_pixels
from tintype.sampling import noise_source

ASKED = {"seed": 3, "num_inference_steps": 3, "width": 48, "height": 32, "sampler": "euler"}
PROMPT = "a house"


@pytest.mark.parametrize("upscale", ["latent", "pixel"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_it_is_both_requests_by_hand(pipeline, upscale, batch_size):
    asked = {**ASKED, "count": 3, "batch_size": batch_size}
    made = pipeline.generate(PROMPT, hires=1.5, hires_strength=0.7, hires_upscale=upscale, **asked)
    small = pipeline.generate(PROMPT, **asked)
    if upscale == "latent":
        large = resize_latents(small.latents, 48 // 4, 72 // 4)
    else:
        pictures = (resize_pixels(np.asarray(image)[np.newaxis], 72, 48) for image in small.images)
        large = np.concatenate([_encoded(pipeline, pixels) for pixels in pictures])
    for index in range(3):
        noise = noise_source("philox", [ASKED["seed"] + index])
        noise.draw((1, *small.latents.shape[1:]))
        given = {**ASKED, "width": 72, "height": 48, "seed": ASKED["seed"] + index}
        start = large[index : index + 1]
        schedule = pipeline.context(pipeline.resolve(tintype.Request(prompt=PROMPT, **given))).schedule
        alone = pipeline.context(pipeline.resolve(tintype.Request(prompt=PROMPT, image=start, strength=0.7, **given)))
        drawn = noise.draw(start.shape)
        # The same run by hand: its first latents, then the sampler over the same denoiser.
        by_hand = _denoised(alone, start + drawn * np.float32(alone.schedule.sigmas[0]), noise)
        assert schedule.total == 3
        # Of values up to 12; two pictures together may take other kernels than one.
        np.testing.assert_allclose(made.latents[index], by_hand[0], atol=2e-3)
    assert made.image.size == (72, 48)


@pytest.mark.parametrize("upscale", ["latent", "pixel"])
def test_its_record_makes_it_again(pipeline, upscale):
    made = pipeline.generate(PROMPT, hires=1.3, hires_upscale=upscale, count=2, **ASKED)
    again = pipeline.reproduce(made.records[1])
    assert again.image.tobytes() == made.images[1].tobytes()
    builds = made.record.made_with.builds
    assert builds["base denoiser"] != builds["denoiser"]
    assert ("vae_encoder" in builds) == (upscale == "pixel")


def test_its_steps_are_those_of_both(pipeline):
    run = pipeline.steps(PROMPT, hires=2, hires_strength=0.7, count=2, **ASKED)
    steps = [(step.index, step.total, step.latents.shape[3]) for step in run]
    assert [index for index, *_ in steps] == list(range(10))  # 2 x 3, and 2 x 2 of 3
    assert {total for _, total, _ in steps} == {10}
    assert [width for *_, width in steps] == [12] * 6 + [24] * 4


def test_a_preview_has_the_size_of_its_step(pipeline):
    sizes = {step.preview()[0].size for step in pipeline.steps(PROMPT, hires=2, **ASKED)}
    assert sizes == {(48, 32), (96, 64)}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hires": 0.5}, "hires"),
        ({"hires": 100}, "hires"),
        ({"hires": 2, "hires_upscale": "best"}, "hires_upscale"),
        ({"hires_strength": 0.7}, "hires_strength is given without hires"),
        ({"hires_upscale": "pixel"}, "hires_upscale is given without hires"),
        ({"hires": 2, "hires_strength": 0}, "strength"),
        ({"hires": 2, "hires_strength": 2}, "hires_strength"),
        ({"hires": 8, "width": 512, "height": 512}, "width"),
    ],
)
def test_what_cannot_be_done_is_refused(pipeline, fields, words):
    with pytest.raises(RequestError, match=words):
        pipeline.steps(PROMPT, **{**ASKED, **fields})


def test_a_picture_begins_with_latents_of_an_earlier_run(pipeline):
    first = pipeline.generate(PROMPT, **ASKED)
    made = pipeline.generate("a tent", image=first.latents, strength=0.7, seed=4, num_inference_steps=3)
    assert made.image.size == first.image.size
    assert made.record.request.image.latents
    assert "vae_encoder" not in made.record.made_with.builds
    again = pipeline.reproduce(made.record, image=first.latents)
    assert again.image.tobytes() == made.image.tobytes()
    with pytest.raises(RequestError, match="channels"):
        pipeline.steps(PROMPT, image=first.latents[:, :2])
    with pytest.raises(RequestError, match="48x32"):
        pipeline.steps(PROMPT, image=first.latents, width=64, height=64)


def test_pixels_are_the_picture_before_rounding(pipeline):
    made = pipeline.generate(PROMPT, count=2, **ASKED)
    pixels = made.pixels
    assert pixels.shape == (2, 32, 48, 3)
    assert pixels.dtype == np.float32
    for values, image in zip(pixels, made.images, strict=True):
        np.testing.assert_array_equal((values * 255).round(), np.asarray(image))
    assert len(np.unique(pixels)) > 256


def _encoded(pipeline, pixels):
    from PIL import Image

    return pipeline.encode_picture(Image.fromarray(pixels[0]))


def _denoised(context, latents, noise):
    from tintype.stages.denoise import denoise
    from tintype.stages.encode import encode
    from tintype.stages.start import Start

    list(denoise(context, encode(context), range(1), Start(latents), noise))
    return context.latents[-1]
