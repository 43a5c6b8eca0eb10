"""A ControlNet as it is published: a diffusers folder, or one .safetensors file by LDM's names or diffusers'.

A file has no config: it is made from its shapes. What shapes don't tell are the widths of heads, which are those of
Stable Diffusion 1.x, 2.x and XL, and whether it gives one number for the whole picture, as those called `shuffle` do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tintype.errors import ExportError
from tintype.export.checkpoint import Checkpoint
from tintype.export.sources.control_lora import is_control_lora, lora_entries, open_base, stated_shapes
from tintype.export.sources.entries import Entries, Entry
from tintype.export.sources.ldm_unet import (
    GROUPS,
    HEAD_SIZE,
    HEADS_OF_SD1,
    Shape,
    demand_shape,
    levels,
    renamed,
)
from tintype.export.sources.source import BASE, CheckpointSource
from tintype.sources.families import MAX_CONFIG_NUMBER, MAX_LAYERS, MAX_LEVELS, Family
from tintype.sources.folder import CONFIG, INDEX, find_weights, is_controlnet_config, read_config
from tintype.sources.header import Header, broken, read_header
from tintype.sources.ldm import MIDDLE
from tintype.sources.licence import licence_of, origin_of, read_licence
from tintype.uses import CONTROLNET

CLASS = "ControlNetModel"
FAMILY = Family(CONTROLNET, "ControlNet", (), {CONTROLNET: CLASS})
WORDS_OF_SD1 = 768  # the width of its words
PREFIX = "control_model."  # of LDM's names, in files that were cut out of a whole checkpoint
_HINT, _CONDITION = "input_hint_block.0.weight", "controlnet_cond_embedding.conv_in.weight"
_AROUND = {"middle_block_out.0": "controlnet_mid_block"}
_HINT_ENDS = {0: "conv_in", 14: "conv_out"}  # of the layers that look at the picture; every other one is a SiLU
# Options that need inputs or layers which no traced graph has.
_UNSUPPORTED = ("class_embed_type", "encoder_hid_dim_type", "num_class_embeds")
_WHOLE = ("in_channels", "conditioning_channels", "cross_attention_dim")


def is_controlnet(place: Path) -> bool:
    """Whether a place holds a ControlNet, of whatever kind. Raises ExportError for a file that can't be read."""
    if place.is_dir():
        config = place / CONFIG
        return not (place / INDEX).is_file() and config.is_file() and is_controlnet_config(read_config(config))
    if not place.is_file():
        return False
    names = read_header(place).tensors
    return any(name in names for name in (_HINT, PREFIX + _HINT, _CONDITION))


def open_controlnet_checkpoint(place: Path, base: Path | None = None) -> Checkpoint:
    """Look at a ControlNet; no weight is read. Raises ExportError for what can't be exported, by name.

    base: of a ControlLoRA, the checkpoint to whose UNet it adds.
    """
    opened = _open_folder(place) if place.is_dir() else _open_file(place, base)
    if base is not None and opened.base is None:
        raise ExportError(f"--base is given, and {place} is a whole ControlNet", fix="leave --base out")
    _check_config(place, opened.configs[CONTROLNET])
    return Checkpoint(FAMILY, opened)


def _open_folder(folder: Path) -> CheckpointSource:
    config = read_config(folder / CONFIG)
    return CheckpointSource(
        location=folder,
        index={},
        configs={CONTROLNET: config},
        weights={CONTROLNET: find_weights(folder)},
        tokenizers={},
        licence=read_licence(folder),
    )


def _open_file(path: Path, base: Path | None) -> CheckpointSource:
    header = read_header(path)
    weights: dict[str, tuple[Path, ...]] = {CONTROLNET: (path,)}
    told: Mapping[str, Any] = {}
    if is_control_lora(header.tensors):
        unet = open_base(path, base)
        shapes = stated_shapes(header)
        entries = lora_entries(header, shapes, _names(path, shapes), unet)
        weights[BASE], told = unet.paths, unet.config
    else:
        base, entries = None, _entries(header)
    config = {**_config(path, {name: entry.shape for name, entry in entries.items()}), **told}
    assumed: tuple[str, ...] = ()
    if "shuffle" in path.stem.lower():
        config["global_pool_conditions"] = True
        assumed = ("it gives one number a channel for the whole picture, as its name says",)
    return CheckpointSource(
        location=path,
        index={},
        configs={CONTROLNET: config},
        weights=weights,
        entries={CONTROLNET: entries},
        tokenizers={},
        licence=licence_of(header.metadata),
        origin=origin_of(header.metadata),
        base=base,
        assumed=assumed,
    )


def _entries(header: Header) -> Entries:
    """Where each tensor lies, by the name that diffusers has for it."""
    if _CONDITION in header.tensors:
        return {name: Entry.of(header, name) for name in header.tensors}
    prefix = PREFIX if PREFIX + _HINT in header.tensors else ""
    shapes = {name: facts.shape for name, facts in header.under(prefix).items()}
    return {new: Entry.of(header, prefix + old) for old, new in _names(header.path, shapes).items()}


def _names(path: Path, shapes: Mapping[str, Shape]) -> dict[str, str]:
    """diffusers' name of each tensor by LDM's."""
    places = {old: f"mid_block.{new}" for old, new in MIDDLE.items()}
    for level in levels(path, shapes, "input_blocks"):
        places.update(level.places)
    names = {old: _name(old, places) for old in shapes}
    first = {new: old for old, new in reversed(names.items())}
    for old, new in names.items():
        if first[new] != old:
            raise broken(path, f"{old} and {first[new]} are the same tensor")
    return names


def _name(old: str, places: Mapping[str, str]) -> str:
    module, _, end = old.rpartition(".")
    if module in _AROUND:
        return f"{_AROUND[module]}.{end}"
    if zero := re.fullmatch(r"zero_convs\.(\d{1,3})\.0", module, re.ASCII):
        return f"controlnet_down_blocks.{zero[1]}.{end}"
    if hint := re.fullmatch(r"input_hint_block\.(\d{1,3})", module, re.ASCII):
        number = int(hint[1])
        part = _HINT_ENDS.get(number) or f"blocks.{number // 2 - 1}"
        return f"controlnet_cond_embedding.{part}.{end}"
    return renamed(old, places)


def _config(path: Path, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """config.json of ControlNetModel, by diffusers' names and shapes."""
    widths, depths, layers = list[int](), list[int](), list[int]()
    while (first := f"down_blocks.{len(widths)}.resnets.0.conv1.weight") in shapes:
        level = f"down_blocks.{len(widths)}"
        widths.append(demand_shape(path, shapes, first, 4)[0])
        layers.append(_count(shapes, f"{level}.resnets"))
        depths.append(_count(shapes, f"{level}.attentions.0.transformer_blocks"))
    if not widths:
        raise broken(path, "it has no down_blocks")
    words = sorted({shape[-1] for name, shape in shapes.items() if name.endswith(".attn2.to_k.weight")})
    if len(words) != 1:
        raise broken(path, f"it reads words of {len(words)} widths ({words[:4]})")
    middle = _count(shapes, "mid_block.attentions.0.transformer_blocks")
    condition = [demand_shape(path, shapes, _CONDITION, 4)[0]]
    while (wider := f"controlnet_cond_embedding.blocks.{2 * len(condition) - 1}.weight") in shapes:
        condition.append(demand_shape(path, shapes, wider, 4)[0])
    proj = [len(shape) for name, shape in shapes.items() if name.endswith(".proj_in.weight")]
    return {
        "_class_name": CLASS,
        "act_fn": "silu",
        "attention_head_dim": HEADS_OF_SD1 if words == [WORDS_OF_SD1] else [max(1, w // HEAD_SIZE) for w in widths],
        "block_out_channels": widths,
        "conditioning_channels": demand_shape(path, shapes, _CONDITION, 4)[1],
        "conditioning_embedding_out_channels": condition,
        "cross_attention_dim": words[0],
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "in_channels": demand_shape(path, shapes, "conv_in.weight", 4)[1],
        "layers_per_block": layers[0],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if middle else "UNetMidBlock2D",
        "norm_num_groups": GROUPS,
        "transformer_layers_per_block": [*(depth or 1 for depth in depths[:-1]), depths[-1] or middle or 1],
        "use_linear_projection": 2 in proj,
        **_added(path, shapes),
    }


def _added(path: Path, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """What XL's are told beside words: the prompt as a whole, in 1,280 numbers, and six sizes."""
    if "add_embedding.linear_1.weight" not in shapes:
        return {}
    added = demand_shape(path, shapes, "add_embedding.linear_1.weight", 2)[1]
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": max(0, added - 1280) // 6,
        "projection_class_embeddings_input_dim": added,
    }


def _count(shapes: Mapping[str, Shape], place: str) -> int:
    inner = re.compile(re.escape(f"{place}.") + r"(\d{1,3})\.", re.ASCII)
    return len({found[1] for name in shapes if (found := inner.match(name))})


def _check_config(place: Path, config: Mapping[str, Any]) -> None:
    """ExportError for a ControlNet of another kind, and for a config that makes no sense."""
    kind = config.get("_class_name")
    if kind != CLASS:
        raise ExportError(f"{place} is a {kind}, which can't be exported", fix=f"give a {CLASS} of diffusers'")
    for name in _UNSUPPORTED:
        if config.get(name) is not None:
            raise ExportError(f"{place} has {name} {config[name]!r}, which isn't supported", fix="give another one")
    for name in _WHOLE:
        value = config.get(name, 1)
        if type(value) is not int or not 0 < value <= MAX_CONFIG_NUMBER:
            raise ExportError(f"{name} in {place} is {value!r}", fix="download its config.json again")
    if config.get("conditioning_channels", 3) != 3:
        raise ExportError(f"{place} takes no RGB picture", fix="give a ControlNet of pictures in colour")
    if config.get("addition_embed_type") not in (None, "text_time"):
        raise ExportError(
            f"{place} has addition_embed_type {config['addition_embed_type']!r}, which isn't supported",
            fix="give one for Stable Diffusion 1.x, 2.x or XL",
        )
    for name, most in (("block_out_channels", MAX_LEVELS), ("conditioning_embedding_out_channels", MAX_LEVELS)):
        value = config.get(name)
        sound = isinstance(value, list | tuple) and 0 < len(value) <= most
        if value is not None and not (sound and all(type(n) is int and 0 < n <= MAX_CONFIG_NUMBER for n in value)):
            raise ExportError(f"{name} in {place} is {str(value)[:60]}", fix="download its config.json again")
    deep = config.get("transformer_layers_per_block", 1)
    for value in (config.get("layers_per_block", 2), *(deep if isinstance(deep, list | tuple) else (deep,))):
        if type(value) is not int or not 0 < value <= MAX_LAYERS:
            raise ExportError(f"{place} has {str(value)[:60]} layers", fix="download its config.json again")
