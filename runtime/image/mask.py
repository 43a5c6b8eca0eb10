"""Masks: what is white is made new. Where a mask is 0, a picture keeps its bytes; where it is 1, it has the new ones.

As files they are grey pictures; prepared they are float32 (height, width) in 0..1.
"""

from __future__ import annotations

import math
import numbers
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tintype.arrays import Samples
from tintype.errors import RequestError
from tintype.image.source import Source, read_layers

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_GROW = 256  # pixels
MAX_BLUR = 256.0

# A colour counts as uniform when no pixel strays further, in levels of 255 weighted by its opacity: transparent pixels
# lose their colour in many formats.
_UNIFORM = 2


def open_mask(source: Source) -> Image:
    """A mask from what a user brings, as L: its luma, or its alpha where only the alpha draws (all of one colour)."""
    from PIL import Image

    if isinstance(source, np.ndarray) and source.dtype == np.bool_:
        source = source.astype(np.uint8) * np.uint8(255)
    colour, alpha = read_layers(source, "mask")
    luma = colour.convert("RGB").convert("L")
    if alpha is None or alpha.getextrema() == (255, 255):
        mask = luma
    elif _is_uniform(colour, alpha):
        mask = alpha
    else:
        mask = Image.composite(luma, Image.new("L", luma.size, 0), alpha)
    mask.info = {}
    return mask


def prepare_mask(mask: Image, *, grow: int = 0, blur: float = 0.0) -> NDArray[np.float32]:
    """The share of the new picture at each pixel. Raises RequestError where that would be nothing at all.

    grow: pixels by which the white widens, or narrows where it is negative; beyond its border a picture counts as what
    changes nothing. blur: a Gaussian's radius in pixels, taken after that.
    """
    from PIL import Image, ImageFilter

    _demand("grow", grow, numbers.Integral, -MAX_GROW, MAX_GROW)
    _demand("blur", blur, numbers.Real, 0, MAX_BLUR)
    grow, blur, levels = int(grow), float(blur), np.asarray(mask.convert("L"))
    if not levels.any():
        fix = "paint white what is to be made new, or invert the mask"
        raise RequestError("the mask is empty: it has nothing white", fix=fix)
    if grow > 0:
        levels = _widen(levels, grow)
    elif grow < 0:
        levels = 255 - _widen(255 - levels, -grow)
    if blur > 0:
        levels = np.asarray(Image.fromarray(levels).filter(ImageFilter.GaussianBlur(blur)))
    if not levels.any():
        fix = "narrow it less, or blur it less"
        raise RequestError(f"grow {grow} and blur {blur:g} leave nothing white of the mask", fix=fix)
    return levels.astype(np.float32) / np.float32(255)


def mask_cells(mask: NDArray[np.float32], cell: int) -> NDArray[np.float32]:
    """The mean of each cell: (height / cell, width / cell)."""
    _demand_whole_cells(mask, cell)
    height, width = mask.shape
    means: NDArray[np.float32] = mask.reshape(height // cell, cell, width // cell, cell).mean(axis=(1, 3))
    return means


def hard_cells(mask: NDArray[np.float32], cell: int) -> NDArray[np.float32]:
    """1 for a cell whose first pixel is made new (see `is_new`), else 0: (height / cell, width / cell).

    Inpainting models were trained on masks that were brought to the latents' grid by the nearest pixel.
    """
    _demand_whole_cells(mask, cell)
    return is_new(mask)[::cell, ::cell].astype(np.float32)


def is_new(mask: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where a mask is at least half: for a model that knows no half."""
    return mask >= np.float32(0.5)


def hide(samples: Samples, mask: NDArray[np.float32]) -> Samples:
    """A picture's samples with grey where it is made new. mask: (height, width)."""
    return np.where(is_new(mask), np.float32(0), samples)


def demand_same_size(mask: Image, image: Image) -> None:
    """RequestError unless a mask has its picture's size."""
    if mask.size != image.size:
        raise RequestError(
            f"the mask is {mask.width}x{mask.height}, its picture {image.width}x{image.height}",
            fix="give a mask of the picture's size",
        )


def keep_outside(original: NDArray[np.uint8], made: NDArray[np.uint8], mask: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The new picture where the mask is 1, the original where it is 0, bit for bit; between, a blend of both.

    original, made: (height, width, 3). mask: (height, width).
    """
    if not original.shape == made.shape == (*mask.shape, 3):
        raise RequestError(
            f"pictures of {original.shape} and {made.shape} cannot be put together by a mask of {mask.shape}",
            fix="give all three in one size",
        )
    blend = made.astype(np.float32)  # in place from here on
    blend -= original
    blend *= mask[:, :, np.newaxis]
    blend += original
    return np.rint(blend, out=blend).astype(np.uint8)


def _demand_whole_cells(mask: NDArray[np.float32], cell: int) -> None:
    height, width = mask.shape
    if cell < 1 or height % cell or width % cell:
        fix = f"give sides in multiples of {max(cell, 1)}"
        raise RequestError(f"a mask of {width}x{height} has no whole cells of {cell}", fix=fix)


def _is_uniform(colour: Image, alpha: Image) -> bool:
    pixels, opacity = np.asarray(colour.convert("RGB")), np.asarray(alpha)
    most = pixels[np.unravel_index(opacity.argmax(), opacity.shape)]
    stray = (np.maximum(pixels, most) - np.minimum(pixels, most)).max(axis=2)
    return bool((stray.astype(np.uint16) * opacity).max() <= _UNIFORM * 255)


def _widen(levels: NDArray[np.uint8], reach: int) -> NDArray[np.uint8]:
    """The maximum over an octagon, which takes few passes and is nearly a disc, of `reach` pixels to each side."""
    diagonal = int(reach * (1 - math.sqrt(0.5)))
    straight = reach - 2 * diagonal
    padded = np.pad(levels, reach)
    for rows, columns, length in ((1, 0, straight), (0, 1, straight), (1, 1, diagonal), (1, -1, diagonal)):
        padded = _line_maximum(padded, rows, columns, 2 * length + 1)
    return padded


def _line_maximum(values: NDArray[np.uint8], rows: int, columns: int, window: int) -> NDArray[np.uint8]:
    """The maximum over `window` pixels in a row along a direction, by doubling; the array shrinks by the window."""
    done = 1
    while done < window:
        step = min(done, window - done)
        bottom, right = len(values) - rows * step, values.shape[1] - abs(columns) * step
        here, there = slice(0, right), slice(values.shape[1] - right, None)
        if columns < 0:
            here, there = there, here
        values = np.maximum(values[:bottom, here], values[rows * step :, there])
        done += step
    return values


def _demand(field: str, value: Any, kind: type, least: float, most: float) -> None:
    sound = isinstance(value, kind) and not isinstance(value, bool)
    if not sound or not least <= value <= most:  # NaN is not within anything
        number = "whole number" if kind is numbers.Integral else "number"
        raise RequestError(f"{field} {str(value)[:60]} cannot be", fix=f"give a {number} from {least:g} to {most:g}")
