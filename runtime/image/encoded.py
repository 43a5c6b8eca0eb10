"""Pictures as CLIP's image encoders look at them: the middle of a picture, in numbers around zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tintype.arrays import Samples

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST = 16  # times its shorter side: what is longer isn't resized as a whole


def clip_samples(picture: Image, side: int, mean: Sequence[float], std: Sequence[float]) -> Samples:
    """An RGB picture as (1, 3, side, side): its shorter side is brought to that length, and the middle is taken.

    mean, std: of red, green and blue from 0 to 1, what is taken off and what the rest is divided by.
    """
    from PIL import Image

    short, long = min(picture.size), max(picture.size)
    other = int(side * long / short)
    size = (side, other) if picture.width <= picture.height else (other, side)
    corner = [(length - side) // 2 for length in size]
    ends = [start + side for start in corner]
    if long <= LONGEST * short:
        middle = picture.resize(size, Image.Resampling.BICUBIC).crop((corner[0], corner[1], ends[0], ends[1]))
    else:  # no more is made than is looked at; by places between pixels it may be a level of 255 off
        scale = [before / after for before, after in zip(picture.size, size, strict=True)]
        (left, right), (top, bottom) = (
            (start * each, end * each) for start, end, each in zip(corner, ends, scale, strict=True)
        )
        middle = picture.resize((side, side), Image.Resampling.BICUBIC, box=(left, top, right, bottom))
    pixels = np.asarray(middle, np.float32) * np.float32(1 / 255)
    samples = (pixels - np.array(mean, np.float32)) / np.array(std, np.float32)
    return np.ascontiguousarray(samples.transpose(2, 0, 1)[np.newaxis])
