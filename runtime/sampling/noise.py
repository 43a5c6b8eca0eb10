"""Noise comes from the host, one independent stream a picture, the same on every target.

A picture's noise depends on its own seed and how many draws came before, never on the batch it is made in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from tintype.arrays import Latents
from tintype.errors import RequestError, near_names
from tintype.sampling.philox import PhiloxStream
from tintype.sampling.torch_cpu import TorchCpuStream

SEED_LIMIT = 2**64  # seeds are 0 .. SEED_LIMIT - 1


class NoiseSource(Protocol):
    """Where a sampler gets fresh standard normals from."""

    def draw(self, shape: Sequence[int]) -> Latents:
        """Standard normals of `shape` (batch, ...), a new draw at each call."""
        ...


class NoiseStream(Protocol):
    """One picture's normals, flat."""

    def draw(self, count: int) -> Latents: ...


class NumpyStream:
    """numpy's own normals: PCG64 and the ziggurat of `Generator.standard_normal`, in float32."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(seed))

    def draw(self, count: int) -> Latents:
        return self._generator.standard_normal(count, dtype=np.float32)


NOISE_MODES: dict[str, Callable[[int], NoiseStream]] = {
    "philox": PhiloxStream,
    "torch-cpu": TorchCpuStream,
    "numpy": NumpyStream,
}


class _SeededNoise:
    def __init__(self, streams: list[NoiseStream]) -> None:
        self._streams = streams

    def draw(self, shape: Sequence[int]) -> Latents:
        batch, *rest = shape
        if batch != len(self._streams):
            raise ValueError(f"noise for {batch} pictures asked of {len(self._streams)} streams")
        count = math.prod(rest)
        return np.stack([stream.draw(count).reshape(rest) for stream in self._streams])


def noise_source(mode: str, seeds: Sequence[int]) -> NoiseSource:
    """The noise of as many pictures as there are seeds.

    mode: "philox" (as A1111 and CUDA torch draw it), "torch-cpu" (torch.randn with a CPU generator) or "numpy".
    seeds: 0 .. 2^64 - 1 each; torch-cpu uses the low 32 bits, as torch does.
    draw(shape) wants shape[0] == len(seeds).
    """
    if mode not in NOISE_MODES:
        raise RequestError(f"there is no noise called {mode!r}", fix=near_names(mode, NOISE_MODES))
    for seed in seeds:
        if not 0 <= seed < SEED_LIMIT:
            raise RequestError(f"seed {seed} is out of range", fix=f"use a whole number from 0 to {SEED_LIMIT - 1}")
    return _SeededNoise([NOISE_MODES[mode](seed) for seed in seeds])
