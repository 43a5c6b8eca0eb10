"""Checkpoints of inpainting models, made of those of plain ones: the same words and VAE, a UNet of 9 channels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

PIPELINES = {
    "StableDiffusionPipeline": "StableDiffusionInpaintPipeline",
    "StableDiffusionXLPipeline": "StableDiffusionXLInpaintPipeline",
}


def save_inpainting_checkpoint(plain: Path, folder: Path, adjust: Callable[[Any], None]) -> None:
    """A diffusers folder with random weights; `adjust` does to the UNet what it did to the plain checkpoint's."""
    import torch
    from diffusers import UNet2DConditionModel

    shutil.copytree(plain, folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = PIPELINES[index["_class_name"]]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    config = json.loads((folder / "unet/config.json").read_text())
    torch.manual_seed(2)
    unet = UNet2DConditionModel.from_config({**config, "in_channels": 9, "out_channels": 4})
    adjust(unet)
    with torch.no_grad():
        unet.conv_in.weight[:, 5:] *= 8.0  # the random VAE's latents are small, and the masked picture has to matter
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet")
