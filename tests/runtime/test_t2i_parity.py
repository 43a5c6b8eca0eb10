"""Pictures drawn with T2I-Adapters: Tintype's fp32 ones are those of diffusers' pipelines at the same noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from adapter_parity import GUIDANCE, NEGATIVE, SEED, STEPS, asked, assert_near
from controlnets import drawing, make_controlnet
from edit_parity import mask, take_the_encoders_mean
from loras import ATTENTION, pairs, save_diffusers
from pictures import PROMPT, photo
from t2i_adapters import adapter, deep

import tintype
from tintype.sampling import noise_source

__all__ = ["adapter", "deep"]  # fixtures
pytestmark = [
    pytest.mark.reference,
    pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning"),  # diffusers with numpy 2
    pytest.mark.filterwarnings("ignore:.*max_length.*"),
    pytest.mark.filterwarnings("ignore:The decode_latents:FutureWarning"),
]
# Of an adapter: its kind, the structure that it is for, and channels of its picture.
KINDS = {
    "full": ("full", "sd", 3), "full-2": ("full", "sd2", 3), "full-sketch": ("full", "sd", 1),
    "light": ("light", "sd", 3), "xl": ("xl", "xl", 3), "xl-sketch": ("xl", "xl", 1),
}  # fmt: skip


def theirs(checkpoint, base: str, adapters: list[Any], images: list[Any], size=(64, 64), **more: Any) -> np.ndarray:
    """One of diffusers' pictures, by Euler's method. adapters: folders."""
    import diffusers
    import torch

    loaded = [diffusers.T2IAdapter.from_pretrained(folder) for folder in adapters]
    extra = {"add_watermarker": False} if base == "xl" else {"safety_checker": None}
    kind = diffusers.StableDiffusionXLAdapterPipeline if base == "xl" else diffusers.StableDiffusionAdapterPipeline
    pipe = kind.from_pretrained(checkpoint, adapter=loaded if len(loaded) > 1 else loaded[0], **extra)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    noise = noise_source("torch-cpu", [SEED]).draw((1, 4, size[1] // 4, size[0] // 4))
    made = pipe(
        PROMPT, image=images if len(images) > 1 else images[0], negative_prompt=NEGATIVE, num_inference_steps=STEPS,
        width=size[0], height=size[1], latents=torch.from_numpy(noise), **{"guidance_scale": GUIDANCE[base], **more},
    )  # fmt: skip
    return np.asarray(made.images[0])


@pytest.mark.parametrize(
    "name", [name if name in ("full", "light", "xl") else pytest.param(name, marks=pytest.mark.long) for name in KINDS]
)
def test_a_picture_is_that_of_diffusers(deep, adapter, name):
    kind, base, channels = KINDS[name]
    checkpoint, bundle = deep(base)
    folder, control = adapter(kind, in_channels=channels)
    size = (96, 64)
    shown = photo(*size)
    expected = theirs(checkpoint, base, [folder], [shown.convert("L") if channels == 1 else shown], size)
    with tintype.load(bundle, provider="cpu", threads=1) as pipeline:
        made = pipeline.generate(PROMPT, **asked(base, size), control=[{"model": control, "image": shown}])
        assert_near(made.image, expected, pipeline.generate(PROMPT, **asked(base, size)).image)
        again = pipeline.reproduce(made.record, control=[{"model": control, "image": shown}])
        assert again.image.tobytes() == made.image.tobytes()


def test_several_at_once_are_those_of_diffusers(deep, adapter):
    """Of two kinds, each with a weight of its own."""
    checkpoint, bundle = deep("sd")
    (one, one_bundle), (two, two_bundle) = adapter(in_channels=3), adapter("light", in_channels=3)
    images = [photo(), drawing()]
    expected = theirs(checkpoint, "sd", [one, two], images, adapter_conditioning_scale=[0.5, 0.8])
    control = [
        {"model": one_bundle, "image": images[0], "weight": 0.5},
        {"model": two_bundle, "image": images[1], "weight": 0.8},
    ]
    with tintype.load(bundle, provider="cpu", threads=1) as pipeline:
        made = pipeline.generate(PROMPT, **asked("sd"), control=control)
        assert_near(made.image, expected, pipeline.generate(PROMPT, **asked("sd"), control=control[1:]).image)


def test_weight_and_end_are_those_of_diffusers(deep, adapter):
    checkpoint, bundle = deep("xl")
    folder, control = adapter("xl", in_channels=3)
    expected = theirs(
        checkpoint, "xl", [folder], [photo()], adapter_conditioning_scale=0.6, adapter_conditioning_factor=0.5
    )
    shown = {"model": control, "image": photo(), "weight": 0.6}
    with tintype.load(bundle, provider="cpu", threads=1) as pipeline:
        made = pipeline.generate(PROMPT, **asked("xl"), control=[{**shown, "end": 0.5}])
        assert_near(made.image, expected, pipeline.generate(PROMPT, **asked("xl"), control=[shown]).image)


def with_features(pipe: Any, folder: Any, image: Any, weight: float) -> Any:
    """One of diffusers' pipelines that has no T2I-Adapters of its own, its UNet told of one at every step."""
    import diffusers
    import torch

    made = diffusers.T2IAdapter.from_pretrained(folder)
    pixels = torch.from_numpy(np.asarray(image, np.float32).transpose(2, 0, 1)[np.newaxis] / 255.0)
    with torch.inference_mode():
        features = [feature * weight for feature in made(pixels)]
    forward = pipe.unet.forward

    def told(sample: Any, *positional: Any, **named: Any) -> Any:
        given = [feature.repeat(len(sample), 1, 1, 1) for feature in features]
        return forward(sample, *positional, **named, down_intrablock_additional_residuals=given)

    pipe.unet.forward = told
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    return pipe


@pytest.mark.parametrize("base", ["sd", "xl"])
def test_image_to_image_is_what_the_unet_of_diffusers_makes_of_features(deep, adapter, monkeypatch, base):
    import diffusers
    import torch

    take_the_encoders_mean(monkeypatch)
    checkpoint, bundle = deep(base)
    folder, control = adapter("xl" if base == "xl" else "full", in_channels=3)
    kind = diffusers.StableDiffusionXLImg2ImgPipeline if base == "xl" else diffusers.StableDiffusionImg2ImgPipeline
    extra = {"add_watermarker": False} if base == "xl" else {"safety_checker": None}
    pipe = with_features(kind.from_pretrained(checkpoint, **extra), folder, drawing(), 0.7)
    expected = pipe(
        PROMPT, negative_prompt=NEGATIVE, num_inference_steps=STEPS, guidance_scale=GUIDANCE[base], image=photo(),
        strength=0.7, generator=torch.Generator().manual_seed(SEED),
    ).images[0]  # fmt: skip
    way = asked(base, image=photo(), strength=0.7)
    with tintype.load(bundle, provider="cpu", threads=1) as pipeline:
        made = pipeline.generate(PROMPT, **way, control=[{"model": control, "image": drawing(), "weight": 0.7}])
        assert_near(made.image, np.asarray(expected), pipeline.generate(PROMPT, **way).image)


@pytest.mark.long
def test_in_a_mask_with_a_controlnet_and_a_lora_it_is_what_diffusers_draws(deep, adapter, monkeypatch, tmp_path):
    import diffusers
    import torch

    from tintype.export import export_bundle

    take_the_encoders_mean(monkeypatch)
    checkpoint, bundle = deep("sd")
    folder, features = adapter(in_channels=3)
    net = tmp_path / "net"
    make_controlnet(checkpoint / "unet").save_pretrained(net)
    export_bundle(net, tmp_path / "net-bundle", precision="fp32")
    layers = pairs(checkpoint, "unet", ATTENTION, 3, seed=4, size=0.5)
    lora = save_diffusers(tmp_path / "some.safetensors", {"unet": layers})
    pipe = diffusers.StableDiffusionControlNetInpaintPipeline.from_pretrained(
        checkpoint, controlnet=diffusers.ControlNetModel.from_pretrained(net), safety_checker=None
    )
    with torch.no_grad():
        for name, (down, up) in layers.items():
            pipe.unet.get_submodule(name).weight += 0.6 * torch.from_numpy(up @ down)
    expected = with_features(pipe, folder, photo(), 0.8)(
        PROMPT, negative_prompt=NEGATIVE, num_inference_steps=STEPS, guidance_scale=GUIDANCE["sd"], image=photo(),
        mask_image=mask(64, 64), control_image=drawing(), strength=0.75, controlnet_conditioning_scale=0.7,
        control_guidance_end=0.7, generator=torch.Generator().manual_seed(SEED), width=64, height=64,
    ).images[0]  # fmt: skip
    brought: dict[str, Any] = {
        "control": [
            {"model": features, "image": photo(), "weight": 0.8},
            {"model": tmp_path / "net-bundle", "image": drawing(), "weight": 0.7, "end": 0.7},
        ],
        "loras": [(lora, 0.6)], "image": photo(), "mask": mask(64, 64),
    }  # fmt: skip
    way = asked("sd", strength=0.75)
    with tintype.load(bundle, provider="cpu", threads=1) as pipeline:
        made = pipeline.generate(PROMPT, **way, **brought)
        for less in ({"control": brought["control"][:1]}, {"control": brought["control"][1:]}, {"loras": []}):
            other = pipeline.generate(PROMPT, **way, **{**brought, **less})
            assert_near(made.image, np.asarray(expected), other.image)
        again = pipeline.reproduce(made.record, **{**brought, "loras": [lora]})
        assert again.image.tobytes() == made.image.tobytes()
