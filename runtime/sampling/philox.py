"""Philox noise: the normals that A1111's "CPU imitating GPU" mode and torch.randn on CUDA draw.

Each draw is one counter offset and each value one counter of its own, so a value depends on (seed, draw, position)
alone. torch on CUDA gives the same values up to the number of threads its GPU holds at once (over 100,000 on any GPU
made since 2018); beyond that its values depend on the GPU, and these don't.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tintype.arrays import Latents

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF
_SCALE = 2.0**-32
_SCALE_TO_ANGLE = float(np.float32(2.3283064e-10 * 6.2831855))  # curand rounds 2^-32 * 2 pi to float32


def philox_4x32(counter: NDArray[np.uint32], seed: int) -> NDArray[np.uint32]:
    """Ten rounds of Philox4x32 (Salmon et al. 2011) over counters (4, n) with a 64-bit key; returns (4, n)."""
    c0, c1, c2, c3 = (row.astype(np.uint64) for row in counter)
    low, high, shift = seed & _WORD, (seed >> 32) & _WORD, np.uint64(32)
    for _ in range(10):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> shift) ^ c1 ^ np.uint64(low),
            product1 & np.uint64(_WORD),
            (product0 >> shift) ^ c3 ^ np.uint64(high),
            product0 & np.uint64(_WORD),
        )
        low, high = (low + _KEY_STEPS[0]) & _WORD, (high + _KEY_STEPS[1]) & _WORD
    return np.stack([c0, c1, c2, c3]).astype(np.uint32)


def box_muller(first: NDArray[np.uint32], second: NDArray[np.uint32]) -> Latents:
    """Standard normals from two words each (Box & Muller 1958), in double precision, rounded once at the end."""
    radius = np.sqrt(-2.0 * np.log(first * _SCALE + _SCALE / 2))
    angle = second * _SCALE_TO_ANGLE + _SCALE_TO_ANGLE / 2
    return (radius * np.sin(angle)).astype(np.float32)


class PhiloxStream:
    """One picture's normals; every draw advances the offset by one."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._offset = 0

    def draw(self, count: int) -> Latents:
        """`count` standard normals, flat."""
        counter = np.zeros((4, count), dtype=np.uint32)
        counter[0] = self._offset
        counter[2] = np.arange(count, dtype=np.uint32)
        self._offset += 1
        words = philox_4x32(counter, self._seed)
        return box_muller(words[0], words[1])
