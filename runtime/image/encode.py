"""Pixels to latents, the way back from `decode`. The encoder comes in as a function, as the decoder does there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tintype.arrays import Latents, Pixels, Samples

if TYPE_CHECKING:
    from PIL.Image import Image

# Samples -> (1, 2 * channels, height, width): the mean of each latent, then the logarithm of its variance.
Encoder = Callable[[Samples], NDArray[np.float32]]


def encode_pixels(encoder: Encoder, pixels: Pixels, *, scaling_factor: float, shift_factor: float) -> Latents:
    """One picture, (1, height, width, 3), to the mean of its latents, as `decode_samples` takes them."""
    return encode_samples(encoder, to_samples(pixels), scaling_factor=scaling_factor, shift_factor=shift_factor)


def encode_samples(encoder: Encoder, samples: Samples, *, scaling_factor: float, shift_factor: float) -> Latents:
    """The same of a picture's samples, (1, 3, height, width)."""
    told = encoder(samples)
    mean = told[:, : told.shape[1] // 2].astype(np.float32, copy=False)
    return (mean - np.float32(shift_factor)) * np.float32(scaling_factor)


def to_samples(pixels: Pixels) -> Samples:
    """0..255 to [-1, 1]."""
    samples = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32)
    samples /= np.float32(127.5)
    samples -= np.float32(1)
    return samples


def of_image(image: Image) -> Pixels:
    """A picture of Pillow's, of any mode, as (1, height, width, 3)."""
    return np.asarray(image.convert("RGB"))[np.newaxis]
