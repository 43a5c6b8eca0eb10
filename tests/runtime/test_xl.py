"""Stable Diffusion XL through the runtime: the pictures are those of diffusers' StableDiffusionXLPipeline."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tintype
from tintype.families.stable_diffusion import is_guided
from tintype.request import Request, resolve
from tintype.sampling import noise_source
from tintype.stages.encode import encode

PROMPT = "a red sailboat on a calm sea at sunset"
SEED = 7
GATE_DB = 50.0
DIFFUSERS_WARNS = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def pipeline(xl_bundle):
    with tintype.load(xl_bundle, provider="cpu") as opened:
        yield opened


@pytest.fixture(scope="module")
def reference(xl_checkpoint):
    diffusers = pytest.importorskip("diffusers")
    opened = diffusers.StableDiffusionXLPipeline.from_pretrained(xl_checkpoint, add_watermarker=False)
    opened.set_progress_bar_config(disable=True)
    return opened


@pytest.fixture(scope="module")
def turbo(xl_bundle, tmp_path_factory):
    """The bundle as one of a checkpoint distilled to few steps: Euler ancestral on trailing timesteps, no guidance."""
    from tintype.bundle import file_facts, read_manifest, write_manifest

    folder = Path(shutil.copytree(xl_bundle, tmp_path_factory.mktemp("turbo") / "turbo"))
    path = folder / "scheduler/scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "timestep_spacing": "trailing"}))
    manifest, _ = read_manifest(folder)
    default = dataclasses.replace(
        manifest.default_request, guidance_scale=1.0, num_inference_steps=4, sampler="euler_a"
    )
    write_manifest(folder, dataclasses.replace(manifest, files=file_facts(folder), default_request=default))
    with tintype.load(folder, provider="cpu") as opened:
        yield opened


def psnr_db(one: Any, other: Any) -> float:
    error = float(np.mean((np.asarray(one, np.float64) - np.asarray(other, np.float64)) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


def draw_with_diffusers(reference: Any, width: int, height: int, **options: Any) -> np.ndarray:
    import torch

    noise = noise_source("torch-cpu", [SEED]).draw((1, 4, height // 4, width // 4))
    latents = torch.from_numpy(noise)
    pictures = reference(PROMPT, width=width, height=height, latents=latents, num_inference_steps=10, **options).images
    return np.asarray(pictures[0])


@pytest.mark.reference
@pytest.mark.slow
@DIFFUSERS_WARNS
@pytest.mark.parametrize("negative", [None, "snow"])
@pytest.mark.parametrize("size", [(64, 64), (96, 40)], ids=str)
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
def test_whole_pictures_are_those_of_diffusers(pipeline, reference, sampler, size, negative):
    import diffusers

    kind = {"euler": "EulerDiscreteScheduler", "dpmpp_2m": "DPMSolverMultistepScheduler"}[sampler]
    reference.scheduler = getattr(diffusers, kind).from_config(reference.scheduler.config)
    width, height = size
    result = pipeline.generate(
        PROMPT,
        negative_prompt=negative,
        width=width,
        height=height,
        num_inference_steps=10,
        guidance_scale=5.0,
        sampler=sampler,
        noise="torch-cpu",
        seed=SEED,
    )
    theirs = draw_with_diffusers(reference, width, height, negative_prompt=negative, guidance_scale=5.0)
    assert np.asarray(result.image).shape == theirs.shape == (height, width, 3)
    assert theirs.std() > 5  # a grey picture would be near any other
    measured = psnr_db(result.image, theirs)
    print(f"{sampler} {width}x{height}, negative {negative!r}: {measured:.1f} dB")
    assert measured >= GATE_DB


@pytest.mark.reference
@DIFFUSERS_WARNS
@pytest.mark.parametrize("steps", [1, 4])
def test_few_steps_without_guidance_are_those_of_diffusers(turbo, reference, steps):
    import diffusers
    import torch

    config = {**reference.scheduler.config, "timestep_spacing": "trailing"}
    reference.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(config)
    generator = torch.Generator().manual_seed(SEED)
    theirs = reference(
        PROMPT, width=64, height=64, num_inference_steps=steps, guidance_scale=0.0, generator=generator
    ).images[0]
    pictures = [
        turbo.generate(PROMPT, num_inference_steps=steps, noise="torch-cpu", seed=SEED, **fields).image
        for fields in ({}, {"guidance_scale": 1.0}, {"guidance_scale": 0.0})
    ]
    assert len({picture.tobytes() for picture in pictures}) == 1
    measured = psnr_db(pictures[0], theirs)
    print(f"{steps} steps: {measured:.1f} dB")
    assert measured >= GATE_DB


def test_an_empty_negative_prompt_is_zeros_and_a_blank_one_is_words(pipeline):
    manifest = pipeline.bundle.manifest
    empty = encode(pipeline.context(resolve(Request(prompt=PROMPT), manifest)))
    assert not empty["encoder_hidden_states"][0].any()
    assert not empty["text_embeds"][0].any()
    assert empty["text_embeds"][1].any()
    blank = encode(pipeline.context(resolve(Request(prompt=PROMPT, negative_prompt=" "), manifest)))
    assert blank["encoder_hidden_states"][0].any()
    np.testing.assert_array_equal(blank["encoder_hidden_states"][1], empty["encoder_hidden_states"][1])


def test_sizes_are_the_pictures_own(pipeline):
    request = resolve(Request(prompt=PROMPT, width=96, height=40), pipeline.bundle.manifest)
    told = encode(pipeline.context(request))
    assert told["time_ids"].tolist() == [[40, 96, 0, 0, 40, 96]] * 2


def test_a_long_weighted_prompt_is_said_by_both_encoders_alike(pipeline):
    prompt = "(a red house:1.3), " * 40
    told = encode(pipeline.context(resolve(Request(prompt=prompt), pipeline.bundle.manifest)))
    assert told["encoder_hidden_states"].shape[0] == 2
    assert told["encoder_hidden_states"].shape[1] > 77
    assert told["encoder_hidden_states"].shape[1] % 77 == 0
    assert told["text_embeds"].shape == (2, 40)
    assert pipeline.generate(prompt, seed=1, num_inference_steps=1).image.size == (64, 64)


def test_zero_guidance_is_off_only_where_the_model_has_none(pipeline, turbo):
    for opened, guided in ((pipeline, True), (turbo, False)):
        manifest = opened.bundle.manifest
        request = resolve(Request(prompt=PROMPT, guidance_scale=0.0), manifest)
        assert is_guided(request, manifest) == guided
        prompts = [branch.prompt for branch in opened.model.branches(request)]
        assert prompts == ([None, PROMPT] if guided else [PROMPT])


def test_several_pictures_in_one_batch_are_those_made_alone(pipeline):
    three = pipeline.generate(PROMPT, seed=5, num_inference_steps=2, count=3, batch_size=3)
    alone = pipeline.generate(PROMPT, seed=6, num_inference_steps=2)
    assert psnr_db(three.images[1], alone.image) >= 60.0


def test_a_record_makes_the_same_bytes_and_names_both_encoders(pipeline):
    result = pipeline.generate(PROMPT, seed=1, num_inference_steps=2)
    assert set(result.record.made_with.builds) == {"text_encoder", "text_encoder_2", "denoiser", "vae_decoder"}
    assert pipeline.reproduce(result.record).image.tobytes() == result.image.tobytes()
