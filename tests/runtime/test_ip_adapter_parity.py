"""Pictures beside the words: Tintype's fp32 ones are those of diffusers with the same adapter, encoder and noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_parity import GUIDANCE, NEGATIVE, SEED, STEPS, asked, assert_near
from controlnets import controlnet, drawing
from families import VARIANTS, family, generator, reference
from ip_adapters import (
    adapter_tensors,
    colours,
    cross_attentions,
    image_encoder,
    ip_adapter,
    left_half,
    save_adapter,
    with_adapter,
)
from loras import ATTENTION, pairs, save_diffusers
from pictures import PROMPT, photo

import tintype
from tintype.sampling import noise_source

__all__ = ["controlnet", "family", "image_encoder", "ip_adapter"]  # the fixtures
pytestmark = [
    pytest.mark.reference,
    pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning"),  # diffusers with numpy 2
    pytest.mark.filterwarnings("ignore:.*max_length.*"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`"),
]
CHECKPOINTS = {"sd": "tiny_checkpoint", "xl": "xl_checkpoint"}
BUNDLES = {"sd": "tiny_bundle", "xl": "xl_bundle"}


@pytest.fixture(scope="module", params=["sd", "xl"])
def base(request):
    return request.param


@pytest.fixture(scope="module")
def pipeline(request, base):
    with tintype.load(request.getfixturevalue(BUNDLES[base]), provider="cpu", threads=1) as opened:
        yield opened


def theirs(checkpoint: Path, base: str, adapter: Path, encoder: Path) -> Any:
    """diffusers' pipeline with an adapter and its image encoder, by Euler's method."""
    import diffusers

    extra = {"safety_checker": None} if base == "sd" else {"add_watermarker": False}
    kind = diffusers.StableDiffusionPipeline if base == "sd" else diffusers.StableDiffusionXLPipeline
    pipe = kind.from_pretrained(checkpoint, **extra)
    return with_adapter(pipe, adapter, encoder)


def drawn(
    pipe: Any, base: str, prompt: Any, scale: Any, size=(64, 64), guidance: float | None = None, **more: Any
) -> np.ndarray:
    import torch

    pipe.set_ip_adapter_scale(scale)
    noise = noise_source("torch-cpu", [SEED]).draw((1, 4, size[1] // 4, size[0] // 4))
    made = pipe(
        PROMPT, negative_prompt=NEGATIVE, num_inference_steps=STEPS,
        guidance_scale=GUIDANCE[base] if guidance is None else guidance,
        latents=torch.from_numpy(noise), width=size[0], height=size[1], ip_adapter_image=prompt, **more,
    )  # fmt: skip
    return np.asarray(made.images[0])


@pytest.mark.parametrize("kind", ["base", "plus", "full"])
def test_a_picture_is_that_of_diffusers(request, base, pipeline, image_encoder, ip_adapter, kind):
    folder, bundle = image_encoder()
    adapter = ip_adapter(CHECKPOINTS[base], kind)
    given = {"ip_adapter": adapter, "image_encoder": bundle, "image_prompts": [(photo(), 0.7)]}
    made = pipeline.generate(PROMPT, **asked(base), **given)
    pipe = theirs(request.getfixturevalue(CHECKPOINTS[base]), base, adapter, folder)
    assert_near(made.image, drawn(pipe, base, photo(), 0.7), pipeline.generate(PROMPT, **asked(base)).image)


def test_several_pictures_are_looked_at_together_as_in_diffusers(request, base, pipeline, image_encoder, ip_adapter):
    folder, bundle = image_encoder()
    adapter = ip_adapter(CHECKPOINTS[base], "plus")
    given = {"ip_adapter": adapter, "image_encoder": bundle}
    pictures = [photo(), colours(80, 50)]
    made = pipeline.generate(PROMPT, **asked(base), **given, image_prompts=[(each, 0.8) for each in pictures])
    one = pipeline.generate(PROMPT, **asked(base), **given, image_prompts=[(pictures[0], 0.8)])
    pipe = theirs(request.getfixturevalue(CHECKPOINTS[base]), base, adapter, folder)
    assert_near(made.image, drawn(pipe, base, [pictures], 0.8), one.image)


@pytest.mark.parametrize("size", [(64, 64), (96, 40)], ids=str)
def test_masks_are_those_of_diffusers(request, base, pipeline, image_encoder, ip_adapter, size):
    from diffusers.image_processor import IPAdapterMaskProcessor

    folder, bundle = image_encoder()
    adapter = ip_adapter(CHECKPOINTS[base])
    pictures, weights = [photo(), colours()], [0.9, 0.5]
    masks = [left_half(*size), left_half(*size, mirrored=True)]
    given = {"ip_adapter": adapter, "image_encoder": bundle}
    prompts = list(zip(pictures, weights, masks, strict=True))
    made = pipeline.generate(PROMPT, **asked(base, size), **given, image_prompts=prompts)
    swapped = list(zip(pictures, weights, masks[::-1], strict=True))
    other = pipeline.generate(PROMPT, **asked(base, size), **given, image_prompts=swapped)
    pipe = theirs(request.getfixturevalue(CHECKPOINTS[base]), base, adapter, folder)
    prepared = IPAdapterMaskProcessor(vae_scale_factor=4).preprocess(masks, height=size[1], width=size[0])
    shaped = [prepared.reshape(1, *prepared.shape[0:1], *prepared.shape[2:])]
    expected = drawn(
        pipe, base, [pictures], [weights], size, cross_attention_kwargs={"ip_adapter_masks": shaped}
    )  # fmt: skip
    assert_near(made.image, expected, other.image)


@pytest.mark.parametrize("base", ["sd"], indirect=True)
def test_without_guidance_it_is_that_of_diffusers(request, base, pipeline, image_encoder, ip_adapter):
    folder, bundle = image_encoder()
    adapter = ip_adapter(CHECKPOINTS[base], "plus")
    given = {"ip_adapter": adapter, "image_encoder": bundle, "image_prompts": [photo()]}
    way = asked(base) | {"guidance_scale": 1.0}
    made = pipeline.generate(PROMPT, **way, **given)
    pipe = theirs(request.getfixturevalue(CHECKPOINTS[base]), base, adapter, folder)
    assert_near(made.image, drawn(pipe, base, photo(), 1.0, guidance=1.0), pipeline.generate(PROMPT, **way).image)


@pytest.mark.parametrize("base", ["sd", pytest.param("xl", marks=pytest.mark.long)], indirect=True)
def test_with_a_lora_and_a_controlnet_at_once_it_is_that_of_diffusers(
    request, base, pipeline, image_encoder, ip_adapter, controlnet, tmp_path
):
    import diffusers

    folder, bundle = image_encoder()
    checkpoint = request.getfixturevalue(CHECKPOINTS[base])
    net, net_bundle = controlnet(base)
    adapter = ip_adapter(CHECKPOINTS[base], "plus")
    lora = save_diffusers(
        tmp_path / "lora.safetensors", {"unet": pairs(checkpoint, "unet", ATTENTION, 3, seed=4, size=0.5)}
    )
    brought = {
        "ip_adapter": adapter, "image_encoder": bundle, "image_prompts": [(photo(), 0.6)], "loras": [(lora, 0.7)],
        "control": [{"model": net_bundle, "image": drawing(), "weight": 0.8}],
    }  # fmt: skip
    plain = theirs(checkpoint, base, adapter, folder)
    extra = {"requires_safety_checker": False} if base == "sd" else {"add_watermarker": False}
    pipe = getattr(diffusers, f"StableDiffusion{'XL' if base == 'xl' else ''}ControlNetPipeline")(
        **plain.components, controlnet=diffusers.ControlNetModel.from_pretrained(net), **extra
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(lora.parent, weight_name=lora.name, adapter_name="lora")
    pipe.set_adapters(["lora"], [0.7])
    pipe.fuse_lora(adapter_names=["lora"])
    expected = drawn(pipe, base, photo(), 0.6, image=drawing(), controlnet_conditioning_scale=0.8)
    made = pipeline.generate(PROMPT, **asked(base), **brought)
    without = {
        "image_prompts": {"ip_adapter": None, "image_encoder": None, "image_prompts": ()},
        "loras": {"loras": ()},
        "control": {"control": ()},
    }
    for gone in without.values():
        assert_near(made.image, expected, pipeline.generate(PROMPT, **asked(base), **{**brought, **gone}).image)


@pytest.mark.parametrize("name", ["v2", *(pytest.param(name, marks=pytest.mark.long) for name in ("bk-sdm", "ssd-1b"))])
def test_models_of_other_structures_draw_as_in_diffusers(family, image_encoder, tmp_path, name):
    checkpoint, bundle = family(name)
    folder, encoder = image_encoder()
    base = VARIANTS[name].base
    adapter = save_adapter(tmp_path / "adapter.safetensors", adapter_tensors(cross_attentions(checkpoint), "plus"))
    given = {"ip_adapter": adapter, "image_encoder": encoder, "image_prompts": [(photo(), 0.8)]}
    pipe = theirs(checkpoint, base, adapter, folder)
    with tintype.load(bundle, provider="cpu", threads=1) as opened:
        made, plain = (opened.generate(PROMPT, **asked(base), **each) for each in (given, {}))
    assert_near(made.image, drawn(pipe, base, photo(), 0.8), plain.image)


@pytest.mark.parametrize("kind", ["base", "plus"])
def test_an_editing_model_draws_as_in_diffusers(family, image_encoder, tmp_path, kind):
    """Of its three predictions one sees the image prompt."""
    checkpoint, bundle = family("instruct-pix2pix")
    folder, encoder = image_encoder()
    adapter = save_adapter(tmp_path / "adapter.safetensors", adapter_tensors(cross_attentions(checkpoint), kind))
    pipe = with_adapter(reference("instruct-pix2pix", checkpoint), adapter, folder)
    pipe.set_ip_adapter_scale(0.8)
    way = {"negative_prompt": NEGATIVE, "num_inference_steps": 4, "guidance_scale": 5.0, "image_guidance_scale": 1.8}
    expected = pipe(PROMPT, image=photo(96, 40), ip_adapter_image=colours(), generator=generator(), **way).images[0]
    said = {"noise": "torch-cpu", "seed": SEED, "width": 96, "height": 40, "sampler": "euler", "image": photo(96, 40)}
    given = {"ip_adapter": adapter, "image_encoder": encoder, "image_prompts": [(colours(), 0.8)]}
    with tintype.load(bundle, provider="cpu", threads=1) as opened:
        made, plain = (opened.generate(PROMPT, **way, **said, exactness="exact", **each) for each in (given, {}))
    assert_near(made.image, np.asarray(expected), plain.image)
