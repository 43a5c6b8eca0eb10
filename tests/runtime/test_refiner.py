"""A refiner goes on where the base model stops: as diffusers' two pipelines do, under one record."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edit_parity import MARKS
from families import SEED, assert_near, family, generator, reference
from pictures import PROMPT, photo

import tintype
from tintype.errors import MemoryBudgetError, RecordError, RequestError

pytestmark = MARKS

__all__ = ["family"]  # the fixture
ASKED = {"negative_prompt": "snow", "num_inference_steps": 5, "guidance_scale": 5.0}
SIZE = {"width": 96, "height": 40}


@pytest.fixture(scope="module")
def refined(xl_bundle, family):
    with tintype.load(xl_bundle, provider="cpu", threads=1, refiner=family("refiner")[1]) as pipeline:
        yield pipeline


@pytest.mark.parametrize("sampler", ["euler", "euler_a", "dpmpp_2m", "ddim"])
def test_the_two_draw_as_in_diffusers(refined, xl_checkpoint, family, sampler):
    """Also the noise of the second goes on where the first left it."""
    import diffusers

    kinds = {
        "euler": diffusers.EulerDiscreteScheduler,
        "euler_a": diffusers.EulerAncestralDiscreteScheduler,
        "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
        "ddim": diffusers.DDIMScheduler,
    }
    base = diffusers.StableDiffusionXLPipeline.from_pretrained(xl_checkpoint, add_watermarker=False)
    theirs = (base, reference("refiner", family("refiner")[0]))
    for each in theirs:
        each.set_progress_bar_config(disable=True)
        each.scheduler = kinds[sampler].from_config(each.scheduler.config, clip_sample=False)
    random = generator()
    latents = base(PROMPT, denoising_end=0.6, output_type="latent", generator=random, **SIZE, **ASKED).images
    expected = theirs[1](PROMPT, image=latents, denoising_start=0.6, generator=random, **ASKED).images[0]
    said = {"sampler": sampler, "noise": "torch-cpu", "seed": SEED, "refiner_start": 0.6, **SIZE, **ASKED}
    run = refined.steps(PROMPT, **said)
    steps = list(run)
    assert [step.index for step in steps] == list(range(5))
    assert {step.total for step in steps} == {5}
    assert_near(run.result.image, expected, f"refined by {sampler}")


def test_the_record_makes_it_again_and_no_other_refiner_will_do(refined, xl_bundle, tmp_path):
    made = refined.generate(PROMPT, seed=SEED, count=2, batch_size=2, sampler="euler_a", **SIZE, **ASKED)
    record = made.records[1]
    assert record.request.refiner_start == 0.8
    assert record.made_with.bundle_hash == refined.bundle.hash
    assert record.made_with.refiner.bundle_hash == refined.refiner.bundle.hash
    assert {"denoiser", "refiner denoiser", "refiner vae_decoder"} <= set(record.made_with.builds)
    assert "vae_decoder" not in record.made_with.builds
    made.save(tmp_path / "x.png")
    likeness = tintype.like(tmp_path / "x-1.png").for_bundle(refined.bundle)
    assert likeness.left_out == ("the refiner tiny-refiner: give it again, --refiner FOLDER --refiner-start 0.8",)
    assert likeness.request().refiner_start is None
    again = refined.reproduce(record)
    assert again.image.tobytes() == made.images[1].tobytes()
    assert again.record == record
    with tintype.load(xl_bundle, provider="cpu", threads=1) as alone, pytest.raises(RecordError, match="was refined"):
        alone.reproduce(record)
    with tintype.load(xl_bundle, provider="cpu", threads=1, refiner=xl_bundle) as other:
        with pytest.raises(RecordError, match="its refiner was"):
            other.reproduce(record)
        plain = refined.bundle  # a picture without a refiner is made again without one
        with tintype.load(plain.folder, provider="cpu", threads=1) as alone:
            unrefined = alone.generate(PROMPT, seed=SEED, **SIZE, **ASKED)
        assert other.reproduce(unrefined.record).image.tobytes() == unrefined.image.tobytes()


def test_a_model_refined_by_itself_draws_what_it_draws_alone(xl_bundle):
    """Samplers by one step keep nothing from step to step that a change of models would lose."""
    asked = {"seed": SEED, "sampler": "euler", **SIZE, **ASKED}
    with tintype.load(xl_bundle, provider="cpu", threads=1, refiner=xl_bundle) as both:
        refined = both.generate(PROMPT, refiner_start=0.5, image=photo(96, 40), strength=0.8, **asked)
    with tintype.load(xl_bundle, provider="cpu", threads=1) as alone:
        plain = alone.generate(PROMPT, image=photo(96, 40), strength=0.8, **asked)
    np.testing.assert_allclose(refined.latents, plain.latents, atol=1e-5)


def test_within_a_budget_the_two_have_it_in_turn(xl_bundle, family):
    asked = {"seed": SEED, "sampler": "euler", **SIZE, **ASKED}
    with tintype.load(xl_bundle, provider="cpu", threads=1, memory="2GiB", refiner=family("refiner")[1]) as pipeline:
        ours, theirs = pipeline.graphs, pipeline.refiner.graphs
        for _ in range(2):  # the second begins with the refiner open
            open_at = []
            for step in pipeline.steps(PROMPT, **asked):
                open_at.append((bool(ours._sessions), bool(theirs._sessions)))
                step.preview()
            assert open_at == [(True, False)] * 4 + [(False, True)]
        assert pipeline.plan(PROMPT, build=False).peak_bytes <= 2 * 2**30
    small = tintype.load(xl_bundle, provider="cpu", threads=1, memory=2**20, refiner=family("refiner")[1])
    with small as pipeline, pytest.raises(MemoryBudgetError):
        pipeline.plan(PROMPT, build=False, **asked)


def test_builds_made_ahead_are_those_that_it_draws_by(xl_bundle, family, capfd):
    import json

    from tintype.cli import run
    from tintype.engine import build_id

    folder = family("refiner")[1]
    asked = ["--refiner", str(folder), "--size", "16x16", "--guidance-scale", "1", "--threads", "1", "--json"]
    assert run(["build", str(xl_bundle), *asked, "--provider", "cpu"]) == 0
    built = {row["role"]: build_id(Path(row["path"])) for row in json.loads(capfd.readouterr().out)["builds"]}
    with tintype.load(xl_bundle, provider="cpu", threads=1, refiner=folder) as pipeline:
        made = pipeline.generate(PROMPT, width=16, height=16, guidance_scale=1.0, num_inference_steps=5)
    drawn = made.records[0].made_with
    assert drawn.builds == built
    assert set(drawn.kernels.values()) == {"timed"}
    assert "refiner vae_decoder" in built
    assert "vae_decoder" not in built


def test_what_cannot_be_refined_is_refused(refined, xl_bundle):
    for fields in (
        {"hires": 2.0},
        {"image": photo(), "mask": photo()},
        {"refiner_start": 0.0},
        {"refiner_start": 1.0},
        {"num_inference_steps": 1},
    ):
        with pytest.raises(RequestError) as caught:
            refined.generate(PROMPT, **fields)
        assert caught.value.fix
    with pytest.raises(RequestError, match="can't refine"):
        tintype.load(xl_bundle, provider="cpu", refiner="postcard")
    with tintype.load("postcard", provider="cpu") as alone, pytest.raises(RequestError, match="without a refiner"):
        alone.generate(PROMPT, refiner_start=0.8)
