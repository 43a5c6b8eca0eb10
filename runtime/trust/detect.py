"""Whether there is a mark: the synchronising pattern against a picture's bins, over every shift of the tile."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tintype.arrays import Pixels
from tintype.trust.pattern import BINS, BITS, RADIUS, TILE, Bins, Pattern, pattern_of, tile_of, turned_by
from tintype.trust.residual import flatten, luma_of, middle, tile_bins

# In standard deviations of what a picture without a mark gives. `bench.watermark` draws their tails.
THRESHOLD = 6.8  # over the shifts alone
LEAST_SIDE = TILE  # pixels
BANDS = (26.0, 15.0, 9.5)  # cycles a tile: all of the ring, and what blurring leaves of it


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """The shift at which a picture's bins are most like the pattern, and by how much."""

    score: float  # standard deviations
    shift: tuple[int, int]  # rows and columns, 0 to TILE
    bins: Bins

    @property
    def false_alarms(self) -> float:
        """How many pictures of one that isn't marked would score as much, by a Gaussian tail over all shifts."""
        return min(1.0, len(BANDS) * TILE * TILE * 0.5 * math.erfc(self.score / math.sqrt(2)))


NO_MATCH = Match(0.0, (0, 0), np.zeros(BINS, np.complex64))


def detect(pixels: Pixels) -> Match:
    """The best match in a picture, (height, width, 3), as it lies; one under LEAST_SIDE has none."""
    if min(pixels.shape[:2]) < LEAST_SIDE:
        return NO_MATCH
    return best_shift(tile_bins(flatten(luma_of(pixels[middle(pixels.shape[:2])])).values).bins, BANDS)


def best_shift(bins: Bins, bands: tuple[float, ...]) -> Match:
    best = NO_MATCH
    for highest in bands:
        values = correlations(bins, highest)
        row, column = divmod(int(np.argmax(values)), TILE)
        if values[row, column] > best.score:
            best = Match(float(values[row, column]), (row, column), bins)
    return best


def correlations(bins: Bins, highest: float = BANDS[0]) -> NDArray[np.float64]:
    """(TILE, TILE), for each shift how alike the bins and the pattern are, in standard deviations of chance."""
    pattern = pattern_of()
    sync = pattern.sync[RADIUS[pattern.sync] <= highest]
    alike = bins[sync] * pattern.sync_phases[: len(sync)].conj()
    spread = _spread(alike)
    return tile_of(alike, sync) * (TILE * TILE / 2 / spread if spread else 0.0)


def score_at(bins: Bins, shift: tuple[int, int]) -> float:
    """What `best_shift` gives where the shift is known, of the whole ring."""
    pattern = pattern_of()
    alike = (bins * turned_by(shift))[pattern.sync] * pattern.sync_phases.conj()
    spread = _spread(alike)
    return float(alike.real.sum()) / spread if spread else 0.0


def _spread(alike: NDArray[Any]) -> float:
    """The standard deviation of a sum of what bins and pattern have in common, where that is chance."""
    return math.sqrt(float(np.sum(np.abs(alike) ** 2)) / 2)


def soft_bits(match: Match, pattern: Pattern) -> NDArray[np.float64]:
    """(BITS,) standard deviations above 0 for a bit that is 1, below for one that is 0."""
    turned = match.bins * turned_by(match.shift)
    alike = (turned[pattern.bits] * pattern.bit_phases.conj()).real
    spread = math.sqrt(float(np.mean(np.abs(match.bins[pattern.bits]) ** 2)) / 2 * alike.shape[1])
    return np.asarray(alike.sum(axis=1), np.float64) / spread if spread else np.zeros(BITS)
