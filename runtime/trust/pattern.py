"""The watermark's pattern: one tile that is repeated over a picture, drawn by a key.

A tile is TILE pixels square and lies in a ring of its spectrum, between what pictures are full of and what JPEG throws
away. Two fifths of the ring's bins synchronise: they say that there is a mark, and where a tile begins. Their pattern
is the one of the key that ships with the package, so that anybody finds a mark. The others carry the payload, a few
bins a bit; which, and with which phases, is the operator's key's to say.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Bins: TypeAlias = NDArray[np.complex64]  # (BINS,), one value for each bin of the ring

TILE = 128  # pixels, each side
LOWEST, HIGHEST = 5.0, 26.0  # cycles a tile
BITS = 48
SYNC_OF_FIVE = 2  # bins of each five
SLOPE = 0.5  # amplitudes fall by radius to this power: what blurs a picture leaves the low ones
PUBLIC_KEY = b"tintype watermark, the key that anybody has"


def _ring() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of half of a tile's spectrum; the other half is its conjugate."""
    reach = np.arange(-int(HIGHEST), int(HIGHEST) + 1)
    rows, columns = (each.ravel() for each in np.meshgrid(reach, reach, indexing="ij"))
    radius = np.hypot(rows, columns)
    is_half = (columns > 0) | ((columns == 0) & (rows > 0))
    inside = is_half & (radius >= LOWEST) & (radius <= HIGHEST)
    order = np.argsort(radius[inside], kind="stable")
    return rows[inside][order], columns[inside][order]


ROWS, COLUMNS = _ring()  # cycles a tile, by radius from the lowest on
RADIUS = np.hypot(ROWS, COLUMNS)
BINS = len(ROWS)
AMPLITUDES = (RADIUS / LOWEST) ** -SLOPE


@dataclass(frozen=True, slots=True, eq=False)
class Pattern:
    """Which bins synchronise, which carry each bit, and the phases of all of them."""

    sync: NDArray[np.int64]  # indices of bins
    sync_phases: NDArray[np.complex64]
    bits: NDArray[np.int64]  # (BITS, bins of a bit)
    bit_phases: NDArray[np.complex64]  # the same shape; of a bit that is 1

    def tile(self, bits: NDArray[np.bool_], gains: NDArray[np.float64], shift: tuple[int, int]) -> NDArray[np.float32]:
        """(TILE, TILE) of standard deviation 1, turned around by rows and columns. gains: of each bit's amplitude."""
        values = np.zeros(BINS, np.complex128)
        values[self.sync] = self.sync_phases
        values[self.bits] = self.bit_phases * (np.where(bits, 1.0, -1.0) * gains)[:, np.newaxis]
        tile = tile_of(values * AMPLITUDES * turned_by(shift).conj())
        return (tile / tile.std()).astype(np.float32)


def tile_of(values: NDArray[Any], bins: NDArray[np.int64] | slice = slice(None)) -> NDArray[np.float64]:
    """(TILE, TILE) whose spectrum has these values at these bins, and nothing elsewhere."""
    rows, columns = ROWS[bins], COLUMNS[bins]
    spectrum = np.zeros((TILE, TILE // 2 + 1), values.dtype)
    spectrum[rows % TILE, columns] = values
    on_edge = columns == 0  # its other half lies in the same column
    spectrum[-rows[on_edge] % TILE, 0] = values[on_edge].conj()
    return np.asarray(np.fft.irfft2(spectrum, (TILE, TILE)), np.float64)


def turned_by(shift: tuple[int, int]) -> NDArray[np.complex128]:
    """(BINS,) what undoes a turn of the tile around its rows and columns, once bins are multiplied by it."""
    return np.asarray(np.exp(2j * np.pi / TILE * (ROWS * shift[0] + COLUMNS * shift[1])))


@functools.lru_cache(maxsize=8)
def pattern_of(key: bytes = PUBLIC_KEY) -> Pattern:
    """The pattern whose payload is the key's."""
    draws = _uniform(PUBLIC_KEY, "which bins synchronise", BINS)
    fives = [np.arange(start, min(start + 5, BINS)) for start in range(0, BINS, 5)]
    sync = np.sort(np.concatenate([five[np.argsort(draws[five])[:SYNC_OF_FIVE]] for five in fives]))
    carries = np.ones(BINS, bool)
    carries[sync] = False
    free = np.flatnonzero(carries)
    rest = free[: len(free) // BITS * BITS].reshape(-1, BITS)  # each row has one bin for each bit, of about one radius
    dealt = np.argsort(_uniform(key, "which bins carry which bit", rest.size).reshape(rest.shape), axis=1)
    bits = np.take_along_axis(rest, dealt, axis=1).T
    return Pattern(
        sync=sync,
        sync_phases=_phases(PUBLIC_KEY, "phases that synchronise")[sync],
        bits=np.ascontiguousarray(bits),
        bit_phases=_phases(key, "phases of bits")[bits],
    )


def _phases(key: bytes, what: str) -> Bins:
    return np.exp(2j * np.pi * _uniform(key, what, BINS)).astype(np.complex64)


def _uniform(key: bytes, what: str, count: int) -> NDArray[np.float64]:
    """Numbers from 0 to 1 that are the same on every machine: Philox's raw words."""
    seed = int.from_bytes(hashlib.sha256(key + b"|" + what.encode()).digest()[:16], "little")
    words: Sequence[int] | NDArray[np.uint64] = np.random.Philox(key=seed).random_raw(count)
    return (np.asarray(words, np.uint64) >> np.uint64(11)).astype(np.float64) / 2**53
