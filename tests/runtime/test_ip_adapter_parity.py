"""Pictures beside the words: Tintype's fp32 ones are those of diffusers with the same adapter, encoder and noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ip_adapters import SIDE, image_encoder, ip_adapter
from pictures import PROMPT, photo, psnr_db

import tintype
from tintype.sampling import noise_source

__all__ = ["image_encoder", "ip_adapter"]  # the fixtures
pytestmark = [
    pytest.mark.reference,
    pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning"),  # diffusers with numpy 2
    pytest.mark.filterwarnings("ignore:.*max_length.*"),
]
SEED, STEPS, GATE_DB = 7, 6, 50.0
NEGATIVE = "snow"
GUIDANCE = {"sd": 7.5, "xl": 5.0}
CHECKPOINTS = {"sd": "tiny_checkpoint", "xl": "xl_checkpoint"}
BUNDLES = {"sd": "tiny_bundle", "xl": "xl_bundle"}


@pytest.fixture(params=["sd", "xl"])
def base(request):
    return request.param


@pytest.fixture
def pipeline(request, base):
    with tintype.load(request.getfixturevalue(BUNDLES[base]), provider="cpu", threads=1) as opened:
        yield opened


def theirs(checkpoint: Path, base: str, adapter: Path, encoder: Path) -> Any:
    """diffusers' pipeline with an adapter and its image encoder, by Euler's method."""
    import diffusers
    from transformers import CLIPVisionModelWithProjection
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    extra = {"safety_checker": None} if base == "sd" else {"add_watermarker": False}
    kind = diffusers.StableDiffusionPipeline if base == "sd" else diffusers.StableDiffusionXLPipeline
    pipe = kind.from_pretrained(
        checkpoint,
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(encoder),
        feature_extractor=CLIPImageProcessorPil(size=SIDE, crop_size=SIDE),
        **extra,
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.load_ip_adapter(str(adapter.parent), subfolder="", weight_name=adapter.name, low_cpu_mem_usage=False)
    return pipe


def drawn(pipe: Any, base: str, image: Any, scale: Any, size=(64, 64), **more: Any) -> np.ndarray:
    import torch

    pipe.set_ip_adapter_scale(scale)
    noise = noise_source("torch-cpu", [SEED]).draw((1, 4, size[1] // 4, size[0] // 4))
    made = pipe(
        PROMPT, negative_prompt=NEGATIVE, num_inference_steps=STEPS, guidance_scale=GUIDANCE[base],
        latents=torch.from_numpy(noise), width=size[0], height=size[1], ip_adapter_image=image, **more,
    )  # fmt: skip
    return np.asarray(made.images[0])


def asked(base: str, size=(64, 64), **more: Any) -> dict[str, Any]:
    return {
        "negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE[base], "seed": SEED,
        "sampler": "euler", "exactness": "exact", "noise": "torch-cpu", "width": size[0], "height": size[1], **more,
    }  # fmt: skip


def assert_near(made: Any, expected: np.ndarray, other: Any) -> None:
    """other: the picture without what is tested."""
    assert expected.std() > 5  # a grey picture would be near any other
    near, far = psnr_db(made, expected), psnr_db(other, expected)
    print(f"{near:.1f} dB; without {far:.1f}")
    assert near >= GATE_DB
    assert far < near - 8.0


@pytest.mark.parametrize("kind", ["base", "plus", "full"])
def test_a_picture_is_that_of_diffusers(request, base, pipeline, image_encoder, ip_adapter, kind):
    folder, bundle = image_encoder()
    adapter = ip_adapter(CHECKPOINTS[base], kind)
    given = {"ip_adapter": adapter, "image_encoder": bundle, "image_prompts": [(photo(), 0.7)]}
    made = pipeline.generate(PROMPT, **asked(base), **given)
    pipe = theirs(request.getfixturevalue(CHECKPOINTS[base]), base, adapter, folder)
    assert_near(made.image, drawn(pipe, base, photo(), 0.7), pipeline.generate(PROMPT, **asked(base)).image)
