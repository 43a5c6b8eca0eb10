"""Pictures brought to a size that a model makes, and that size where a picture alone was given.

A picture that has the size already comes back untouched; nothing here needs more than its pixels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import numpy as np

from tintype.errors import RequestError, near_names

if TYPE_CHECKING:
    from PIL.Image import Image

FITS = ("crop", "pad", "stretch")

LANCZOS = 1  # PIL.Image.Resampling.LANCZOS, without Pillow


class Limits(Protocol):
    """The manifest's SizeLimits; layers below it don't import it."""

    @property
    def multiple(self) -> int: ...
    @property
    def minimum(self) -> int: ...
    @property
    def maximum(self) -> int: ...


def fit(image: Image, width: int, height: int, how: str, *, resample: int = LANCZOS) -> Image:
    """A picture, RGB or L, at another size; itself where it has that size.

    how: crop covers the size and cuts the middle out; pad keeps the whole picture, its edge pixels repeated around it;
    stretch gives up its aspect ratio.
    """
    if how not in FITS:
        raise RequestError(f"there is no fit {str(how)[:60]!r}", fix=near_names(str(how)[:60], FITS))
    if min(width, height) < 1:
        raise RequestError(f"no picture is {width}x{height}", fix="give a width and a height of 1 or more")
    if image.size == (width, height):
        return image
    if how == "crop":
        return _crop(image, width, height, resample)
    if how == "pad":
        return _pad(image, width, height, resample)
    return image.resize((width, height), resample)


def size_for(image_size: tuple[int, int], default_size: tuple[int, int], limits: Limits) -> tuple[int, int]:
    """The (width, height) of a request that gave only a picture: the picture's own where the model makes it and it has
    no more pixels than the default.

    Otherwise, of the sizes that the model makes with no more pixels than the default, the one that errs least, where a
    percent of aspect ratio counts as much as a percent of the side that the default's area would give.
    """
    most = math.prod(default_size)
    width, height = image_size
    if min(width, height) < 1:
        raise RequestError(f"no picture is {width}x{height}", fix="give a picture of at least one pixel")
    if all(_makes(side, limits) for side in image_size) and width * height <= most:
        return image_size

    def error(size: tuple[int, int]) -> float:
        return abs(math.log(size[0] * height / (size[1] * width))) + math.log(most / math.prod(size)) / 2

    best = default_size
    for wide in range(limits.minimum, limits.maximum + 1, limits.multiple):
        tallest = min(limits.maximum, most // wide) // limits.multiple * limits.multiple
        if tallest < limits.minimum:
            break
        below = wide * height // width // limits.multiple * limits.multiple  # the error has one valley along a side
        for high in (below, below + limits.multiple):
            best = min(best, (wide, min(max(high, limits.minimum), tallest)), key=error)
    return best


def _makes(side: int, limits: Limits) -> bool:
    return limits.minimum <= side <= limits.maximum and side % limits.multiple == 0


def _crop(image: Image, width: int, height: int, resample: int) -> Image:
    scale = max(width / image.width, height / image.height)
    wide, high = min(image.width, width / scale), min(image.height, height / scale)
    left, top = (image.width - wide) / 2, (image.height - high) / 2
    if scale == 1:  # whole pixels: half of one would blur what needs no scaling
        left, top = left // 1, top // 1
    return image.resize((width, height), resample, box=(left, top, left + wide, top + high))


def _pad(image: Image, width: int, height: int, resample: int) -> Image:
    from PIL import Image

    scale = min(width / image.width, height / image.height)
    wide, high = (max(1, round(side * scale)) for side in image.size)
    whole = image if image.size == (wide, high) else image.resize((wide, high), resample)
    left, top = (width - wide) // 2, (height - high) // 2
    pixels = np.asarray(whole)
    around = ((top, height - high - top), (left, width - wide - left), (0, 0))
    return Image.fromarray(np.pad(pixels, around[: pixels.ndim], mode="edge"))
