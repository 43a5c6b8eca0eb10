"""T2I-Adapters in requests: counted, planned, recorded, with every other way to draw, and refused where none fits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from counted_ways import counted
from edited_bundles import edited
from pictures import PROMPT, middle, photo, psnr_db
from t2i_adapters import adapter, deep

import tintype
from tintype.bundle import open_bundle
from tintype.bundle.opening import open_control_bundle
from tintype.bundle.t2i_adapter import open_t2i_adapter
from tintype.errors import BundleError, MemoryBudgetError, RecordError, RequestError
from tintype.memory.plan import ExecutionPlan
from tintype.pipeline import picture_steps
from tintype.trust.thresholds import why_unlike_ordinary

__all__ = ["adapter", "deep", "edited"]  # the fixtures
STEPS, SIZE = 4, (64, 32)
ASKED: dict[str, Any] = {
    "seed": 7, "num_inference_steps": STEPS, "width": SIZE[0], "height": SIZE[1], "guidance_scale": 5.0,
    "sampler": "euler", "exactness": "exact",
}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "deep": {"cache_interval": 2},
    "deepest": {"cache_interval": 2, "cache_branch": 7},
    "gated": {"gate_start": 0.5},
    "merged": {"token_merging": 0.5},
    "in-part": {"guidance_interval": "0.2,0.6"},
    "hires": {"hires": 2.0, "width": 32, "height": 32},
    "picture": {"image": photo(*SIZE), "strength": 0.7},
    "inpainted": {"image": photo(*SIZE), "mask": middle(*SIZE)},
}


@pytest.fixture(scope="module")
def pipeline(deep):
    with tintype.load(deep("sd")[1], provider="cpu", threads=1) as opened:
        yield opened


@pytest.fixture
def one(adapter):
    return {"model": adapter()[1], "image": photo(*SIZE)}


@pytest.mark.parametrize("way", WAYS)
def test_it_changes_every_way_to_draw_and_is_made_again_byte_for_byte(pipeline, one, tmp_path, way):
    asked = {**ASKED, **WAYS[way]}
    made = pipeline.generate(PROMPT, **asked, control=[one], count=2)
    assert psnr_db(made.image, pipeline.generate(PROMPT, **asked, count=2).image) < 40.0
    made.save(tmp_path / "x.png")
    record = tintype.read_record(tmp_path / "x-2.png")
    inputs = {name: value for name, value in asked.items() if name in ("image", "mask")}
    assert pipeline.reproduce(record, control=[one], **inputs).image.tobytes() == made.images[1].tobytes()


@pytest.mark.parametrize(("sampler", "way"), counted(WAYS))
def test_it_is_called_once_for_each_picture_that_it_is_shown(pipeline, one, adapter, calls, sampler, way):
    other = {"model": adapter(seed=1)[1], "image": photo()}
    control = [{**one, "end": 0.5}, {**one, "image": photo(40, 40)}, other, {**other, "weight": 0.0}]
    asked = {**ASKED, **WAYS[way], "sampler": sampler, "count": 3, "batch_size": 2}
    made = pipeline.generate(PROMPT, **asked, control=control)
    uses = pipeline.read(made.record.request).uses
    assert sorted(use.calls for use in uses if use.phase == "adapt") == [1, 2]
    planned = {use.name: use.calls for use in uses if use.phase in ("adapt", "denoise")}
    assert planned == {name: count for name, count in calls.items() if name.startswith(("denoiser", "t2i_adapter"))}
    assert {use.name for use in uses} <= set(made.record.made_with.builds)


def test_in_a_call_for_each_branch_it_is_the_same_picture(pipeline, one):
    whole = pipeline.generate(f"{PROMPT} AND a house:0.5", **ASKED, control=[one])
    ctx = pipeline.context(whole.record.request, ExecutionPlan(split_guidance=True))
    run = tintype.Run(ctx, picture_steps(ctx))
    list(run)
    assert psnr_db(whole.image, run.result.image) >= 60.0


def test_deep_features_of_the_same_step_are_those_of_the_whole_graph(pipeline, one):
    asked = {**ASKED, "num_inference_steps": 1, "control": [one]}
    assert (
        pipeline.generate(PROMPT, **asked, cache_interval=3).image.tobytes()
        == pipeline.generate(PROMPT, **asked).image.tobytes()
    )


@pytest.mark.parametrize("none", [{"weight": 0.0}, {"start": 0.9, "end": 0.95}], ids=["weight", "window"])
def test_without_a_part_in_any_step_it_is_the_picture_without_byte_for_byte(pipeline, one, calls, none):
    plain = pipeline.generate(PROMPT, **ASKED)
    made = pipeline.generate(PROMPT, **ASKED, control=[{**one, **none}])
    assert not any(name.startswith("t2i_adapter") for name in calls)
    assert made.image.tobytes() == plain.image.tobytes()
    assert made.record.made_with.builds == plain.record.made_with.builds
    assert pipeline.reproduce(made.record, control=[one]).image.tobytes() == made.image.tobytes()


def test_one_build_of_the_denoiser_serves_any_adapters_weights_and_windows(pipeline, one, adapter):
    other = {"model": adapter("light")[1], "image": photo()}
    controls = ([one], [other], [one, other], [{**one, "weight": 0.3}], [{**other, "end": 0.4}])
    made = [pipeline.generate(PROMPT, **ASKED, control=control) for control in controls]
    assert len({each.record.made_with.builds["denoiser"] for each in made}) == 1
    assert len({each.image.tobytes() for each in made}) == len(controls)
    before = pipeline.generate(PROMPT, **ASKED).record.made_with.builds["denoiser"]
    assert before != made[0].record.made_with.builds["denoiser"]


def test_a_window_has_a_part_in_its_steps_alone(pipeline, one):
    """Latents before it are those without, to the last digit that the builds agree on; then they part."""
    runs = []
    for control in ([], [{**one, "start": 0.5}]):
        run = pipeline.steps(PROMPT, **ASKED, control=control)
        runs.append([step.latents.copy() for step in run])
    apart = [float(np.abs(without - with_it).max()) for without, with_it in zip(*runs, strict=True)]
    assert max(apart[: STEPS // 2]) < 1e-3
    assert min(apart[STEPS // 2 :]) > 1e-2


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_lower_precisions_are_near(pipeline, one, adapter, precision):
    near = pipeline.generate(PROMPT, **ASKED, control=[{**one, "model": adapter(precision=precision)[1]}])
    exact, plain = pipeline.generate(PROMPT, **ASKED, control=[one]), pipeline.generate(PROMPT, **ASKED)
    found, far = psnr_db(near.image, exact.image), psnr_db(plain.image, exact.image)
    print(f"{precision}: {found:.1f} dB; without {far:.1f}")
    assert found >= 45.0
    assert far < found - 8.0


@pytest.mark.long
def test_the_smallest_budget_is_kept(deep, pipeline, one, calls):
    asked = {**ASKED, "control": [one, {**one, "image": photo(), "weight": 0.5}]}
    with tintype.load(deep("sd")[1], provider="cpu", memory="1MiB", threads=1) as bounded:
        with pytest.raises(MemoryBudgetError) as refusal:
            bounded.plan(PROMPT, **asked)
        bounded.memory = refusal.value.least_bytes
        plan = bounded.plan(PROMPT, **asked)
        made = bounded.generate(PROMPT, **asked)
        opened = [name for name in bounded.graphs._sessions if name.startswith("t2i_adapter")]
    (stage,) = (stage for stage in plan.stages if stage.phase == "adapt")
    assert plan.measured
    assert stage.calls == calls[stage.role] == 2
    assert not opened  # it was closed before the denoiser opened
    assert psnr_db(made.image, pipeline.generate(PROMPT, **asked).image) >= 60.0
    again = pipeline.reproduce(made.record, control=asked["control"])
    assert again.image.tobytes() == made.image.tobytes()


def test_pictures_of_one_batch_are_those_made_alone(pipeline, one):
    two = pipeline.generate(PROMPT, **ASKED, control=[one], count=2, batch_size=2)
    alone = pipeline.generate(PROMPT, **{**ASKED, "seed": 8}, control=[one])
    assert psnr_db(two.images[1], alone.image) >= 60.0


def test_words_that_change_go_with_it(pipeline, one):
    prompt = "a [red:blue:0.5] sailboat"
    made, other = (pipeline.generate(words, **ASKED, control=[one]).image for words in (prompt, "a red sailboat"))
    assert psnr_db(made, other) < 60.0


def test_those_that_a_request_has_not_are_closed(pipeline, one, adapter):
    other = {"model": adapter(seed=1)[1], "image": photo()}
    for control in ([one], [other], []):
        pipeline.generate(PROMPT, **ASKED, control=control)
        opened = [name for name in pipeline.graphs._sessions if name.startswith("t2i_adapter")]
        assert len(opened) == len(control)


def test_a_grey_one_sees_no_colour(pipeline, adapter):
    model = adapter(in_channels=1)[1]
    colours = photo(*SIZE)
    made, grey = (
        pipeline.generate(PROMPT, **ASKED, control=[{"model": model, "image": image}])
        for image in (colours, colours.convert("L"))
    )
    assert made.image.tobytes() == grey.image.tobytes()


def test_a_preprocessor_sees_the_picture_that_is_drawn(pipeline, one):
    made = pipeline.generate(PROMPT, **ASKED, control=[one], control_preprocess="invert")
    negative = 255 - np.asarray(one["image"])
    same = pipeline.generate(PROMPT, **ASKED, control=[{**one, "image": negative}])
    assert made.image.tobytes() == same.image.tobytes()
    assert pipeline.reproduce(made.record, control=[one]).image.tobytes() == made.image.tobytes()


def test_a_record_names_what_is_missing_or_another(pipeline, one, adapter):
    made = pipeline.generate(PROMPT, **ASKED, control=[{**one, "weight": 0.5, "start": 0.1}])
    record, opened = made.record, open_t2i_adapter(one["model"])
    (facts,) = record.request.control
    assert (facts.model, facts.model_hash, facts.weight) == (opened.name, opened.hash, 0.5)
    for control, words in (
        ([], opened.name),
        ([{**one, "weight": 0.7}], "weight 0.5, not 0.7"),
        ([{**one, "image": photo(96, 64)}], f"another picture for {opened.name}"),
        ([{**one, "model": adapter(seed=1)[1]}], facts.model_hash[:12]),
    ):
        with pytest.raises(RecordError, match=words) as refusal:
            pipeline.reproduce(record, control=control)
        assert refusal.value.fix


def test_latents_that_wait_are_finished_with_it(pipeline, one, tmp_path):
    run = pipeline.steps(PROMPT, **ASKED, control=[one])
    list(run)
    saved = tintype.read_latents(run.save_latents(tmp_path / "x.safetensors"))
    assert pipeline.resume(saved, control=[one]).image.tobytes() == run.result.image.tobytes()


def test_a_score_of_it_is_told_apart(pipeline, one):
    made = pipeline.generate(PROMPT, **ASKED, control=[one])
    assert "T2I-Adapters" in (why_unlike_ordinary(made.record.request) or "")


def test_what_goes_with_controlnets_alone_is_refused(pipeline, one):
    with pytest.raises(RequestError, match="control_guess is given, and no ControlNet"):
        pipeline.generate(PROMPT, **ASKED, control=[one], control_guess=True)


def test_one_of_another_family_is_refused(pipeline, one, adapter, xl_bundle):
    with pytest.raises(RequestError, match=r"T2I-Adapter .* controls stable-diffusion-xl, and this model is stable"):
        pipeline.generate(PROMPT, **ASKED, control=[{**one, "model": adapter("xl")[1]}])
    with (
        tintype.load(xl_bundle, provider="cpu", threads=1) as xl,
        pytest.raises(RequestError, match="controls stable-diffusion, and this model is stable-diffusion-xl"),
    ):
        xl.generate(PROMPT, **ASKED, control=[one])


def test_one_of_another_structure_is_refused(pipeline, one, adapter):
    wider = adapter(channels=[32, 48, 128, 128])[1]
    coarser = adapter(downscale_factor=8)[1]
    for model, words in (
        (wider, "features of 32x8x16, 48x4x8, 128x2x4, 128x1x2 .* skip connections have 32x8x16, 32x4x8, 64x4x8"),
        (coarser, "cells of 64 pixels, and this model's latents have 4, in pictures of multiples of 32"),
    ):
        with pytest.raises(RequestError, match=words) as refusal:
            pipeline.generate(PROMPT, **ASKED, control=[{**one, "model": model}])
        assert "family" in refusal.value.fix


def test_adapters_of_two_structures_are_refused_together(pipeline, one, adapter):
    fewer = adapter(channels=[32, 64, 128])[1]
    assert pipeline.generate(PROMPT, **ASKED, control=[{**one, "model": fewer}]).images
    with pytest.raises(RequestError, match="give other features than one another") as refusal:
        pipeline.generate(PROMPT, **ASKED, control=[one, {**one, "model": fewer}])
    assert refusal.value.fix


def test_a_manifest_that_makes_no_sense_is_refused(edited, one):
    def graph(value):
        return value["graphs"]["t2i_adapter"]["full"]

    def shape(sizes):
        return lambda value: graph(value)["outputs"][0].update(shape=sizes)

    for change, words in (
        (lambda value: value.update(controls="flux"), "it controls 'flux'"),
        (lambda value: value.update(name="\x1b[2J"), "no name to show"),
        (lambda value: value["graphs"].update(denoiser=value["graphs"]["t2i_adapter"]), "one graph"),
        (lambda value: graph(value).update(file="../model.onnx"), "outside the bundle"),
        (lambda value: graph(value).update(inputs=[]), "absurd ports"),
        (lambda value: graph(value)["inputs"].append(graph(value)["outputs"][0]), "its graph takes"),
        (lambda value: graph(value)["outputs"].extend(graph(value)["outputs"] * 4), "its graph gives 20 features"),
        (lambda value: graph(value)["inputs"][0].update(shape=["batch", 4, "rows", "columns"]), "not 1 or 3"),
        (lambda value: graph(value)["inputs"][0].update(shape=["batch", 3, 64, 64]), "of one size alone"),
        (lambda value: graph(value)["outputs"].reverse(), "its graph gives adapter_feature_3"),
        (lambda value: graph(value)["outputs"].clear(), "absurd ports"),
        (shape(["batch", "c", "rows/4", "columns/4"]), "image of so many channels"),
        (shape(["batch", 32, "4*rows", "4*columns"]), "no feature"),
        (shape(["batch", 32, "rows/0", "columns/0"]), "no feature"),
        (shape(["batch", 32, "rows/4", "columns/8"]), "no feature"),
        (lambda value: value.update(format_version=2), "of format 2"),
        (lambda value: value.update(family="controlnet"), "is not a manifest"),
    ):
        with pytest.raises(BundleError, match=words):
            open_control_bundle(edited(one["model"], change))


def test_a_manifest_that_lies_about_its_graph_is_refused(pipeline, one, edited):
    def wider(value):
        value["graphs"]["t2i_adapter"]["full"]["outputs"][0]["shape"][1] = 33

    with pytest.raises((BundleError, RequestError), match=r"32|33"):
        pipeline.generate(PROMPT, **ASKED, control=[{**one, "model": edited(one["model"], wider)}])


def test_each_kind_of_bundle_is_told_from_the_others(pipeline, one, deep):
    with pytest.raises(BundleError, match="is a model, and no T2I-Adapter"):
        open_t2i_adapter(deep("sd")[1])
    with pytest.raises(BundleError, match="is a model, and no ControlNet"):
        pipeline.generate(PROMPT, **ASKED, control=[{**one, "model": deep("sd")[1]}])
    with pytest.raises(BundleError, match="is a T2I-Adapter, which draws nothing itself") as refusal:
        open_bundle(one["model"])
    assert "--control" in refusal.value.fix
