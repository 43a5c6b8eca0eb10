"""A request is done as it stands or refused with what would work; gaps are filled from the bundle."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ForwardRef

import numpy as np
import pytest
from pictures import middle, photo

from tintype.errors import RequestError
from tintype.image.source import picture_bytes_hash
from tintype.record import Provenance, Record, parse_record
from tintype.request import InputFields, Request, RequestFields, ResolvedRequest, make_request, resolve
from tintype.request.control import ControlFacts
from tintype.request.inputs import InitImage, Inputs, Mask
from tintype.request.request import Hires
from tintype.sampling import CFG_PP
from tintype.stages.again import request_of

INPUTS = ("image", "mask", "latents", "loras", "embeddings", "control", "ip_adapter", "image_prompts")
PLACES = ("lora_dir", "image_encoder")  # where inputs are, which a record doesn't keep by themselves
OF_IMAGE_FACTS = ("strength", "fit", "background", "outpaint")
OF_MASK_FACTS = ("mask_grow", "mask_blur", "keep_outside")
OF_WORDS = (
    "prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "guidance_rescale", "guidance_interval",
    "cache_interval", "cache_branch", "gate_start", "token_merging",
    "width", "height", "seed", "sampler", "sigmas", "eta", "noise", "count", "batch_size", "exactness",
    "clip_skip", "image_guidance_scale", "refiner_start", "fast", "decoder", "encoder", "watermark", "private",
    "code_noise", "control_guess",
)  # fmt: skip
MADE_WITH = Provenance(
    tintype="0",
    onnxruntime="0",
    bundle="x",
    bundle_hash="0",
    precision="fp32",
    target="cpu",
    builds={},
    threads=1,
)


def refused(manifest, *words, **fields):
    with pytest.raises(RequestError) as caught:
        resolve(Request(**{"prompt": "a house", **fields}), manifest)
    assert caught.value.exit_code == 2
    for word in words:
        assert word in str(caught.value), str(caught.value)
    return caught.value


def test_gaps_are_filled_from_the_bundle(manifest):
    resolved = resolve(Request(prompt="a house"), manifest)
    default = manifest.default_request
    assert (resolved.width, resolved.height) == (default.width, default.height)
    assert resolved.num_inference_steps == default.num_inference_steps
    assert resolved.guidance_scale == default.guidance_scale
    assert resolved.sampler == default.sampler
    assert resolved.exactness == default.exactness == "balanced"
    assert resolved.negative_prompt == ""


def test_nothing_that_was_said_is_changed(manifest):
    said = Request(
        prompt="  a House ",
        negative_prompt="",
        num_inference_steps=1,
        guidance_scale=0,
        guidance_rescale=1,
        guidance_interval="0.2,0.8",
        width=32,
        height=256,
        seed=0,
        sampler="ddim",
        sigmas="trailing",
        eta=0.5,
        noise="numpy",
        count=2,
        batch_size=2,
        exactness="exact",
    )
    resolved = resolve(said, manifest)
    assert {name: getattr(resolved, name) for name in OF_WORDS} == {name: getattr(said, name) for name in OF_WORDS}
    assert (resolved.image, resolved.mask, resolved.latents) == (None, None, None)


def test_nothing_that_was_said_of_a_picture_and_its_mask_is_changed(manifest):
    said = Request(
        prompt="a house",
        image=photo(32, 64),
        strength=1,
        fit="pad",
        background="navy",
        mask=middle(32, 64),
        mask_grow=2,
        mask_blur=1,
        keep_outside="exact",
        outpaint="8,0,8,0",
    )
    resolved = resolve(said, manifest)
    assert (resolved.width, resolved.height) == (48, 64)
    for name in OF_IMAGE_FACTS:
        assert getattr(resolved.image, name) == getattr(said, name)
    for name in OF_MASK_FACTS:
        assert getattr(resolved.mask, name.removeprefix("mask_")) == getattr(said, name)
    assert resolved.image.sha256 == picture_bytes_hash(photo(32, 64))
    assert resolved.mask.sha256 == picture_bytes_hash(middle(32, 64))


@pytest.mark.parametrize("usual", ["exact", "balanced"])
def test_a_bundle_says_how_exact_its_pictures_are_unless_the_request_does(manifest, usual):
    default = dataclasses.replace(manifest.default_request, exactness=usual)
    told = dataclasses.replace(manifest, default_request=default)
    assert resolve(Request(prompt="a house"), told).exactness == usual
    for said in ("exact", "balanced"):
        assert resolve(Request(prompt="a house", exactness=said), told).exactness == said


def test_resolving_twice_changes_nothing(manifest):
    once = resolve(Request(prompt="a house"), manifest)
    assert resolve(Request(**{name: getattr(once, name) for name in OF_WORDS}), manifest) == once


def test_zero_is_a_value(manifest):
    assert resolve(Request(prompt="", guidance_scale=0, seed=0), manifest).guidance_scale == 0.0
    assert resolve(Request(prompt="", seed=0), manifest).seed == 0


def test_without_a_seed_each_request_gets_its_own(manifest):
    seeds = {resolve(Request(prompt="a house"), manifest).seed for _ in range(8)}
    assert len(seeds) > 1
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_the_fields_that_calls_take_by_name_are_a_requests_but_its_prompt():
    names = [field.name for field in dataclasses.fields(Request)]
    assert set(names) == {"prompt", *typed_fields(RequestFields)}
    assert typed_fields(InputFields) == {*INPUTS, *PLACES}
    kinds = {field.name: field.type for field in dataclasses.fields(Request)}
    for kind in (InputFields, RequestFields):
        for name, annotation in kind.__annotations__.items():
            told = annotation.__forward_arg__ if isinstance(annotation, ForwardRef) else annotation
            assert told == kinds[name], name


def typed_fields(kind: type) -> set[str]:
    return {*kind.__required_keys__, *kind.__optional_keys__}


def test_every_field_of_a_request_is_kept():
    """By itself, as a fact of its picture or its mask, or by a hash where it is an input."""
    names = {field.name for field in dataclasses.fields(Request)}
    resolved, image, mask = (
        {field.name for field in dataclasses.fields(kind)} for kind in (ResolvedRequest, InitImage, Mask)
    )
    hires = {field.name for field in dataclasses.fields(Hires)}
    assert set(OF_WORDS) | set(INPUTS) == resolved - {"inputs", "hires"}
    of_hires = {"hires", "hires_strength", "hires_upscale"}
    of_control = {"control_preprocess"}  # and `fit`, each a fact of every one of them
    assert names == {*OF_WORDS, *INPUTS, *PLACES, *OF_IMAGE_FACTS, *OF_MASK_FACTS, *of_hires, *of_control}
    assert {"preprocess", "fit"} < {field.name for field in dataclasses.fields(ControlFacts)}
    assert {name.removeprefix("hires_") for name in of_hires - {"hires"}} == hires - {"factor", "width", "height"}
    assert set(OF_IMAGE_FACTS) == image - {"sha256", "width", "height", "parent", "latents"}
    assert {name.removeprefix("mask_") for name in OF_MASK_FACTS} == mask - {"sha256"}
    kept = {"pixels", "picture", "mask", "latents", "loras", "file", "words", "control", "adapter"}
    assert {field.name for field in dataclasses.fields(Inputs)} == kept


def test_every_field_of_a_request_but_its_size_has_words_for_the_command_line():
    wordless = {field.name for field in dataclasses.fields(Request) if not field.metadata}
    assert wordless == {"prompt", "width", "height"}


def test_what_a_record_keeps_is_asked_for_again(manifest):
    """`request_of` a record is the request that it was, for every field."""
    given = {"image": photo(), "mask": middle()}
    more = {"strength": 0.5, "fit": "pad", "background": "#000080", "mask_grow": 3, "mask_blur": 2.0}
    said = Request(prompt="a house", seed=3, eta=0.0, keep_outside="exact", outpaint="0,0,8,8", **given, **more)
    resolved = resolve(said, manifest)
    record = Record(request=resolved, picture=0, made_with=MADE_WITH)
    again = request_of(parse_record(record.texts()["tintype"]), given)
    assert resolve(again, manifest) == resolved
    for name in (*OF_IMAGE_FACTS, *OF_MASK_FACTS):
        assert getattr(again, name) == getattr(said, name)


def test_what_a_model_has_not_is_refused(manifest):
    refused(manifest, "no picture beside the noise", image_guidance_scale=1.5)
    refused(manifest, "no fast denoiser", "leave fast out", fast=True)
    refused(manifest, "fast should be true or false", fast="yes")
    refused(manifest, "no tiny decoder", decoder="tiny")
    refused(manifest, "no tiny encoder", encoder="tiny")
    refused(manifest, "no decoder", decoder="half")


def test_guidance_is_rescaled_as_the_bundle_has_it_where_nothing_is_said(manifest):
    assert resolve(Request(prompt=""), manifest).guidance_rescale == 0.0
    default = dataclasses.replace(manifest.default_request, guidance_rescale=0.7)
    other = dataclasses.replace(manifest, default_request=default)
    assert resolve(Request(prompt=""), other).guidance_rescale == 0.7
    assert resolve(Request(prompt="", guidance_rescale=0.0), other).guidance_rescale == 0.0


def test_cfg_pp_has_a_measure_of_its_own(manifest):
    """0.6 for what the bundle has by default, unless that is no guidance; what is said is done."""
    assert {resolve(Request(prompt="", sampler=name), manifest).guidance_scale for name in CFG_PP} == {0.6}
    assert resolve(Request(prompt="", sampler="euler"), manifest).guidance_scale == 7.5
    assert resolve(Request(prompt="", sampler="euler_cfg_pp", guidance_scale=2), manifest).guidance_scale == 2.0
    for off in (0.0, 1.0):
        default = dataclasses.replace(manifest.default_request, guidance_scale=off, sampler="euler_cfg_pp")
        distilled = dataclasses.replace(manifest, default_request=default)
        assert resolve(Request(prompt=""), distilled).guidance_scale == off


@pytest.mark.parametrize("value", ["", "0.2", "0.8,0.2", "0.2,1.5", (0.2, 0.8), 0.5, b"0,1"])
def test_impossible_guidance_intervals(manifest, value):
    refused(manifest, "guidance_interval", guidance_interval=value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"cache_interval": 0}, ["cache_interval 0", "1 to 1,000"]),
        ({"cache_interval": 2.5}, ["cache_interval"]),
        ({"cache_branch": 1}, ["cache_branch 1", "cache_interval of 2"]),
        ({"cache_interval": 2, "cache_branch": -1}, ["cache_branch -1"]),
        ({"gate_start": 0}, ["gate_start of 0", "0.4"]),
        ({"gate_start": 1.5}, ["gate_start 1.5"]),
        ({"token_merging": 0.76}, ["token_merging 0.76", "0 to 0.75"]),
        ({"gate_start": 0.5, "cache_interval": 2}, ["contradict", "leave one of them out"]),
    ],
    ids=str,
)
def test_impossible_ways_to_take_over_what_steps_computed(manifest, fields, words):
    refused(manifest, *words, **fields)


@pytest.mark.parametrize("steps", [0, -1, 1001, 10**30])
def test_impossible_steps(manifest, steps):
    refused(manifest, "num_inference_steps", "1 to 1,000", num_inference_steps=steps)


def test_a_number_too_long_to_print(manifest):
    refused(manifest, "num_inference_steps", "so many digits", num_inference_steps=10**6000)
    refused(manifest, "guidance_scale", guidance_scale=10**6000)
    refused(manifest, "width", width=10**6000)


@pytest.mark.parametrize("value", [1.0, "20", True, None.__class__, [20]])
def test_steps_that_are_no_whole_number(manifest, value):
    refused(manifest, "num_inference_steps", "whole number", num_inference_steps=value)


def test_numpy_numbers_are_numbers(manifest):
    fields: dict[str, Any] = {"seed": np.int64(3), "guidance_scale": np.float32(2)}
    resolved = resolve(Request(prompt="", **fields), manifest)
    assert type(resolved.seed) is int
    assert type(resolved.guidance_scale) is float


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 101, -101, "7", True, 10**400])
def test_impossible_guidance(manifest, value):
    refused(manifest, "guidance_scale", "-100 to 100", guidance_scale=value)


@pytest.mark.parametrize(
    ("width", "near"),
    [(0, "32"), (-8, "32"), (1, "32"), (65, "64, or 72"), (71, "72, or 64"), (257, "256"), (10**12, "256")],
)
def test_impossible_sizes_name_the_nearest_possible_ones(manifest, width, near):
    error = refused(manifest, "width", "multiples of 8 from 32 to 256", width=width)
    assert error.fix == f"ask for {near}"
    assert refused(manifest, "height", height=width).fix == f"ask for {near}"


@pytest.mark.parametrize(
    ("field", "value", "near"),
    [
        ("sampler", "euler_b", "euler_a"),
        ("sampler", "euler_b_cfg_pp", "euler_a_cfg_pp"),
        ("sampler", "DPM++ 4M", "dpmpp_2m"),
        ("sampler", 3, "dpmpp_2m"),
        pytest.param("sampler", 10**5000, "dpmpp_2m", id="sampler-of-digits"),
        ("sigmas", "karas", "karras"),
        ("noise", "philox4", "philox"),
    ],
)
def test_unknown_names_get_near_ones(manifest, field, value, near):
    refused(manifest, field, near, **{field: value})


def test_names_that_others_give_become_the_canonical_ones(manifest):
    """What a record keeps; a sampler's name may bring the spacing, before the bundle's own."""
    spaced = dataclasses.replace(manifest.default_request, sigmas="exponential")
    manifest = dataclasses.replace(manifest, default_request=spaced)
    for asked, expected in (
        ({"sampler": "Euler a"}, ("euler_a", "exponential")),
        ({"sampler": "DPM++ 2M Karras"}, ("dpmpp_2m", "karras")),
        ({"sampler": "dpm++ 2m karras", "sigmas": "Karras"}, ("dpmpp_2m", "karras")),
        ({"sampler": "EulerDiscreteScheduler", "sigmas": "SGM Uniform"}, ("euler", "sgm_uniform")),
        ({"sigmas": "Automatic"}, (spaced.sampler, "exponential")),
        ({"sampler": "LCM"}, ("lcm", None)),
    ):
        resolved = resolve(Request(prompt="", **asked), manifest)
        assert (resolved.sampler, resolved.sigmas) == expected
    refused(manifest, "contradict", sampler="DPM++ 2M Karras", sigmas="exponential")


def test_a_sampler_has_its_own_eta(manifest):
    """Which 0 turns off."""
    asked = {"sampler": "tcd", "prompt": ""}
    assert resolve(Request(**asked), manifest).eta == 0.3
    assert resolve(Request(**asked, eta=0.0), manifest).eta == 0.0
    assert resolve(Request(prompt="", sampler="euler"), manifest).eta == 0.0


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "7"])
def test_impossible_seeds(manifest, seed):
    refused(manifest, "seed", seed=seed)


def test_seeds_must_not_run_out_within_a_request(manifest):
    assert resolve(Request(prompt="", seed=2**64 - 1), manifest).seeds[-1] == 2**64 - 1
    refused(manifest, "seed", seed=2**64 - 1, count=2)


@pytest.mark.parametrize("fields", [{"count": 0}, {"count": 10**9}, {"batch_size": 0}, {"batch_size": 65}], ids=str)
def test_impossible_counts(manifest, fields):
    refused(manifest, next(iter(fields)), **fields)


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
@pytest.mark.parametrize("value", [3, b"a house", "\ud800"])
def test_what_is_no_text(manifest, field, value):
    refused(manifest, field, **{field: value})


@pytest.mark.parametrize("fields", [{"guidance_rescale": 1.1}, {"guidance_rescale": -0.1}, {"eta": 2}], ids=str)
def test_shares_lie_between_0_and_1(manifest, fields):
    refused(manifest, next(iter(fields)), "0 to 1", **fields)


@pytest.mark.parametrize(("count", "batch_size"), [(1, 1), (5, 2), (4, 4), (3, 64)])
def test_batches_hold_every_picture_once_and_in_order(manifest, count, batch_size):
    resolved = resolve(Request(prompt="", seed=9, count=count, batch_size=batch_size), manifest)
    assert [index for batch in resolved.batches for index in batch] == list(range(count))
    assert all(len(batch) <= batch_size for batch in resolved.batches)
    assert list(resolved.seeds) == [9 + index for index in range(count)]


def test_fields_replace_those_of_a_request():
    assert make_request(Request(prompt="a", seed=1), {"seed": 2}) == Request(prompt="a", seed=2)
    assert make_request("a", {"seed": 2}) == Request(prompt="a", seed=2)
    with pytest.raises(RequestError, match="seed"):
        make_request("a", {"sed": 2})  # type: ignore[typeddict-unknown-key]
