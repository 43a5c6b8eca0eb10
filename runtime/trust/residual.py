"""What of a picture a mark is read from: its luma without what is smooth, and the spectrum of that at a tile's bins.

A picture is its own noise. `flatten` takes away what is smooth and makes textures and flat areas alike; `TileBins`
divides each bin by what the spectrum has around it, where a repeated tile has nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tintype.arrays import Pixels
from tintype.trust.pattern import COLUMNS, ROWS, TILE, Bins

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
BLUR = 6  # pixels on each side, of what counts as smooth
CLIP = 2.5  # of a value in standard deviations of its neighbourhood
MOST_SIDE = 8 * TILE  # pixels from the middle that are looked at
NEIGHBOURS = 48  # bins around each, that tell what the picture has there
CLIP_BIN = 2.5  # of a bin's magnitude beside its neighbours'
NOTHING = 1e-9  # beside the largest; flat pictures have no spectrum


@dataclass(frozen=True, slots=True, eq=False)
class Flat:
    """A picture's luma, flattened. Both (height, width)."""

    values: NDArray[np.float32]
    spread: NDArray[np.float32]  # the standard deviation of each neighbourhood, in levels of 255


def luma_of(pixels: Pixels) -> NDArray[np.float32]:
    """(height, width) of (height, width, 3)."""
    return pixels.astype(np.float32) @ LUMA


def flatten(luma: NDArray[np.float32]) -> Flat:
    mean = _box(luma)
    spread = np.sqrt(np.maximum(_box(luma * luma) - mean * mean, 0.0))
    return Flat(np.clip((luma - mean) / (spread + 1.0), -CLIP, CLIP), spread)


def middle(shape: tuple[int, int], most: int = MOST_SIDE) -> tuple[slice, slice]:
    """Rows and columns of whole tiles in the middle of a picture that has at least one, so many pixels at most."""
    sides = [min(side, most) // TILE * TILE for side in shape]
    starts = [(side - taken) // 2 for side, taken in zip(shape, sides, strict=True)]
    rows, columns = (slice(start, start + taken) for start, taken in zip(starts, sides, strict=True))
    return rows, columns


@dataclass(frozen=True, slots=True, eq=False)
class TileBins:
    """The spectrum of whole tiles at a tile's bins, and the power of what the picture has around each of them."""

    values: NDArray[np.complex128]
    around: NDArray[np.float64]

    @property
    def bins(self) -> Bins:
        """The values beside the power around them, so that noise has a power of 1; large ones clipped."""
        values = self.values / np.sqrt(not_nothing(self.around))
        return (values * np.minimum(1.0, CLIP_BIN / np.maximum(np.abs(values), 1.0))).astype(np.complex64)


def not_nothing(around: NDArray[Any]) -> NDArray[Any]:
    """Powers that can be divided by: a flat picture has none."""
    return np.asarray(around + (NOTHING * around.max(initial=0.0) + np.finfo(np.float32).tiny))


def tile_bins(flat: NDArray[np.float32]) -> TileBins:
    """Of whole tiles, (height, width)."""
    spectrum = np.fft.rfft2(flat)
    down, across = (side // TILE for side in flat.shape)  # bins of the spectrum to one of a tile
    offsets = _around(down, across)
    rows = ROWS[:, np.newaxis] * down + offsets[:, 0]
    columns = COLUMNS[:, np.newaxis] * across + offsets[:, 1]
    rows = np.where(columns < 0, -rows, rows) % flat.shape[0]
    around = spectrum[rows, np.abs(columns)]
    return TileBins(_at_tile(spectrum, down, across), np.mean(power(around), axis=1))


def tile_values(flat: NDArray[np.float32]) -> NDArray[np.complex128]:
    """The values of `tile_bins` alone."""
    return _at_tile(np.fft.rfft2(flat), *(side // TILE for side in flat.shape))


def _at_tile(spectrum: NDArray[Any], down: int, across: int) -> NDArray[np.complex128]:
    return np.asarray(spectrum[ROWS * down % spectrum.shape[0], COLUMNS * across], np.complex128)


def power(values: NDArray[Any]) -> NDArray[np.float64]:
    return values.real**2 + values.imag**2


def _around(down: int, across: int) -> NDArray[np.int64]:
    """(NEIGHBOURS, 2) offsets in bins of a spectrum, spread over one and a half bins of a tile each way.

    Of a picture of one tile, where no bins lie between, two bins.
    """
    rows, columns = (max(2, 3 * each // 2) for each in (down, across))
    grid = np.stack(np.meshgrid(np.arange(-rows, rows + 1), np.arange(-columns, columns + 1), indexing="ij"), -1)
    offsets = grid.reshape(-1, 2)
    is_tiles = (offsets[:, 0] % down == 0) & (offsets[:, 1] % across == 0)
    offsets = offsets[~is_tiles] if down * across > 1 else offsets[offsets.any(axis=1)]
    return offsets[np.linspace(0, len(offsets) - 1, min(NEIGHBOURS, len(offsets))).astype(np.int64)]


def _box(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean of each neighbourhood, edges repeated: sums of 1, 2, 4 and 8 values, put together."""
    width = 2 * BLUR + 1
    for axis in (0, 1):
        padding = [(0, 0), (0, 0)]
        padding[axis] = (BLUR, BLUR)
        sums, length, begun = np.pad(values, padding, mode="edge"), 1, 0
        count = values.shape[axis]
        total = np.zeros_like(values)
        while length <= width:
            if width & length:
                total += _from(sums, begun, count, axis)
                begun += length
            rest = sums.shape[axis] - length
            sums = _from(sums, 0, rest, axis) + _from(sums, length, rest, axis)
            length *= 2
        values = total / np.float32(width)
    return values


def _from(values: NDArray[np.float32], start: int, count: int, axis: int) -> NDArray[np.float32]:
    return values[start : start + count] if axis == 0 else values[:, start : start + count]
