"""Pictures like photographs, made of numbers alone: for what looks at pixels and not at what they show."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Picture = NDArray[np.uint8]  # (height, width, 3)


def photograph(seed: int, size: tuple[int, int] = (256, 256)) -> Picture:
    """Hills and discs before clouds, with a photograph's spectrum and a camera's grain. size: height and width."""
    random = np.random.default_rng(seed)
    height, width = size
    clouds = _clouds(random, size)[..., np.newaxis] * random.uniform(20, 45) + random.uniform(60, 190, 3)
    picture = Image.fromarray(np.clip(clouds, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(7):
        colour = tuple(int(each) for each in random.integers(0, 256, 3))
        left, top = random.integers(-width // 4, width), random.integers(-height // 4, height)
        box = (int(left), int(top), int(left + random.integers(20, width)), int(top + random.integers(20, height)))
        (draw.ellipse if random.random() < 0.6 else draw.rectangle)(box, fill=colour)
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(0.7)), np.float32)
    texture = _clouds(random, size, slope=0.9)[..., np.newaxis] * random.uniform(2, 8)
    return np.clip(soft + texture + random.normal(0, 1.5, soft.shape), 0, 255).astype(np.uint8)


def _clouds(random: np.random.Generator, size: tuple[int, int], slope: float = 1.5) -> NDArray[np.float64]:
    """Noise whose amplitude falls by frequency to a power, of standard deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(size[0])[:, np.newaxis], np.fft.rfftfreq(size[1])[np.newaxis])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(random.normal(size=size)) / frequency**slope
    values = np.fft.irfft2(spectrum, size)
    return np.asarray(values / values.std())


def as_jpeg(picture: Picture, quality: int) -> Picture:
    with io.BytesIO() as file:
        Image.fromarray(picture).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file).convert("RGB"))
