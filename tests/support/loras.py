"""LoRAs for the tests' checkpoints: adapters with random weights, in every naming and of every kind."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TRANSFORMER = (*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj")
WORDS = ("q_proj", "k_proj", "v_proj", "out_proj", "mlp.fc1", "mlp.fc2")


def weights_of(checkpoint: Path, part: str) -> dict[str, np.ndarray]:
    """By layer the weights of a part of a diffusers folder: unet, text_encoder, text_encoder_2."""
    from safetensors.numpy import load_file

    (file,) = (checkpoint / part).glob("*.safetensors")
    found = {name.removesuffix(".weight"): array for name, array in load_file(file).items() if name.endswith(".weight")}
    return {name.removeprefix("text_model."): array for name, array in found.items() if array.ndim in (2, 4)}


def pairs(
    checkpoint: Path, part: str, endings: tuple[str, ...], rank: int | Callable[[str], int], *, seed: int, size: float
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By layer (down, up) whose product is `size` times as large as the weight is."""
    random, found = np.random.default_rng(seed), {}
    for name, weight in weights_of(checkpoint, part).items():
        if not name.endswith(endings):
            continue
        ranks = rank(name) if callable(rank) else rank
        down = random.standard_normal((ranks, *weight.shape[1:])).astype(np.float32)
        up = random.standard_normal((weight.shape[0], ranks, *(1,) * (weight.ndim - 2))).astype(np.float32)
        whole = up.reshape(len(up), ranks) @ down.reshape(ranks, -1)
        found[name] = (down, (up * (size * weight.std() / whole.std())).astype(np.float32))
    assert found
    return found


def kohya(part: str, layer: str) -> str:
    start = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_", "text_encoder_2": "lora_te2_text_model_"}[
        part
    ]
    return start + layer.replace(".", "_")


def kohya_xl(part: str, layer: str) -> str:
    return kohya(part, layer).replace("lora_te_", "lora_te1_")


def save_kohya(
    path: Path,
    parts: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
    *,
    alpha: float | None = None,
    dtype: Any = np.float32,
    naming: Callable[[str, str], str] = kohya,
    metadata: dict[str, str] | None = None,
) -> Path:
    tensors: dict[str, np.ndarray] = {}
    for part, layers in parts.items():
        for layer, (down, up) in layers.items():
            name = naming(part, layer)
            tensors |= {f"{name}.lora_down.weight": down.astype(dtype), f"{name}.lora_up.weight": up.astype(dtype)}
            if alpha is not None:
                tensors[f"{name}.alpha"] = np.array(alpha, dtype)
    save_file(tensors, path, metadata=metadata)
    return path


def save_diffusers(
    path: Path, parts: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]], *, alpha: float | None = None
) -> Path:
    """As `save_lora_weights` of diffusers writes it; alpha: in the metadata, as it does since 0.34."""
    tensors: dict[str, np.ndarray] = {}
    told: dict[str, Any] = {}
    for part, layers in parts.items():
        words = "text_model." if part.startswith("text") else ""
        for layer, (down, up) in layers.items():
            tensors |= {f"{part}.{words}{layer}.lora_A.weight": down, f"{part}.{words}{layer}.lora_B.weight": up}
        if alpha is not None:
            rank = len(next(iter(layers.values()))[0])
            names = sorted(layers)  # as recent versions of transformers call them
            told |= {f"{part}.r": rank, f"{part}.lora_alpha": alpha, f"{part}.target_modules": names}
    save_file(tensors, path, metadata={"lora_adapter_metadata": json.dumps(told)} if told else {"format": "pt"})
    return path
