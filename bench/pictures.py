"""Pictures made of numbers alone, for what looks at pixels and not at what they show: like photographs, and of every
kind that no mark of ours is in and somebody may ask about, which false alarms are counted on."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from tintype.models.postcard.scene import random_scene
from tintype.models.postcard.world import render
from tintype.trust.pattern import TILE

Picture = NDArray[np.uint8]  # (height, width, 3)
Maker = Callable[[np.random.Generator, int], Picture]
Colour = tuple[int, int, int]
WORDS = "the quick brown fox jumps over a lazy dog; 0123456789 (people wait) {it}!"
SIDES = (192, 256, 384, 512)  # pixels


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
    return np.asarray(np.hypot(np.fft.fftfreq(size[0])[:, np.newaxis], np.fft.rfftfreq(size[1])))


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


def rendered(random: np.random.Generator, side: int) -> Picture:
    """Of postcard's world."""
    return render(random_scene(random, held_out=None), random, side)[0]


def _drawn(random: np.random.Generator, side: int) -> Picture:
    """Lines, arcs and areas of few colours, without grain."""
    page = Image.new("RGB", (side, side), _colour(random))
    draw = ImageDraw.Draw(page)
    for _ in range(int(random.integers(3, 40))):
        (left, right), (top, bottom) = (sorted(random.integers(-side // 4, side * 5 // 4, 2).tolist()) for _ in "xy")
        box, colour, width = (left, top, right + 1, bottom + 1), _colour(random), int(random.integers(1, 9))
        shape = int(random.integers(4))
        if shape == 0:
            draw.line(box, fill=colour, width=width)
        elif shape == 1:
            draw.arc(box, 0, float(random.integers(20, 360)), fill=colour, width=width)
        else:
            area = draw.ellipse if shape == 2 else draw.rectangle
            area(box, fill=colour if random.random() < 0.5 else None, width=width)
    return np.asarray(page)


def _written(random: np.random.Generator, side: int) -> Picture:
    """A page of text, its lines evenly spaced."""
    page = Image.new("RGB", (side, side), "white" if random.random() < 0.7 else _colour(random))
    _write(ImageDraw.Draw(page), random, (0, 0, side, side), _colour(random, 90))
    return np.asarray(page)


def _screen(random: np.random.Generator, side: int) -> Picture:
    """Windows on a grid of 8 pixels, with bars, buttons, text and a fine pattern behind: regular as screens are."""
    page = Image.new("RGB", (side, side), _colour(random))
    draw = ImageDraw.Draw(page)
    step = int(random.choice([2, 4, 8, 16, 32]))
    for place in range(0, side, step):
        draw.line((place, 0, place, side), fill=_colour(random) if random.random() < 0.1 else (128, 128, 128))
    for _ in range(int(random.integers(1, 5))):
        left, top, width, height = (8 * random.integers([0, 0, 8, 8], [side // 8, side // 8, 48, 48])).tolist()
        draw.rectangle((left, top, left + width, top + height), fill="white", outline=(80, 80, 80))
        draw.rectangle((left, top, left + width, top + 16), fill=_colour(random))
        for place in range(left + 8, left + width - 24, 40):
            draw.rectangle((place, top + 24, place + 32, top + 40), fill=_colour(random), outline="black")
        _write(draw, random, (left + 8, top + 48, left + width, top + height), (0, 0, 0))
    return np.asarray(page)


def _tiled(random: np.random.Generator, side: int) -> Picture:
    """A small pattern over and over, with a period that a tile of ours is a multiple of: cloth, wallpaper, halftone."""
    period = int(random.choice([4, 8, 16, 32, 64, TILE]))
    one = random.integers(0, 256, (period, period, 3)).astype(np.uint8)
    share = random.uniform(0.02, 1.0)
    return clipped(
        KINDS["like photographs"](random, side) * (1 - share) + repeated(one, (side, side)).astype(float) * share
    )


def _flat(random: np.random.Generator, side: int) -> Picture:
    """One colour, or an even change from one to another."""
    first, last = np.array([_colour(random), _colour(random)], float)
    share = np.linspace(0, 1, side)[:, np.newaxis, np.newaxis] * float(random.random() < 0.7)
    return np.broadcast_to(first + (last - first) * share, (side, side, 3)).astype(np.uint8)


def _saved_again(random: np.random.Generator, side: int) -> Picture:
    picture = KINDS["like photographs" if random.random() < 0.5 else "renders"](random, side)
    return as_jpeg(as_jpeg(picture, int(random.integers(5, 96))), int(random.integers(5, 96)))


def _marked_by_others(random: np.random.Generator, side: int) -> Picture:
    """A mark that isn't ours: a tile of ours' size and strength with other phases, or coefficients of 8x8 blocks."""
    picture = KINDS["like photographs"](random, side).astype(float)
    if random.random() < 0.5:
        size = (TILE, TILE)
        tile = np.fft.irfft2(np.fft.rfft2(random.normal(size=size)) * (TILE * frequencies(size) < 26), size)
        added = repeated(tile / tile.std() * random.uniform(1.5, 6), (side, side))
    else:
        waves = np.cos(np.outer(np.arange(8) + 0.5, random.integers(1, 5, 2)) * np.pi / 8)
        block = np.outer(waves[:, 0], waves[:, 1]) * random.uniform(2, 8)
        signs = random.choice([-1.0, 1.0], (side // 8, side // 8))
        added = np.zeros((side, side))
        added[: side // 8 * 8, : side // 8 * 8] = np.kron(signs, block)
    return clipped(picture + added[..., np.newaxis])


KINDS: dict[str, Maker] = {
    "renders": rendered,
    "like photographs": lambda random, side: photograph(int(random.integers(2**62)), (side, side)),
    "drawings": _drawn, "text": _written, "screens": _screen, "repeated patterns": _tiled, "flat": _flat,
    "noise": lambda random, side: clipped(
        random.normal(random.uniform(40, 215, 3), random.uniform(1, 80), (side, side, 3))
    ),
    "saved again as JPEG": _saved_again, "marked by others": _marked_by_others,
}  # fmt: skip


def unmarked(count: int, seed: int, *, views: int = 1) -> Iterator[tuple[str, Picture]]:
    """So many pictures, the kinds in turn, each with its kind.

    views: up to 8 of each are counted as so many, turned by right angles and mirrored: to a pattern that is neither's
    mirror they are other pictures, and drawing takes longer than looking.
    """
    names = list(KINDS)
    for number in range(count):
        drawn, view = divmod(number, views)
        if view == 0:
            random, name = np.random.default_rng([seed, drawn]), names[drawn % len(names)]
            picture = KINDS[name](random, int(random.choice(SIDES)))
        turned = np.rot90(picture, view % 4)
        yield name, np.ascontiguousarray(turned[:, ::-1] if view >= 4 else turned)


def _colour(random: np.random.Generator, most: int = 256) -> Colour:
    red, green, blue = random.integers(0, most, 3).tolist()
    return red, green, blue


def _write(draw: ImageDraw.ImageDraw, random: np.random.Generator, box: tuple[int, ...], colour: Colour) -> None:
    left, top, right, bottom = box
    for line in range(top + 4, bottom - 10, int(random.choice([12, 14, 16, 20, 32]))):
        words = " ".join(random.choice(WORDS.split(), max(1, (right - left) // 32)))
        draw.text((left + 4, line), words[: (right - left) // 6], fill=colour)
