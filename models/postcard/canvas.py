"""A square RGB canvas in unit coordinates: x right and y down, both 0..1.

It is drawn at twice the picture's size and reduced at the end, which antialiases every edge.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .palette import RGB, ink

Point = tuple[float, float]

SUPERSAMPLING = 2


@functools.cache
def _ramp(rows: int) -> NDArray[np.float32]:
    return np.linspace(0.0, 1.0, rows, dtype=np.float32)[:, None]


class Canvas:
    """An image under construction; `side` is its edge in canvas pixels."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self.side = image.width
        self.draw = ImageDraw.Draw(image)

    def scaled(self, points: Sequence[Point]) -> list[Point]:
        """Unit points as canvas pixels."""
        side = self.side
        return [(x * side, y * side) for x, y in points]

    def polygon(self, points: Sequence[Point], colour: RGB) -> None:
        """A flat polygon."""
        self.draw.polygon(self.scaled(points), fill=ink(colour))

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: RGB) -> None:
        """A flat ellipse around (x, y)."""
        box = self.scaled([(x - rx, y - ry), (x + rx, y + ry)])
        self.draw.ellipse([*box[0], *box[1]], fill=ink(colour))

    def rectangle(self, x0: float, y0: float, x1: float, y1: float, colour: RGB) -> None:
        """A flat rectangle."""
        (left, top), (right, bottom) = self.scaled([(x0, y0), (x1, y1)])
        self.draw.rectangle([left, top, max(right - 1, left), max(bottom - 1, top)], fill=ink(colour))

    def shade(self, points: Sequence[Point], top: RGB, bottom: RGB) -> None:
        """A polygon filled with a vertical gradient over its own height."""
        scaled = self.scaled(points)
        y0 = max(int(min(y for _, y in scaled)), 0)
        y1 = min(int(max(y for _, y in scaled)) + 1, self.side)
        if y1 <= y0:
            return
        mask = Image.new("L", (self.side, y1 - y0))
        ImageDraw.Draw(mask).polygon([(x, y - y0) for x, y in scaled], fill=255)
        self.image.paste(gradient(self.side, y1 - y0, top, bottom), (0, y0), mask)

    def veil(self, mask: Image.Image, colour: RGB) -> None:
        """The colour over the whole canvas, by a mask of any size (0..255)."""
        if mask.size != self.image.size:
            mask = mask.resize(self.image.size, Image.Resampling.BILINEAR)
        self.image.paste(ink(colour), (0, 0, self.side, self.side), mask)

    def soft_ellipses(self, ellipses: Sequence[tuple[float, float, float, float]], colour: RGB, alpha: float) -> None:
        """Translucent ellipses (x, y, rx, ry), drawn once where they overlap."""
        mask = Image.new("L", self.image.size)
        draw = ImageDraw.Draw(mask)
        value = int(255 * alpha)
        for x, y, rx, ry in ellipses:
            box = self.scaled([(x - rx, y - ry), (x + rx, y + ry)])
            draw.ellipse([*box[0], *box[1]], fill=value)
        self.veil(mask, colour)


def gradient(width: int, height: int, top: RGB, bottom: RGB) -> Image.Image:
    """A vertical gradient, (height, width) pixels."""
    ramp = _ramp(height)
    start = np.asarray(top, np.float32)
    column = start + (np.asarray(bottom, np.float32) - start) * ramp
    pixels = np.clip(column, 0, 255).astype(np.uint8)[:, None, :]
    return Image.fromarray(np.broadcast_to(pixels, (height, width, 3)).copy())


def ridgeline(
    rng: np.random.Generator, base: float, height: float, *, octaves: Sequence[int], points: int = 65
) -> list[Point]:
    """A fractal skyline across the picture around y = base: octave noise, rougher when finer."""
    x = np.linspace(-0.02, 1.02, points)
    y = np.zeros(points)
    for octave in octaves:
        knots = rng.uniform(-1.0, 1.0, octave + 2)
        y += np.interp(x * octave, np.arange(octave + 2) - 0.5, knots) / octave
    y *= min(octaves)
    return list(zip(x.tolist(), (base - height * y).tolist(), strict=True))


def rolling(rng: np.random.Generator, base: float, height: float, waves: float) -> list[Point]:
    """A smooth skyline across the picture around y = base: two sines."""
    x = np.linspace(-0.02, 1.02, 41)
    phases = rng.uniform(0.0, 2 * np.pi, 2)
    y = np.sin(2 * np.pi * waves * x + phases[0])
    y += 0.4 * np.sin(2 * np.pi * 1.9 * waves * x + phases[1])
    return list(zip(x.tolist(), (base - height * y).tolist(), strict=True))


def down_to(skyline: list[Point], y: float = 1.02) -> list[Point]:
    """The skyline closed to a polygon whose flat foot is at y."""
    return [*skyline, (skyline[-1][0], y), (skyline[0][0], y)]


def broken(rng: np.random.Generator, start: Point, end: Point, roughness: float, depth: int = 3) -> list[Point]:
    """From start to end with midpoints displaced, sideways to the line."""
    points = [start, end]
    for level in range(depth):
        refined: list[Point] = []
        offsets = rng.uniform(-1.0, 1.0, len(points) - 1) * roughness * 0.55**level
        for (x0, y0), (x1, y1), offset in zip(points[:-1], points[1:], offsets.tolist(), strict=True):
            dx, dy = x1 - x0, y1 - y0
            refined += [(x0, y0), ((x0 + x1) / 2 - dy * offset, (y0 + y1) / 2 + dx * offset)]
        points = [*refined, points[-1]]
    return points
