"""Pictures drawn with T2I-Adapters: Tintype's fp32 ones are those of diffusers' pipelines at the same noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pictures import PROMPT, photo, psnr_db
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
SEED, STEPS, GATE_DB = 7, 6, 50.0
NEGATIVE = "snow"
GUIDANCE = {"sd": 7.5, "sd2": 7.5, "xl": 5.0}
# Of an adapter: its kind, the structure that it is for, and channels of its picture.
KINDS = {
    "full": ("full", "sd", 3), "full-2": ("full", "sd2", 3), "full-sketch": ("full", "sd", 1),
    "light": ("light", "sd", 3), "xl": ("xl", "xl", 3), "xl-sketch": ("xl", "xl", 1),
}  # fmt: skip


def asked(base: str, size=(64, 64), **more: Any) -> dict[str, Any]:
    return {
        "negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE[base], "seed": SEED,
        "sampler": "euler", "exactness": "exact", "noise": "torch-cpu", "width": size[0], "height": size[1], **more,
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


def assert_near(made: Any, expected: np.ndarray, other: Any) -> None:
    """other: the picture without what is tested."""
    assert expected.std() > 5  # a grey picture would be near any other
    near, far = psnr_db(made, expected), psnr_db(other, expected)
    print(f"{near:.1f} dB; without {far:.1f}")
    assert near >= GATE_DB
    assert far < near - 8.0


@pytest.mark.parametrize("name", KINDS)
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
