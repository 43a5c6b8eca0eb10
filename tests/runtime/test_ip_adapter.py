"""Image prompts in requests: counted, planned, recorded, with every other way to draw, and refused where none fits."""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import pytest
from edited_bundles import edited
from families import family
from ip_adapters import HIDDEN, colours, image_encoder, ip_adapter, left_half
from low_precision import PRECISIONS, bundle_of, fp16_bundle, int8_export
from pictures import PROMPT, middle, photo, psnr_db

import tintype
from tintype.bundle import open_bundle
from tintype.bundle.image_encoder import open_image_encoder
from tintype.errors import BundleError, MemoryBudgetError, RecordError, RequestError
from tintype.memory.plan import ExecutionPlan
from tintype.pipeline import picture_steps
from tintype.trust.thresholds import why_unlike_ordinary

__all__ = ["edited", "family", "fp16_bundle", "image_encoder", "int8_export", "ip_adapter"]  # the fixtures
SIZE = (48, 32)
ASKED: dict[str, Any] = {
    "seed": 7, "num_inference_steps": 4, "width": SIZE[0], "height": SIZE[1], "guidance_scale": 5.0,
    "sampler": "euler", "exactness": "exact",
}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "deep": {"cache_interval": 2},
    "gated": {"gate_start": 0.5},
    "merged": {"token_merging": 0.5},
    "in-part": {"guidance_interval": "0.2,0.6"},
    "hires": {"hires": 1.5},
    "inpainted": {"image": photo(*SIZE), "mask": middle(*SIZE)},
}
ONLY_LONG = {(way, "whole") for way in ("gated", "in-part", "hires")}  # masked, they have one picture more


@pytest.fixture
def brought(image_encoder, ip_adapter) -> dict[str, Any]:
    """What a request brings, by its field's name."""
    return {
        "ip_adapter": ip_adapter(kind="plus"),
        "image_encoder": image_encoder()[1],
        "image_prompts": [(photo(), 0.7)],
    }


@pytest.mark.parametrize(
    ("way", "masked"),
    [
        pytest.param(way, how == "masked", id=f"{way}-{how}", marks=pytest.mark.long if (way, how) in ONLY_LONG else ())
        for way in WAYS
        for how in ("whole", "masked")
    ],
)
def test_it_changes_every_way_to_draw_and_is_made_again_byte_for_byte(pipeline, brought, tmp_path, way, masked):
    asked, mask = {**ASKED, **WAYS[way]}, left_half(*SIZE)
    if masked:
        brought = {**brought, "image_prompts": [(photo(), 0.7, mask), (colours(), 0.4)]}
    made = pipeline.generate(PROMPT, **asked, **brought, count=2)
    assert psnr_db(made.image, pipeline.generate(PROMPT, **asked, count=2).image) < 45.0
    made.save(tmp_path / "x.png")
    record = tintype.read_record(tmp_path / "x-2.png")
    inputs = {name: value for name, value in asked.items() if name in ("image", "mask")}
    assert pipeline.reproduce(record, **brought, **inputs).image.tobytes() == made.images[1].tobytes()


@pytest.mark.parametrize("way", [name for name in WAYS if name != "hires"])
def test_calls_are_those_that_the_request_is_planned_by(pipeline, brought, calls, way):
    asked = {**ASKED, **WAYS[way], "count": 3, "batch_size": 2}
    made = pipeline.generate(PROMPT, **asked, **brought)
    uses = pipeline.read(made.record.request).uses
    counted = {use.name: use.calls for use in uses if use.phase in ("look", "denoise")}
    assert counted == {name: count for name, count in calls.items() if name.startswith(("denoiser", "image_encoder"))}
    assert (
        sum(count for name, count in counted.items() if name.startswith("image_encoder")) == 2
    )  # and once an empty one
    assert {use.name for use in uses} <= set(made.record.made_with.builds)


def test_in_a_call_for_each_branch_it_is_the_same_picture(pipeline, brought):
    for more in ({}, {"cache_interval": 2}, {"gate_start": 0.5}):
        whole = pipeline.generate(f"{PROMPT} AND a house:0.5", **ASKED, **more, **brought)
        ctx = pipeline.context(whole.record.request, ExecutionPlan(split_guidance=True))
        run = tintype.Run(ctx, picture_steps(ctx))
        list(run)
        assert psnr_db(whole.image, run.result.image) >= 60.0


def test_deep_features_of_the_same_step_are_those_of_the_whole_graph(pipeline, brought):
    """Where every call is whole the picture is that without a cache, to the last byte."""
    asked = {**ASKED, "num_inference_steps": 1, **brought}
    assert (
        pipeline.generate(PROMPT, **asked, cache_interval=3).image.tobytes()
        == pipeline.generate(PROMPT, **asked).image.tobytes()
    )


@pytest.mark.parametrize("exactness", ["exact", "balanced"])
def test_a_weight_of_zero_is_the_picture_without_to_the_last_byte(pipeline, brought, calls, exactness):
    asked = {**ASKED, "exactness": exactness}
    plain = pipeline.generate(PROMPT, **asked)
    made = pipeline.generate(PROMPT, **asked, **{**brought, "image_prompts": [(photo(), 0.0), (colours(), 0.0)]})
    assert made.image.tobytes() == plain.image.tobytes()
    assert not any(name.startswith("image_encoder") for name in calls)
    assert made.record.made_with == plain.record.made_with
    some = pipeline.generate(PROMPT, **asked, **{**brought, "image_prompts": [(photo(), 0.7), (colours(), 0.0)]})
    assert some.image.tobytes() == pipeline.generate(PROMPT, **asked, **brought).image.tobytes()


def test_one_build_serves_any_adapter_picture_and_weight(pipeline, brought, ip_adapter, image_encoder):
    base = ip_adapter(kind="base")
    ways: list[dict[str, Any]] = [
        brought,
        {**brought, "image_prompts": [(colours(), -0.3)]},
        {**brought, "ip_adapter": ip_adapter(kind="plus", seed=1)},
        {**brought, "ip_adapter": base},
        {**brought, "image_encoder": image_encoder(1)[1]},
    ]
    made = [pipeline.generate(PROMPT, **ASKED, **way) for way in ways]
    assert len({each.image.tobytes() for each in made}) == len(ways)
    assert len({each.record.made_with.builds["denoiser"] for each in made}) == 1
    before = pipeline.generate(PROMPT, **ASKED).record.made_with.builds
    assert before["denoiser"] != made[0].record.made_with.builds["denoiser"]
    assert before.items() - {("denoiser", before["denoiser"])} <= made[0].record.made_with.builds.items()


def test_a_weight_is_a_share_of_what_the_picture_adds(pipeline, brought):
    made = {
        weight: pipeline.generate(PROMPT, **ASKED, **{**brought, "image_prompts": [(photo(), weight)]}).image
        for weight in (0.05, 0.2, 1.0)
    }
    plain = pipeline.generate(PROMPT, **ASKED).image
    distances = [psnr_db(image, plain) for image in made.values()]
    assert distances == sorted(distances, reverse=True)


def test_pictures_of_one_batch_are_those_made_alone(pipeline, brought):
    two = pipeline.generate(PROMPT, **ASKED, **brought, count=2, batch_size=2)
    alone = pipeline.generate(PROMPT, **{**ASKED, "seed": 8}, **brought)
    assert psnr_db(two.images[1], alone.image) >= 60.0


def test_words_that_change_leave_the_pictures_as_they_are(pipeline, brought):
    made, other = (
        pipeline.generate(words, **ASKED, **brought).image for words in ("a [red:blue:0.5] boat", "a red boat")
    )
    assert psnr_db(made, other) < 60.0


def test_a_white_mask_is_none_for_one_picture(pipeline, brought):
    whole = pipeline.generate(PROMPT, **ASKED, **brought)
    masked = {
        **brought,
        "image_prompts": [{"image": photo(), "weight": 0.7, "mask": np.full(SIZE[::-1], 255, np.uint8)}],
    }
    assert psnr_db(pipeline.generate(PROMPT, **ASKED, **masked).image, whole.image) >= 60.0
    black = {**brought, "image_prompts": [(photo(), 0.7, np.zeros(SIZE[::-1], np.uint8))]}
    assert psnr_db(pipeline.generate(PROMPT, **ASKED, **black).image, pipeline.generate(PROMPT, **ASKED).image) >= 60.0


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_an_encoder_of_lower_precision_is_near(pipeline, brought, image_encoder, precision):
    exact = pipeline.generate(PROMPT, **ASKED, **brought)
    near = pipeline.generate(PROMPT, **ASKED, **{**brought, "image_encoder": image_encoder(precision=precision)[1]})
    found, far = psnr_db(near.image, exact.image), psnr_db(pipeline.generate(PROMPT, **ASKED).image, exact.image)
    print(f"{precision}: {found:.1f} dB; without {far:.1f}")
    assert found >= {"fp16": 45.0, "int8": 30.0}[precision]
    assert far < found - 8.0


@pytest.mark.parametrize(("precision", "exactness"), PRECISIONS)
def test_a_model_of_lower_precision_draws_the_picture_too(request, pipeline, brought, precision, exactness):
    """The change that the picture makes is that of the fp32 bundle."""
    expected = pipeline.generate(PROMPT, **ASKED, **brought)
    bundle = bundle_of(request, precision)
    with tintype.load(bundle, provider="cpu", threads=1) as low:
        asked = {**ASKED, "exactness": exactness}
        made = low.generate(PROMPT, **asked, **brought)
        again = low.reproduce(made.record, **brought)
        plain = low.generate(PROMPT, **asked)
    found, far = psnr_db(made.image, expected.image), psnr_db(plain.image, expected.image)
    print(f"{precision} {exactness}: {found:.1f} dB; without {far:.1f}")
    assert again.image.tobytes() == made.image.tobytes()
    assert found >= {"fp16": 40.0, "int8": 25.0}[precision]
    assert far < found - 6.0


@pytest.mark.long
def test_the_smallest_budget_is_kept(tiny_bundle, pipeline, brought):
    with tintype.load(tiny_bundle, provider="cpu", memory="1MiB", threads=1) as bounded:
        with pytest.raises(MemoryBudgetError) as refusal:
            bounded.plan(PROMPT, **ASKED, **brought)
        bounded.memory = refusal.value.least_bytes
        plan = bounded.plan(PROMPT, **ASKED, **brought)
        made = bounded.generate(PROMPT, **ASKED, **brought)
        opened = [name for name in bounded.graphs._sessions if name.startswith("image_encoder")]
    first = plan.stages[0]
    assert plan.measured
    assert (first.phase, first.calls) == ("look", 2)
    assert first.role.startswith("image_encoder.")
    assert opened == [] or plan.keep
    assert psnr_db(made.image, pipeline.generate(PROMPT, **ASKED, **brought).image) >= 60.0
    assert pipeline.reproduce(made.record, **brought).image.tobytes() == made.image.tobytes()


def test_a_record_names_what_is_missing_or_another(pipeline, brought, ip_adapter, image_encoder):
    brought = {**brought, "image_prompts": [(photo(), 0.7, left_half(*SIZE)), (colours(), 0.3)]}
    made = pipeline.generate(PROMPT, **ASKED, **brought)
    known = made.record.request
    encoder = open_image_encoder(brought["image_encoder"])
    assert known.ip_adapter is not None
    assert (known.ip_adapter.encoder, known.ip_adapter.encoder_hash) == (encoder.name, encoder.hash)
    assert [prompt.weight for prompt in known.image_prompts] == [0.7, 0.3]
    first, second = brought["image_prompts"]
    for change, words in (
        ({"ip_adapter": None}, known.ip_adapter.name),
        ({"ip_adapter": ip_adapter(kind="plus", seed=1)}, known.ip_adapter.sha256[:12]),
        ({"image_encoder": image_encoder(1)[1]}, encoder.hash[:12]),
        ({"image_prompts": [first]}, "had 2 image prompts"),
        ({"image_prompts": [first, (photo(), 0.3)]}, "another image prompt"),
        ({"image_prompts": [(photo(), 0.7, left_half(*SIZE, mirrored=True)), second]}, "another mask"),
        ({"image_prompts": [(photo(), 0.7), second]}, "has a mask"),
        ({"image_prompts": [first, (colours(), 0.3, left_half())]}, "has no mask"),
        ({"image_prompts": [(photo(), 0.6, left_half(*SIZE)), second]}, "weight of 0.7, not 0.6"),
    ):
        with pytest.raises(RecordError, match=words) as refusal:
            pipeline.reproduce(made.record, **{**brought, **change})
        assert refusal.value.fix
    unweighed = {**brought, "image_prompts": [{"image": photo(), "mask": left_half(*SIZE)}, colours()]}
    assert pipeline.reproduce(made.record, **unweighed).image.tobytes() == made.image.tobytes()
    with pytest.raises(RecordError, match="had no image prompt"):
        pipeline.reproduce(pipeline.generate(PROMPT, **ASKED).record, **brought)


def test_latents_that_wait_are_finished_with_it(pipeline, brought, tmp_path):
    run = pipeline.steps(PROMPT, **ASKED, **brought)
    list(run)
    saved = tintype.read_latents(run.save_latents(tmp_path / "x.safetensors"))
    assert pipeline.resume(saved, **brought).image.tobytes() == run.result.image.tobytes()
    with pytest.raises(RecordError, match="was drawn with the IP-Adapter"):
        pipeline.resume(saved)


def test_a_score_of_it_is_told_apart(pipeline, brought):
    record = pipeline.generate(PROMPT, **ASKED, **brought).record
    assert "pictures" in (why_unlike_ordinary(record.request) or "")


def test_an_encoder_beside_the_adapter_is_taken(pipeline, brought, tmp_path):
    (tmp_path / "sdxl_models").mkdir()
    adapter = shutil.copy(brought["ip_adapter"], tmp_path / "sdxl_models/adapter.safetensors")
    given = {"ip_adapter": adapter, "image_prompts": brought["image_prompts"]}
    with pytest.raises(BundleError, match="needs an image encoder, and none is given") as refusal:
        pipeline.generate(PROMPT, **ASKED, **given)
    assert "tintype export image_encoder BUNDLE" in refusal.value.fix
    folder = tmp_path / "models/image_encoder"
    folder.mkdir(parents=True)
    told = {"model_type": "clip_vision_model", "projection_dim": 24}
    for hidden, words in ((HIDDEN + 8, "none is given"), (HIDDEN, "is a checkpoint of one")):  # one for another adapter
        (folder / "config.json").write_text(json.dumps({**told, "hidden_size": hidden}))
        with pytest.raises(BundleError, match=words) as refusal:
            pipeline.generate(PROMPT, **ASKED, **given)
        assert ("is a checkpoint" in refusal.value.message) == (hidden == HIDDEN)
    with pytest.raises(BundleError, match="is a checkpoint of one") as refusal:
        pipeline.generate(PROMPT, **ASKED, **given)
    assert f"tintype export {folder} BUNDLE" in refusal.value.fix
    shutil.rmtree(folder)
    shutil.copytree(brought["image_encoder"], folder)
    expected = pipeline.generate(PROMPT, **ASKED, **brought)
    assert pipeline.generate(PROMPT, **ASKED, **given).image.tobytes() == expected.image.tobytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ip_adapter": None, "image_encoder": None}, "without an IP-Adapter"),
        ({"ip_adapter": None, "image_prompts": ()}, "an image encoder is given without an IP-Adapter"),
        ({"image_prompts": ()}, "without a picture"),
        ({"ip_adapter": 7}, "int is no IP-Adapter"),
        ({"ip_adapter": "none.safetensors"}, "none.safetensors"),
        ({"image_prompts": "cat.png"}, "no list of pictures"),
        ({"image_prompts": [photo()] * 17}, "16 are the most"),
        ({"image_prompts": ["none.png=0.5"]}, "none.png"),
        ({"image_prompts": [""]}, "empty"),
        ({"image_prompts": [(photo(), 11.0)]}, "out of range"),
        ({"image_prompts": [(photo(), float("nan"))]}, "out of range"),
        ({"image_prompts": [(photo(), "much")]}, "should be a number"),
        ({"image_prompts": [(photo(), 1.0, left_half(), 2)]}, "4 parts"),
        ({"image_prompts": [{"image": None}]}, "has no image"),
        ({"image_prompts": [{"image": photo(), "strength": 1}]}, "has no 'strength'"),
        ({"image_prompts": [(photo(), 1.0, "none.png")]}, "none.png"),
        ({"image_prompts": [np.full((8, 8, 3), np.nan)]}, "image prompt"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_an_image_prompt_cannot_be_is_refused(pipeline, brought, change, words):
    with pytest.raises(RequestError) as refusal:
        pipeline.generate(PROMPT, **ASKED, **{**brought, **change})
    assert words in refusal.value.message
    assert refusal.value.fix


def test_an_adapter_of_another_family_is_refused(pipeline, xl, brought, ip_adapter):
    with pytest.raises(RequestError, match="words of 80 numbers, and tiny is a model with words of 64"):
        pipeline.generate(PROMPT, **ASKED, **{**brought, "ip_adapter": ip_adapter("xl_checkpoint")})
    with pytest.raises(RequestError, match="words of 64 numbers"):
        xl.generate(PROMPT, **ASKED, **brought)


def test_an_adapter_for_another_encoder_is_refused(pipeline, brought, edited):
    def other_width(value):
        value["graphs"]["image_encoder"]["full"]["outputs"][1]["shape"][-1] = 40

    with pytest.raises(RequestError, match="takes 48 numbers of an image encoder"):
        pipeline.generate(
            PROMPT, **ASKED, **{**brought, "image_encoder": edited(brought["image_encoder"], other_width)}
        )


def test_a_manifest_that_makes_no_sense_is_refused(edited, brought):
    def graph(value):
        return value["graphs"]["image_encoder"]["full"]

    for change, words in (
        (lambda value: value.update(mean=[0.5, 0.5]), "three numbers"),
        (lambda value: value.update(std=[0.5, 0.5, 0.0]), "below 0.001"),
        (lambda value: value.update(mean=[0.5, 0.5, 7.0]), "three numbers"),
        (lambda value: value.update(name="\x1b[2J"), "no name to show"),
        (lambda value: value["graphs"].update(denoiser=value["graphs"]["image_encoder"]), "one graph"),
        (lambda value: graph(value).update(file="../model.onnx"), "outside the bundle"),
        (lambda value: graph(value)["outputs"].reverse(), "inputs and outputs"),
        (lambda value: graph(value)["inputs"][0].update(shape=["batch", 3, 32, 64]), "no square picture"),
        (lambda value: graph(value)["inputs"][0].update(shape=["batch", 3, 4096, 4096]), "1,024 are the most"),
        (lambda value: graph(value)["outputs"][1].update(shape=["batch", "tokens", 48]), "dimensions"),
        (lambda value: graph(value)["outputs"][1].update(shape=["batch", 10**6, 48]), "1,024 are the most"),
        (lambda value: value.update(format_version=2), "newer|of format 2"),
    ):
        with pytest.raises(BundleError, match=words):
            open_image_encoder(edited(brought["image_encoder"], change))


def test_a_model_is_no_image_encoder_and_an_image_encoder_no_model(pipeline, brought, tiny_bundle):
    with pytest.raises(BundleError, match="is a model, and no image encoder"):
        pipeline.generate(PROMPT, **ASKED, **{**brought, "image_encoder": tiny_bundle})
    with pytest.raises(BundleError, match="is an image encoder, which draws nothing itself") as refusal:
        open_bundle(brought["image_encoder"])
    assert "--ip-adapter" in refusal.value.fix


def test_a_refiner_goes_on_from_what_the_pictures_made(xl_bundle, family, image_encoder, ip_adapter):
    given = {
        "ip_adapter": ip_adapter("xl_checkpoint", "plus"),
        "image_encoder": image_encoder()[1],
        "image_prompts": [photo()],
    }
    with tintype.load(xl_bundle, provider="cpu", threads=1, refiner=family("refiner")[1]) as refined:
        made = refined.generate(PROMPT, **ASKED, **given)
        assert psnr_db(made.image, refined.generate(PROMPT, **ASKED).image) < 45.0
        assert refined.reproduce(made.record, **given).image.tobytes() == made.image.tobytes()
