"""Our bundles draw in optimum's pipelines: the pictures are ours, at the same noise."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import PROMPT, psnr_db

import tintype
from tintype.export import export_bundle
from tintype.sampling import noise_source

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # diffusers with numpy 2
    pytest.mark.filterwarnings("ignore:Accessing config attribute:FutureWarning"),  # optimum asks diffusers so itself
]

POSTCARD = Path(__file__).parents[2] / "models/postcard/bundle"
SEED, STEPS = 7, 10
# What optimum logs of postcard's bundle, which is older than the scalar timesteps of those that are exported now.
OF_A_ROW = "The exported unet onnx model expects a non scalar timestep input"


@pytest.fixture(scope="session")
def exported_in(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """By precision: a bundle of the tiny checkpoint as it is exported now."""

    def bundle(precision: str) -> Path:
        if precision == "fp32":
            return tiny_bundle
        made = tmp_path_factory.mktemp("exported") / precision
        export_bundle(tiny_checkpoint, made, precision=precision)
        return made

    return bundle


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


def drawn_by_both(bundle: Path, caplog: pytest.LogCaptureFixture, precision: str) -> tuple[float, list[str]]:
    """How near the pictures are, in dB, and what was logged as a warning or worse while optimum drew."""
    for name in ("optimum", "diffusers", "transformers"):
        logging.getLogger(name).propagate = True  # to where they are caught
    with tintype.load(bundle, provider="cpu") as pipeline:
        assert pipeline.bundle.graph("denoiser").precision == precision
        side = pipeline.bundle.manifest.default_request.width
        cells = side // pipeline.bundle.manifest.vae_scale_factor
        latents = noise_source("torch-cpu", [SEED]).draw((1, pipeline.bundle.manifest.latent_channels, cells, cells))
        ours = pipeline.generate(
            PROMPT, negative_prompt="snow", seed=SEED, noise="torch-cpu", sampler="euler", num_inference_steps=STEPS,
            guidance_scale=5.0, exactness="exact", watermark=False,
        ).image  # fmt: skip
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        theirs = drawn_by_optimum(bundle, latents, side)
    assert np.asarray(ours).std() > 5
    measured = psnr_db(ours, theirs)
    print(f"{precision}: {measured:.1f} dB")
    return measured, [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# Nothing was trained here, and integers round otherwise in its session: 39 dB in int8 were measured.
@pytest.mark.parametrize(("precision", "gate_db"), [("fp32", 60), ("int8", 35)])
def test_a_bundle_draws_in_optimum_and_nothing_is_warned_of(
    exported_in: Callable[[str], Path], caplog: pytest.LogCaptureFixture, precision: str, gate_db: float
) -> None:
    measured, warned = drawn_by_both(exported_in(precision), caplog, precision)
    assert warned == []
    assert measured >= gate_db


def test_an_older_bundle_draws_in_optimum_which_remarks_on_its_timestep(caplog: pytest.LogCaptureFixture) -> None:
    """What is logged is seen: the test above would see it too."""
    measured, warned = drawn_by_both(POSTCARD, caplog, "int8")
    assert [message for message in warned if not message.startswith(OF_A_ROW)] == []
    assert any(message.startswith(OF_A_ROW) for message in warned)
    assert measured >= 40
