"""Latents to pixels. The decoder comes in as a function, so that where and in which pieces it runs is its caller's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tintype.arrays import Latents, Pixels, Samples
from tintype.errors import BundleError, NumericError
from tintype.image.tiles import Tiling, run_tiled

if TYPE_CHECKING:
    from PIL.Image import Image

Decoder = Callable[[Latents], Samples]


def decode_samples(
    decoder: Decoder,
    latents: Latents,
    *,
    cell: int,
    scaling_factor: float,
    shift_factor: float,
    tiling: Tiling | None = None,
) -> Iterator[Samples]:
    """The samples of each picture, (1, 3, height, width), one after another so that the peak is that of one.

    cell: pixels of a latent cell, each side. tiling: in pieces, in latent cells, so that the peak is that of one piece.

    Raises NumericError when the decoder gives NaN or infinity, BundleError when it gives another size.
    """

    def sized(piece: Latents) -> Samples:
        samples = decoder(piece)
        demand_shape("the VAE decoder", samples, (len(piece), 3, piece.shape[2] * cell, piece.shape[3] * cell))
        return samples

    scaled = (latents / np.float32(scaling_factor) + np.float32(shift_factor)).astype(np.float32, copy=False)
    for index in range(len(scaled)):
        one = scaled[index : index + 1]
        samples = sized(one) if tiling is None else run_tiled(sized, one, tiling)
        samples = samples.astype(np.float32, copy=False)
        if not np.isfinite(samples).all():
            raise NumericError(
                "the VAE decoder gave NaN or infinity",
                fix="export the VAE in fp32 (tintype export --precision fp32), or check the checkpoint",
            )
        yield samples


def demand_shape(who: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    """BundleError for what a graph gives in another shape than the manifest promised."""
    if array.shape != shape:
        raise BundleError(
            f"{who} gave {_dims(array.shape)} where the manifest promises {_dims(shape)}",
            fix="copy the bundle again, or export the checkpoint again",
        )


def _dims(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


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
