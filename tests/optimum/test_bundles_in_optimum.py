"""Our bundles draw in optimum's pipelines: the pictures are ours, at the same noise."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import PROMPT, psnr_db

import tintype
from tintype.sampling import noise_source

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # diffusers with numpy 2
    pytest.mark.filterwarnings("ignore:Accessing config attribute:FutureWarning"),  # optimum asks diffusers so itself
]

POSTCARD = Path(__file__).parents[2] / "models/postcard/bundle"
SEED, STEPS = 7, 10
# What optimum and diffusers log of any pipeline without a safety checker, and of a timestep that is (1,) as ours is.
KNOWN = ("You have disabled the safety checker", "The exported unet onnx model expects a non scalar timestep input")


def drawn_by_optimum(bundle: Path, latents: np.ndarray, side: int) -> np.ndarray:
    import diffusers
    import torch
    from optimum.onnxruntime import ORTStableDiffusionPipeline

    pipeline: Any = ORTStableDiffusionPipeline.from_pretrained(bundle)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    made = pipeline(
        PROMPT, negative_prompt="snow", width=side, height=side, latents=torch.from_numpy(latents),
        num_inference_steps=STEPS, guidance_scale=5.0,
    )  # fmt: skip
    return np.asarray(made.images[0])


@pytest.mark.parametrize(("precision", "exactness", "gate_db"), [("fp32", "exact", 60), ("int8", "exact", 40)])
def test_a_bundle_draws_in_optimum(
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
    precision: str,
    exactness: str,
    gate_db: float,
) -> None:
    bundle = POSTCARD if precision == "int8" else request.getfixturevalue("tiny_bundle")
    for name in ("optimum", "diffusers", "transformers"):
        logging.getLogger(name).propagate = True  # to where they are caught
    with tintype.load(bundle, provider="cpu") as pipeline:
        assert pipeline.bundle.graph("denoiser").precision == precision
        side = pipeline.bundle.manifest.default_request.width
        cells = side // pipeline.bundle.manifest.vae_scale_factor
        latents = noise_source("torch-cpu", [SEED]).draw((1, pipeline.bundle.manifest.latent_channels, cells, cells))
        ours = pipeline.generate(
            PROMPT, negative_prompt="snow", seed=SEED, noise="torch-cpu", sampler="euler", num_inference_steps=STEPS,
            guidance_scale=5.0, exactness=exactness, watermark=False,
        ).image  # fmt: skip
    with caplog.at_level(logging.WARNING):
        theirs = drawn_by_optimum(bundle, latents, side)
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert any(message.startswith(KNOWN[1]) for message in said)  # what is logged is seen
    assert [message for message in said if not message.startswith(KNOWN)] == []
    assert np.asarray(ours).std() > 5
    measured = psnr_db(ours, theirs)
    print(f"{precision}: {measured:.1f} dB")
    assert measured >= gate_db
