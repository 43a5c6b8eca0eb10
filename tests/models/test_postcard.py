"""The embedded default as it is shipped: it draws what it is told, and its checkpoint draws the same in diffusers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import psnr_db

import tintype
from tintype.models.postcard.evaluate import fixed_prompts
from tintype.models.postcard.recipe import BUNDLE, CHECKPOINT
from tintype.sampling import noise_source

PROMPT = "a red sailboat on a calm sea at sunset"
SCHEDULERS = {
    "euler": "EulerDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
}
MIB = 2**20


def test_the_bundle_is_int8_licensed_and_within_its_size() -> None:
    bundle = tintype.open_bundle("postcard")
    manifest = bundle.manifest
    assert manifest.licence.lower() == "apache-2.0"
    assert bundle.graph("denoiser").precision == "int8"
    assert sum(path.stat().st_size for path in BUNDLE.rglob("*") if path.is_file()) <= 21 * MIB
    assert all(entry.passed for entry in manifest.parity)
    assert {entry.graph for entry in manifest.parity} >= {"text_encoder", "denoiser", "denoiser.fast", "vae_decoder"}
    assert bundle.graph("denoiser", "fast").precision == "int8"


def test_the_model_card_and_the_licence_come_with_the_package() -> None:
    from importlib import resources

    card = (resources.files("tintype.models.postcard") / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert (resources.files("tintype.models.postcard") / "bundle" / "tintype.json").is_file()


def test_the_bundle_came_from_the_checkpoint_in_the_repository() -> None:
    from tintype.export.checkpoint import open_checkpoint

    assert tintype.open_bundle("postcard").manifest.source.sha256 == open_checkpoint(CHECKPOINT).sha256()


@pytest.mark.slow
@pytest.mark.long
def test_it_draws_what_held_out_prompts_say() -> None:
    from tintype.models.postcard.judge import Judge

    prompts = fixed_prompts(16)
    with tintype.load("postcard", provider="cpu") as pipeline:
        pictures = np.stack([np.asarray(pipeline.generate(text, seed=i).image) for i, (text, _) in enumerate(prompts)])
    accuracy = Judge.load().accuracy(pictures, [scene for _, scene in prompts])
    assert accuracy["mean"] >= 0.85, accuracy  # of 500 prompts: models/postcard/README.md


@pytest.mark.slow
@pytest.mark.long
def test_the_fast_denoiser_draws_what_held_out_prompts_say_in_four_calls() -> None:
    from tintype.models.postcard.judge import Judge

    prompts = fixed_prompts(16)
    with tintype.load("postcard", provider="cpu") as pipeline:
        runs = [pipeline.steps(text, seed=i, fast=True) for i, (text, _) in enumerate(prompts)]
        assert {len(list(run)) for run in runs} == {4}
        (use,) = (use for use in runs[0].result.records[0].made_with.builds if use.startswith("denoiser"))
        assert use == "denoiser.fast"
        pictures = np.stack([np.asarray(run.result.image) for run in runs])
    accuracy = Judge.load().accuracy(pictures, [scene for _, scene in prompts])
    assert accuracy["mean"] >= 0.85, accuracy  # of 500 prompts: models/postcard/README.md


@pytest.mark.slow
def test_the_fast_picture_is_near_that_of_the_whole_way() -> None:
    """It was distilled from the guided denoiser on trailing timesteps: from the same noise they go to one picture."""
    with tintype.load("postcard", provider="cpu") as pipeline:
        fast = pipeline.generate(PROMPT, seed=7, fast=True, watermark=False).image
        whole = pipeline.generate(PROMPT, seed=7, sigmas="trailing", watermark=False).image
        undistilled = pipeline.generate(
            PROMPT, seed=7, sigmas="trailing", watermark=False, num_inference_steps=4, guidance_scale=1.0
        ).image
    assert psnr_db(fast, whole) >= 22
    assert psnr_db(fast, whole) >= psnr_db(undistilled, whole) + 3


@pytest.mark.slow
def test_the_record_in_the_picture_makes_the_same_bytes(tmp_path: Path) -> None:
    with tintype.load("postcard", provider="cpu") as pipeline:
        pipeline.generate(PROMPT, seed=7, num_inference_steps=2).save(tmp_path / "first.png")
        record = tintype.read_record(tmp_path / "first.png")
        pipeline.reproduce(record).save(tmp_path / "again.png")
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "again.png").read_bytes()


@pytest.fixture(scope="module")
def fp32_pipeline(export_once):
    prompts = [text for text, _ in fixed_prompts(4)]
    folder = export_once("postcard-fp32", CHECKPOINT, precision="fp32", prompts=prompts)
    with tintype.load(folder, provider="cpu") as pipeline:
        assert all(graph.psnr_db >= 80 for graph in pipeline.bundle.manifest.parity)
        yield pipeline


@pytest.fixture(scope="module")
def reference() -> Any:
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(CHECKPOINT, dtype=torch.float32, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.reference
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers with numpy 2
@pytest.mark.parametrize("size", [(128, 128), pytest.param((192, 96), marks=pytest.mark.long)], ids=str)
@pytest.mark.parametrize("sampler", list(SCHEDULERS))
def test_fp32_pictures_are_those_of_diffusers(
    fp32_pipeline: tintype.Pipeline, reference: Any, sampler: str, size: tuple[int, int]
) -> None:
    import diffusers
    import torch

    width, height = size
    asked = {"width": width, "height": height, "num_inference_steps": 20, "guidance_scale": 7.5}
    ours = fp32_pipeline.generate(PROMPT, sampler=sampler, noise="torch-cpu", seed=7, watermark=False, **asked)
    reference.scheduler = getattr(diffusers, SCHEDULERS[sampler]).from_config(reference.scheduler.config)
    noise = noise_source("torch-cpu", [7]).draw((1, 4, height // 4, width // 4))
    theirs = reference(PROMPT, latents=torch.from_numpy(noise), **asked).images[0]
    error = float(np.mean((np.asarray(ours.image, np.float64) - np.asarray(theirs, np.float64)) ** 2))
    psnr_db = 10 * math.log10(255**2 / error) if error else math.inf
    print(f"{sampler} {width}x{height}: {psnr_db:.1f} dB")
    assert psnr_db >= 50


def test_the_figures_of_the_model_card_are_those_of_the_results() -> None:
    results = Path(__file__).parents[2] / "bench" / "results"
    card = (CHECKPOINT.parent / "README.md").read_text()
    for name in ("postcard-int8", "postcard-fast-int8", "postcard-fp32"):
        accuracy = json.loads((results / f"{name}.json").read_text())["accuracy"]["mean"]
        assert f"{100 * accuracy:.1f} %" in card, name
