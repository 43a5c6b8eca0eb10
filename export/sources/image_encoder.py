"""An image encoder as it is published: the folder of transformers' CLIPVisionModelWithProjection."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tintype.errors import ExportError
from tintype.export.sources.source import CheckpointSource
from tintype.sources.families import MAX_CONFIG_NUMBER, MAX_LAYERS, Family
from tintype.sources.folder import CONFIG, IMAGE_ENCODER_CLASS, PREPROCESSOR, find_weights, read_config
from tintype.sources.licence import read_licence
from tintype.uses import IMAGE_ENCODER

FAMILY = Family(IMAGE_ENCODER, "image encoder", (), {IMAGE_ENCODER: IMAGE_ENCODER_CLASS})
REDUNDANT = ("vision_model.embeddings.position_ids", "logit_scale")  # of older files; no weights
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_ACTIVATIONS = ("quick_gelu", "gelu")
# CLIPVisionConfig's own, where a config is mute.
_USUAL = {
    "hidden_size": 768, "intermediate_size": 3072, "projection_dim": 512, "num_hidden_layers": 12,
    "num_attention_heads": 12, "image_size": 224, "patch_size": 32, "num_channels": 3,
}  # fmt: skip


def open_image_encoder_source(folder: Path) -> CheckpointSource:
    """Look at an image encoder's folder; no weight is read. Raises ExportError for what can't be exported, by name."""
    config = read_config(folder / CONFIG)
    sizes = sizes_of(config)
    for name, value in sizes.items():
        most = MAX_LAYERS if name == "num_hidden_layers" else MAX_CONFIG_NUMBER
        if type(value) is not int or not 0 < value <= most:
            raise ExportError(f"{name} in {folder} is {str(value)[:60]}", fix="download its config.json again")
    if sizes["num_hidden_layers"] < 2:
        raise ExportError(
            f"{folder} has one layer, and adapters look behind the last but one", fix="give another encoder"
        )
    if sizes["num_channels"] != 3 or sizes["image_size"] < sizes["patch_size"]:
        raise ExportError(f"{folder} takes no RGB picture of whole patches", fix="give CLIP's image encoder")
    if sizes["hidden_size"] % sizes["num_attention_heads"]:
        raise ExportError(f"the heads in {folder} don't share its width", fix="download its config.json again")
    if config.get("hidden_act", _ACTIVATIONS[0]) not in _ACTIVATIONS:
        raise ExportError(
            f"{folder} has hidden_act {str(config['hidden_act'])[:40]!r}, which isn't done here",
            fix=f"give an encoder with {' or '.join(_ACTIVATIONS)}",
        )
    return CheckpointSource(
        location=folder,
        index={},
        configs={IMAGE_ENCODER: config},
        weights={IMAGE_ENCODER: find_weights(folder, IMAGE_ENCODER)},
        tokenizers={},
        licence=read_licence(folder),
    )


def sizes_of(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: config.get(name, usual) for name, usual in _USUAL.items()}


def mean_and_std(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What is taken off red, green and blue, and what they are divided by; CLIP's where the folder doesn't say."""
    path = folder / PREPROCESSOR
    known = read_config(path) if path.is_file() else {}
    found = []
    for name, usual in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD)):
        value = known.get(name, usual)
        sound = isinstance(value, list | tuple) and len(value) == 3
        if not sound or any(isinstance(n, bool) or not isinstance(n, int | float) or not 0 <= n <= 1 for n in value):
            raise ExportError(f"{name} in {path} is {str(value)[:60]}", fix="download that file again")
        found.append(tuple(map(float, value)))
    return found[0], found[1]
