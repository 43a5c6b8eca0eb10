"""T2I-Adapters with random weights, and checkpoints of the structure that they are made for, in small."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest

# UNets with the levels of Stable Diffusion 1.x, 2.x and XL; the VAE's latents are a quarter of its pictures' sides.
UNETS: dict[str, dict[str, Any]] = {
    "sd": {
        "block_out_channels": (32, 64, 128, 128),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    },
    "sd2": {
        "block_out_channels": (32, 64, 128, 128),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "use_linear_projection": True,
        "attention_head_dim": (2, 4, 8, 8),
    },
    "xl": {
        "block_out_channels": (32, 64, 128),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 1, 2),
        "attention_head_dim": (2, 4, 8),
    },
}
ADAPTERS: dict[str, dict[str, Any]] = {
    "full": {"adapter_type": "full_adapter", "channels": [32, 64, 128, 128], "downscale_factor": 4},
    "light": {"adapter_type": "light_adapter", "channels": [32, 64, 128], "downscale_factor": 4},
    "xl": {"adapter_type": "full_adapter_xl", "channels": [32, 64, 128, 128], "downscale_factor": 8},
}


def make_adapter(kind: str, seed: int = 0, **options: Any) -> Any:
    """diffusers' T2IAdapter, whose features are as large as what they are added to."""
    import diffusers
    import torch

    torch.manual_seed(seed)
    made = diffusers.T2IAdapter(**{**ADAPTERS[kind], **options})
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if name.endswith(("block2.weight", "out_conv.weight", "conv_in.weight")):
                weight.mul_(3.0)
    return made.eval()


def make_words_matter(unet: Any) -> None:
    """As in the checkpoint whose UNet it replaces."""
    import torch

    with torch.no_grad():
        unet.conv_out.weight *= 2.5
        for name, weight in unet.named_parameters():
            if name.endswith("attn2.to_v.weight"):
                weight *= 2.0


@pytest.fixture(scope="session")
def deep(request, _tiny, export_once) -> Callable[[str], tuple[Path, Path]]:
    """By the name of a UNet: a checkpoint that has it in the place of a smaller one, and its bundle."""
    import torch
    from diffusers import UNet2DConditionModel

    def made(base: str) -> tuple[Path, Path]:
        plain = request.getfixturevalue("xl_checkpoint" if base == "xl" else "tiny_checkpoint")
        folder = plain.with_name(f"deep-{base}")
        with filelock.FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                    copy = Path(shutil.copytree(plain, Path(scratch) / folder.name))
                    config = json.loads((copy / "unet/config.json").read_text())
                    torch.manual_seed(4)
                    unet = UNet2DConditionModel.from_config({**config, **UNETS[base]})
                    make_words_matter(unet)
                    shutil.rmtree(copy / "unet")
                    unet.save_pretrained(copy / "unet")
                    if base == "sd2":
                        path = copy / "scheduler/scheduler_config.json"
                        path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "v_prediction"}))
                    copy.rename(folder)
        return folder, export_once(f"deep-{base}-bundle", folder, precision="fp32")

    return made


@pytest.fixture(scope="session")
def adapter(_tiny) -> Callable[..., tuple[Path, Path]]:
    """By its kind: the checkpoint of a T2I-Adapter, and its bundle in a precision."""

    def made(kind: str = "full", seed: int = 0, precision: str = "fp32", **options: Any) -> tuple[Path, Path]:
        words = "".join(f"-{name}-{value}" for name, value in options.items())
        folder = _tiny / f"t2i-{kind}-{seed}{words}"
        with filelock.FileLock(folder.with_name(f"{folder.name}.lock")):
            if not folder.is_dir():
                with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                    make_adapter(kind, seed, **options).save_pretrained(Path(scratch) / folder.name)
                    (Path(scratch) / folder.name).rename(folder)
        bundle = folder.with_name(f"{folder.name}-{precision}")
        with filelock.FileLock(folder.with_name(f"{bundle.name}.lock")):
            if not bundle.is_dir():
                from tintype.export import export_bundle

                export_bundle(folder, bundle, precision=precision)
        return folder, bundle

    return made
