"""The VAE, in latent-diffusion's names or in those of diffusers: its config from its shapes, and diffusers' names.

LDM numbers the decoder's levels from the latents' end of the encoder, so its last is diffusers' first; its attention is
convolutions of one pixel. The modules are those of model.py in CompVis/latent-diffusion. Older folders of diffusers say
query, key, value and proj_attn.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tintype.export.sources.entries import Entry
from tintype.export.sources.ldm_unet import GROUPS, demand_shape
from tintype.sources.header import Header, broken

Shape = tuple[int, ...]

MAX_LEVELS = 16  # as of any autoencoder that is exported
# Beside the model in a file: its training's own, and averages.
_REDUNDANT = ("loss.", "model_ema.", "ema.")
_OF_ATTENTION = {
    "norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0",
    "query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0",
}  # fmt: skip


def vae_entries(header: Header, prefix: str = "") -> dict[str, Entry]:
    """By diffusers' names, the tensors that a file has of a VAE under a prefix."""
    names = [name for name in header.under(prefix) if not name.startswith(_REDUNDANT)]
    levels = _levels(names, r"decoder\.up\.(\d{1,2})\.")
    found: dict[str, Entry] = {}
    for name in names:
        new = vae_name(name, levels)
        if new in found:
            raise broken(header.path, f"{prefix}{name} and {found[new].name} are the same tensor")
        entry = Entry.of(header, prefix + name)
        found[new] = entry.squeezed() if ".attentions." in new else entry
    return found


def vae_name(name: str, levels: int) -> str:
    """diffusers' name of a tensor; levels: of the decoder, where names are LDM's."""
    name = re.sub(r"^encoder\.down\.(\d+)\.", r"encoder.down_blocks.\1.", name)
    up = re.match(r"decoder\.up\.(\d{1,2})\.(.*)", name, re.ASCII | re.DOTALL)
    if up:
        name = f"decoder.up_blocks.{levels - 1 - int(up[1])}.{up[2]}"
    name = name.replace(".block.", ".resnets.").replace(".nin_shortcut.", ".conv_shortcut.")
    name = name.replace(".downsample.conv.", ".downsamplers.0.conv.").replace(".upsample.conv.", ".upsamplers.0.conv.")
    name = name.replace(".mid.block_1.", ".mid_block.resnets.0.").replace(".mid.block_2.", ".mid_block.resnets.1.")
    name = name.replace(".mid.attn_1.", ".mid_block.attentions.0.")
    name = re.sub(r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out.", name)
    attention = re.match(r"(.*\.attentions\.\d+)\.(\w+)\.(weight|bias)$", name, re.DOTALL)
    if attention and attention[2] in _OF_ATTENTION:
        name = f"{attention[1]}.{_OF_ATTENTION[attention[2]]}.{attention[3]}"
    return name


def vae_config(path: Path, entries: Mapping[str, Entry], *, scaling_factor: float, is_xl: bool) -> dict[str, Any]:
    """config.json of AutoencoderKL for tensors by diffusers' names. Raises ExportError where shapes make none."""
    shapes = {name: entry.shape for name, entry in entries.items()}
    levels = _levels(shapes, r"encoder\.down_blocks\.(\d{1,2})\.")
    if not 1 <= levels <= MAX_LEVELS:
        raise broken(path, f"its VAE has {levels} levels")
    widths = [
        demand_shape(path, shapes, f"encoder.down_blocks.{level}.resnets.0.conv1.weight", 4)[0]
        for level in range(levels)
    ]
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "force_upcast": is_xl,
        "in_channels": demand_shape(path, shapes, "encoder.conv_in.weight", 4)[1],
        "latent_channels": demand_shape(path, shapes, "decoder.conv_in.weight", 4)[1],
        "layers_per_block": _levels(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d{1,2})\."),
        "mid_block_add_attention": any(".attentions." in name for name in shapes),
        "norm_num_groups": GROUPS,
        "out_channels": demand_shape(path, shapes, "decoder.conv_out.weight", 4)[0],
        "sample_size": 1024 if is_xl else 512,
        "scaling_factor": scaling_factor,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "use_quant_conv": "quant_conv.weight" in shapes,
    }


def _levels(names: Iterable[str], pattern: str) -> int:
    """One more than the highest number that a pattern finds in names."""
    numbers = [int(found[1]) for name in names if (found := re.match(pattern, name, re.ASCII))]
    return max(numbers, default=-1) + 1
