"""What a ControlNet is shown, made of a picture without a model: edges, greys, negatives, all
of it at another size, blurs, coarse copies.

Each is a function of an RGB picture and its numbers; `preprocess` reads its name and numbers, as in `canny:100-200`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tintype.errors import RequestError, near_names

if TYPE_CHECKING:
    from PIL.Image import Image

RESIZE = "resize"  # all of a picture at the size that is drawn, stretched to it, however others are fitted
_NUMBER = r"\d{1,4}(?:\.\d{1,4})?"
_ASKED = re.compile(rf"([a-z]{{1,20}})(?::({_NUMBER})(?:-({_NUMBER}))?)?", re.ASCII)


def canny(image: Image, low: float, high: float) -> Image:
    """Edges, white on black (Canny 1986): where a Sobel gradient is largest across itself and above `high`, or above
    `low` and joined to such a one. Gradients are |x| + |y| of greys of 0 to 255, as OpenCV's are."""
    greys = np.pad(np.asarray(image.convert("L"), np.int32), 1, mode="edge")
    smooth_rows = greys[:-2] + 2 * greys[1:-1] + greys[2:]
    smooth_columns = greys[:, :-2] + 2 * greys[:, 1:-1] + greys[:, 2:]
    across, down = smooth_rows[:, 2:] - smooth_rows[:, :-2], smooth_columns[2:] - smooth_columns[:-2]
    size = np.abs(across) + np.abs(down)
    is_peak = _is_peak(size, across, down)
    return _white_where(_joined(is_peak & (size > high), is_peak & (size > low)))


def _is_peak(size: NDArray[np.int32], across: NDArray[np.int32], down: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Where a gradient is no smaller than its two neighbours along itself, by the nearest of four directions."""
    around = np.pad(size, 1)
    rows, columns = size.shape

    def beside(row: int, column: int) -> NDArray[np.int32]:
        return around[1 + row : 1 + row + rows, 1 + column : 1 + column + columns]

    flat = np.abs(down) < np.tan(np.pi / 8) * np.abs(across)
    steep = np.abs(down) > np.tan(3 * np.pi / 8) * np.abs(across)
    falls = (across >= 0) == (down >= 0)
    peak = np.where(
        falls, (size > beside(-1, -1)) & (size >= beside(1, 1)), (size > beside(-1, 1)) & (size >= beside(1, -1))
    )
    peak = np.where(steep, (size > beside(-1, 0)) & (size >= beside(1, 0)), peak)
    peak = np.where(flat, (size > beside(0, -1)) & (size >= beside(0, 1)), peak)
    return np.asarray(peak, bool)


def _joined(strong: NDArray[np.bool_], weak: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The strong ones, and what of the weak ones touches them, or one that does."""
    found = np.pad(strong, 1)
    left = np.pad(weak, 1) & ~found
    width = found.shape[1]
    steps = np.array([row * width + column for row in (-1, 0, 1) for column in (-1, 0, 1) if row or column])
    found, left = found.ravel(), left.ravel()
    front = np.flatnonzero(found)
    while front.size:
        near = np.unique(front[:, np.newaxis] + steps)
        front = near[left[near]]
        found[front], left[front] = True, False
    return np.asarray(found.reshape(-1, width)[1:-1, 1:-1])


def _white_where(chosen: NDArray[np.bool_]) -> Image:
    from PIL import Image

    return Image.fromarray(np.where(chosen, 255, 0).astype(np.uint8)).convert("RGB")


def grey(image: Image) -> Image:
    return image.convert("L").convert("RGB")


def invert(image: Image) -> Image:
    from PIL import ImageOps

    return ImageOps.invert(image)


def blur(image: Image, radius: float) -> Image:
    """radius: in pixels, of a Gaussian."""
    from PIL import ImageFilter

    return image.filter(ImageFilter.GaussianBlur(radius))


def tile(image: Image, factor: float) -> Image:
    """What is left of a picture in a copy so many times as small: what a tile ControlNet puts detail into."""
    from PIL import Image

    small = [max(1, round(side / factor)) for side in image.size]
    return image.resize((small[0], small[1]), Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC)


def resize(image: Image) -> Image:
    """As it is: who fits it to the size stretches it."""
    return image


_KINDS: dict[str, tuple[Callable[..., Image], tuple[float, ...], tuple[float, float]]] = {
    # what it does, its numbers where none are said, and between which they are
    "canny": (canny, (100.0, 200.0), (0.0, 2040.0)),
    "grey": (grey, (), (0.0, 0.0)),
    "invert": (invert, (), (0.0, 0.0)),
    RESIZE: (resize, (), (0.0, 0.0)),
    "blur": (blur, (4.0,), (0.0, 256.0)),
    "tile": (tile, (8.0,), (1.0, 256.0)),
}
PREPROCESSORS = tuple(_KINDS)


def demand_preprocessor(asked: str) -> None:
    """RequestError where a name or its numbers are none."""
    _read(asked)


def preprocess(image: Image, asked: str) -> Image:
    """An RGB picture as a ControlNet is shown it. asked: a name, with numbers of its own behind a colon."""
    kind, numbers = _read(asked)
    return kind(image, *numbers)


def _read(asked: str) -> tuple[Callable[..., Image], tuple[float, ...]]:
    found = _ASKED.fullmatch(asked) if isinstance(asked, str) else None
    name = found[1] if found else str(asked)[:60]
    if name not in _KINDS:
        raise RequestError(f"there is no preprocessor {name!r}", fix=near_names(name, PREPROCESSORS))
    assert found is not None
    kind, usual, (least, most) = _KINDS[name]
    given = tuple(float(number) for number in found.groups()[1:] if number is not None)
    if len(given) not in (0, len(usual)):
        shown = "-".join(f"{number:g}" for number in usual)
        raise RequestError(
            f"{name} takes {len(usual)} numbers, and {asked!r} has {len(given)}",
            fix=f"give {name}:{shown}" if usual else f"give {name} alone",
        )
    if any(not least <= number <= most for number in given) or list(given) != sorted(given):
        raise RequestError(
            f"{asked!r} is out of range", fix=f"give numbers from {least:g} to {most:g}, the smaller first"
        )
    return kind, given or usual
