"""ControlNets in requests: counted, planned, recorded, with every other way to draw, and refused where none fits."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from controlnets import controlnet, drawing
from counted_ways import counted
from edited_bundles import edited
from pictures import PROMPT, middle, photo, psnr_db

import tintype
from tintype.bundle import open_bundle
from tintype.bundle.controlnet import open_controlnet
from tintype.errors import BundleError, MemoryBudgetError, RecordError, RequestError
from tintype.memory.plan import ExecutionPlan
from tintype.pipeline import picture_steps
from tintype.trust.thresholds import why_unlike_ordinary

__all__ = ["controlnet", "edited"]  # the fixtures
STEPS, SIZE = 4, (48, 32)
ASKED: dict[str, Any] = {
    "seed": 7, "num_inference_steps": STEPS, "width": SIZE[0], "height": SIZE[1], "guidance_scale": 5.0,
    "sampler": "euler", "exactness": "exact",
}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "deep": {"cache_interval": 2},
    "deepest": {"cache_interval": 2, "cache_branch": 3},
    "gated": {"gate_start": 0.5},
    "merged": {"token_merging": 0.5},
    "guessed": {"control_guess": True},
    "in-part": {"guidance_interval": "0.2,0.6"},
    "hires": {"hires": 1.5},
    "picture": {"image": photo(*SIZE), "strength": 0.7},
    "inpainted": {"image": photo(*SIZE), "mask": middle(*SIZE)},
}


@pytest.fixture
def one(controlnet):
    return {"model": controlnet()[1], "image": drawing(*SIZE)}


def denoising(uses) -> dict[str, int]:
    return {use.name: use.calls for use in uses if use.phase == "denoise"}


@pytest.mark.parametrize("way", WAYS)
def test_it_changes_every_way_to_draw_and_is_made_again_byte_for_byte(pipeline, one, tmp_path, way):
    asked = {**ASKED, **WAYS[way]}
    made = pipeline.generate(PROMPT, **asked, control=[one], count=2)
    plain = pipeline.generate(PROMPT, **{**asked, "control_guess": False}, count=2)
    assert psnr_db(made.image, plain.image) < 40.0
    made.save(tmp_path / "x.png")
    record = tintype.read_record(tmp_path / "x-2.png")
    inputs = {name: value for name, value in asked.items() if name in ("image", "mask")}
    assert pipeline.reproduce(record, control=[one], **inputs).image.tobytes() == made.images[1].tobytes()


@pytest.mark.parametrize(("sampler", "way"), counted(WAYS))
def test_calls_are_those_that_the_request_is_planned_by(pipeline, one, controlnet, calls, sampler, way):
    control = [{**one, "end": 0.5}, {**one, "image": photo()}, {"model": controlnet(seed=1)[1], "image": photo()}]
    asked = {**ASKED, **WAYS[way], "sampler": sampler, "count": 3, "batch_size": 2}
    made = pipeline.generate(PROMPT, **asked, control=control)
    inputs = {name: value for name, value in WAYS[way].items() if name in ("image", "mask")}
    request = dataclasses.replace(made.record.request)
    assert denoising(pipeline.read(request).uses) == {
        name: count for name, count in calls.items() if name.startswith(("denoiser", "controlnet"))
    }
    names = [use.name for use in pipeline.read(request).uses]
    assert len(names) == len(set(names))
    assert set(names) <= set(made.record.made_with.builds)
    assert pipeline.reproduce(made.record, control=control, **inputs).image.tobytes() == made.images[0].tobytes()


def test_in_a_call_for_each_branch_it_is_the_same_picture(pipeline, one):
    for more in ({}, {"control_guess": True}, {"cache_interval": 2}):
        whole = pipeline.generate(f"{PROMPT} AND a house:0.5", **ASKED, **more, control=[one])
        ctx = pipeline.context(whole.record.request, ExecutionPlan(split_guidance=True))
        run = tintype.Run(ctx, picture_steps(ctx))
        list(run)
        assert psnr_db(whole.image, run.result.image) >= 60.0


def test_deep_features_of_the_same_step_are_those_of_the_whole_graph(pipeline, one):
    """Where every call is whole the picture is that without a cache, to the last byte."""
    asked = {**ASKED, "num_inference_steps": 1, "control": [one]}
    assert (
        pipeline.generate(PROMPT, **asked, cache_interval=3).image.tobytes()
        == pipeline.generate(PROMPT, **asked).image.tobytes()
    )


def test_without_control_the_builds_are_those_of_before(pipeline, one):
    before = pipeline.generate(PROMPT, **ASKED).record.made_with
    controlled = pipeline.generate(PROMPT, **ASKED, control=[one]).record.made_with
    assert pipeline.generate(PROMPT, **ASKED).record.made_with == before
    assert controlled.builds["denoiser"] != before.builds["denoiser"]
    same = {name: build for name, build in controlled.builds.items() if name in before.builds and name != "denoiser"}
    assert same == {name: build for name, build in before.builds.items() if name != "denoiser"}


def test_one_build_of_the_denoiser_serves_any_controlnets(pipeline, one, controlnet):
    other = {"model": controlnet(seed=1)[1], "image": photo()}
    builds = {
        pipeline.generate(PROMPT, **ASKED, control=control).record.made_with.builds["denoiser"]
        for control in ([one], [other], [one, other])
    }
    assert len(builds) == 1


def test_a_weight_of_zero_is_the_picture_without(pipeline, one, calls):
    made = pipeline.generate(PROMPT, **ASKED, control=[{**one, "weight": 0.0}])
    assert not any(name.startswith("controlnet") for name in calls)
    assert psnr_db(made.image, pipeline.generate(PROMPT, **ASKED).image) >= 60.0


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_lower_precisions_are_near(pipeline, one, controlnet, precision):
    near = pipeline.generate(PROMPT, **ASKED, control=[{**one, "model": controlnet(precision=precision)[1]}])
    exact, plain = pipeline.generate(PROMPT, **ASKED, control=[one]), pipeline.generate(PROMPT, **ASKED)
    found, far = psnr_db(near.image, exact.image), psnr_db(plain.image, exact.image)
    print(f"{precision}: {found:.1f} dB; without {far:.1f}")
    assert found >= {"fp16": 45.0, "int8": 30.0}[precision]
    assert far < found - 8.0


@pytest.mark.long
def test_the_smallest_budget_is_kept(tiny_bundle, pipeline, one, calls):
    asked = {**ASKED, "control": [one, {**one, "image": photo(), "weight": 0.5}]}
    with tintype.load(tiny_bundle, provider="cpu", memory="1MiB", threads=1) as bounded:
        with pytest.raises(MemoryBudgetError) as refusal:
            bounded.plan(PROMPT, **asked)
        bounded.memory = refusal.value.least_bytes
        plan = bounded.plan(PROMPT, **asked)
        made = bounded.generate(PROMPT, **asked)
        (net,) = {use.name for use in bounded.read(made.record.request).uses if use.ref.role == "controlnet"}
    stages = {stage.role: stage for stage in plan.stages if stage.phase == "denoise"}
    assert plan.measured
    assert set(stages) == {"denoiser", net}
    assert {name: stage.calls for name, stage in stages.items()} == {name: calls[name] for name in stages}
    together = [
        stages[name].before_bytes >= plan.base_bytes + stages[other].resident_bytes
        for name, other in (("denoiser", net), (net, "denoiser"))
    ]
    assert all(together) or (
        plan.keep and any(together)
    )  # where all stays open, what opens first has nothing beside it
    assert psnr_db(made.image, pipeline.generate(PROMPT, **asked).image) >= 60.0
    again = pipeline.reproduce(made.record, control=asked["control"])
    assert again.image.tobytes() == made.image.tobytes()


def test_pictures_of_one_batch_are_those_made_alone(pipeline, one):
    for guess in (False, True):
        two = pipeline.generate(PROMPT, **ASKED, control=[one], control_guess=guess, count=2, batch_size=2)
        alone = pipeline.generate(PROMPT, **{**ASKED, "seed": 8}, control=[one], control_guess=guess)
        assert psnr_db(two.images[1], alone.image) >= 60.0


def test_words_that_change_are_told_to_both(pipeline, one):
    prompt = "a [red:blue:0.5] sailboat"
    made, other = (pipeline.generate(words, **ASKED, control=[one]).image for words in (prompt, "a red sailboat"))
    assert psnr_db(made, other) < 60.0


def test_controlnets_that_a_request_has_not_are_closed(pipeline, one, controlnet):
    other = {"model": controlnet(seed=1)[1], "image": photo()}
    for control in ([one], [other], []):
        pipeline.generate(PROMPT, **ASKED, control=control)
        opened = [name for name in pipeline.graphs._sessions if name.startswith("controlnet")]
        assert len(opened) == len(control)


def test_resized_all_of_its_picture_is_seen_however_others_are_fitted(pipeline, one):
    given = {"model": one["model"], "image": drawing(40, 96)}
    whole, stretched, cropped = (
        pipeline.generate(PROMPT, **ASKED, control=[{**given, **more}], fit=how)
        for more, how in (({"preprocess": "resize"}, "crop"), ({}, "stretch"), ({}, "crop"))
    )
    assert whole.image.tobytes() == stretched.image.tobytes() != cropped.image.tobytes()
    assert pipeline.reproduce(whole.record, control=[given]).image.tobytes() == whole.image.tobytes()


def test_its_picture_is_brought_to_the_size_or_gives_it(pipeline, one):
    given = {"model": one["model"], "image": drawing(96, 80)}
    asked = {name: value for name, value in ASKED.items() if name not in ("width", "height")}
    assert pipeline.generate(PROMPT, **asked, control=[given]).image.size == (72, 56)  # no more pixels than usual
    assert pipeline.generate(PROMPT, **ASKED, control=[given]).image.size == SIZE
    crop, pad = (pipeline.generate(PROMPT, **ASKED, control=[given], fit=how).image for how in ("crop", "pad"))
    assert crop.tobytes() != pad.tobytes()


def test_a_preprocessor_sees_the_picture_that_is_drawn(pipeline, one):
    plain = {"model": one["model"], "image": photo(*SIZE)}
    asked, words = {**ASKED, "control_preprocess": "invert"}, {**plain, "preprocess": "invert"}
    made = pipeline.generate(PROMPT, **asked, control=[plain])
    assert made.image.tobytes() == pipeline.generate(PROMPT, **ASKED, control=[words]).image.tobytes()
    negative = 255 - np.asarray(photo(*SIZE))
    assert (
        made.image.tobytes()
        == pipeline.generate(PROMPT, **ASKED, control=[{**plain, "image": negative}]).image.tobytes()
    )
    assert pipeline.reproduce(made.record, control=[plain]).image.tobytes() == made.image.tobytes()


def test_a_record_names_what_is_missing_or_another(pipeline, one, controlnet):
    made = pipeline.generate(PROMPT, **ASKED, control=[{**one, "weight": 0.5, "start": 0.1}])
    record, name = made.record, open_controlnet(one["model"]).name
    (facts,) = record.request.control
    assert (facts.model, facts.model_hash, facts.weight) == (name, open_controlnet(one["model"]).hash, 0.5)
    for control, words in (
        ([], name),
        ([one, one], name),
        ([{**one, "weight": 0.7}], "weight 0.5, not 0.7"),
        ([{**one, "image": photo(*SIZE)}], f"another picture for {name}"),
        ([{**one, "model": controlnet(seed=1)[1]}], facts.model_hash[:12]),
    ):
        with pytest.raises(RecordError, match=words) as refusal:
            pipeline.reproduce(record, control=control)
        assert refusal.value.fix
    plain = pipeline.generate(PROMPT, **ASKED).record
    with pytest.raises(RecordError, match="no ControlNet"):
        pipeline.reproduce(plain, control=[one])


def test_latents_that_wait_are_finished_with_it(pipeline, one, tmp_path):
    run = pipeline.steps(PROMPT, **ASKED, control=[one])
    list(run)
    saved = tintype.read_latents(run.save_latents(tmp_path / "x.safetensors"))
    finished = pipeline.resume(saved, control=[one])
    assert finished.image.tobytes() == run.result.image.tobytes()
    with pytest.raises(RecordError, match="was controlled by"):
        pipeline.resume(saved)


def test_a_score_of_it_is_told_apart(pipeline, one):
    assert "ControlNets" in (
        why_unlike_ordinary(pipeline.generate(PROMPT, **ASKED, control=[one]).record.request) or ""
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight": -1.0}, "out of range"),
        ({"weight": float("nan")}, "out of range"),
        ({"weight": "much"}, "should be a number"),
        ({"start": 0.6, "end": 0.5}, "no part in any"),
        ({"end": 1.5}, "out of range"),
        ({"image": None}, "has no image"),
        ({"image": "none.png"}, "none.png"),
        ({"image": np.full((8, 8, 3), np.nan)}, "control picture"),
        ({"model": None}, "has no model"),
        ({"strength": 1.0}, "a control has no 'strength'"),
        ({"preprocess": "depth"}, "no preprocessor 'depth'"),
        ({"preprocess": "canny:9"}, "takes 2 numbers"),
        ({"preprocess": "canny:9-3"}, "out of range"),
        ({"preprocess": "blur:1e9"}, "no preprocessor"),
    ],
    ids=str,
)
def test_what_a_control_cannot_be_is_refused(pipeline, one, change, words):
    with pytest.raises(RequestError) as refusal:
        pipeline.generate(PROMPT, **ASKED, control=[{**one, **change}])
    assert words in refusal.value.message
    assert refusal.value.fix


def test_what_goes_with_no_control_is_refused(pipeline, one):
    for fields, words in (
        ({"control": one}, "no list of ControlNets"),
        ({"control": [7]}, "int is no control"),
        ({"control": ["canny"]}, "'canny' is no control"),
        ({"control": [one] * 9}, "8 are the most"),
        ({"control_preprocess": "canny"}, "control_preprocess is given without control"),
        ({"control_guess": True}, "control_guess is given without control"),
    ):
        with pytest.raises(RequestError, match=words):
            pipeline.generate(PROMPT, **ASKED, **fields)


def test_a_controlnet_of_another_family_is_refused(pipeline, one, controlnet, xl_bundle):
    with pytest.raises(RequestError, match="controls stable-diffusion-xl, and this model is stable-diffusion"):
        pipeline.generate(PROMPT, **ASKED, control=[{**one, "model": controlnet("xl")[1]}])
    with (
        tintype.load(xl_bundle, provider="cpu", threads=1) as xl,
        pytest.raises(RequestError, match="controls stable-diffusion, and this model is stable-diffusion-xl"),
    ):
        xl.generate(PROMPT, **ASKED, control=[one])


def test_a_controlnet_of_another_structure_is_refused(pipeline, one, edited):
    def other_words(value):
        value["graphs"]["controlnet"]["full"]["inputs"][2]["shape"][-1] = 48

    def other_cells(value):
        value["vae_scale_factor"] = 8

    def fewer_layers(value):
        del value["graphs"]["controlnet"]["full"]["outputs"][3]

    for change, words in (
        (other_words, "encoder_hidden_states of 48 numbers, and this model has 64"),
        (other_cells, "vae_scale_factor 8, and this model 4"),
        (
            fewer_layers,
            "gives 32, 32, 32, 64 channels, and this model's skip connections and middle have 32, 32, 32, 64, 64",
        ),
    ):
        with pytest.raises(RequestError, match=words) as refusal:
            pipeline.generate(PROMPT, **ASKED, control=[{**one, "model": edited(one["model"], change)}])
        assert "family" in refusal.value.fix


def test_a_manifest_that_makes_no_sense_is_refused(edited, one):
    def graph(value):
        return value["graphs"]["controlnet"]["full"]

    for change, words in (
        (lambda value: value.update(controls="flux"), "it controls 'flux'"),
        (lambda value: value.update(vae_scale_factor=0), "vae_scale_factor 0 is absurd"),
        (lambda value: value.update(latent_channels=16), "other channels than latent_channels"),
        (lambda value: value.update(name="\x1b[2J"), "no name to show"),
        (lambda value: value["graphs"].update(denoiser=value["graphs"]["controlnet"]), "one graph"),
        (lambda value: graph(value).update(file="../model.onnx"), "outside the bundle"),
        (lambda value: graph(value)["inputs"].pop(3), "no input named controlnet_cond"),
        (lambda value: graph(value)["inputs"][3].update(shape=["batch", 4, "rows", "columns"]), "not 3 channels"),
        (lambda value: graph(value)["outputs"].reverse(), "no residuals"),
        (
            lambda value: graph(value)["outputs"][0].update(shape=["batch", "c", "height", "width"]),
            "image of so many channels",
        ),
        (
            lambda value: graph(value)["outputs"][0].update(shape=["batch", 32, "9*height", "9*width"]),
            "no skip connection",
        ),
        (lambda value: value.update(format_version=2), "newer|of format 2"),
    ):
        with pytest.raises(BundleError, match=words):
            open_controlnet(edited(one["model"], change))


def test_a_model_is_no_controlnet_and_a_controlnet_no_model(pipeline, one, tiny_bundle):
    with pytest.raises(BundleError, match="is a model, and no ControlNet"):
        pipeline.generate(PROMPT, **ASKED, control=[{**one, "model": tiny_bundle}])
    with pytest.raises(BundleError, match="is a ControlNet, which draws nothing itself") as refusal:
        open_bundle(one["model"])
    assert "--control" in refusal.value.fix
