"""ControlNets with random weights for the tests' checkpoints, in folders and in one file by LDM's names.

A new one's last convolutions are zeros, so that it does nothing: here they are random, as large as trained ones.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
from PIL import Image, ImageDraw

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
AROUND = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "controlnet_mid_block": "middle_block_out.0", "controlnet_cond_embedding.conv_in": "input_hint_block.0",
    "controlnet_cond_embedding.conv_out": "input_hint_block.14",
}  # fmt: skip
MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}


def make_controlnet(unet_folder: Path, seed: int = 0, **options: Any) -> Any:
    """diffusers' ControlNetModel for a checkpoint's UNet, of pictures whose latents are a quarter of their sides."""
    import diffusers
    import torch

    config = json.loads((unet_folder / "config.json").read_text())
    names = (
        "in_channels", "block_out_channels", "layers_per_block", "down_block_types", "cross_attention_dim",
        "attention_head_dim", "norm_num_groups", "transformer_layers_per_block", "use_linear_projection",
        "addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim",
    )  # fmt: skip
    known = {name: config[name] for name in names if config.get(name) is not None}
    torch.manual_seed(seed)
    net = diffusers.ControlNetModel(**{**known, "conditioning_embedding_out_channels": (8, 16, 16), **options})
    return randomized(net)


def randomized(net: Any) -> Any:
    import torch

    with torch.no_grad():
        for name, weight in net.named_parameters():
            if name.startswith(("controlnet_down_blocks", "controlnet_mid_block")):
                weight.normal_(0.0, 0.15)
            elif name.startswith("controlnet_cond_embedding"):
                weight.mul_(3.0).add_(torch.randn_like(weight) * 0.05)
    return net.eval()


def drawing(width: int = 64, height: int = 64) -> Image.Image:
    """White lines on black."""
    image = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(image)
    draw.line((4, height - 10, width - 4, height // 3), fill="white", width=3)
    draw.ellipse((width // 4, 6, width // 2, height // 2), outline="white", width=2)
    return image


@pytest.fixture(scope="session")
def controlnet(request, _tiny):
    """By name, of an XL model or a plain one: the checkpoint of a ControlNet, and its bundle in a precision."""

    def made(base: str = "sd", seed: int = 0, precision: str = "fp32", **options: Any) -> tuple[Path, Path]:
        plain = request.getfixturevalue("tiny_checkpoint" if base == "sd" else "xl_checkpoint")
        words = "".join(f"-{name}" for name in options)
        folder = plain.with_name(f"controlnet-{base}-{seed}{words}")
        with filelock.FileLock(folder.with_name(f"{folder.name}.lock")):
            if not folder.is_dir():
                with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                    make_controlnet(plain / "unet", seed, **options).save_pretrained(Path(scratch) / folder.name)
                    (Path(scratch) / folder.name).rename(folder)
        bundle = folder.with_name(f"{folder.name}-{precision}")
        with filelock.FileLock(folder.with_name(f"{bundle.name}.lock")):
            if not bundle.is_dir():
                from tintype.export import export_bundle

                export_bundle(folder, bundle, precision=precision)
        return folder, bundle

    return made


def assert_differ(one: Any, other: Any) -> None:
    assert not np.array_equal(np.asarray(one), np.asarray(other))


def ldm_name(name: str, layers: int) -> str:
    """What LDM calls one of diffusers' tensors. layers: of resnets in each level."""
    module, _, end = name.rpartition(".")
    if module in AROUND:
        return f"{AROUND[module]}.{end}"
    words = module.split(".")
    if words[0] == "controlnet_down_blocks":
        return f"zero_convs.{words[1]}.0.{end}"
    if words[0] == "controlnet_cond_embedding":
        return f"input_hint_block.{2 * (int(words[2]) + 1)}.{end}"
    if words[0] == "mid_block":
        place, rest = f"middle_block.{MIDDLE['.'.join(words[1:3])]}", words[3:]
    else:
        first = 1 + int(words[1]) * (layers + 1)
        if words[2] == "downsamplers":
            return f"input_blocks.{first + layers}.0.op.{end}"
        place, rest = f"input_blocks.{first + int(words[3])}.{int(words[2] == 'attentions')}", words[4:]
    inner = RESNET.get(".".join(rest), ".".join(rest))
    return f"{place}.{inner}.{end}"


def saved(state, path):
    from safetensors.torch import save_file

    save_file({name: weight.contiguous() for name, weight in state.items()}, path)
    return path
