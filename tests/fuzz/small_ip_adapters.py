"""IP-Adapters of each kind as they are published, for postcard's words and one cross-attention, with few numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from safetensors.numpy import save

WORDS, CHANNELS, ENCODED, WIDTH, HEAD, TOKENS = 128, 64, 20, 12, 64, 4
_PAIR = {f"ip_adapter.1.to_{part}_ip.weight": (CHANNELS, WORDS) for part in "kv"}
_BASE = {"proj.weight": (TOKENS * WORDS, ENCODED), "proj.bias": (TOKENS * WORDS,), "norm.weight": (WORDS,)}
_FULL = {"proj.0.weight": (ENCODED, ENCODED), "proj.0.bias": (ENCODED,), "proj.2.weight": (WORDS, ENCODED)}
_LAYER = {
    **{f"0.norm{number}.{part}": (WIDTH,) for number in (1, 2) for part in ("weight", "bias")},
    "0.to_q.weight": (HEAD, WIDTH), "0.to_kv.weight": (2 * HEAD, WIDTH), "0.to_out.weight": (WIDTH, HEAD),
    "1.0.weight": (WIDTH,), "1.0.bias": (WIDTH,), "1.1.weight": (4 * WIDTH, WIDTH), "1.3.weight": (WIDTH, 4 * WIDTH),
}  # fmt: skip
KINDS: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "base": {**_BASE, "norm.bias": (WORDS,)},
    "full": {**_FULL, "proj.2.bias": (WORDS,), "proj.3.weight": (WORDS,), "proj.3.bias": (WORDS,)},
    "plus": {
        "latents": (1, TOKENS, WIDTH), "proj_in.weight": (WIDTH, ENCODED), "proj_in.bias": (WIDTH,),
        "proj_out.weight": (WORDS, WIDTH), "proj_out.bias": (WORDS,), "norm_out.weight": (WORDS,),
        "norm_out.bias": (WORDS,), **{f"layers.0.{name}": shape for name, shape in _LAYER.items()},
    },
}  # fmt: skip


def small_ip_adapters() -> tuple[bytes, ...]:
    numbers = np.random.default_rng(0)
    found = []
    for kind in KINDS.values():
        shapes = {**{f"image_proj.{name}": shape for name, shape in kind.items()}, **_PAIR}
        found.append(save({name: numbers.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}))
    return tuple(found)
