"""Pictures like photographs, made of numbers alone: for what looks at pixels and not at what they show."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Picture = NDArray[np.uint8]  # (height, width, 3)


def photograph(seed: int, size: tuple[int, int] = (256, 256)) -> Picture:
    """Hills and discs before clouds, with a photograph's spectrum and a camera's grain. size: height and width."""
    random = np.random.default_rng(seed)
    height, width = size
    clouds = _clouds(random, size)[..., np.newaxis] * random.uniform(20, 45) + random.uniform(60, 190, 3)
    picture = Image.fromarray(clipped(clouds))
    draw = ImageDraw.Draw(picture)
    for _ in range(7):
        colour = tuple(int(each) for each in random.integers(0, 256, 3))
        left, top = random.integers(-width // 4, width), random.integers(-height // 4, height)
        box = (int(left), int(top), int(left + random.integers(20, width)), int(top + random.integers(20, height)))
        (draw.ellipse if random.random() < 0.6 else draw.rectangle)(box, fill=colour)
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(0.7)), np.float32)
    texture = _clouds(random, size, slope=0.9)[..., np.newaxis] * random.uniform(2, 8)
    return clipped(soft + texture + random.normal(0, 1.5, soft.shape))


def _clouds(random: np.random.Generator, size: tuple[int, int], slope: float = 1.5) -> NDArray[np.float64]:
    """Noise whose amplitude falls by frequency to a power, of standard deviation 1."""
    frequency = frequencies(size)
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(random.normal(size=size)) / frequency**slope
    values = np.fft.irfft2(spectrum, size)
    return np.asarray(values / values.std())


def frequencies(size: tuple[int, int]) -> NDArray[np.float64]:
    """Of a real transform, in waves a pixel."""
    return np.asarray(np.hypot(np.fft.fftfreq(size[0])[:, np.newaxis], np.fft.rfftfreq(size[1])[np.newaxis]))


def clipped(values: NDArray[Any]) -> Picture:
    return np.clip(values, 0, 255).astype(np.uint8)


def repeated(tile: NDArray[Any], size: tuple[int, ...]) -> NDArray[Any]:
    """A tile over and over, of a height and width."""
    times = [-(-whole // part) for whole, part in zip(size, tile.shape, strict=False)]
    return np.tile(tile, (*times, *[1] * (tile.ndim - 2)))[: size[0], : size[1]]


def as_jpeg(picture: Picture, quality: int) -> Picture:
    with io.BytesIO() as file:
        Image.fromarray(picture).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file).convert("RGB"))
