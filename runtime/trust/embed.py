"""A mark in a picture: the key's tile, repeated, as strong as it takes to be read again, and never beyond MOST_DB."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tintype.arrays import Pixels
from tintype.trust.detect import BANDS, LEAST_SIDE, Match, best_shift, score_at, soft_bits
from tintype.trust.pattern import BITS, PUBLIC_KEY, TILE, Pattern, pattern_of
from tintype.trust.payload import Payload, content_of, read_payload
from tintype.trust.residual import BLUR, LUMA, Flat, TileBins, flatten, luma_of, middle, tile_bins, tile_values

LEAST_DB, MOST_DB = 44.0, 40.0  # how far a marked picture is from what it was: PSNR, levels of 255
STEP_DB = 1.0
ANALYSED = 4 * TILE  # pixels from the middle that strength, shift and gains follow from, and that a copy has
BAND = 2 * TILE  # rows
WANTED_SCORE = 24.0  # of the synchronising pattern before anybody does anything to the picture
READ_SCORE = 12.0  # of a JPEG copy
COPY_QUALITY = 50
LEAST_SPREAD, MOST_SPREAD, BY_SPREAD = 2.0, 12.0, 0.7  # textures take more than flat areas, by their spread to a power
LEAST_GAIN, MOST_GAIN = 0.4, 2.2  # of a bit's amplitude, by what the picture has there by itself


@dataclass(frozen=True, slots=True, eq=False)
class Marked:
    """A picture with its mark. psnr_db: to what it was. is_read: by a JPEG copy of quality COPY_QUALITY."""

    pixels: Pixels  # (height, width, 3)
    payload: Payload
    psnr_db: float
    is_read: bool


def embed(
    pixels: Pixels, maker: int, *, key: bytes = PUBLIC_KEY, where: NDArray[np.float32] | None = None
) -> Marked | None:
    """Mark a picture, (height, width, 3); None where it is smaller than LEAST_SIDE, or nothing of it may change.

    maker: of the payload. key: whose pattern carries it. where: (height, width), 0 to 1, where it may change.

    The tile lies where the picture is by chance most like it, and bits that the picture speaks against get more of the
    strength than those it speaks for (informed embedding, Malvar and Florencio 2003).
    """
    if min(pixels.shape[:2]) < LEAST_SIDE or (where is not None and not where.any()):
        return None
    pattern, inner = pattern_of(key), middle(pixels.shape[:2], ANALYSED)
    weights, flat = _weights(pixels, inner)
    if where is not None:
        weights *= where
    payload = Payload(maker, content_of(pixels))
    host = tile_bins(flat.values)
    match = best_shift(host.bins, BANDS[:1])
    shift = _in_picture(match.shift, inner)
    gains = np.ones(BITS)
    tile = pattern.tile(payload.bits(), gains, shift)
    scale = 1.0 / math.sqrt(_mean_square(tile, weights))
    effect = tile_values(_repeated(tile, weights, inner) / (flat.spread + 1.0)) * scale
    strength_db = _strength_db(host, effect, match)
    gains = _gains(host, effect * _amplitude(strength_db), match, pattern, payload)
    tile = pattern.tile(payload.bits(), gains, shift)
    scale = 1.0 / math.sqrt(_mean_square(tile, weights))
    while True:
        marked = _added(pixels, tile * np.float32(scale * _amplitude(strength_db)), weights)
        is_read = _is_read(marked, payload, pattern)
        if is_read or strength_db <= MOST_DB:
            return Marked(marked, payload, _psnr_db(pixels, marked), is_read)
        strength_db = max(MOST_DB, strength_db - STEP_DB)


def _in_picture(shift: tuple[int, int], inner: tuple[slice, slice]) -> tuple[int, int]:
    """A shift from the start of the middle, as one from the picture's corner."""
    rows, columns = (each + part.start for each, part in zip(shift, inner, strict=True))
    return rows % TILE, columns % TILE


def _weights(pixels: Pixels, inner: tuple[slice, slice]) -> tuple[NDArray[np.float32], Flat]:
    """(height, width) by how much each pixel may change beside others; and the inner part, flattened."""
    weights = np.empty(pixels.shape[:2], np.float32)
    values = np.empty([part.stop - part.start for part in inner], np.float32)
    spread = np.empty_like(values)
    for rows, wide in _bands(pixels.shape[0]):
        flat = flatten(luma_of(pixels[wide]))
        own = slice(rows.start - wide.start, rows.stop - wide.start)
        np.clip(flat.spread[own], LEAST_SPREAD, MOST_SPREAD, out=weights[rows])
        weights[rows] **= np.float32(BY_SPREAD)
        first, last = max(rows.start, inner[0].start), min(rows.stop, inner[0].stop)
        if first < last:
            here, there = (slice(first - each.start, last - each.start) for each in (wide, inner[0]))
            values[there], spread[there] = flat.values[here, inner[1]], flat.spread[here, inner[1]]
    return weights, Flat(values, spread)


def _bands(height: int) -> Iterator[tuple[slice, slice]]:
    """Rows that are done together, so that large pictures take no more memory, and those with what they depend on."""
    for start in range(0, height, BAND):
        stop = min(start + BAND, height)
        yield slice(start, stop), slice(max(0, start - BLUR), min(height, stop + BLUR))


def _repeated(
    tile: NDArray[np.float32], weights: NDArray[np.float32], part: tuple[slice, slice]
) -> NDArray[np.float32]:
    """The tile over a part of a picture, by its weights."""
    rows, columns = (np.arange(each.start, each.stop) % TILE for each in part)
    return np.asarray(tile[np.ix_(rows, columns)] * weights[part], np.float32)


def _mean_square(tile: NDArray[np.float32], weights: NDArray[np.float32]) -> float:
    """Of the tile over a whole picture, by its weights."""
    height, width = weights.shape
    whole = slice(0, width)
    sums = (float(np.sum(np.square(_repeated(tile, weights, (rows, whole))))) for rows, _ in _bands(height))
    return sum(sums) / (height * width)


def _amplitude(db: float) -> float:
    """Levels of 255, root of the mean square, that are so far from nothing; rounding brings a twelfth of a level."""
    return math.sqrt(255.0**2 / 10 ** (db / 10) - 1 / 12)


def _strength_db(host: TileBins, effect: NDArray[np.complex128], match: Match) -> float:
    """The weakest that is expected to give the score that is wanted, within the limits. effect: of 1 level."""
    for db in np.arange(LEAST_DB, MOST_DB, -0.5):
        marked = TileBins(host.values + effect * _amplitude(db), host.around)
        if score_at(marked.bins, match.shift) >= WANTED_SCORE:
            return float(db)
    return MOST_DB


def _gains(
    host: TileBins, effect: NDArray[np.complex128], match: Match, pattern: Pattern, payload: Payload
) -> NDArray[np.float64]:
    """Of each bit's amplitude, so that all are read equally well; together as strong as if all were 1."""
    signs = np.where(payload.bits(), 1.0, -1.0)
    against = -signs * soft_bits(match, pattern)
    marked = Match(match.score, match.shift, TileBins(host.values + effect, host.around).bins)
    by_gain = max(float(np.mean(signs * soft_bits(marked, pattern) + against)), 1e-3)
    gains = np.ones(BITS)
    for _ in range(4):
        wanted = by_gain * float(np.mean(gains)) - float(np.mean(against))
        gains = np.clip((wanted + against) / by_gain, LEAST_GAIN, MOST_GAIN)
        gains /= math.sqrt(float(np.mean(gains**2)))
    return gains


def _added(pixels: Pixels, tile: NDArray[np.float32], weights: NDArray[np.float32]) -> Pixels:
    marked, columns = np.empty_like(pixels), slice(0, pixels.shape[1])
    for rows, _ in _bands(pixels.shape[0]):
        levels = pixels[rows] + _repeated(tile, weights, (rows, columns))[..., np.newaxis]
        marked[rows] = np.clip(np.rint(levels, out=levels), 0.0, 255.0, out=levels)
    return marked


def _is_read(marked: Pixels, payload: Payload, pattern: Pattern) -> bool:
    """Whether a JPEG copy's middle still has the payload."""
    from PIL import Image

    rows, columns = middle(marked.shape[:2], ANALYSED)
    with io.BytesIO() as file:
        Image.fromarray(np.rint(marked[rows, columns] @ LUMA).astype(np.uint8)).save(file, "JPEG", quality=COPY_QUALITY)
        copy = np.asarray(Image.open(file), np.float32)
    match = best_shift(tile_bins(flatten(copy).values).bins, BANDS[:1])
    return match.score >= READ_SCORE and read_payload(soft_bits(match, pattern)) == payload


def _psnr_db(before: Pixels, after: Pixels) -> float:
    squares = (
        float(np.sum(np.square(before[rows].astype(np.int16) - after[rows]), dtype=np.int64))
        for rows, _ in _bands(before.shape[0])
    )
    error = sum(squares) / before.size
    return 10 * math.log10(255.0**2 / error) if error else math.inf
