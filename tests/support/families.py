"""Checkpoints of every family, made of the plain ones: the same words and VAE, a UNet of the family's structure."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
from pictures import psnr_db

SEED, GATE_DB = 7, 50.0


@dataclass(frozen=True)
class Variant:
    """What a family's checkpoint has that the plain one hasn't."""

    base: str  # the plain checkpoint: sd or xl
    pipeline: str  # of diffusers
    unet: Mapping[str, Any]
    index: Mapping[str, Any] = field(default_factory=dict)
    scheduler: str | None = None
    scheduler_config: Mapping[str, Any] = field(default_factory=dict)
    tiny_vae: bool = False  # as its VAE


_WITH_WORDS = {"down_block_types": ["CrossAttnDownBlock2D"] * 2, "up_block_types": ["CrossAttnUpBlock2D"] * 2}
_SMALL = {"block_out_channels": [16, 32], "layers_per_block": 1}
_XL_ATTENTION = {"attention_head_dim": [2, 4], **_SMALL}
VARIANTS = {
    # Levels without a middle, with words at the lowest one (Kim et al. 2023).
    "bk-sdm": Variant("sd", "StableDiffusionPipeline", {**_SMALL, **_WITH_WORDS, "mid_block_type": None}),
    # A middle without words, and as many transformers in each layer as were left (Gupta et al. 2024).
    "ssd-1b": Variant(
        "xl",
        "StableDiffusionXLPipeline",
        {
            **_XL_ATTENTION,
            "layers_per_block": 2,
            "mid_block_type": "UNetMidBlock2D",
            "transformer_layers_per_block": [1, [2, 1]],
            "reverse_transformer_layers_per_block": [[1, 2, 1], 1],
        },
    ),
    "vega": Variant(
        "xl",
        "StableDiffusionXLPipeline",
        {
            **_XL_ATTENTION,
            "mid_block_type": None,
            "transformer_layers_per_block": [1, [2]],
            "reverse_transformer_layers_per_block": [[2, 1], 1],
        },
    ),
    # 2.x: linear projections, heads by level, and v in the place of noise.
    "v2": Variant(
        "sd",
        "StableDiffusionPipeline",
        {**_SMALL, "use_linear_projection": True, "attention_head_dim": [2, 4]},
        scheduler="EulerDiscreteScheduler",
        scheduler_config={"prediction_type": "v_prediction"},
    ),
    "lcm": Variant(
        "sd",
        "LatentConsistencyModelPipeline",
        {**_SMALL, "time_cond_proj_dim": 256},
        scheduler="LCMScheduler",
        scheduler_config={"original_inference_steps": 50},
    ),
    "instruct-pix2pix": Variant(
        "sd",
        "StableDiffusionInstructPix2PixPipeline",
        {**_SMALL, "in_channels": 8},
        scheduler="EulerAncestralDiscreteScheduler",
    ),
    "refiner": Variant(
        "xl",
        "StableDiffusionXLImg2ImgPipeline",
        {**_XL_ATTENTION, "cross_attention_dim": 48, "projection_class_embeddings_input_dim": 40 + 5 * 8},
        index={
            "text_encoder": [None, None],
            "tokenizer": [None, None],
            "requires_aesthetics_score": True,
            "force_zeros_for_empty_prompt": False,
        },
    ),
    "sdxs-512": Variant(
        "sd",
        "StableDiffusionPipeline",
        {**_SMALL, "mid_block_type": None},
        scheduler="EulerDiscreteScheduler",
        scheduler_config={"timestep_spacing": "trailing"},
        tiny_vae=True,
    ),
}


def save_variant(variant: Variant, plain: Path, folder: Path) -> None:
    """A diffusers folder with random weights."""
    import diffusers
    import torch

    shutil.copytree(plain, folder)
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": variant.pipeline, **variant.index}
    config = json.loads((folder / "unet/config.json").read_text())
    torch.manual_seed(3)
    unet = diffusers.UNet2DConditionModel.from_config({**config, **variant.unet, "out_channels": 4})
    with torch.no_grad():  # as in a trained model: noise of a spread of 1, and words and pictures make a difference
        unet.conv_out.weight *= 2.5
        unet.conv_in.weight[:, 4:] *= 8.0
        for name, weight in unet.named_parameters():
            if name.endswith("attn2.to_v.weight"):
                weight *= 2.0
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet")
    for name in ("text_encoder", "tokenizer"):
        if index[name] == [None, None]:
            shutil.rmtree(folder / name)
    if variant.scheduler is not None:
        index["scheduler"] = ["diffusers", variant.scheduler]
        old = json.loads((folder / "scheduler/scheduler_config.json").read_text())
        kind = getattr(diffusers, variant.scheduler)
        kind.from_config({**old, **variant.scheduler_config}).save_pretrained(folder / "scheduler")
    if variant.tiny_vae:
        index["vae"] = ["diffusers", "AutoencoderTiny"]
        shutil.rmtree(folder / "vae")
        save_tiny_vae(folder / "vae")
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def save_tiny_vae(folder: Path) -> None:
    """An AutoencoderTiny of factor 4, with random weights."""
    import torch
    from diffusers import AutoencoderTiny

    torch.manual_seed(4)
    levels = (8, 8, 8)
    AutoencoderTiny(
        encoder_block_out_channels=levels,
        decoder_block_out_channels=levels,
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
        upsampling_scaling_factor=2,
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def family(request, export_once):
    """By a family's name: its checkpoint and its bundle."""

    def made(name: str) -> tuple[Path, Path]:
        variant = VARIANTS[name]
        plain = request.getfixturevalue("tiny_checkpoint" if variant.base == "sd" else "xl_checkpoint")
        folder = plain.with_name(name)
        with filelock.FileLock(folder.with_name(f"{name}.lock")):
            if not folder.is_dir():
                with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                    save_variant(variant, plain, Path(scratch) / name)
                    save_tiny_vae(Path(scratch) / name / "tiny_vae")
                    (Path(scratch) / name).rename(folder)
        from tintype.export import Effort
        from tintype.export.sources.source import SourceOptions

        effort = Effort(steps=2, calibration_prompts=1, gate_prompts=1, gate_calls=1, latent_size=8)
        options = SourceOptions(tiny_vae=folder / "tiny_vae" if name == "lcm" else None)
        return folder, export_once(f"tiny-{name}", folder, precision="fp32", effort=effort, options=options)

    return made


def reference(name: str, checkpoint: Path) -> Any:
    import diffusers

    extra = {"safety_checker": None} if VARIANTS[name].base == "sd" else {"add_watermarker": False}
    opened = getattr(diffusers, VARIANTS[name].pipeline).from_pretrained(checkpoint, **extra)
    opened.set_progress_bar_config(disable=True)
    return opened


def generator() -> Any:
    import torch

    return torch.Generator().manual_seed(SEED)


def assert_near(ours: Any, theirs: Any, what: str) -> None:
    assert np.asarray(ours).shape == np.asarray(theirs).shape
    assert np.asarray(theirs).std() > 3  # a grey picture would be near any other
    measured = psnr_db(ours, theirs)
    print(f"{what}: {measured:.1f} dB")
    assert measured >= GATE_DB
