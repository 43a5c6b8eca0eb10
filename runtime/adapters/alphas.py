"""A LoRA's alphas where no tensor says them: in the metadata that diffusers writes since 0.34, or in PEFT's own config.

PEFT's file (Mangrulkar et al. 2022) is of one model alone, which its folder is called after: unet, text_encoder,
text_encoder_2. Its alphas lie in adapter_config.json beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tintype import strict_json
from tintype.adapters.names import PEFT, TEXT_ENCODER, TEXT_ENCODER_2
from tintype.bounds import MAX_CONFIG_BYTES
from tintype.errors import LoraError
from tintype.files import read_plain
from tintype.sources.header import Header

CONFIG = "adapter_config.json"
MOST = 1e6  # of an alpha; usual ones are about as large as the rank
_SAVE = "put the adapter_config.json there that it was published with, or save it by diffusers: save_lora_weights(...)"
_TEXT = ("text_model.", "encoder.layers.")  # what a text encoder's layers begin with


def read_config(path: Path) -> bytes:
    """The config beside a file of PEFT's own. Raises LoraError."""
    try:
        return read_plain(path.with_name(CONFIG), MAX_CONFIG_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LoraError(
            f"{path} is in PEFT's own form, whose alphas lie in {CONFIG} beside it, which cannot be read: {reason}",
            fix=_SAVE,
        ) from None


def layer_of(path: Path, name: str) -> str:
    """A layer's name with the part of the model that it is of, where the file is PEFT's own; else as it is."""
    if not name.startswith(PEFT):
        return name
    rest = name.removeprefix(PEFT)
    if not rest.startswith(_TEXT):
        return f"unet.{rest}"
    folder = path.absolute().parent.name
    return f"{TEXT_ENCODER_2 if folder == TEXT_ENCODER_2 else TEXT_ENCODER}.{rest}"


def told_alphas(
    path: Path, header: Header, layers: Mapping[str, Mapping[str, str]], config: bytes | None
) -> dict[str, float]:
    """By layer its alpha. layers: by name the tensors' names by part. config: PEFT's, of its own files.

    Raises LoraError.
    """
    text = header.metadata.get("lora_adapter_metadata") if config is None else config
    if text is None:
        return {}
    where = f"in the metadata of {path}" if config is None else f"in {path.with_name(CONFIG)}"
    try:
        told = strict_json.parse(text)
    except (strict_json.Misfit, ValueError) as misfit:
        raise LoraError(f"{where}, {misfit}", fix="download the file again, or take another LoRA") from None
    if not isinstance(told, dict):
        raise LoraError(f"{where} there is no object", fix="download the file again, or take another LoRA")
    found = {}
    for name, parts in layers.items():
        part, _, rest = name.partition(".")
        rank = header.tensors[parts["down"]].shape[0] if "down" in parts else None
        alpha = _alpha(told, "" if config is not None else f"{part}.", rest, rank)
        if alpha is not None:
            found[name] = alpha
        elif config is not None:
            raise LoraError(f"{where}, lora_alpha is no number", fix=_SAVE)
    return found


def _alpha(told: Mapping[str, Any], start: str, layer: str, rank: int | None) -> float | None:
    """Of a layer; with rsLoRA (Kalajdzievski 2023) it counts by the root of the rank, and is so much larger here."""
    alpha = _number(told, f"{start}lora_alpha")
    patterns = told.get(f"{start}alpha_pattern")
    for ending in patterns if isinstance(patterns, dict) else ():
        if layer == ending or layer.endswith(f".{ending}"):
            alpha = _number(patterns, ending)
    if alpha is not None and rank and told.get(f"{start}use_rslora") is True:
        alpha *= math.sqrt(rank)
    return alpha


def _number(told: Any, key: str) -> float | None:
    value = told.get(key) if isinstance(told, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MOST:
        return None
    return float(value)
