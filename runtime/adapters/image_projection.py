"""What an image encoder says of a picture -> tokens beside the words' -> keys and values of each cross-attention.

In float32; read from the adapter's file a tensor at a time, once a picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tintype.adapters.ip_adapter import BASE, FULL, HEAD, PROJECTION, IPAdapterFile

Array = NDArray[np.float32]
EPSILON = 1e-5  # of torch's LayerNorm


def image_tokens(file: IPAdapterFile, features: Array) -> Array:
    """Tokens of pictures, (pictures, tokens, words).

    features: (pictures, encoder) for a base adapter, (pictures, encoder's tokens, encoder) for the others.
    """
    if file.kind == BASE:
        projected = _linear(file, features, "proj")
        return _norm(file, projected.reshape(len(features), -1, file.words), "norm")
    if file.kind == FULL:
        return _norm(file, _linear(file, _gelu(_linear(file, features, "proj.0")), "proj.2"), "proj.3")
    return _resampled(file, features)


def keys_and_values(file: IPAdapterFile, tokens: Array) -> Iterator[tuple[Array, Array]]:
    """Of each cross-attention in turn, (pictures, tokens, channels) both."""
    for pair in range(len(file.pairs)):
        key, value = file.read(file.key_name(pair), file.value_name(pair))
        yield tokens @ key.T, tokens @ value.T


def _resampled(file: IPAdapterFile, features: Array) -> Array:
    """Plus: queries of its own that look at a picture's tokens and at one another (Jaegle et al. 2021)."""
    (latents,) = file.read(f"{PROJECTION}latents")
    seen, latents = _linear(file, features, "proj_in"), latents.repeat(len(features), axis=0)
    for number in range(file.depth):
        layer = f"layers.{number}"
        asking = _norm(file, latents, f"{layer}.0.norm2")
        looked_at = np.concatenate([_norm(file, seen, f"{layer}.0.norm1"), asking], axis=1)
        query = _linear(file, asking, f"{layer}.0.to_q", bias=False)
        key, value = np.split(_linear(file, looked_at, f"{layer}.0.to_kv", bias=False), 2, axis=-1)
        latents = _linear(file, _attention(query, key, value), f"{layer}.0.to_out", bias=False) + latents
        inner = _gelu(_linear(file, _norm(file, latents, f"{layer}.1.0"), f"{layer}.1.1", bias=False))
        latents = _linear(file, inner, f"{layer}.1.3", bias=False) + latents
    return _norm(file, _linear(file, latents, "proj_out"), "norm_out")


def _linear(file: IPAdapterFile, x: Array, name: str, *, bias: bool = True) -> Array:
    (weight,) = file.read(f"{PROJECTION}{name}.weight")
    y = x @ weight.T
    if bias:
        (added,) = file.read(f"{PROJECTION}{name}.bias")
        y += added
    return y


def _norm(file: IPAdapterFile, x: Array, name: str) -> Array:
    weight, bias = file.read(f"{PROJECTION}{name}.weight", f"{PROJECTION}{name}.bias")
    centred = x - x.mean(axis=-1, keepdims=True)
    spread = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + np.float32(EPSILON))
    return centred / spread * weight + bias


def _attention(query: Array, key: Array, value: Array) -> Array:
    """(pictures, tokens, heads * HEAD) each."""
    q, k, v = (x.reshape(*x.shape[:2], -1, HEAD).swapaxes(1, 2) for x in (query, key, value))
    scores = q @ k.swapaxes(-1, -2) * np.float32(1 / math.sqrt(HEAD))
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    seen = (weights / weights.sum(axis=-1, keepdims=True)) @ v
    return np.ascontiguousarray(seen.swapaxes(1, 2)).reshape(query.shape)


def _gelu(x: Array) -> Array:
    """x times the share of a normal distribution below it."""
    rows = x.reshape(-1, x.shape[-1])
    made = np.empty_like(rows)
    for row, place in zip(rows, made, strict=True):  # numpy has no error function
        below = np.fromiter(map(math.erf, (row / math.sqrt(2.0)).tolist()), np.float64, row.size)
        place[:] = row * (0.5 * (1.0 + below))
    return made.reshape(x.shape)
