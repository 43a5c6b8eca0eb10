"""A ControlLoRA: what makes a ControlNet of the UNet of a model that the user names beside it.

One .safetensors file in latent-diffusion's naming, marked by a tensor `lora_controlnet`, as Stability AI publishes
them. `x.up` and `x.down` are factors of what is added to the UNet's `x.weight`; every other tensor stands in place of
the UNet's, or beside it; of what the file doesn't name the UNet's own stands.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tintype.errors import ExportError
from tintype.export.sources.entries import Entries, Entry, Product
from tintype.export.sources.folder import folder_entries
from tintype.export.sources.ldm_unet import Shape
from tintype.export.sources.one_file import open_unet
from tintype.sources.folder import CONFIG, INDEX, find_weights, read_config
from tintype.sources.header import Header, broken, read_header

MARK = "lora_controlnet"
UP, DOWN = ".up", ".down"
_SHARED = ("conv_in.", "time_embedding.", "add_embedding.", "down_blocks.", "mid_block.")  # of both kinds of models
# What a config says that shapes don't tell.
_KEPT = (
    "attention_head_dim", "num_attention_heads", "norm_num_groups", "flip_sin_to_cos", "freq_shift",
    "addition_time_embed_dim",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class BaseUNet:
    """The UNet that a ControlLoRA adds to: its files, where its tensors lie, and what only its config tells."""

    paths: tuple[Path, ...]
    entries: Entries
    config: Mapping[str, Any]


def is_control_lora(names: Iterable[str]) -> bool:
    return MARK in names


def open_base(path: Path, base: Path | None) -> BaseUNet:
    """The UNet of a checkpoint, be it a folder of diffusers, such a folder's unet/, or one file.

    path: the ControlLoRA's, for messages. Raises ExportError.
    """
    if base is None:
        raise ExportError(
            f"{path} is a ControlLoRA, which adds to a model's UNet",
            fix="give the checkpoint that it was made for: --base FOLDER, or --base FILE.safetensors",
        )
    if not base.exists():
        raise ExportError(f"there is no checkpoint at {str(base)!r}", fix="check the path that --base gives")
    if base.is_file():
        return BaseUNet((base,), open_unet(read_header(base)), {})
    folder = base / "unet" if (base / INDEX).is_file() else base
    config, paths = read_config(folder / CONFIG), find_weights(folder)
    known = {name: config[name] for name in _KEPT if config.get(name) is not None}
    return BaseUNet(paths, folder_entries(paths, "unet"), known)


def stated_shapes(header: Header) -> dict[str, Shape]:
    """The tensors that a file stands for, by LDM's names: of factors the shape of their product.

    Raises ExportError for a factor without the other, and for factors that don't fit together.
    """
    found: dict[str, Shape] = {}
    for name, facts in header.tensors.items():
        if name == MARK:
            continue
        if not name.endswith((UP, DOWN)):
            found[name] = facts.shape
            continue
        module = name.removesuffix(UP).removesuffix(DOWN)
        up, down = (header.tensors.get(module + end) for end in (UP, DOWN))
        if up is None or down is None:
            raise broken(header.path, f"{module} has one factor and not the other")
        if len(up.shape) < 2 or len(down.shape) < 2 or up.size != up.shape[0] * down.shape[0]:
            raise broken(header.path, f"the factors of {module} are {up.shape} and {down.shape}")
        found[f"{module}.weight"] = (up.shape[0], *down.shape[1:])
    return found


def lora_entries(header: Header, shapes: Mapping[str, Shape], names: Mapping[str, str], base: BaseUNet) -> Entries:
    """Where each tensor of the ControlNet lies. shapes: of `stated_shapes`. names: diffusers' by those of LDM.

    Raises ExportError where the file is for another UNet.
    """
    found = {name: entry for name, entry in base.entries.items() if name.startswith(_SHARED)}
    for old, shape in shapes.items():
        new, module = names[old], old.removesuffix(".weight")
        if old in header.tensors:
            whole = Entry.of(header, old)
            inner = found.get(new)
            fits = inner is not None and math.prod(shape) == inner.size
            found[new] = replace(whole, shape=inner.shape) if fits and inner is not None else whole
            continue
        if new not in found or found[new].size != math.prod(shape) or found[new].shape[0] != shape[0]:
            held = f"{found[new].shape}" if new in found else "not there"
            raise ExportError(
                f"{header.path} adds {shape} to {new}, which is {held} in the model of --base",
                fix="give the checkpoint that the ControlLoRA was made for",
            )
        found[new] = replace(found[new], added=Product(header.path, module + UP, module + DOWN))
    return found
