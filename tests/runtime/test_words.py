"""What a prompt says is what is drawn: AND, words that change from step to step, and layers that are left out.

Held against diffusers' own modules: its text encoders' embeddings and its UNet's predictions, combined by hand.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import psnr_db

import tintype
from tintype.errors import RequestError
from tintype.memory.plan import ExecutionPlan
from tintype.pipeline import picture_steps
from tintype.record import parse_record
from tintype.request import Request
from tintype.sampling import noise_source
from tintype.stages.encode import encode

pytestmark = pytest.mark.slow

HOUSE, BOAT, SNOW = "a blue house, clear sky", "a red sailboat at sunset", "snow at night"
PROMPT = f"[{HOUSE}:{BOAT}:0.5] AND [green|red] hills:0.7 AND {SNOW}:-0.3"
STEPS, SCALE, SEED = 4, 5.0, 7
ASKED = {"seed": SEED, "num_inference_steps": STEPS, "guidance_scale": SCALE, "sampler": "euler", "noise": "torch-cpu"}
DIFFUSERS_WARNS = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module", params=["sd", "xl"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def pipeline(kind: str, request: pytest.FixtureRequest):
    bundle: Path = request.getfixturevalue({"sd": "tiny_bundle", "xl": "xl_bundle"}[kind])
    with tintype.load(bundle, provider="cpu", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def reference(kind: str, request: pytest.FixtureRequest):
    """diffusers' pipeline of the same weights."""
    diffusers = pytest.importorskip("diffusers")
    checkpoint: Path = request.getfixturevalue({"sd": "tiny_checkpoint", "xl": "xl_checkpoint"}[kind])
    opened = getattr(diffusers, {"sd": "StableDiffusionPipeline", "xl": "StableDiffusionXLPipeline"}[kind])
    opened = opened.from_pretrained(checkpoint)
    opened.set_progress_bar_config(disable=True)
    # Where diffusers looks for the final norm, as in older transformers. Not as a module: it would be its own part.
    vars(opened.text_encoder).setdefault("text_model", opened.text_encoder)
    return opened


def db(reference: Any, other: Any) -> float:
    """20 log10(range / rmse), as bundles are judged."""
    error = math.sqrt(float(np.mean((np.asarray(reference, np.float64) - np.asarray(other, np.float64)) ** 2)))
    return 20 * math.log10(float(np.ptp(reference)) / error) if error else math.inf


def words_of(pipeline: tintype.Pipeline, prompt: str, **fields: Any) -> list[dict[str, np.ndarray]]:
    """What each branch is told at each step, (branches, ...) each."""
    ctx = pipeline.context(pipeline.resolve(Request(prompt=prompt, **{**ASKED, **fields})))
    told = encode(ctx)
    branches = range(len(ctx.prompts.changes))
    rows = [list(ctx.prompts.at(branches, step)) for step in range(ctx.schedule.total)]
    return [{name: values[each] for name, values in told.items()} for each in rows]


def test_edited_words_are_encoded_as_what_they_stand_for_byte_for_byte(pipeline):
    plain = {text: words_of(pipeline, text)[0] for text in (HOUSE, BOAT, f"(({HOUSE})) [or]", "")}
    cases = {
        f"[{HOUSE}:{BOAT}:0.5]": [HOUSE, HOUSE, BOAT, BOAT],
        f"[{HOUSE}:{BOAT}:3]": [HOUSE, HOUSE, HOUSE, BOAT],
        f"[{BOAT}:1]": ["", BOAT, BOAT, BOAT],
        f"[{BOAT}::0.25]": [BOAT, "", "", ""],
        f"[{HOUSE}|{BOAT}]": [HOUSE, BOAT, HOUSE, BOAT],
        f"[[{HOUSE}|{BOAT}]:(({HOUSE})) [or]:2]": [HOUSE, BOAT, f"(({HOUSE})) [or]", f"(({HOUSE})) [or]"],
    }
    for prompt, texts in cases.items():
        for told, text in zip(words_of(pipeline, prompt), texts, strict=True):
            for name, values in plain[text].items():
                assert told[name].tobytes() == values.tobytes(), (prompt, text, name)
    assert plain[HOUSE]["encoder_hidden_states"].tobytes() != plain[BOAT]["encoder_hidden_states"].tobytes()


def test_a_negative_prompt_changes_too_and_knows_no_and(pipeline):
    told = words_of(pipeline, HOUSE, negative_prompt=f"[{BOAT}:{SNOW}:2] AND {HOUSE}")
    assert told[0]["encoder_hidden_states"].shape[0] == 2
    for step, text in ((1, f"{BOAT} AND {HOUSE}"), (2, f"{SNOW} AND {HOUSE}")):
        alone = words_of(pipeline, HOUSE, negative_prompt=text)[0]
        assert told[step]["encoder_hidden_states"].tobytes() == alone["encoder_hidden_states"].tobytes()


@pytest.mark.reference
@DIFFUSERS_WARNS
def test_every_step_is_that_of_diffusers_predictions_combined_by_hand(pipeline, reference, kind):
    """Negative + scale * sum(w (c - negative)), of prompts as they are at each step; Euler over all of it.

    In one call a step, or of XL in one for each branch.
    """
    plan = ExecutionPlan(split_guidance=kind == "xl")
    ctx = pipeline.context(pipeline.resolve(Request(prompt=PROMPT, negative_prompt="rain", **ASKED)), plan)
    run = tintype.Run(ctx, picture_steps(ctx))
    latents = noise_source("torch-cpu", [SEED]).draw((1, 4, 16, 16)) * np.float32(ctx.schedule.initial_scale)
    for step in run:
        sigma, after = (float(each) for each in ctx.schedule.sigmas[step.index : step.index + 2])
        parts = [
            ((HOUSE, HOUSE, BOAT, BOAT)[step.index], 1.0),
            (("green hills", "red hills")[step.index % 2], 0.7),
            (SNOW, -0.3),
        ]

        def predicted(text: str, sigma: float = sigma, index: int = step.index, latents: Any = latents) -> Any:
            noisy = latents / math.hypot(1.0, sigma)
            return prediction(reference, kind, text, noisy, float(ctx.schedule.timesteps[index]))

        negative = predicted("rain")
        guided = negative + SCALE * sum(weight * (predicted(text) - negative) for text, weight in parts)
        denoised = latents - sigma * guided
        latents = denoised + (latents - denoised) * (after / sigma)
        measured = min(db(denoised, step.denoised), db(latents, step.latents))
        print(f"{kind}, step {step.index}: {measured:.1f} dB")
        assert measured >= 70.0  # Winograd's rounding, some 1e-6 of a layer's deviation, grows from step to step


def prediction(reference: Any, kind: str, text: str, noisy: np.ndarray, timestep: float) -> np.ndarray:
    """The noise that diffusers' UNet sees in `noisy`, of unit variance."""
    import torch

    with torch.inference_mode():
        words = embeddings(reference, text)
        added = {}
        if kind == "xl":
            added = {"text_embeds": words[1], "time_ids": torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]])}
        return reference.unet(
            torch.from_numpy(noisy.astype(np.float32)),
            timestep,
            words[0],
            added_cond_kwargs=added or None,
            return_dict=False,
        )[0].numpy()


def embeddings(reference: Any, text: str, **options: Any) -> tuple[Any, ...]:
    """What diffusers tells its UNet of a text: its embeddings, and of XL the prompt as a whole."""
    import torch

    with torch.inference_mode():
        if hasattr(reference, "text_encoder_2"):
            found = reference.encode_prompt(text, do_classifier_free_guidance=False, **options)
            return found[0], found[2]
        return reference.encode_prompt(text, "cpu", 1, False, **options)[:1]


@pytest.mark.reference
def test_each_chunk_of_a_long_prompt_is_what_diffusers_makes_of_it_alone(pipeline, reference, kind):
    texts = [", ".join(["a red sailboat"] * 8), BOAT, f"{SNOW}, {HOUSE}"]
    told = words_of(pipeline, " BREAK ".join(texts))[0]
    assert told["encoder_hidden_states"].shape[1] == 3 * 77
    for index, text in enumerate(texts):
        theirs = embeddings(reference, text)
        ours = told["encoder_hidden_states"][1, 77 * index : 77 * (index + 1)]
        measured = db(theirs[0][0].numpy(), ours)
        print(f"{kind}, chunk {index}: {measured:.1f} dB")
        assert measured >= 80.0
        if kind == "xl" and index == 0:
            assert db(theirs[1][0].numpy(), told["text_embeds"][1]) >= 80.0


def test_what_depends_on_words_is_kept_for_those_of_one_step_alone(pipeline):
    ctx = pipeline.context(pipeline.resolve(Request(prompt=f"[{HOUSE}|{BOAT}|{SNOW}]", **ASKED)))
    kept = []
    for event in tintype.Run(ctx, picture_steps(ctx)):
        if isinstance(event, tintype.Step):
            kept.append(len(ctx.graphs._held["denoiser"][1]))
    assert kept == [1] * STEPS


@pytest.mark.reference
def test_layers_that_are_left_out_are_those_of_diffusers(pipeline, reference, kind):
    skips = range(1, 3)  # of two layers, and of XL's three, of which one is left out as it is
    assert pipeline.bundle.manifest.clip_skips == len(skips)
    told = words_of(pipeline, HOUSE, negative_prompt=SNOW)[0]
    for skip in skips:
        skipped = words_of(pipeline, HOUSE, negative_prompt=SNOW, clip_skip=skip)[0]
        expected = embeddings(reference, HOUSE, clip_skip=skip)
        names = ("encoder_hidden_states", "text_embeds")[: len(expected)]
        for name, theirs in zip(names, expected, strict=True):
            measured = db(theirs[0].numpy(), skipped[name][1])
            print(f"{kind}, clip_skip {skip}, {name}: {measured:.1f} dB")
            assert measured >= 80.0
        assert db(told["encoder_hidden_states"][1], skipped["encoder_hidden_states"][1]) < 40.0
        # diffusers leaves nothing out for the negative prompt
        assert skipped["encoder_hidden_states"][0].tobytes() == told["encoder_hidden_states"][0].tobytes()


@pytest.mark.reference
@DIFFUSERS_WARNS
def test_a_whole_picture_without_the_last_layer_is_that_of_diffusers(pipeline, reference):
    import diffusers
    import torch

    made = pipeline.generate(BOAT, negative_prompt=SNOW, clip_skip=1, **ASKED)
    reference.scheduler = diffusers.EulerDiscreteScheduler.from_config(reference.scheduler.config)
    noise = torch.from_numpy(noise_source("torch-cpu", [SEED]).draw((1, 4, 16, 16)))
    asked = {"negative_prompt": SNOW, "num_inference_steps": STEPS, "guidance_scale": SCALE, "clip_skip": 1}
    theirs = reference(BOAT, latents=noise, width=64, height=64, **asked).images[0]
    measured = psnr_db(made.image, theirs)
    print(f"{measured:.1f} dB")
    assert measured >= 50.0
    assert psnr_db(made.image, pipeline.generate(BOAT, negative_prompt=SNOW, **ASKED).image) < 45.0
    assert "Clip skip: 2" in made.record.texts()["parameters"]
    assert parse_record(made.record.texts()["tintype"]).request.clip_skip == 1
    assert pipeline.reproduce(made.record).image.tobytes() == made.image.tobytes()


def test_more_layers_than_there_are_are_refused_and_so_are_any_of_an_older_bundle(pipeline):
    with pytest.raises(RequestError, match="clip_skip 3") as caught:
        pipeline.steps(HOUSE, clip_skip=3)
    assert caught.value.fix.startswith("give ")
    with tintype.load("postcard", provider="cpu") as older, pytest.raises(RequestError) as caught:
        older.steps(HOUSE, clip_skip=1)
    assert "export the checkpoint again" in caught.value.fix


def test_a_record_from_before_clip_skip_leaves_nothing_out(pipeline):
    text = pipeline.generate(HOUSE, **{**ASKED, "num_inference_steps": 1}).record.texts()["tintype"]
    older = json.loads(text)
    del older["request"]["clip_skip"]
    assert parse_record(json.dumps(older)) == parse_record(text)


def test_plans_and_records_know_every_branch_and_every_wording(pipeline):
    request = pipeline.resolve(Request(prompt=PROMPT, negative_prompt=BOAT, **{**ASKED, "guidance_interval": "0,0.5"}))
    uses = {use.name: use for use in pipeline.model.uses(request)}
    assert uses["text_encoder"].calls == 5  # the negative prompt's words are the first part's later ones
    assert (uses["denoiser"].branches, uses["denoiser"].dims["batch"], uses["denoiser"].calls) == (4, 4, 2)
    assert (uses["denoiser.unguided"].branches, uses["denoiser.unguided"].calls) == (3, 2)
    assert uses["denoiser"].split().calls == 8
    one = pipeline.work(pipeline.resolve(Request(prompt=HOUSE, **ASKED)))
    assert (
        pipeline.work(request).picture_bytes - one.picture_bytes
        == (5 + 4 - 2 - 2) * words_of(pipeline, HOUSE)[0]["encoder_hidden_states"][0].nbytes
    )
    made = pipeline.generate(request_of(request))
    assert made.record.request.prompt == PROMPT
    assert pipeline.reproduce(made.record).image.tobytes() == made.image.tobytes()


def request_of(resolved: Any) -> Request:
    return Request(prompt=resolved.prompt, negative_prompt=BOAT, **{**ASKED, "guidance_interval": "0,0.5"})


def test_without_guidance_parts_are_drawn_by_the_mean_of_their_weights(pipeline):
    asked = {**ASKED, "guidance_scale": 1.0}
    alone = pipeline.generate(HOUSE, **asked)
    same = pipeline.generate(f"{HOUSE}:0.3 AND {HOUSE}:0.5", **asked)
    assert psnr_db(alone.image, same.image) >= 60.0
    with pytest.raises(RequestError, match="add up to -1"):
        pipeline.steps(f"{HOUSE} AND {SNOW}:-2", **asked)
    with pytest.raises(RequestError, match="add up to 0"):
        pipeline.steps(f"{HOUSE} AND {SNOW}:-1", **{**ASKED, "guidance_interval": "0,0.5"})
    assert pipeline.generate(f"{HOUSE} AND {SNOW}:-1", **ASKED).image.tobytes() != alone.image.tobytes()


def test_an_enlarged_picture_goes_on_with_the_words_of_its_own_steps(pipeline):
    asked = {**ASKED, "hires": 1.5, "hires_strength": 0.5}
    edited, plain = (pipeline.generate(prompt, **asked) for prompt in (f"[{HOUSE}:{BOAT}:1.5]", HOUSE))
    ctx = pipeline.context(edited.record.request)
    assert ctx.schedule.total == 2
    assert [ctx.prompts.wordings[ctx.prompts.at((1,), step)[0]].text for step in (0, 1)] == [HOUSE, BOAT]
    assert ctx.base is not None
    assert {wording.text for wording in ctx.base.prompts.wordings} == {HOUSE, ctx.base.prompts.wordings[0].text}
    assert edited.image.tobytes() != plain.image.tobytes()


def test_too_many_chunks_in_all_are_refused(pipeline):
    wide = "a house, " * 300
    with pytest.raises(RequestError, match="chunks are the most"):
        pipeline.steps("[" + "|".join(f"{'sun' * index}" for index in range(1, 31)) + f"] {wide}", **{
            **ASKED, "num_inference_steps": 30
        })  # fmt: skip
    assert dataclasses.is_dataclass(pipeline.resolve(Request(prompt=wide, **ASKED)))
