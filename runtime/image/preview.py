"""A rough picture of latents in no time: a colour for each cell, linear in its channels, and no decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tintype.arrays import Latents, Samples
from tintype.image.decode import to_image, to_pixels

if TYPE_CHECKING:
    from PIL.Image import Image


def linear_samples(latents: Latents, weights: Sequence[Sequence[float]], bias: Sequence[float]) -> Samples:
    """(pictures, 3, rows, columns), a sample a cell, of latents as the denoiser leaves them.

    weights: for each channel what it adds to red, green and blue; bias: what they begin at; -1 is black, 1 is white.
    """
    colours = np.einsum("nchw,ck->nkhw", latents, np.asarray(weights, np.float32))
    return np.asarray(colours + np.asarray(bias, np.float32)[:, np.newaxis, np.newaxis], np.float32)


def linear_images(
    latents: Latents, weights: Sequence[Sequence[float]], bias: Sequence[float], cell: int
) -> list[Image]:
    """The same as pictures of the size that the decoder would make, each cell `cell` pixels a side, smoothed."""
    pixels = to_pixels(linear_samples(np.nan_to_num(latents), weights, bias))
    return [to_image(one).resize((one.shape[1] * cell, one.shape[0] * cell)) for one in pixels]


def fit_factors(latents: Latents, samples: Samples) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights (channels, 3) and bias (3,) by least squares: the mean colour of each cell of pictures, by its latents.

    latents: (pictures, channels, rows, columns). samples: what the decoder made of them.
    """
    count, channels, rows, columns = latents.shape
    cells = samples.clip(-1, 1).reshape(count, 3, rows, samples.shape[2] // rows, columns, samples.shape[3] // columns)
    colours = cells.mean(axis=(3, 5), dtype=np.float64).transpose(0, 2, 3, 1).reshape(-1, 3)
    known = latents.transpose(0, 2, 3, 1).reshape(-1, channels).astype(np.float64)
    solved = np.linalg.lstsq(np.hstack([known, np.ones((len(known), 1))]), colours, rcond=None)[0]
    return solved[:-1], solved[-1]
