"""DeepCache and T-GATE in pictures: as diffusers' UNet draws with the same hooks, counted, planned and recorded."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
from families import family
from pictures import PROMPT, photo, psnr_db

import tintype
from tintype.errors import MemoryBudgetError, RequestError
from tintype.kernels.graph.token_merging import Tokens, reference
from tintype.memory.plan import ExecutionPlan
from tintype.pipeline import picture_steps
from tintype.sampling import noise_source
from tintype.trust.thresholds import why_unlike_ordinary

__all__ = ["family"]  # the fixture
SEED, STEPS, SCALE, SIZE = 7, 6, 5.0, (48, 32)
ASKED: dict[str, Any] = {
    "seed": SEED, "num_inference_steps": STEPS, "width": SIZE[0], "height": SIZE[1],
    "guidance_scale": SCALE, "sampler": "euler", "exactness": "exact", "noise": "torch-cpu",
}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "deep": {"cache_interval": 3},
    "deeper": {"cache_interval": 2, "cache_branch": 2},
    "gated": {"gate_start": 0.5},
    "merged": {"token_merging": 0.5},
    "deep-merged": {"cache_interval": 2, "token_merging": 0.3},
}
TAKER = {
    "deep": "denoiser.shallow", "deeper": "denoiser.shallow", "gated": "denoiser.gated", "merged": None,
    "deep-merged": "denoiser.shallow",
}  # fmt: skip


class Hooked:
    """diffusers' pipeline with hooks that put values of an earlier call of its UNet in the place of this one's.

    interval, branch: of DeepCache. gate: the step from which on cross-attentions keep what they gave, and there is no
    guidance. merging: the share of tokens that self-attentions of the whole image merge.
    """

    def __init__(
        self, checkpoint, *, interval: int = 1, branch: int = 0, gate: int = STEPS, merging: float = 0.0
    ) -> None:
        import diffusers

        self.pipeline = diffusers.StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
        self.interval, self.gate, self.step = interval, gate, 0
        self.kept: dict[Any, Any] = {}
        unet = self.pipeline.unet
        resnets = [resnet for block in unet.up_blocks for resnet in block.resnets]
        place = len(resnets) - 1 - branch
        before = unet.mid_block.resnets[-1] if place == 0 else resnets[place - 1]
        self.deep_channels = before.out_channels
        resnets[place].register_forward_pre_hook(self._at_skip_connection)
        for name, module in unet.named_modules():
            if name.endswith("attn2"):
                module.register_forward_hook(self._at_cross_attention)
        for seed, block in enumerate(self._finest_blocks() if merging else ()):
            block.norm1.register_forward_pre_hook(lambda _, inputs: self.kept.update(alike=inputs[0]))
            block.attn1.forward = self._merged(block.attn1.forward, merging, seed)

    def _finest_blocks(self):
        unet = self.pipeline.unet
        blocks = (*unet.down_blocks[0].attentions, *unet.up_blocks[-1].attentions)
        return [each for attention in blocks for each in attention.transformer_blocks]

    def _merged(self, attend, merging, seed):
        import torch

        chosen = Tokens.of((ASKED["height"] // 4, ASKED["width"] // 4), merging, seed=seed)

        def forward(states, **more):
            rows = [
                reference(
                    states[row].double().numpy(),
                    self.kept["alike"][row].double().numpy(),
                    chosen,
                    lambda tokens: attend(torch.from_numpy(tokens)[None].float(), **more)[0].double().numpy(),
                )
                for row in range(len(states))
            ]
            return torch.from_numpy(np.stack(rows)).float()

        return forward

    def _at_skip_connection(self, module, inputs):
        import torch

        joined, *others = inputs
        deep, skip = joined[:, : self.deep_channels], joined[:, self.deep_channels :]
        if self.step % self.interval == 0:
            self.kept[module] = deep
        return (torch.cat([self.kept[module], skip], dim=1), *others)

    def _at_cross_attention(self, module, inputs, output):
        if self.step < self.gate:
            self.kept[module] = output
            return output
        without, words = self.kept[module].chunk(2)
        return (without + words) / 2

    def draw(self) -> np.ndarray:
        """One picture by Euler's method, from the noise that torch-cpu draws for SEED."""
        import diffusers
        import torch

        pipe = self.pipeline
        scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
        scheduler.set_timesteps(STEPS)
        with torch.no_grad():
            words, without = pipe.encode_prompt(PROMPT, "cpu", 1, True, negative_prompt="")
            noise = noise_source("torch-cpu", [SEED]).draw((1, 4, ASKED["height"] // 4, ASKED["width"] // 4))
            latents = torch.from_numpy(noise) * scheduler.init_noise_sigma
            for self.step, timestep in enumerate(scheduler.timesteps):
                seen = scheduler.scale_model_input(latents, timestep)
                if self.step < self.gate:
                    both = pipe.unet(seen.repeat(2, 1, 1, 1), timestep, torch.cat([without, words])).sample
                    away, towards = both.chunk(2)
                    prediction = away + SCALE * (towards - away)
                else:
                    prediction = pipe.unet(seen, timestep, words).sample
                latents = scheduler.step(prediction, timestep, latents).prev_sample
            samples = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
        return np.asarray((samples[0].permute(1, 2, 0).numpy() / 2 + 0.5).clip(0, 1) * 255)


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers with numpy 2
@pytest.mark.parametrize(
    ("way", "hooks"),
    [
        ("deep", {"interval": 3}),
        ("deeper", {"interval": 2, "branch": 2}),
        ("gated", {"gate": STEPS // 2}),
        ("merged", {"merging": 0.5}),
        ("deep-merged", {"interval": 2, "merging": 0.3}),
    ],
)
def test_whole_pictures_are_those_of_a_unet_with_the_same_hooks(pipeline, tiny_checkpoint, way, hooks):
    plain = pipeline.generate(PROMPT, **ASKED)
    made = pipeline.generate(PROMPT, **ASKED, **WAYS[way])
    expected = Hooked(tiny_checkpoint, **hooks).draw()
    assert expected.std() > 5  # a grey picture would be near any other
    near = psnr_db(made.image, expected)
    print(f"{way}: {near:.1f} dB")
    assert near >= 50.0
    assert psnr_db(plain.image, expected) < near - 8.0


@pytest.mark.parametrize("change", [{"cache_interval": 1}, {"cache_interval": 4, "num_inference_steps": 1}], ids=str)
def test_where_every_call_is_whole_the_bytes_are_those_without(pipeline, change):
    plain = pipeline.generate(PROMPT, **{**ASKED, **change, "cache_interval": 1})
    made = pipeline.generate(PROMPT, **{**ASKED, **change})
    assert made.image.tobytes() == plain.image.tobytes()
    assert made.record.made_with == plain.record.made_with
    assert dataclasses.replace(made.record.request, cache_interval=1) == plain.record.request


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m"])
@pytest.mark.parametrize("model", ["pipeline", pytest.param("xl", marks=pytest.mark.long)])
def test_calls_are_those_that_the_request_is_planned_by(request, calls, model, sampler, way):
    """Of a sampler with two calls a step each counts; a second batch begins with a whole one."""
    opened = request.getfixturevalue(model)
    asked = {**ASKED, "sampler": sampler, "count": 3, "batch_size": 2, **WAYS[way]}
    made = opened.generate(PROMPT, **asked)
    uses = {use.name: use.calls for use in opened.model.uses(made.record.request) if use.ref.role == "denoiser"}
    assert uses == {name: count for name, count in calls.items() if name.startswith("denoiser")}
    assert set(uses) == {"denoiser", TAKER[way]} - {None} <= set(made.record.made_with.builds)
    total = 2 * (2 * STEPS - 1 if sampler == "heun" else STEPS)
    assert sum(uses.values()) == total
    whole = {"heun": 6, "dpmpp_2m": 3}[sampler] if way == "gated" else -(-total // 2 // asked.get("cache_interval", 1))
    assert uses["denoiser"] == 2 * whole


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("beginning", ["words", "picture"])
def test_a_record_of_it_is_made_again_byte_for_byte(pipeline, tmp_path, way, beginning):
    began = {"image": photo(*SIZE), "strength": 0.9} if beginning == "picture" else {}
    inputs = {name: value for name, value in began.items() if name == "image"}
    made = pipeline.generate(PROMPT, **ASKED, **WAYS[way], **began, count=3, batch_size=2)
    made.save(tmp_path / "x.png")
    for index, image in enumerate(made.images):
        record = tintype.read_record(tmp_path / f"x-{index + 1}.png")
        assert {name: getattr(record.request, name) for name in WAYS[way]} == WAYS[way]
        assert pipeline.reproduce(record, **inputs).image.tobytes() == image.tobytes()


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers with numpy 2
@pytest.mark.parametrize(
    "name", ["ssd-1b", *(pytest.param(name, marks=pytest.mark.long) for name in ("lcm", "instruct-pix2pix", "bk-sdm"))]
)
def test_models_of_every_build_can_skip(family, name):
    """Without a middle, with few blocks, told their guidance scale, or with a picture beside the noise."""
    began = {"image": photo(*SIZE)} if name == "instruct-pix2pix" else {}
    asked = {"seed": 1, "num_inference_steps": 4, "width": SIZE[0], "height": SIZE[1], **began}
    with tintype.load(family(name)[1], provider="cpu", threads=1) as opened:
        plain = opened.generate(PROMPT, **asked)
        for way in ({"cache_interval": 2}, {"gate_start": 0.5}, {"token_merging": 0.5}):
            made = opened.generate(PROMPT, **asked, **way)
            taken = [use.calls for use in opened.model.uses(made.record.request) if use.takes]
            assert taken == ([] if "token_merging" in way else [2])
            assert psnr_db(plain.image, made.image) < 80.0
            assert opened.reproduce(made.record, **began).image.tobytes() == made.image.tobytes()


@pytest.mark.parametrize("way", ["deep", "gated"])
def test_a_refiner_begins_with_a_whole_call_of_its_own(xl_bundle, calls, way):
    with tintype.load(xl_bundle, provider="cpu", threads=1, refiner=xl_bundle) as both:
        made = both.generate(PROMPT, **ASKED, **WAYS[way], refiner_start=0.5)
        drawn, request = Counter(calls), made.record.request
        assert both.reproduce(made.record).image.tobytes() == made.image.tobytes()
        first, second = both.model.read(request).uses, both.refiner.model.read(request, refines=True).uses
    before, after = ({use.name: use.calls for use in uses if use.phase == "denoise"} for uses in (first, second))
    assert {"denoiser", TAKER[way]} == set(after)
    assert after["denoiser"] == (1 if way == "gated" else -(-sum(after.values()) // WAYS[way]["cache_interval"]))
    assert Counter(before) + Counter(after) == Counter({name: drawn[name] for name in after})
    assert {*before, *(f"refiner {name}" for name in after)} <= set(made.record.made_with.builds)


@pytest.mark.parametrize("way", WAYS)
def test_in_a_call_for_each_branch_it_is_the_same_picture(pipeline, way):
    whole = pipeline.generate(PROMPT, **ASKED, **WAYS[way])
    ctx = pipeline.context(whole.record.request, ExecutionPlan(split_guidance=True))
    run = tintype.Run(ctx, picture_steps(ctx))
    list(run)
    assert psnr_db(whole.image, run.result.image) >= 60.0
    assert pipeline.reproduce(run.result.record).image.tobytes() == run.result.image.tobytes()


@pytest.mark.parametrize("way", ["deep", "gated"])
def test_with_parts_of_a_prompt_each_branch_keeps_its_own(pipeline, way):
    prompt, more = f"{PROMPT} AND a house:0.5", {**ASKED, **WAYS[way]}
    both, one = (pipeline.generate(words, **more) for words in (prompt, PROMPT))
    ctx = pipeline.context(both.record.request, ExecutionPlan(split_guidance=True))
    run = tintype.Run(ctx, picture_steps(ctx))
    list(run)
    assert psnr_db(both.image, run.result.image) >= 60.0
    assert psnr_db(both.image, one.image) < 60.0


@pytest.mark.long
@pytest.mark.parametrize("way", ["deep", "gated"])
@pytest.mark.parametrize(
    "more", [{}, pytest.param({"guidance_interval": "0.2,0.6"}, marks=pytest.mark.long)], ids=["guided", "in-part"]
)
def test_the_smallest_budget_is_kept_and_splits_guidance_for_both_graphs(tiny_bundle, pipeline, calls, way, more):
    asked = {**ASKED, **WAYS[way], **more, "width": 160, "height": 128}  # so that a call of both takes more than noise
    with tintype.load(tiny_bundle, provider="cpu", memory="1MiB", threads=1) as bounded:
        with pytest.raises(MemoryBudgetError) as refusal:
            bounded.plan(PROMPT, **asked)
        bounded.memory = refusal.value.least_bytes
        plan = bounded.plan(PROMPT, **asked)
        made = bounded.generate(PROMPT, **asked)
    stages = {stage.role: stage for stage in plan.stages if stage.phase == "denoise"}
    assert plan.measured
    assert set(stages) == {"denoiser", TAKER[way]}
    assert {name: stage.calls for name, stage in stages.items()} == {name: calls[name] for name in stages}
    assert made.record.made_with.split_guidance
    others = {
        name: sum(stage.resident_bytes for stage in stages.values()) - stages[name].resident_bytes for name in stages
    }
    together = [stages[name].before_bytes >= plan.base_bytes + others[name] for name in stages]
    assert all(together) or (plan.keep and any(together))  # where all stays open, the first has nothing beside it
    assert psnr_db(made.image, pipeline.generate(PROMPT, **asked).image) >= 60.0
    assert pipeline.reproduce(made.record).image.tobytes() == made.image.tobytes()


def test_without_a_budget_a_plan_has_both_graphs(pipeline):
    plan = pipeline.plan(PROMPT, **ASKED, cache_interval=3)
    seconds = {stage.role: stage.costs.call_seconds for stage in plan.stages}
    assert seconds["denoiser.shallow"] < seconds["denoiser"]
    assert {stage.role: stage.calls for stage in plan.stages if stage.phase == "denoise"} == {
        "denoiser": 2, "denoiser.shallow": 4,
    }  # fmt: skip


def test_latents_of_it_are_finished_where_they_were_made(pipeline, tmp_path):
    run = pipeline.steps(PROMPT, **ASKED, cache_interval=3)
    list(run)
    run.save_latents(tmp_path / "x.safetensors")
    again = pipeline.resume(tintype.read_latents(tmp_path / "x.safetensors"))
    assert again.image.tobytes() == run.result.image.tobytes()


def test_a_branch_deeper_than_the_model_is_refused_with_those_it_has(pipeline):
    for draw in (pipeline.generate, pipeline.plan):
        with pytest.raises(RequestError, match=r"cache_branch 4 is deeper.*4 skip connections") as refusal:
            draw(PROMPT, **ASKED, cache_interval=2, cache_branch=4)
        assert "0 to 3" in str(refusal.value)


def test_guidance_that_begins_behind_the_gate_is_refused(pipeline):
    with pytest.raises(RequestError, match=r"gate_start of 0\.4 ends it before"):
        pipeline.steps(PROMPT, **ASKED, gate_start=0.4, guidance_interval="0.5,1")


def test_words_that_come_behind_the_gate_are_refused(pipeline):
    prompt, asked = "a [house:tent:0.5] in the snow", {**ASKED, "cache_interval": 1}
    with pytest.raises(RequestError, match=r"the prompt changes where a gate_start of 0\.4"):
        pipeline.steps(prompt, **asked, gate_start=0.4)
    earlier = pipeline.generate(prompt, **asked, gate_start=0.7)
    assert earlier.image.tobytes() != pipeline.generate("a house in the snow", **asked, gate_start=0.7).image.tobytes()


def test_how_strongly_words_drew_it_is_not_judged_by_pictures_that_skipped_nothing(pipeline):
    for name, way in WAYS.items():
        reason = why_unlike_ordinary(pipeline.resolve(tintype.Request(prompt=PROMPT, **ASKED, **way)))
        assert reason == ("tokens were merged" if name == "merged" else "steps took over what earlier ones computed")


def test_without_merging_the_bytes_are_those_without(pipeline):
    plain, made = (pipeline.generate(PROMPT, **ASKED, **more) for more in ({}, {"token_merging": 0.0}))
    assert made.image.tobytes() == plain.image.tobytes()
    assert made.record == plain.record
