"""A preview tells what the picture becomes, costs next to nothing, and changes neither picture nor record."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
from pictures import PROMPT
from PIL import Image

import tintype
from tintype.bundle import PreviewFactors, read_manifest
from tintype.bundle.bundle import embedded_folder
from tintype.image.preview import fit_factors, linear_images, linear_samples
from tintype.strict_json import Misfit


@pytest.fixture(scope="module")
def postcard():
    with tintype.load("postcard", provider="cpu", threads=1) as pipeline:
        yield pipeline


def test_factors_are_those_that_the_decoder_has():
    """A decoder that is linear, each cell a patch of one mean colour, is fitted exactly."""
    random = np.random.default_rng(0)
    latents = random.normal(size=(3, 5, 6, 4)).astype(np.float32) * 0.1
    weights, bias = random.normal(size=(5, 3)) * 0.5, np.array([0.1, -0.2, 0.0])
    ripple = np.tile(np.array([[0.01, -0.01]], np.float32), (12, 4))
    samples = linear_samples(latents, weights, bias).repeat(2, axis=2).repeat(2, axis=3) + ripple
    assert np.abs(samples).max() < 1
    found, begun = fit_factors(latents, samples)
    np.testing.assert_allclose(found, weights, atol=1e-5)
    np.testing.assert_allclose(begun, bias, atol=1e-6)


def test_a_preview_has_the_pictures_size_and_survives_what_is_no_number():
    latents = np.full((2, 1, 3, 4), 0.5, np.float32)
    latents[0, 0, 0, 0] = np.nan
    first, second = linear_images(latents, [(2.0, 0.0, -2.0)], (0.0, 0.0, 0.0), 8)
    assert first.size == second.size == (32, 24)
    assert second.getpixel((16, 12)) == (255, 128, 0)


def test_postcards_previews_look_like_its_pictures(postcard):
    """As far as a colour a cell can: at the mean colours of the picture's cells."""
    run = postcard.steps(PROMPT, seed=7, num_inference_steps=8)
    *_, last = run
    cells = last.latents.shape[3], last.latents.shape[2]
    small = [
        np.asarray(image.resize(cells, Image.Resampling.BOX), np.float64)
        for image in (last.preview()[0], run.result.image)
    ]
    assert 10 * np.log10(255**2 / np.mean((small[0] - small[1]) ** 2)) > 18
    assert last.preview()[0].size == run.result.image.size


def test_previews_change_neither_picture_nor_record(postcard):
    asked = {"seed": 7, "num_inference_steps": 3, "width": 64, "height": 64}
    plain = postcard.generate(PROMPT, **asked)
    run = postcard.steps(PROMPT, **asked)
    for step in run:
        step.preview()
    assert run.result.image.tobytes() == plain.image.tobytes()
    assert run.result.record == plain.record


def test_a_preview_opens_no_graph_and_is_a_fraction_of_decoding(postcard, monkeypatch):
    run = postcard.steps(PROMPT, seed=7, num_inference_steps=1)
    (step,) = run
    started = time.perf_counter()
    step.preview(full=True)
    decoded = time.perf_counter()
    monkeypatch.setattr(type(run._ctx.graphs), "call", None)
    step.preview()
    assert time.perf_counter() - decoded < (decoded - started) / 2


def test_factors_that_do_not_belong_to_the_latents_are_refused():
    manifest, _ = read_manifest(embedded_folder("postcard"))
    for weights in ([], [(0.0, 0.0, 0.0)] * 3, [(0.0, 0.0)] * 4, [(1e9, 0.0, 0.0)] * 4):
        with pytest.raises(Misfit, match="preview"):
            dataclasses.replace(manifest, preview=PreviewFactors(weights=tuple(weights)))


def test_a_bundle_without_factors_has_its_familys(postcard):
    manifest = dataclasses.replace(postcard.bundle.manifest, preview=None)
    run = postcard.steps(PROMPT, seed=7, num_inference_steps=1)
    (step,) = run
    run._ctx.bundle = dataclasses.replace(postcard.bundle, manifest=manifest)
    factors = run._ctx.family.preview
    expected = linear_images(step.denoised, factors.weights, factors.bias, manifest.vae_scale_factor)
    assert step.preview()[0].tobytes() == expected[0].tobytes()
