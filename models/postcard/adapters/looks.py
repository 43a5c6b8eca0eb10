"""Two looks of a whole picture, and for each a number that tells it from the world as it is. Numpy and Pillow alone.

A cyanotype (Herschel 1842) is one ink on paper: every grey between Prussian blue and white. Pixel art is drawn in
squares, a sixteenth of a picture each side.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Picture = NDArray[np.uint8]  # (height, width, 3)

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_PRUSSIAN, _PAPER = np.array([14, 36, 92], np.float32), np.array([238, 243, 242], np.float32)
# Of a cyanotype's pixels what may have another colour: a share well below that of the smallest subject (2.5 %).
STRAY = 0.01
BLOCK = 8  # pixels of a square's side


def _greys(picture: Picture) -> NDArray[np.float32]:
    """(height, width), 0 to 1."""
    return np.asarray(picture, np.float32) @ _LUMA / np.float32(255)


def _bytes(picture: NDArray[np.float32]) -> Picture:
    return np.clip(picture.round(), 0, 255).astype(np.uint8)


def _cyan_ramp(greys: NDArray[np.float32]) -> NDArray[np.float32]:
    return _PRUSSIAN + (_PAPER - _PRUSSIAN) * greys[..., None]


def cyanotype(picture: Picture) -> Picture:
    """The picture in one ink; its greys are spread, as those of a print are."""
    greys = _greys(picture)
    return _bytes(_cyan_ramp(np.clip((greys - 0.08) / 0.84, 0, 1)))


def pixel_art(picture: Picture) -> Picture:
    """The picture in squares of one colour each."""
    height, width = picture.shape[:2]
    small = Image.fromarray(picture).resize((width // BLOCK, height // BLOCK), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.NEAREST))


def cyanotype_distance(picture: Picture) -> float:
    """How far pixels are from the nearest colour that a cyanotype has, in steps of 256: all but STRAY of them are
    nearer."""
    from_blue, whole = np.asarray(picture, np.float32) - _PRUSSIAN, _PAPER - _PRUSSIAN
    along = np.clip(from_blue @ whole / (whole @ whole), 0, 1)
    return float(np.quantile(np.linalg.norm(from_blue - along[..., None] * whole, axis=-1), 1 - STRAY))


def block_share(picture: Picture) -> float:
    """Of all differences between neighbouring pixels the share at the borders of squares, 0 to 1.

    A picture that knows no squares has 1 in BLOCK there.
    """
    pixels = np.asarray(picture, np.float32)
    inside, at_borders = 0.0, 0.0
    for axis in (0, 1):
        steps = np.abs(np.diff(pixels, axis=axis)).sum(axis=(1 - axis, 2))
        is_border = np.arange(1, len(steps) + 1) % BLOCK == 0
        inside, at_borders = inside + float(steps[~is_border].sum()), at_borders + float(steps[is_border].sum())
    return at_borders / max(inside + at_borders, 1e-9)
