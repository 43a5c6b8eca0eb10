"""Guidance in pictures: in part of the way alone, planned and recorded; and by CFG++, as its paper has it."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
from pictures import PROMPT, psnr_db

import tintype
from tintype.errors import BundleError, MemoryBudgetError, RequestError
from tintype.families.model import Model
from tintype.families.stable_diffusion import StableDiffusion
from tintype.memory.plan import ExecutionPlan
from tintype.pipeline import picture_steps
from tintype.record import parse_record
from tintype.sampling import PARAMETRIZATIONS

ASKED = {"seed": 3, "num_inference_steps": 4, "width": 64, "height": 48, "guidance_scale": 5.0, "sampler": "euler"}
HALF = {**ASKED, "guidance_interval": "0.5,1"}


def latents_of(pipeline, **asked):
    return [step.latents for step in pipeline.steps(PROMPT, **asked)]


def first_step(pipeline, **more):
    run = pipeline.steps(PROMPT, **{**ASKED, **more})
    step = next(run)
    run.close()
    return step


def image_bytes(result):
    return [image.tobytes() for image in result.images]


def test_guidance_begins_and_stops_where_its_interval_does(pipeline):
    late, early = latents_of(pipeline, **HALF), latents_of(pipeline, **{**ASKED, "guidance_interval": "0,0.5"})
    guided, unguided = latents_of(pipeline, **ASKED), latents_of(pipeline, **{**ASKED, "guidance_scale": 1.0})
    for index in (0, 1):
        np.testing.assert_array_equal(late[index], unguided[index])
        np.testing.assert_array_equal(early[index], guided[index])
    for ours, before in ((late, unguided), (early, guided)):
        assert np.abs(ours[2] - before[2]).max() > 1e-3


def test_before_its_interval_the_negative_prompt_says_nothing(pipeline):
    one, other = (latents_of(pipeline, **HALF, negative_prompt=words) for words in ("", "snow, a mountain"))
    np.testing.assert_array_equal(one[1], other[1])
    assert np.abs(one[2] - other[2]).max() > 1e-4


def test_the_whole_way_is_what_there_is_without_an_interval(pipeline):
    whole, plain = (pipeline.generate(PROMPT, **{**ASKED, **more}) for more in ({"guidance_interval": "0,1"}, {}))
    assert image_bytes(whole) == image_bytes(plain)
    assert whole.record.made_with == plain.record.made_with
    assert dataclasses.replace(whole.record.request, guidance_interval=None) == plain.record.request


def test_an_interval_between_two_steps_guides_none(pipeline):
    none = pipeline.generate(PROMPT, **{**ASKED, "guidance_interval": "0.3,0.4"})
    plain = pipeline.generate(PROMPT, **{**ASKED, "guidance_scale": 1.0})
    assert image_bytes(none) == image_bytes(plain)
    assert none.record.made_with.builds == plain.record.made_with.builds


def test_a_record_of_it_is_made_again_byte_for_byte(pipeline, tmp_path):
    made = pipeline.generate(PROMPT, **HALF, guidance_rescale=0.7, count=3, batch_size=2)
    assert set(made.record.made_with.builds) == {"text_encoder", "denoiser", "denoiser.unguided", "vae_decoder"}
    made.save(tmp_path / "x.png")
    for index, image in enumerate(made.images):
        record = tintype.read_record(tmp_path / f"x-{index + 1}.png")
        assert record.request.guidance_interval == "0.5,1"
        assert pipeline.reproduce(record).image.tobytes() == image.tobytes()


def test_a_record_from_before_intervals_says_the_whole_way(pipeline):
    text = pipeline.generate(PROMPT, **ASKED).record.texts()["tintype"]
    older = json.loads(text)
    del older["request"]["guidance_interval"]
    assert parse_record(json.dumps(older)) == parse_record(text)
    assert parse_record(json.dumps(older)).request.guidance_interval is None


def test_both_shapes_stay_open_for_the_next_request(pipeline, monkeypatch):
    pipeline.generate(PROMPT, **HALF)
    opened = Counter[str]()
    monkeypatch.setattr(type(pipeline.graphs), "open", lambda self, use, *_: opened.update([use.name]))
    pipeline.generate(PROMPT, **HALF)
    assert not opened


def test_in_two_calls_a_step_it_is_the_same_picture(pipeline):
    whole = pipeline.generate(PROMPT, **HALF)
    ctx = pipeline.context(whole.record.request, ExecutionPlan(split_guidance=True))
    run = tintype.Run(ctx, picture_steps(ctx))
    list(run)
    assert psnr_db(whole.image, run.result.image) >= 60.0
    assert set(run.result.record.made_with.builds) == {"text_encoder", "denoiser", "vae_decoder"}
    assert pipeline.reproduce(run.result.record).image.tobytes() == run.result.image.tobytes()


@pytest.mark.long
def test_where_a_budget_has_no_room_for_both_shapes_one_build_serves_all_steps(tiny_bundle, pipeline):
    with tintype.load(tiny_bundle, provider="cpu", memory="1MiB", threads=1) as bounded:
        with pytest.raises(MemoryBudgetError) as refusal:
            bounded.plan(PROMPT, **HALF)
        bounded.memory = refusal.value.least_bytes
        plan = bounded.plan(PROMPT, **HALF)
        made = bounded.generate(PROMPT, **HALF)
    denoiser = next(stage for stage in plan.stages if stage.role == "denoiser")
    assert [stage.role for stage in plan.stages] == ["text_encoder", "denoiser", "vae_decoder"]
    assert plan.measured
    assert denoiser.split_guidance
    assert denoiser.calls == 2 * 2 + 2
    assert set(made.record.made_with.builds) == {"text_encoder", "denoiser", "vae_decoder"}
    assert made.record.made_with.split_guidance
    assert made.plan.execution == plan.execution
    assert psnr_db(made.image, pipeline.generate(PROMPT, **HALF).image) >= 60.0
    assert pipeline.reproduce(made.record).image.tobytes() == made.image.tobytes()


def test_where_it_has_room_the_faster_of_both_ways_is_taken(tiny_bundle, pipeline):
    both = pipeline.plan(PROMPT, **HALF)
    with tintype.load(tiny_bundle, provider="cpu", memory="2GiB", threads=1) as bounded:
        plan = bounded.plan(PROMPT, **HALF)
        made = bounded.generate(PROMPT, **HALF)
    assert plan.measured
    assert plan.seconds + plan.warm_seconds <= both.seconds + both.warm_seconds
    assert set(made.record.made_with.builds) == {stage.role for stage in plan.stages}
    assert pipeline.reproduce(made.record).image.tobytes() == made.image.tobytes()


def test_without_a_budget_a_plan_has_both_shapes(pipeline):
    plan = pipeline.plan(PROMPT, **HALF)
    calls = {stage.role: stage.calls for stage in plan.stages}
    assert (calls["denoiser"], calls["denoiser.unguided"]) == (2, 2)
    assert plan.measured


def test_the_way_of_an_enlarged_picture_goes_on_where_the_smaller_one_was(pipeline):
    """Guidance that ends before the second picture begins takes no part in it."""
    asked = {**ASKED, "hires": 1.5, "hires_strength": 0.5, "guidance_interval": "0,0.5"}
    made = pipeline.generate(PROMPT, **asked)
    second = pipeline.model.uses(made.record.request)
    first = pipeline.model.uses(made.record.request.base)
    assert [(use.name, use.branches, use.calls) for use in second if use.ref.role == "denoiser"] == [("denoiser", 1, 2)]
    assert [use.branches for use in first if use.ref.role == "denoiser"] == [2, 1]
    assert pipeline.reproduce(made.record).image.tobytes() == made.image.tobytes()


def test_an_interval_of_no_guidance_is_refused_before_anything_opens(pipeline):
    pipeline.close()
    with pytest.raises(RequestError, match="guidance_scale of 1 is none"):
        pipeline.steps(PROMPT, **{**HALF, "guidance_scale": 1.0})
    assert pipeline.graphs._sessions == {}


def test_cfg_pp_goes_to_the_guided_picture_and_renoises_by_the_unconditional_one(pipeline):
    """Its first step, of predictions that plain Euler shows one by one: scale 1 is the words', 0 what is without."""
    plain = {scale: first_step(pipeline, guidance_scale=scale) for scale in (0.0, 1.0)}
    step = first_step(pipeline, sampler="euler_cfg_pp", guidance_scale=0.6)
    without, conditional = (plain[scale].denoised for scale in (0.0, 1.0))
    schedule = pipeline.context(pipeline.resolve(tintype.Request(prompt=PROMPT, **ASKED))).schedule
    ratio = schedule.sigmas[1] / schedule.sigmas[0]
    noisy = without + (plain[0.0].latents - without) / ratio
    guided = without + 0.6 * (conditional - without)
    assert np.abs(conditional - without).max() > 1e-2
    np.testing.assert_allclose(step.denoised, guided, atol=1e-4)
    np.testing.assert_allclose(step.latents, guided + (noisy - without) * ratio, atol=2e-4)


@pytest.mark.parametrize("sampler", ["exp_heun_2_x0_sde", "seeds_2", "seeds_3", "sa_solver", "sa_solver_pece"])
def test_a_record_of_a_sampler_with_noise_is_made_again_byte_for_byte(pipeline, sampler):
    """Each picture alone, of those that were made in one batch."""
    made = pipeline.generate(PROMPT, **{**ASKED, "sampler": sampler}, count=2, batch_size=2)
    for record, image in zip(made.records, made.images, strict=True):
        assert record.request.sampler == sampler
        assert pipeline.reproduce(record).image.tobytes() == image.tobytes()


@pytest.mark.parametrize("sampler", ["euler", "euler_a", "dpmpp_2m", "dpmpp_2s_a", "gradient_estimation"])
def test_with_guidance_off_cfg_pp_is_the_plain_sampler(pipeline, sampler):
    asked = {**ASKED, "guidance_scale": 1.0}
    plain, ours = (pipeline.generate(PROMPT, **{**asked, "sampler": name}) for name in (sampler, f"{sampler}_cfg_pp"))
    assert psnr_db(plain.image, ours.image) >= 80.0
    guided = pipeline.generate(PROMPT, **{**asked, "sampler": f"{sampler}_cfg_pp", "guidance_scale": 0.6})
    assert psnr_db(ours.image, guided.image) < 60.0
    assert pipeline.reproduce(guided.record).image.tobytes() == guided.image.tobytes()


def test_a_prediction_that_a_family_does_not_know_is_refused_before_anything_opens(pipeline, monkeypatch):
    monkeypatch.setattr(StableDiffusion, "parametrizations", {"v_prediction": PARAMETRIZATIONS["v_prediction"]})
    with pytest.raises(BundleError, match="predicts 'epsilon'"):
        Model.of(pipeline.bundle)
