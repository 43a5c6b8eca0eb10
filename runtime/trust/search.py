"""A mark in a picture that was turned, enlarged, reduced or mirrored: the geometry first, then the pattern.

A repeated tile has a spectrum of points, wherever its shift: where they lie together with more power than their
neighbours, a tile of that size and turn may be. The likeliest of all sizes and turns are then held against the pattern.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tintype.arrays import Pixels
from tintype.trust.detect import BANDS, LEAST_SIDE, NO_MATCH, Match, best_shift
from tintype.trust.pattern import COLUMNS, RADIUS, ROWS, TILE
from tintype.trust.residual import TileBins, flatten, luma_of, not_nothing, power

THRESHOLD = 7.6  # of a match's score, over all geometries
WINDOW = 512  # pixels from the middle
SPECTRUM = 1024  # bins: twice as fine as the window's own
SMALLEST, LARGEST = 0.35, 2.1  # of a tile that was enlarged, beside what it was
MOST_TURN = np.deg2rad(15.0)
COARSE = 18.0  # cycles a tile: at these, steps of SIZE_STEP and TURN_STEP are less than half a bin at the window's edge
SIZE_STEP, TURN_STEP = 0.006, np.deg2rad(0.34)
FINE = (-0.5, 0.0, 0.5)  # of a step, around what is likely
LIKELY, LIKELIEST = 150, 24  # geometries that are looked at finely, and that are held against the pattern
MOST_POWER = 6.0  # of a point beside its neighbours
AROUND = 12  # bins each way
FEWEST = 60  # points, beside which chance is reckoned


@dataclass(frozen=True, slots=True)
class Geometry:
    """What became of a picture: scale of its sides, turn in radians, whether it was mirrored from left to right."""

    scale: float = 1.0
    turn: float = 0.0
    is_mirrored: bool = False


def search(pixels: Pixels) -> tuple[Match, Geometry]:
    """The best match in a picture, (height, width, 3), over sizes, turns and mirrorings, and which these are."""
    if min(pixels.shape[:2]) < LEAST_SIDE * SMALLEST:
        return NO_MATCH, Geometry()
    spectrum = _Spectrum.of(luma_of(_window(pixels)))
    best, which = NO_MATCH, Geometry()
    for geometry in _likeliest(spectrum):
        for is_mirrored in (False, True):
            tried = Geometry(geometry.scale, geometry.turn, is_mirrored)
            match = best_shift(spectrum.tile_bins(tried).bins, BANDS[:2])
            if match.score > best.score:
                best, which = match, tried
    return best, which


def _window(pixels: Pixels) -> Pixels:
    top, left = (max(0, (side - WINDOW) // 2) for side in pixels.shape[:2])
    return pixels[top : top + WINDOW, left : left + WINDOW]


@dataclass(frozen=True, slots=True, eq=False)
class _Spectrum:
    """Half of the spectrum of a window, (SPECTRUM, SPECTRUM / 2 + 1), and the mean power around each bin."""

    values: NDArray[np.complex64]
    around: NDArray[np.float32]
    points: NDArray[np.float32]  # power beside that around it, clipped

    @classmethod
    def of(cls, luma: NDArray[np.float32]) -> _Spectrum:
        values = np.fft.rfft2(flatten(luma).values, (SPECTRUM, SPECTRUM)).astype(np.complex64)
        powers = power(values).astype(np.float32)
        around = _mean_around(powers)
        points = np.minimum(powers / not_nothing(around), MOST_POWER)
        return cls(values, around, points.astype(np.float32))

    def tile_bins(self, geometry: Geometry) -> TileBins:
        places = _places(geometry, ROWS, -COLUMNS if geometry.is_mirrored else COLUMNS)
        rows, columns, is_turned, is_inside = _in_half(*places)
        values = self.values[rows, columns].astype(np.complex128)
        values = np.where(is_turned, values.conj(), values) * is_inside
        return TileBins(values, self.around[rows, columns].astype(np.float64))

    def likelihood(self, rows: NDArray[np.float32], columns: NDArray[np.float32]) -> NDArray[np.float32]:
        """Over the last axis, by how many standard deviations of chance the points are above their neighbours."""
        rows_in, columns_in, _, is_inside = _in_half(rows, columns)
        above = (self.points[rows_in, columns_in] - 1.0) * is_inside
        count = np.maximum(is_inside.sum(axis=-1), FEWEST)
        return np.asarray(above.sum(axis=-1) / np.sqrt(count), np.float32)


def _places(geometry: Geometry, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> tuple[NDArray[np.float32], ...]:
    """Where bins of a tile lie in the spectrum."""
    cos, sin = np.cos(geometry.turn), np.sin(geometry.turn)
    finer = SPECTRUM / TILE / geometry.scale
    placed = (cos * rows - sin * columns) * finer, (sin * rows + cos * columns) * finer
    return tuple(each.astype(np.float32) for each in placed)


def _in_half(
    rows: NDArray[np.float32], columns: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """The nearest bins as indices of half of a spectrum, which of them are their conjugates, and which there are."""
    row, column = np.rint(rows).astype(np.int64), np.rint(columns).astype(np.int64)
    is_turned = column < 0
    is_inside = (np.abs(row) < SPECTRUM // 2) & (np.abs(column) < SPECTRUM // 2)
    row = np.where(is_turned, -row, row) % SPECTRUM
    return row, np.minimum(np.abs(column), SPECTRUM // 2), is_turned, is_inside


def _likeliest(spectrum: _Spectrum) -> list[Geometry]:
    """The likeliest geometries that aren't mirrored, from the first on."""
    few = RADIUS <= COARSE
    sizes = np.exp(np.arange(np.log(SMALLEST), np.log(LARGEST), SIZE_STEP))
    turns = np.arange(-MOST_TURN, MOST_TURN + TURN_STEP / 2, TURN_STEP)
    inverse = (1.0 / sizes).astype(np.float32)[:, np.newaxis]
    coarse = np.empty((len(turns), len(sizes)), np.float32)
    for index, turn in enumerate(turns):
        rows, columns = _places(Geometry(1.0, float(turn)), ROWS[few], COLUMNS[few])
        coarse[index] = spectrum.likelihood(inverse * rows, inverse * columns)
    found: list[tuple[float, Geometry]] = []
    for place in np.argsort(coarse, axis=None)[-LIKELY:]:
        turn_index, size_index = divmod(int(place), len(sizes))
        for by_size in FINE:
            for by_turn in FINE:
                geometry = Geometry(
                    float(sizes[size_index] * np.exp(by_size * SIZE_STEP)),
                    float(turns[turn_index] + by_turn * TURN_STEP),
                )
                likelihood = spectrum.likelihood(*_places(geometry, ROWS, COLUMNS))
                found.append((float(likelihood), geometry))
    found.sort(key=lambda each: -each[0])
    return [geometry for _, geometry in found[:LIKELIEST]]


def _mean_around(powers: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean of each bin's neighbourhood in half of a spectrum, whose rows go round."""
    width = 2 * AROUND + 1
    mirrored = np.roll(powers[::-1], 1, axis=0)  # row -r at r: what the other half has
    left = mirrored[:, AROUND + 1 : 0 : -1]
    right = mirrored[:, -2 : -AROUND - 2 : -1]
    wide = np.concatenate([left, powers, right], axis=1)
    sums = np.cumsum(np.pad(wide, ((AROUND + 1, AROUND), (0, 0)), mode="wrap"), axis=0, dtype=np.float64)
    rows = sums[width:] - sums[:-width]
    sums = np.cumsum(rows, axis=1)
    return ((sums[:, width:] - sums[:, :-width]) / width**2).astype(np.float32)
