"""Masks of the tokens that a picture is drawn in: where in it another picture is looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

SHARPNESS = -0.75  # the cubic's, as torch has it (Keys 1981 has -0.5)


def token_mask(mask: Image, rows: int, columns: int) -> NDArray[np.float32]:
    """A mask of the picture, L, at each token of a row after another, (rows * columns,).

    What is at least half white counts as white; between its pixels it is cubic, as diffusers' torch has it: beside an
    edge it goes a little below 0 and above 1.
    """
    white = (np.asarray(mask) >= 128).astype(np.float64)
    return (_cubic(white.shape[0], rows) @ white @ _cubic(white.shape[1], columns).T).astype(np.float32).ravel()


def _cubic(before: int, after: int) -> NDArray[np.float64]:
    """(after, before): what each of so many places is made of, of the four nearest ones; the ends go on."""
    place = (np.arange(after) + 0.5) * (before / after) - 0.5
    first = np.floor(place).astype(np.int64)
    weights = np.zeros((after, before))
    for step in (-1, 0, 1, 2):
        away = np.abs(place - (first + step))
        near = ((SHARPNESS + 2) * away - (SHARPNESS + 3)) * away * away + 1
        far = ((SHARPNESS * away - 5 * SHARPNESS) * away + 8 * SHARPNESS) * away - 4 * SHARPNESS
        np.add.at(weights, (np.arange(after), np.clip(first + step, 0, before - 1)), np.where(away <= 1, near, far))
    return weights
