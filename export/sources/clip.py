"""Text encoders of one-file checkpoints: CLIP in the names of transformers, and in those of open_clip.

OpenCLIP keeps queries, keys and values in one matrix and its projection the other way round. Stable Diffusion 2 reads
its words off the last layer but one, so its last layer isn't taken, as in the published text_encoder/ of 23 layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tintype.export.sources.entries import Entry
from tintype.export.sources.ldm_unet import HEAD_SIZE, demand_shape
from tintype.sources.header import Header, broken

# What the published configs say of marks; with an end of 2 the end of a text is its highest id, as CLIP was trained.
_MARKS = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
_OPEN_CLIP = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}  # fmt: skip
_REDUNDANT = ("logit_scale", "attn_mask", "embeddings.position_ids")
_THIRDS = ("q_proj", "k_proj", "v_proj")


def clip_entries(header: Header, prefix: str) -> dict[str, Entry]:
    """Tensors in the names of transformers, with or without `text_model.` in front, by the names without."""
    found: dict[str, Entry] = {}
    for name in header.under(prefix):
        bare = name.removeprefix("text_model.")
        if bare in found:
            raise broken(header.path, f"{prefix}{name} and {found[bare].name} are the same tensor")
        if bare not in _REDUNDANT:
            found[bare] = Entry.of(header, prefix + name)
    return found


def open_clip_entries(header: Header, prefix: str, *, without_last: bool) -> dict[str, Entry]:
    """Tensors in the names of open_clip, by those of transformers. without_last: its last layer isn't used."""
    names = header.under(prefix)
    layer = re.compile(r"transformer\.resblocks\.(\d{1,3})\.(.+)", re.ASCII | re.DOTALL)
    found: dict[str, Entry] = {}
    last = max((int(place[1]) for name in names if (place := layer.match(name))), default=-1)
    for name in names:
        entry = Entry.of(header, prefix + name)
        place = layer.match(name)
        if place and not (without_last and int(place[1]) == last):
            found.update(_layer_entries(f"encoder.layers.{int(place[1])}", place[2], entry))
        elif name == "text_projection":
            found["text_projection.weight"] = entry.transpose()
        elif not place and name not in _REDUNDANT:
            found[_OPEN_CLIP.get(name, name)] = entry
    return found


def clip_config(path: Path, entries: Mapping[str, Entry], *, kind: str, is_open: bool) -> dict[str, Any]:
    """config.json of a class (kind) for tensors by the names of transformers. ExportError where shapes make none."""
    shapes = {name: entry.shape for name, entry in entries.items()}
    tokens, width = demand_shape(path, shapes, "embeddings.token_embedding.weight", 2)
    layers = {name.split(".")[2] for name in shapes if name.startswith("encoder.layers.")}
    projection = shapes.get("text_projection.weight", (width,))[0]
    return {
        "architectures": [kind],
        **_MARKS,
        "hidden_act": "gelu" if is_open else "quick_gelu",
        "hidden_size": width,
        "intermediate_size": demand_shape(path, shapes, "encoder.layers.0.mlp.fc1.weight", 2)[0],
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": demand_shape(path, shapes, "embeddings.position_embedding.weight", 2)[0],
        "model_type": "clip_text_model",
        "num_attention_heads": max(1, width // HEAD_SIZE),
        "num_hidden_layers": len(layers),
        "projection_dim": projection,
        "vocab_size": tokens,
    }


def _layer_entries(layer: str, part: str, entry: Entry) -> dict[str, Entry]:
    """What one tensor of open_clip's layer is in transformers: itself, or the three that it holds."""
    if part in ("attn.in_proj_weight", "attn.in_proj_bias"):
        end = part.rpartition("_")[2]
        return {f"{layer}.self_attn.{name}.{end}": entry.third(number) for number, name in enumerate(_THIRDS)}
    module, _, end = part.rpartition(".")
    return {f"{layer}.{_OPEN_CLIP_LAYER.get(module, module)}.{end}": entry}
