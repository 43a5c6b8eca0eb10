"""Outpainting: a picture on a larger canvas, and the mask of what is to be made new there.

The picture itself keeps its bytes; the new part is something that a denoiser can start from.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tintype.errors import RequestError
from tintype.image.source import MAX_PIXELS

if TYPE_CHECKING:
    from PIL.Image import Image

_FIX = "give four whole numbers of pixels, left,top,right,bottom, one of them above 0: 64,0,64,0"


@dataclass(frozen=True, slots=True)
class Margins:
    """How many pixels are added at each side; one at least."""

    left: int
    top: int
    right: int
    bottom: int

    def __post_init__(self) -> None:
        sides = dataclasses.astuple(self)
        whole = all(isinstance(side, int) and not isinstance(side, bool) and side >= 0 for side in sides)
        if not whole or not any(sides):
            raise RequestError(f"margins of {','.join(map(str, sides))[:60]} extend nothing", fix=_FIX)

    @classmethod
    def parse(cls, text: str) -> Margins:
        """Margins as they are typed: left,top,right,bottom."""
        sides = [side.strip() for side in text.split(",")] if isinstance(text, str) else []
        if len(sides) != 4 or not all(re.fullmatch("[0-9]{1,9}", side) for side in sides):
            raise RequestError(f"{str(text)[:60]!r} are no margins", fix=_FIX)
        left, top, right, bottom = map(int, sides)
        return cls(left, top, right, bottom)


def extend(image: Image, margins: Margins, *, overlap: int = 8) -> tuple[Image, Image]:
    """An RGB picture on its larger canvas, and the mask of the new part: L, 255 there and 0 elsewhere.

    overlap: pixels of the old picture, along each extended side, that are made new too, so that no seam shows.
    """
    from PIL import Image

    width, height = image.width + margins.left + margins.right, image.height + margins.top + margins.bottom
    if width * height > MAX_PIXELS:
        raise RequestError(
            f"a canvas of {width:,}x{height:,} has more than {MAX_PIXELS:,} pixels", fix="give smaller margins"
        )
    inset = [margin and margin + overlap for margin in dataclasses.astuple(margins)]
    left, top, right, bottom = inset[0], inset[1], width - inset[2], height - inset[3]
    if overlap < 0 or left >= right or top >= bottom:
        raise RequestError(
            f"an overlap of {overlap} does not fit into a picture of {image.width}x{image.height}",
            fix="give an overlap of 0, or a few pixels that leave some of the picture",
        )
    mask = np.full((height, width), 255, np.uint8)
    mask[top:bottom, left:right] = 0
    pixels = _extend_rows(np.asarray(image).swapaxes(0, 1), margins.left, margins.right).swapaxes(0, 1)
    pixels = _extend_rows(pixels, margins.top, margins.bottom)
    return Image.fromarray(np.ascontiguousarray(pixels)), Image.fromarray(mask)


def _extend_rows(pixels: NDArray[np.uint8], before: int, after: int) -> NDArray[np.uint8]:
    """Rows added before the first and after the last: mirrored, and fading until the outermost has that edge's mean."""
    canvas = np.pad(pixels, ((before, after), (0, 0), (0, 0)), mode="symmetric")
    sides = (
        (canvas[:before], pixels[0], np.arange(before, 0, -1)),
        (canvas[len(canvas) - after :], pixels[-1], np.arange(1, after + 1)),
    )
    for rows, edge, distance in sides:
        if len(rows):
            fade = (distance / len(rows)).astype(np.float32)[:, np.newaxis, np.newaxis]
            mirrored = rows.astype(np.float32)
            mirrored += (edge.mean(axis=0, dtype=np.float32) - mirrored) * fade
            rows[:] = np.rint(mirrored).astype(np.uint8)
    return canvas
