"""The 48 bits of a mark: a version, who made the picture, what it roughly shows, and a check."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tintype.arrays import Pixels
from tintype.trust.pattern import BITS
from tintype.trust.residual import LUMA

VERSION = 1  # of two bits, which come first
MAKER_BITS, CONTENT_BITS, CHECK_BITS = 24, 8, 14
THUMBNAIL = 16  # pixels, each side
MOST_DOUBTFUL = 3  # bits that are tried both ways, where the check says that something was misread
# Of the sum of the bits' squared scores, which is a chi-squared of 48 where the key is another: 1e-6 lie above.
LEAST_ENERGY = 106.0
ALIKE_BITS = 2  # of the content's, that an edit of the usual kind may turn


@dataclass(frozen=True, slots=True)
class Payload:
    maker: int  # of an installation, MAKER_BITS bits that were drawn once
    content: int  # CONTENT_BITS signs of the picture's coarse shape
    version: int = VERSION

    @property
    def hex(self) -> str:
        """As a record keeps it: 12 digits, the check included."""
        return f"{self._word:0{BITS // 4}x}"

    def bits(self) -> NDArray[np.bool_]:
        """(BITS,), highest first."""
        return np.array([self._word >> place & 1 for place in reversed(range(BITS))], bool)

    @property
    def _word(self) -> int:
        number = (self.version << MAKER_BITS | self.maker) << CONTENT_BITS | self.content
        return number << CHECK_BITS | _check(number)


def payload_of_hex(text: str) -> Payload | None:
    """The payload that `Payload.hex` gave; None where it is none."""
    try:
        return _payload(int(text, 16)) if len(text) == BITS // 4 else None
    except ValueError:
        return None


def read_payload(soft: NDArray[np.float64]) -> Payload | None:
    """The payload of soft bits; None where they are another key's, or too many were lost."""
    if float(np.sum(soft**2)) < LEAST_ENERGY:
        return None
    hard, doubtful = soft > 0, np.argsort(np.abs(soft))[:MOST_DOUBTFUL]
    for turned in itertools.product((False, True), repeat=MOST_DOUBTFUL):
        tried = hard.copy()
        tried[doubtful] ^= np.array(turned)
        found = _payload(int("".join("01"[int(bit)] for bit in tried), 2))
        if found is not None:
            return found
    return None


def content_of(pixels: Pixels) -> int:
    """What a picture, (height, width, 3), roughly shows: signs of CONTENT_BITS of its slowest waves."""
    rows, columns = (np.arange(THUMBNAIL) * side // THUMBNAIL for side in pixels.shape[:2])
    small = np.add.reduceat(np.add.reduceat(pixels, rows, axis=0, dtype=np.int64), columns, axis=1) @ LUMA.astype(float)
    small /= np.outer(np.diff(rows, append=pixels.shape[0]), np.diff(columns, append=pixels.shape[1]))
    places = (np.arange(THUMBNAIL) + 0.5) * np.pi / THUMBNAIL
    waves = np.cos(np.outer(np.arange(4), places))
    slow = waves @ (small - small.mean()) @ waves.T
    chosen = [slow[each] for each in ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2), (2, 1), (2, 2))]
    return int("".join("01"[int(value > 0)] for value in chosen), 2)


def shows_the_same(payload: Payload, pixels: Pixels) -> bool:
    """Whether a picture roughly shows what the marked one did: not so of most cut ones, and of others' pictures."""
    return (payload.content ^ content_of(pixels)).bit_count() <= ALIKE_BITS


def _payload(word: int) -> Payload | None:
    number, check = word >> CHECK_BITS, word & (1 << CHECK_BITS) - 1
    version = number >> MAKER_BITS + CONTENT_BITS
    if check != _check(number) or version != VERSION:
        return None
    return Payload(maker=number >> CONTENT_BITS & (1 << MAKER_BITS) - 1, content=number & (1 << CONTENT_BITS) - 1)


def _check(number: int) -> int:
    return zlib.crc32(number.to_bytes(8, "big")) & (1 << CHECK_BITS) - 1
