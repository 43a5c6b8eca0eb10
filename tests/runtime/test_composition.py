"""All at once: a picture inside a mask, two LoRAs, a ControlNet, an image prompt and embeddings, as diffusers draws it,
and again."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from controlnets import controlnet, drawing
from edit_parity import mask, take_the_encoders_mean
from embeddings import vectors, write
from ip_adapters import colours, image_encoder, ip_adapter, with_adapter
from loras import ATTENTION, TRANSFORMER, WORDS, pairs, save_diffusers, save_kohya
from pictures import photo, psnr_db

import tintype
from tintype.errors import MemoryBudgetError, RecordError

__all__ = ["controlnet", "image_encoder", "ip_adapter"]  # the fixtures
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning"),  # diffusers with numpy 2
    pytest.mark.filterwarnings("ignore:.*max_length.*"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`"),
]
PROMPT, NEGATIVE, SEED, STEPS, SCALE = "a red wobble sailboat on a calm sea", "snow", 7, 6, 7.5
WEIGHTS = (0.6, 0.5)


@pytest.fixture
def brought(controlnet, image_encoder, ip_adapter, tiny_checkpoint, tmp_path) -> dict[str, Any]:
    """What a request brings, by its field's name."""
    unet = pairs(tiny_checkpoint, "unet", TRANSFORMER, 4, seed=1, size=0.5)
    words = pairs(tiny_checkpoint, "text_encoder", WORDS, 4, seed=2, size=0.5)
    whole = save_kohya(tmp_path / "whole.safetensors", {"unet": unet, "text_encoder": words}, alpha=2.0)
    attention = pairs(tiny_checkpoint, "unet", ATTENTION, 3, seed=4, size=0.5)
    some = save_diffusers(tmp_path / "some.safetensors", {"unet": attention})
    return {
        "image": photo(),
        "mask": mask(64, 64),
        "loras": list(zip((whole, some), WEIGHTS, strict=True)),
        "embeddings": [write(tmp_path / "wobble.safetensors", emb_params=vectors(3, 64, 1))],
        "control": [{"model": controlnet()[1], "image": drawing(), "weight": 0.7, "end": 0.7}],
        "ip_adapter": ip_adapter(),
        "image_encoder": image_encoder()[1],
        "image_prompts": [(colours(), 0.5)],
    }


def _asked(**more: Any) -> dict[str, Any]:
    return {
        "negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "guidance_scale": SCALE, "seed": SEED,
        "strength": 0.75, "sampler": "euler", "exactness": "exact", "noise": "torch-cpu", **more,
    }  # fmt: skip


def _without(brought: dict[str, Any], name: str) -> dict[str, Any]:
    """Of an image prompt the adapter and the encoder go with it."""
    gone = ("ip_adapter", "image_encoder", "image_prompts") if name == "image_prompts" else (name,)
    return {each: value for each, value in brought.items() if each not in gone}


def _theirs(checkpoint, net, loras, adapter, encoder) -> np.ndarray:
    pipe = diffusers.StableDiffusionControlNetInpaintPipeline.from_pretrained(
        checkpoint, controlnet=diffusers.ControlNetModel.from_pretrained(net), safety_checker=None
    )
    pipe.load_textual_inversion({"wobble": torch.from_numpy(vectors(3, 64, 1))}, token="wobble")
    names = [file.stem for file, _ in loras]
    for file, _ in loras:
        pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=file.stem)
    pipe.set_adapters(names, list(WEIGHTS))
    pipe.fuse_lora(adapter_names=names)
    pipe.unload_lora_weights()
    with_adapter(pipe, adapter, encoder).set_ip_adapter_scale(0.5)
    made = pipe(
        PROMPT, image=photo(), mask_image=mask(64, 64), control_image=drawing(), negative_prompt=NEGATIVE,
        num_inference_steps=STEPS, guidance_scale=SCALE, strength=0.75, controlnet_conditioning_scale=0.7,
        control_guidance_end=0.7, ip_adapter_image=colours(), generator=torch.Generator().manual_seed(SEED),
        width=64, height=64,
    )  # fmt: skip
    return np.asarray(made.images[0])


@pytest.mark.reference
def test_all_at_once_is_what_diffusers_draws_and_each_has_its_part(
    pipeline, brought, controlnet, image_encoder, tiny_checkpoint, monkeypatch
):
    take_the_encoders_mean(monkeypatch)
    expected = _theirs(tiny_checkpoint, controlnet()[0], brought["loras"], brought["ip_adapter"], image_encoder()[0])
    near = psnr_db(pipeline.generate(PROMPT, **_asked(**brought)).image, expected)
    without = {
        name: psnr_db(pipeline.generate(PROMPT, **_asked(**_without(brought, name))).image, expected)
        for name in ("loras", "embeddings", "control", "image_prompts")
    }
    assert expected.std() > 5
    assert near >= 50.0
    assert all(far < near - 8.0 for far in without.values()), (near, without)


@pytest.mark.parametrize("exactness", ["exact", "balanced"])
def test_a_record_of_all_gives_the_bytes_again(pipeline, brought, exactness):
    made = pipeline.generate(PROMPT, **_asked(**{**brought, "exactness": exactness}))
    files = {**brought, "loras": [file for file, _ in brought["loras"]]}
    again = pipeline.reproduce(made.record, **files)
    assert again.image.tobytes() == made.image.tobytes()
    request = again.record.request
    assert [lora.weight for lora in request.loras] == list(WEIGHTS)
    assert len(request.control) == len(request.embeddings) == len(request.image_prompts) == 1


@pytest.mark.parametrize(
    ("missing", "named"),
    [("loras", "whole"), ("embeddings", "wobble"), ("control", "controlnet"), ("image_prompts", "base-tiny")],
)
def test_a_record_names_what_is_missing(pipeline, brought, missing, named):
    record = pipeline.generate(PROMPT, **_asked(**{**brought, "num_inference_steps": 2})).record
    rest = _without(brought, missing)
    with pytest.raises(RecordError, match=named):
        pipeline.reproduce(record, **rest)


def test_a_picture_like_it_says_all_that_it_lacks(pipeline, brought, tmp_path):
    brought = {**brought, "loras": [f"{file}=0.6@0.2-0.8,mid=0.5" for file, _ in brought["loras"]]}
    asked = _asked(**{**brought, "num_inference_steps": 2}, control_guess=True, control_preprocess="resize")
    pipeline.generate(PROMPT, **asked).save(tmp_path / "x.png")
    likeness = tintype.like(tmp_path / "x.png").for_bundle(pipeline.bundle)
    for words in (
        "the picture that it began with",
        "the mask that it began with",
        "the LoRA whole: give it again, --lora FILE=0.6@0.2-0.8,mid=0.5",
        "the LoRA some",
        "the embedding wobble: give it again, --embedding FILE",
        "=PICTURE=0.7@0-0.7 --control-preprocess resize --control-guess",
        "the IP-Adapter base-tiny_checkpoint-0 and its 1 picture: give them again",
    ):
        assert any(words in sentence for sentence in likeness.left_out), (words, likeness.left_out)
    assert pipeline.generate(likeness.request()).image.size == (64, 64)


@pytest.mark.long  # seeks least budgets
@pytest.mark.parametrize("exactness", ["exact", "balanced"])
def test_in_the_least_memory_it_is_the_same_picture_and_again_by_its_record(tiny_bundle, pipeline, brought, exactness):
    asked = _asked(**{**brought, "exactness": exactness})
    made = pipeline.generate(PROMPT, **asked)
    with (
        tintype.load(tiny_bundle, provider="cpu", threads=1, memory=1) as tiny,
        pytest.raises(MemoryBudgetError) as told,
    ):
        tiny.plan(PROMPT, **asked)
    least = told.value.least_bytes
    assert least is not None
    files = {**brought, "loras": [file for file, _ in brought["loras"]]}
    with tintype.load(tiny_bundle, provider="cpu", threads=1, memory=least) as small:
        within = small.generate(PROMPT, **asked)
        again = small.reproduce(within.record, **files)
    assert within.record.memory.budget_bytes == least
    assert within.record.memory.planned_peak_bytes <= least
    assert again.image.tobytes() == within.image.tobytes()
    assert pipeline.reproduce(within.record, **files).image.tobytes() == within.image.tobytes()
    assert psnr_db(within.image, made.image) > (80.0 if exactness == "exact" else 35.0)
