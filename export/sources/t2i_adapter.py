"""A T2I-Adapter as it is published: a diffusers folder, or one .safetensors file by its authors' names or diffusers'.

A file has no config: it is made from its shapes. What they don't tell is the kind for XL, which reads pictures by 16
pixels where others read them by 8, and how many layers a level has where all levels are equally wide.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tintype.errors import ExportError
from tintype.export.checkpoint import Checkpoint
from tintype.export.sources.entries import Entries, Entry
from tintype.export.sources.ldm_unet import Shape, demand_shape
from tintype.export.sources.source import CheckpointSource
from tintype.sources.families import MAX_CONFIG_NUMBER, MAX_LAYERS, MAX_LEVELS, Family
from tintype.sources.folder import CONFIG, INDEX, find_weights, is_adapter_config, read_config
from tintype.sources.header import Header, broken, read_header
from tintype.sources.licence import licence_of, origin_of, read_licence
from tintype.uses import T2I_ADAPTER

CLASS = "T2IAdapter"
FAMILY = Family(T2I_ADAPTER, "T2I-Adapter", (), {T2I_ADAPTER: CLASS})
FULL, FULL_XL, LIGHT = "full_adapter", "full_adapter_xl", "light_adapter"
XL_CELL = 16  # pixels, each side, that the kind for XL reads as one
USUAL_LAYERS = 2  # of a level, in those that are published
MAX_CELL = 64
PREFIX = "adapter."  # of diffusers' names
# What each kind begins with, by its authors' names and behind diffusers' prefix.
_FIRST = {FULL: "body.0.block1.weight", LIGHT: "body.0.body.0.block1.weight"}
_FIRST_RENAMED = "body.0.resnets.0.block1.weight"
_LAYER = re.compile(r"body\.(\d{1,3})\.(block[12]|in_conv)\.(weight|bias)", re.ASCII)


def is_t2i_adapter(place: Path) -> bool:
    """Whether a place holds a T2I-Adapter. Raises ExportError for a file that can't be read."""
    if place.is_dir():
        config = place / CONFIG
        return not (place / INDEX).is_file() and config.is_file() and is_adapter_config(read_config(config))
    if not place.is_file():
        return False
    names = read_header(place).tensors
    return any(name in names for name in (*_FIRST.values(), PREFIX + _FIRST_RENAMED))


def open_adapter_checkpoint(place: Path) -> Checkpoint:
    """Look at a T2I-Adapter; no weight is read. Raises ExportError for what can't be exported, by name."""
    opened = _open_folder(place) if place.is_dir() else _open_file(place)
    _check_config(place, opened.configs[T2I_ADAPTER])
    return Checkpoint(FAMILY, opened)


def _open_folder(folder: Path) -> CheckpointSource:
    return CheckpointSource(
        location=folder,
        index={},
        configs={T2I_ADAPTER: read_config(folder / CONFIG)},
        weights={T2I_ADAPTER: find_weights(folder)},
        tokenizers={},
        licence=read_licence(folder),
    )


def _open_file(path: Path) -> CheckpointSource:
    header = read_header(path)
    entries = _entries(header)
    config = _config(path, {name: entry.shape for name, entry in entries.items()})
    assumed = (f"it is for Stable Diffusion XL, as it reads pictures by {XL_CELL} pixels",)
    return CheckpointSource(
        location=path,
        index={},
        configs={T2I_ADAPTER: config},
        weights={T2I_ADAPTER: (path,)},
        entries={T2I_ADAPTER: entries},
        tokenizers={},
        licence=licence_of(header.metadata),
        origin=origin_of(header.metadata),
        assumed=assumed if config["adapter_type"] == FULL_XL else (),
    )


def _entries(header: Header) -> Entries:
    """Where each tensor lies, by the name that diffusers has for it."""
    if PREFIX + _FIRST_RENAMED in header.tensors:
        return {name: Entry.of(header, name) for name in header.tensors}
    layers = _layers(header) if _FIRST[FULL] in header.tensors else 0
    found: dict[str, Entry] = {}
    for old in header.tensors:
        new = _name(old, layers)
        if new in found:
            raise broken(header.path, f"{old} and {found[new].name} are the same tensor")
        found[new] = Entry.of(header, old)
    return found


def _layers(header: Header) -> int:
    """Of a level, of those that are numbered through: the second level widens what it takes."""
    widens = (number for number in range(1, MAX_LAYERS + 1) if f"body.{number}.in_conv.weight" in header.tensors)
    return next(widens, USUAL_LAYERS)


def _name(old: str, layers: int) -> str:
    """layers: of each level; 0 where the levels have numbers of their own."""
    if not layers:
        return PREFIX + re.sub(r"^(body\.\d{1,3}\.)body\.", r"\1resnets.", old, count=1, flags=re.ASCII)
    layer = _LAYER.fullmatch(old)
    if layer is None:
        return PREFIX + old
    level, place = divmod(int(layer[1]), layers)
    inner = layer[2] if layer[2] == "in_conv" and place == 0 else f"resnets.{place}.{layer[2]}"
    return f"{PREFIX}body.{level}.{inner}.{layer[3]}"


def _config(path: Path, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """config.json of T2IAdapter, by diffusers' names and shapes."""
    light = f"{PREFIX}body.0.out_conv.weight" in shapes
    count = 0
    while f"{PREFIX}body.{count}.resnets.0.block1.weight" in shapes:
        count += 1
    last = "out_conv" if light else "resnets.0.block2"
    widths = [demand_shape(path, shapes, f"{PREFIX}body.{level}.{last}.weight", 4)[0] for level in range(count)]
    first = f"{PREFIX}body.0.in_conv.weight" if light else f"{PREFIX}conv_in.weight"
    channels, cell = _picture(path, demand_shape(path, shapes, first, 4)[1])
    inner = re.compile(re.escape(f"{PREFIX}body.0.resnets.") + r"(\d{1,3})\.", re.ASCII)
    if not widths or (light and len(widths) < 2):
        raise broken(path, f"it has {len(widths)} levels")
    return {
        "_class_name": CLASS,
        "adapter_type": LIGHT if light else FULL_XL if cell == XL_CELL else FULL,
        "channels": widths[:-1] if light else widths,  # of whose last one the light kind has a level more
        "downscale_factor": cell,
        "in_channels": channels,
        "num_res_blocks": len({found[1] for name in shapes if (found := inner.match(name))}),
    }


def _picture(path: Path, numbers: int) -> tuple[int, int]:
    """Channels of its picture, and pixels, each side, that it reads as one. numbers: of such a piece."""
    for channels in (3, 1):
        cell = math.isqrt(numbers // channels)
        if channels * cell * cell == numbers and cell > 0:
            return channels, cell
    raise broken(path, f"it reads {numbers} numbers at once, which are no square of pixels, in colour or grey")


def _check_config(place: Path, config: Mapping[str, Any]) -> None:
    """ExportError for an adapter of another kind, and for a config that makes no sense."""
    kind = config.get("adapter_type", FULL)
    if kind not in (FULL, FULL_XL, LIGHT):
        raise ExportError(
            f"{place} has adapter_type {str(kind)[:60]!r}, which isn't supported",
            fix=f"give one of {FULL}, {FULL_XL} or {LIGHT}",
        )
    if type(config.get("in_channels", 3)) is not int or config.get("in_channels", 3) not in (1, 3):
        raise ExportError(
            f"{place} takes pictures of {str(config['in_channels'])[:60]} channels",
            fix="give a T2I-Adapter of pictures in colour, or of grey ones",
        )
    widths = config.get("channels", [320, 640, 1280, 1280])
    sound = isinstance(widths, list | tuple) and 0 < len(widths) <= MAX_LEVELS
    if not (sound and all(type(each) is int and 0 < each <= MAX_CONFIG_NUMBER for each in widths)):
        raise ExportError(f"channels in {place} is {str(widths)[:60]}", fix="download its config.json again")
    for name, usual, most in (("num_res_blocks", 2, MAX_LAYERS), ("downscale_factor", 8, MAX_CELL)):
        value = config.get(name, usual)
        if type(value) is not int or not 0 < value <= most:
            raise ExportError(f"{name} in {place} is {str(value)[:60]}", fix="download its config.json again")
