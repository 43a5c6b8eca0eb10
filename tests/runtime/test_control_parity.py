"""Controlled pictures: Tintype's fp32 ones are those of diffusers' ControlNet pipelines at the same noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from adapter_parity import GUIDANCE, NEGATIVE, SEED, STEPS, asked, assert_near
from controlnets import controlnet, drawing
from edit_parity import mask, take_the_encoders_mean
from pictures import PROMPT, photo

import tintype
from tintype.sampling import noise_source

__all__ = ["controlnet"]  # the fixture
pytestmark = [
    pytest.mark.reference,
    pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning"),  # diffusers with numpy 2
    pytest.mark.filterwarnings("ignore:.*max_length.*"),
]
PIPELINES = {"sd": "StableDiffusion{}Pipeline", "xl": "StableDiffusionXL{}Pipeline"}


@pytest.fixture(scope="module", params=["sd", "xl"])
def base(request):
    return request.param


@pytest.fixture(scope="module")
def pipeline(request, base):
    with tintype.load(
        request.getfixturevalue("tiny_bundle" if base == "sd" else "xl_bundle"), provider="cpu", threads=1
    ) as opened:
        yield opened


def theirs(request, base: str, kind: str, nets: list[Any], size=(64, 64), **asked: Any) -> np.ndarray:
    """One of diffusers' pictures, by Euler's method. nets: folders of ControlNets."""
    import diffusers
    import torch

    loaded = [diffusers.ControlNetModel.from_pretrained(net) for net in nets]
    extra = {"safety_checker": None} if base == "sd" else {"add_watermarker": False}
    pipe = getattr(diffusers, PIPELINES[base].format(kind)).from_pretrained(
        request.getfixturevalue("tiny_checkpoint" if base == "sd" else "xl_checkpoint"),
        controlnet=loaded if len(loaded) > 1 else loaded[0],
        **extra,
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    if kind == "ControlNet":
        noise = noise_source("torch-cpu", [SEED]).draw((1, 4, size[1] // 4, size[0] // 4))
        asked["latents"] = torch.from_numpy(noise)
        asked |= {"width": size[0], "height": size[1]}
    else:
        asked["generator"] = torch.Generator().manual_seed(SEED)
    made = pipe(
        PROMPT, negative_prompt=NEGATIVE, num_inference_steps=STEPS,
        **{"guidance_scale": GUIDANCE[base], **asked},
    )  # fmt: skip
    return np.asarray(made.images[0])


@pytest.mark.parametrize("size", [(64, 64), pytest.param((96, 40), marks=pytest.mark.long)], ids=str)
def test_a_picture_is_that_of_diffusers(request, base, pipeline, controlnet, size):
    folder, bundle = controlnet(base)
    control = [{"model": bundle, "image": drawing(*size)}]
    made = pipeline.generate(PROMPT, **asked(base, size), control=control)
    plain = pipeline.generate(PROMPT, **asked(base, size))
    assert_near(made.image, theirs(request, base, "ControlNet", [folder], size, image=drawing(*size)), plain.image)


def test_weight_start_and_end_are_those_of_diffusers(request, base, pipeline, controlnet):
    folder, bundle = controlnet(base)
    way = {"weight": 0.6, "start": 0.3, "end": 0.7}
    made = pipeline.generate(PROMPT, **asked(base), control=[{"model": bundle, "image": drawing(), **way}])
    whole = pipeline.generate(PROMPT, **asked(base), control=[{"model": bundle, "image": drawing()}])
    expected = theirs(
        request, base, "ControlNet", [folder], image=drawing(), controlnet_conditioning_scale=0.6,
        control_guidance_start=0.3, control_guidance_end=0.7,
    )  # fmt: skip
    assert_near(made.image, expected, whole.image)


def test_several_at_once_are_those_of_diffusers(request, base, pipeline, controlnet):
    (one, one_bundle), (two, two_bundle) = controlnet(base), controlnet(base, 1)
    made = pipeline.generate(
        PROMPT, **asked(base),
        control=[
            {"model": one_bundle, "image": drawing(), "weight": 0.5, "end": 0.5},
            {"model": two_bundle, "image": photo(), "weight": 0.8},
        ],
    )  # fmt: skip
    single = pipeline.generate(PROMPT, **asked(base), control=[{"model": two_bundle, "image": photo(), "weight": 0.8}])
    expected = theirs(
        request, base, "ControlNet", [one, two], image=[drawing(), photo()],
        controlnet_conditioning_scale=[0.5, 0.8], control_guidance_end=[0.5, 1.0],
    )  # fmt: skip
    assert_near(made.image, expected, single.image)


@pytest.mark.parametrize("guided", [True, False], ids=["guided", "unguided"])
def test_guess_mode_is_that_of_diffusers(request, base, pipeline, controlnet, guided):
    folder, bundle = controlnet(base)
    scale = 3.0 if guided else 1.0
    way = {**asked(base), "guidance_scale": scale}
    made = pipeline.generate(PROMPT, **way, control=[{"model": bundle, "image": drawing()}], control_guess=True)
    plain = pipeline.generate(PROMPT, **way, control=[{"model": bundle, "image": drawing()}])
    expected = theirs(request, base, "ControlNet", [folder], image=drawing(), guess_mode=True, guidance_scale=scale)
    assert_near(made.image, expected, plain.image)


@pytest.mark.parametrize("base", ["sd"], indirect=True)
@pytest.mark.long
def test_one_that_is_pooled_is_that_of_diffusers(request, base, pipeline, controlnet):
    folder, bundle = controlnet(base, 2, global_pool_conditions=True)
    made = pipeline.generate(PROMPT, **asked(base), control=[{"model": bundle, "image": photo()}])
    plain = pipeline.generate(PROMPT, **asked(base))
    assert_near(made.image, theirs(request, base, "ControlNet", [folder], image=photo()), plain.image)


@pytest.mark.parametrize("base", ["sd"], indirect=True)
@pytest.mark.long
def test_the_order_of_channels_is_the_configs(request, base, pipeline, controlnet):
    folder, bundle = controlnet(base, 3, controlnet_conditioning_channel_order="bgr")
    made = pipeline.generate(PROMPT, **asked(base), control=[{"model": bundle, "image": photo()}])
    other = pipeline.generate(
        PROMPT, **asked(base), control=[{"model": bundle, "image": np.asarray(photo())[:, :, ::-1].copy()}]
    )
    assert_near(made.image, theirs(request, base, "ControlNet", [folder], image=photo()), other.image)


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_image_to_image_is_that_of_diffusers(request, base, pipeline, controlnet, monkeypatch, strength):
    take_the_encoders_mean(monkeypatch)
    folder, bundle = controlnet(base)
    way = asked(base, image=photo(), strength=strength)
    made = pipeline.generate(PROMPT, **way, control=[{"model": bundle, "image": drawing(), "end": 0.6}])
    expected = theirs(
        request, base, "ControlNetImg2Img", [folder], image=photo(), control_image=drawing(), strength=strength,
        control_guidance_end=0.6, controlnet_conditioning_scale=1.0,
    )  # fmt: skip
    assert_near(made.image, expected, pipeline.generate(PROMPT, **way).image)


def test_inpainting_is_that_of_diffusers(request, base, pipeline, controlnet, monkeypatch):
    take_the_encoders_mean(monkeypatch)
    folder, bundle = controlnet(base)
    way = asked(base, image=photo(), strength=0.75, mask=mask(64, 64))
    made = pipeline.generate(PROMPT, **way, control=[{"model": bundle, "image": drawing()}])
    expected = theirs(
        request, base, "ControlNetInpaint", [folder], image=photo(), mask_image=mask(64, 64), control_image=drawing(),
        strength=0.75, controlnet_conditioning_scale=1.0, width=64, height=64,
    )  # fmt: skip
    assert_near(made.image, expected, pipeline.generate(PROMPT, **way).image)


@pytest.mark.parametrize("inpainting_checkpoint", ["sd"], indirect=True)
def test_a_model_of_nine_channels_is_that_of_diffusers(
    inpainting_checkpoint, inpainting_bundle, controlnet, monkeypatch
):
    """What is shown to the ControlNet has no mask in it, nor the latents of the masked picture."""
    import diffusers
    import torch

    take_the_encoders_mean(monkeypatch)
    folder, bundle = controlnet("sd")
    pipe = diffusers.StableDiffusionControlNetInpaintPipeline.from_pretrained(
        inpainting_checkpoint, controlnet=diffusers.ControlNetModel.from_pretrained(folder), safety_checker=None
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    expected = pipe(
        PROMPT, negative_prompt=NEGATIVE, num_inference_steps=STEPS, guidance_scale=7.5, image=photo(),
        mask_image=mask(64, 64), control_image=drawing(), strength=1.0, controlnet_conditioning_scale=1.0,
        generator=torch.Generator().manual_seed(SEED), width=64, height=64,
    ).images[0]  # fmt: skip
    way = asked("sd", image=photo(), strength=1.0, mask=mask(64, 64))
    with tintype.load(inpainting_bundle, provider="cpu", threads=1) as opened:
        made = opened.generate(PROMPT, **way, control=[{"model": bundle, "image": drawing()}])
        assert_near(made.image, np.asarray(expected), opened.generate(PROMPT, **way).image)
