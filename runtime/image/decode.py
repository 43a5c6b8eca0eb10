"""Latents to pixels. The decoder comes in as a function, so that where and in which pieces it runs is its caller's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tintype.arrays import Latents, Pixels, Samples
from tintype.errors import NumericError
from tintype.image.tiles import Tiling, run_tiled

if TYPE_CHECKING:
    from PIL.Image import Image

Decoder = Callable[[Latents], Samples]


def decode_samples(
    decoder: Decoder, latents: Latents, *, scaling_factor: float, shift_factor: float, tiling: Tiling | None = None
) -> Iterator[Samples]:
    """The samples of each picture, (1, 3, height, width), one after another so that the peak is that of one.

    tiling: in pieces, in latent cells, so that the peak is that of one piece.

    Raises NumericError when the decoder gives NaN or infinity.
    """
    scaled = (latents / np.float32(scaling_factor) + np.float32(shift_factor)).astype(np.float32, copy=False)
    for index in range(len(scaled)):
        one = scaled[index : index + 1]
        samples = decoder(one) if tiling is None else run_tiled(decoder, one, tiling)
        samples = samples.astype(np.float32, copy=False)
        if not np.isfinite(samples).all():
            raise NumericError(
                "the VAE decoder gave NaN or infinity",
                fix="export the VAE in fp32 (tintype export --precision fp32), or check the checkpoint",
            )
        yield samples


def to_unit(samples: Samples) -> NDArray[np.float32]:
    """[-1, 1] to 0..1, (batch, 3, height, width) as they are."""
    unit = samples / np.float32(2)  # in place from here on: a picture's samples are twelve times its bytes
    unit += np.float32(0.5)
    np.clip(unit, 0.0, 1.0, out=unit)
    return unit


def to_pixels(samples: Samples) -> Pixels:
    """[-1, 1] to 0..255, rounded to the nearest, as diffusers does."""
    unit = to_unit(samples)
    unit *= np.float32(255)
    return np.ascontiguousarray(unit.round(out=unit).astype(np.uint8).transpose(0, 2, 3, 1))


def to_image(pixels: NDArray[np.uint8]) -> Image:
    """One picture, (height, width, 3), for Pillow."""
    from PIL import Image

    return Image.fromarray(pixels)
