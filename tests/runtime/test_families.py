"""Every family through exporter and runtime: whole pictures are those of the diffusers pipeline of that name."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edit_parity import take_the_encoders_mean
from families import GATE_DB, SEED, assert_near, family, generator, reference
from pictures import PROMPT, photo, psnr_db

import tintype
from tintype.arrays import psnr_db as array_db
from tintype.bundle import file_facts, read_manifest, write_manifest
from tintype.errors import RequestError
from tintype.export.checkpoint import open_checkpoint
from tintype.export.defaults import usual_request
from tintype.image.encode import to_samples
from tintype.memory.mode import Strips
from tintype.memory.plan import ExecutionPlan
from tintype.pipeline import picture_steps
from tintype.request import Request
from tintype.run import Run, take_all
from tintype.sources.facts import describe
from tintype.stages.decode import samples_in
from tintype.stages.start import picture_latents

MARKS = [
    pytest.mark.reference,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # diffusers with numpy 2
    pytest.mark.filterwarnings("ignore:.*AutoencoderTiny.*"),
]
pytestmark = MARKS

__all__ = ["family"]  # the fixture


@pytest.mark.parametrize(
    "name", ["ssd-1b", *(pytest.param(name, marks=pytest.mark.long) for name in ("bk-sdm", "vega"))]
)
def test_pruned_unets_draw_as_in_diffusers(family, name):
    import diffusers

    checkpoint, bundle = family(name)
    theirs = reference(name, checkpoint)
    theirs.scheduler = diffusers.EulerDiscreteScheduler.from_config(theirs.scheduler.config)
    asked = {"negative_prompt": "snow", "width": 96, "height": 40, "num_inference_steps": 4, "guidance_scale": 5.0}
    expected = theirs(PROMPT, generator=generator(), **asked).images[0]
    with tintype.load(bundle, provider="cpu", threads=1) as pipeline:
        found = pipeline.generate(PROMPT, sampler="euler", noise="torch-cpu", seed=SEED, **asked).image
    assert_near(found, expected, name)


def test_a_latent_consistency_model_draws_each_step_as_in_diffusers(family):
    checkpoint, bundle = family("lcm")
    theirs, kept = reference("lcm", checkpoint), []

    def keep(pipe, index, timestep, inputs):
        kept.append(inputs["denoised"].numpy())
        return inputs

    expected = theirs(
        PROMPT,
        num_inference_steps=4,
        guidance_scale=8.5,
        generator=generator(),
        callback_on_step_end=keep,
        callback_on_step_end_tensor_inputs=["denoised"],
    ).images[0]
    with tintype.load(bundle, provider="cpu", threads=1) as pipeline:
        default = pipeline.bundle.manifest.default_request
        assert (default.sampler, default.num_inference_steps, default.guidance_scale) == ("lcm", 4, 8.5)
        run = pipeline.steps(PROMPT, noise="torch-cpu", seed=SEED)
        steps = [step.denoised for step in run]
        assert_near(run.result.image, expected, "lcm")
        other = pipeline.generate(PROMPT, noise="torch-cpu", seed=SEED, guidance_scale=2.0).image
        with pytest.raises(RequestError, match="told its guidance scale"):
            pipeline.generate(PROMPT, guidance_interval="0,0.5")
    assert [array_db(*pair) >= GATE_DB for pair in zip(kept, steps, strict=True)] == [True] * 4
    assert psnr_db(other, expected) < GATE_DB


def test_instruct_pix2pix_draws_as_in_diffusers(family):
    checkpoint, bundle = family("instruct-pix2pix")
    theirs, picture = reference("instruct-pix2pix", checkpoint), photo(96, 40)
    asked = {"negative_prompt": "snow", "num_inference_steps": 4, "guidance_scale": 5.0, "image_guidance_scale": 1.8}
    with tintype.load(bundle, provider="cpu", threads=1) as pipeline:
        for change in ({}, {"guidance_scale": 1.0}):
            expected = theirs(PROMPT, image=picture, generator=generator(), **{**asked, **change}).images[0]
            said = {"noise": "torch-cpu", "seed": SEED, "width": 96, "height": 40, **asked, **change}
            made = pipeline.generate(PROMPT, image=picture, **said)
            assert_near(made.image, expected, f"instruct-pix2pix {change}")
        other = pipeline.generate(PROMPT, image=picture, **{**said, "guidance_scale": 5.0, "image_guidance_scale": 1.0})
        assert psnr_db(other.image, made.image) < GATE_DB
        again = pipeline.reproduce(made.record, image=picture)
        assert again.image.tobytes() == made.image.tobytes()
        branches = pipeline.plan(PROMPT, image=picture, build=False, num_inference_steps=4)
        assert {stage.role: stage.calls for stage in branches.stages}["denoiser"] == 4
        for refused in ({}, {"image": picture, "strength": 0.5}, {"image": picture, "mask": picture}):
            with pytest.raises(RequestError) as caught:
                pipeline.generate(PROMPT, **refused)
            assert caught.value.fix


def test_a_call_for_each_of_three_branches_gives_the_same_picture(family):
    _, bundle = family("instruct-pix2pix")
    with tintype.load(bundle, provider="cpu", threads=1) as pipeline:
        asked = Request(prompt=PROMPT, image=photo(), seed=SEED, num_inference_steps=3, count=3, batch_size=2)
        together = pipeline.generate(asked)
        ctx = pipeline.context(pipeline.resolve(asked), ExecutionPlan(split_guidance=True, keep=False))
        split = take_all(Run(ctx, picture_steps(ctx)).events())
    for one, other in zip(together.images, split.images, strict=True):
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1


def test_the_refiner_refines_as_in_diffusers(family, monkeypatch):
    import diffusers

    take_the_encoders_mean(monkeypatch)
    checkpoint, bundle = family("refiner")
    assert describe(checkpoint).family == "the refiner of Stable Diffusion XL"
    theirs, picture = reference("refiner", checkpoint), photo(96, 40)
    theirs.scheduler = diffusers.EulerDiscreteScheduler.from_config(theirs.scheduler.config)
    asked = {"negative_prompt": "snow", "num_inference_steps": 10, "guidance_scale": 5.0}
    expected = theirs(PROMPT, image=picture, generator=generator(), **asked).images[0]
    with tintype.load(bundle, provider="cpu", threads=1) as pipeline:
        said = {"noise": "torch-cpu", "seed": SEED, "width": 96, "height": 40, "sampler": "euler", **asked}
        assert_near(pipeline.generate(PROMPT, image=picture, **said).image, expected, "refiner")
        with pytest.raises(RequestError, match="changes a picture"):
            pipeline.generate(PROMPT)


def test_sdxs_draws_in_one_step_with_its_tiny_vae(family):
    checkpoint, bundle = family("sdxs-512")
    theirs = reference("sdxs-512", checkpoint)
    asked = {"num_inference_steps": 1, "guidance_scale": 0.0}
    expected = theirs(PROMPT, generator=generator(), **asked).images[0]
    with tintype.load(bundle, provider="cpu", threads=1) as pipeline:
        manifest = pipeline.bundle.manifest
        assert (manifest.scaling_factor, manifest.default_request.num_inference_steps) == (1.0, 1)
        assert_near(pipeline.generate(PROMPT, noise="torch-cpu", seed=SEED).image, expected, "sdxs-512")
        picture = pipeline.generate(PROMPT, image=photo(), strength=1.0, seed=SEED).image
        assert picture.size == photo().size


def test_a_tiny_autoencoder_decodes_and_encodes_as_in_diffusers(family):
    import torch
    from diffusers import AutoencoderTiny

    checkpoint, bundle = family("lcm")
    tiny = AutoencoderTiny.from_pretrained(checkpoint / "tiny_vae")
    with tintype.load(bundle, provider="cpu", threads=1) as pipeline:
        made = pipeline.generate(PROMPT, seed=SEED, decoder="tiny")
        full = pipeline.generate(PROMPT, seed=SEED)
        assert set(made.record.made_with.builds) == {"text_encoder", "denoiser", "tiny_decoder"}
        assert pipeline.reproduce(made.record).image.tobytes() == made.image.tobytes()
        np.testing.assert_array_equal(made.latents, full.latents)
        with torch.inference_mode():
            samples = tiny.decode(torch.from_numpy(made.latents.copy())).sample[0]
        assert_near(made.image, (samples / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy() * 255, "tiny decoder")
        ctx = pipeline.context(pipeline.resolve(Request(prompt=PROMPT, decoder="tiny")))
        strips = next(samples_in(ctx, made.latents, Strips(1)))[0]  # it can be cut, so budgets hold it too
        assert array_db(samples.numpy(), strips) >= GATE_DB
        ctx = pipeline.context(pipeline.resolve(Request(prompt=PROMPT, image=photo(), encoder="tiny")))
        with torch.inference_mode():
            latents = tiny.encode(torch.from_numpy(to_samples(np.asarray(photo())[np.newaxis]))).latents.numpy()
        assert array_db(latents, picture_latents(ctx, range(1))) >= GATE_DB
    with tintype.load("postcard", provider="cpu") as pipeline, pytest.raises(RequestError, match="no tiny decoder"):
        pipeline.generate(PROMPT, decoder="tiny")


def rescheduled(plain: tuple[Path, Path], folder: Path, name: str, **scheduler: Any) -> tuple[Path, Any]:
    """The plain bundle as that of a checkpoint of another name and scheduler, and the config of that."""
    checkpoint, bundle = plain
    config = json.loads((checkpoint / "scheduler/scheduler_config.json").read_text()) | scheduler
    shutil.copytree(checkpoint, folder / name)
    (folder / name / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    default = usual_request(open_checkpoint(folder / name))
    made = Path(shutil.copytree(bundle, folder / "bundle"))
    (made / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    kind = config["prediction_type"]
    manifest = dataclasses.replace(
        read_manifest(made)[0], files=file_facts(made), prediction_type=kind, default_request=default
    )
    write_manifest(made, manifest)
    return made, config


def plain_reference(checkpoint: Path, config: Any) -> Any:
    import diffusers

    opened = diffusers.StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    opened.set_progress_bar_config(disable=True)
    opened.scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    return opened


def test_zero_terminal_snr_draws_as_in_diffusers(tiny_checkpoint, tiny_bundle, tmp_path):
    """What NoobAI's scheduler says: v-prediction on trailing timesteps, and guidance rescaled."""
    bundle, config = rescheduled(
        (tiny_checkpoint, tiny_bundle),
        tmp_path,
        "noob-xl",
        _class_name="EulerDiscreteScheduler",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    theirs = plain_reference(tiny_checkpoint, config)
    asked = {"num_inference_steps": 6, "guidance_scale": 5.0, "guidance_rescale": 0.7}
    expected = theirs(PROMPT, generator=generator(), **asked).images[0]
    with tintype.load(bundle, provider="cpu", threads=1) as pipeline:
        found = pipeline.generate(PROMPT, noise="torch-cpu", seed=SEED, num_inference_steps=6)
        assert found.record.request.guidance_rescale == 0.7
        assert_near(found.image, expected, "zero terminal SNR")


@pytest.mark.parametrize(
    ("name", "kind", "steps"),
    [
        ("sd-turbo", "EulerAncestralDiscreteScheduler", 1),
        ("lightning-4step", "EulerDiscreteScheduler", 4),
        ("hyper-sd-4steps", "DDIMScheduler", 4),
        ("dmd2", "LCMScheduler", 4),
    ],
)
def test_few_steps_are_those_of_diffusers_one_by_one(tiny_checkpoint, tiny_bundle, tmp_path, name, kind, steps):
    """As the model cards have them; ours by the bundle's default request alone."""
    bundle, config = rescheduled((tiny_checkpoint, tiny_bundle), tmp_path, name)
    config |= {"_class_name": kind, "timestep_spacing": "trailing", "clip_sample": False}
    theirs, kept = plain_reference(tiny_checkpoint, config), []

    def keep(pipe, index, timestep, inputs):
        kept.append(inputs["latents"].numpy().copy())
        return inputs

    options = {"num_inference_steps": steps, "guidance_scale": 0.0, "generator": generator()}
    expected = theirs(PROMPT, callback_on_step_end=keep, **options).images[0]
    with tintype.load(bundle, provider="cpu", threads=1) as pipeline:
        run = pipeline.steps(PROMPT, noise="torch-cpu", seed=SEED)
        found = list(run)
        assert_near(run.result.image, expected, name)
    assert len(found) == len(kept) == steps
    after = [step.sigma for step in found[1:]] + [0.0]
    for sigma, step, latents in zip(after, found, kept, strict=True):
        scale = 1.0 if kind.startswith("Euler") else math.hypot(1.0, sigma)  # theirs are then of unit variance
        assert array_db(latents, step.latents / np.float32(scale)) >= GATE_DB
