"""The eight landscapes, painted over a sky from far to near.

Every painter takes the canvas, the light, a horizon (y in 0..1) and the picture's randomness.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from .canvas import Canvas, Point, broken, down_to, gradient, ridgeline, rolling
from .palette import RGB, WHITE, Light, ink, mix, scale

Painter = Callable[[Canvas, Light, float, np.random.Generator], None]

WATERS = frozenset({"calm sea", "lake"})

SEA = ((58, 150, 196), (22, 92, 152))  # far, near
POND = (98, 184, 214)
LAKE = ((120, 186, 196), (58, 132, 158))


def paint_water(
    canvas: Canvas, light: Light, colours: tuple[RGB, RGB], top: float, bottom: float, *, mirror: float
) -> None:
    """Water from y = top to bottom: a gradient, and by `mirror` (0..1) what stands above it."""
    side = canvas.side
    y0, y1 = round(top * side), min(round(bottom * side), side)
    far, near = (light.water(colour) for colour in colours)
    water = gradient(side, y1 - y0, mix(far, light.horizon, 0.25), near)
    reach = min(y1 - y0, round(0.33 * side))  # short of a high sun
    above = canvas.image.crop((0, y0 - reach, side, y0)).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    if reach < y1 - y0:
        above = above.resize((side, y1 - y0))
    canvas.image.paste(Image.blend(water, above, mirror), (0, y0))


def _swell(canvas: Canvas, light: Light, top: float, bottom: float, rng: np.random.Generator, alpha: float) -> None:
    """A few broad lenses of light, longer and thicker towards us."""
    pale: list[tuple[float, float, float, float]] = []
    deep: list[tuple[float, float, float, float]] = []
    for row in range(6):
        u, v, w = rng.uniform(size=3).tolist()
        depth = (row + 0.3 + 0.4 * v) / 6
        y = top + (bottom - top) * depth
        lens = (u, y, 0.16 + 0.22 * w, 0.004 + 0.008 * depth)
        (pale if row % 2 else deep).append(lens)
    canvas.soft_ellipses(pale, mix(light.horizon, WHITE, 0.25), alpha)
    canvas.soft_ellipses(deep, scale(light.water(SEA[1]), 0.82), alpha)


def _sea(canvas: Canvas, light: Light, horizon: float, rng: np.random.Generator) -> None:
    paint_water(canvas, light, SEA, horizon, 1.0, mirror=0.34)
    _swell(canvas, light, horizon + 0.03, 1.0, rng, 0.30)


def _mountain(
    canvas: Canvas, light: Light, apex: Point, half: float, foot: float, distance: float,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    x, y = apex
    height = foot - y
    left = broken(rng, apex, (x - half, foot), 0.16)
    right = broken(rng, apex, (x + half, foot), 0.16)
    keel = broken(rng, apex, (x + 0.12 * half, foot), 0.20)
    rock = light.ground((118, 128, 158), distance)
    dark = light.ground((84, 92, 128), distance)
    canvas.polygon([*left, *reversed(keel)], rock)
    canvas.polygon([*right, *reversed(keel)], dark)
    # The snow cap: down both ridges to a zigzag hem.
    cap = 0.36 * height
    a, b, c, d = (rng.uniform(0.75, 1.25, 4) * cap).tolist()
    slope = half / height
    hem = [
        (x + slope * a, y + a), (x + slope * 0.50 * cap, y + 0.62 * c), (x + slope * 0.22 * cap, y + 1.1 * d),
    ]  # fmt: skip
    lit = [
        (x - slope * b, y + b), (x - slope * 0.55 * cap, y + 0.66 * c), (x - slope * 0.3 * cap, y + 1.15 * d),
        (x, y + 0.7 * cap),
    ]  # fmt: skip
    canvas.polygon([apex, *hem, (x, y + 0.7 * cap)], light.snow(distance, 0.85))
    canvas.polygon([apex, *lit, keel[1]], light.snow(distance))


def _mountains(canvas: Canvas, light: Light, horizon: float, rng: np.random.Generator) -> None:
    foot = horizon + 0.06
    shift = float(rng.uniform(-0.08, 0.08))
    for x, top, half, distance in (
        (0.30, 0.30, 0.30, 0.62), (0.74, 0.27, 0.32, 0.55),
        (0.02, 0.24, 0.32, 0.25), (0.98, 0.22, 0.34, 0.2), (0.50, 0.31, 0.30, 0.12),
    ):  # fmt: skip
        u, v = rng.uniform(-1, 1, 2).tolist()
        apex = (x + shift + 0.04 * u, foot - (0.66 - top) * (1 + 0.12 * v))
        _mountain(canvas, light, apex, half, foot, distance, rng)
    hills = ridgeline(rng, horizon + 0.03, 0.02, octaves=(4, 9, 20))
    canvas.polygon(down_to(hills), light.ground((74, 118, 104), 0.25))
    meadow = rolling(rng, horizon + 0.09, 0.012, 0.8)
    canvas.shade(down_to(meadow), light.ground((128, 176, 104)), light.ground((82, 138, 84)))


def _dunes(canvas: Canvas, light: Light, horizon: float, rng: np.random.Generator) -> None:
    far = rolling(rng, horizon, 0.018, 1.3)
    canvas.polygon(down_to(far), light.ground((238, 200, 142), 0.45))
    for depth, (base, height) in enumerate(((0.06, 0.05), (0.17, 0.06), (0.31, 0.05))):
        u, v = rng.uniform(size=2).tolist()
        crest_x = (0.18 + 0.3 * u) if depth % 2 else (0.55 + 0.3 * u)
        crest = (crest_x, horizon + base - height * (1.2 + 0.4 * v))
        foot = horizon + base + 0.05
        lit, dark = light.ground((246, 206, 138), 0.2 - 0.1 * depth), light.ground((206, 148, 92), 0.16 - 0.08 * depth)
        left = _curve((-0.02, foot), crest, 0.5)
        right = _curve(crest, (1.02, foot - 0.02), -0.55)
        canvas.shade(down_to([*left, *right]), lit, mix(lit, dark, 0.35))
        canvas.polygon(
            [*right, (1.02, foot + 0.07), (crest_x + 0.26, foot + 0.06), (crest_x + 0.07, foot - 0.02)], dark
        )


def _curve(start: Point, end: Point, sag: float) -> list[Point]:
    """An eased line: slow at one end, steep at the other; sag > 0 is slow at the start."""
    power = 1.0 + abs(sag) * 2.0
    points = []
    for step in range(13):
        s = step / 12
        eased = s**power if sag > 0 else 1.0 - (1.0 - s) ** power
        points.append((start[0] + (end[0] - start[0]) * s, start[1] + (end[1] - start[1]) * eased))
    return points


def _tree_row(canvas: Canvas, colour: RGB, base: float, height: float, count: int, rng: np.random.Generator) -> None:
    """A row of conifers as one serrated polygon."""
    outline: list[Point] = []
    tall = rng.uniform(0.7, 1.15, count + 1).tolist()
    shift = rng.uniform(-0.25, 0.25, count + 1).tolist()
    half = 0.62 / count
    for i in range(count + 1):
        x, top = (i + shift[i]) / count, height * tall[i]
        outline += [
            (x - half, base), (x - half * 0.48, base - 0.42 * top), (x - half * 0.66, base - 0.40 * top),
            (x, base - top),
            (x + half * 0.66, base - 0.40 * top), (x + half * 0.48, base - 0.42 * top), (x + half, base),
        ]  # fmt: skip
    canvas.polygon(down_to(outline), colour)


def _forest(canvas: Canvas, light: Light, horizon: float, rng: np.random.Generator) -> None:
    base = horizon + 0.06
    _tree_row(canvas, light.ground((110, 160, 140), 0.42), base - 0.04, 0.40, 9, rng)
    _tree_row(canvas, light.ground((66, 124, 104), 0.20), base, 0.31, 8, rng)
    _tree_row(canvas, light.ground((34, 88, 74), 0.04), base + 0.03, 0.20, 10, rng)
    floor = rolling(rng, base + 0.04, 0.008, 1.0)
    canvas.shade(down_to(floor), light.ground((104, 142, 78)), light.ground((62, 104, 62)))


def _hills(canvas: Canvas, light: Light, horizon: float, rng: np.random.Generator) -> None:
    for base, height, waves, colour, distance in (
        (-0.06, 0.035, 0.9, (120, 182, 120), 0.6), (0.01, 0.04, 0.8, (128, 194, 92), 0.3),
        (0.09, 0.035, 0.7, (104, 182, 70), 0.1), (0.20, 0.02, 0.6, (142, 208, 84), 0.0),
    ):  # fmt: skip
        skyline = rolling(rng, horizon + base, height, waves)
        top = light.ground(colour, distance)
        canvas.shade(down_to(skyline), top, scale(top, (0.74, 0.80, 0.74)))
        if base < 0.15 and base > 0.0:
            for spot in rng.uniform(0.0, 1.0, 3).tolist():
                x, y = skyline[round(spot * 40)]
                r = 0.018 + 0.010 * spot
                canvas.ellipse(x, y - r * 0.8, r, r * 1.1, light.ground((52, 128, 66), distance))


def _city(canvas: Canvas, light: Light, horizon: float, rng: np.random.Generator) -> None:
    base = horizon + 0.08
    for count, height, distance, colour in (
        (8, 0.38, 0.55, (142, 158, 186)), (7, 0.27, 0.16, (96, 110, 144)),
    ):  # fmt: skip
        tone = light.ground(colour, distance)
        window = (255, 214, 112) if light.is_dim else mix(tone, light.horizon, 0.45)
        tall = rng.uniform(0.55, 1.1, count).tolist()
        roofs = rng.uniform(size=count).tolist()
        for i, (share, roof) in enumerate(zip(tall, roofs, strict=True)):
            x0, x1 = i / count - 0.01, (i + 0.86 + 0.1 * roof) / count
            top = base - height * share
            canvas.rectangle(x0, top, x1, base + 0.02, tone)
            middle = (x0 + x1) / 2
            if roof < 0.25:
                canvas.polygon([(x0, top), (x1, top), (middle, top - 0.06)], tone)
            elif roof < 0.5:
                canvas.rectangle(x0 + 0.03, top - 0.03, x1 - 0.03, top + 0.01, tone)
            elif roof < 0.62:
                canvas.rectangle(middle - 0.007, top - 0.08, middle + 0.007, top, tone)
            if distance > 0.3:
                continue
            for level in range(3):
                y = top + 0.035 + 0.055 * level
                if y + 0.04 > base:
                    break
                for x in (x0 + 0.028, x0 + 0.072):
                    if (i * 3 + level * 2 + round(x * 50)) % 3 or not light.is_dim:
                        canvas.rectangle(x, y, x + 0.024, y + 0.028, window)
    canvas.shade([(0, base), (1, base), (1, 1), (0, 1)], light.ground((142, 176, 118)), light.ground((104, 146, 98)))
    canvas.rectangle(0, base, 1, base + 0.022, light.ground((176, 172, 176)))
    tree, leaf = light.ground((86, 78, 84)), light.ground((72, 134, 84))
    for x in (np.arange(5) / 5 + rng.uniform(0.04, 0.16, 5)).tolist():
        canvas.rectangle(x - 0.006, base - 0.01, x + 0.006, base + 0.03, tree)
        canvas.ellipse(x, base - 0.03, 0.034, 0.04, leaf)
    canvas.polygon([(0, 0.90), (1, 0.90), (1, 1.0), (0, 1.0)], light.ground((150, 148, 158)))


def _lake(canvas: Canvas, light: Light, horizon: float, rng: np.random.Generator) -> None:
    shore = horizon + 0.03
    far = ridgeline(rng, shore - 0.17, 0.05, octaves=(3, 7, 15))
    canvas.polygon(down_to(far, shore), light.ground((104, 142, 160), 0.5))
    near = ridgeline(rng, shore - 0.08, 0.035, octaves=(3, 8, 17))
    canvas.polygon(down_to(near, shore), light.ground((72, 128, 104), 0.25))
    trees = ridgeline(rng, shore - 0.025, 0.014, octaves=(9, 21))
    canvas.polygon(down_to(trees, shore), light.ground((44, 96, 74), 0.08))
    paint_water(canvas, light, LAKE, shore, 1.0, mirror=0.58)
    canvas.rectangle(0, shore - 0.003, 1, shore + 0.005, mix(light.water(LAKE[0]), light.horizon, 0.5))
    _swell(canvas, light, shore + 0.05, 0.92, rng, 0.18)


def _plain(canvas: Canvas, light: Light, horizon: float, rng: np.random.Generator) -> None:
    far = rolling(rng, horizon - 0.005, 0.006, 0.8)
    _copse(canvas, light, horizon, rng)
    canvas.polygon(down_to(far), light.snow(0.3, 0.35))
    for base, height, waves in ((0.05, 0.012, 0.7), (0.14, 0.014, 0.8), (0.27, 0.016, 0.6)):
        drift = rolling(rng, horizon + base, height, waves)
        canvas.shade(down_to(drift), light.snow(), light.snow(0.0, 0.75))


def _copse(canvas: Canvas, light: Light, horizon: float, rng: np.random.Generator) -> None:
    """A far clump of frosted trees, so that the plain has an end."""
    tone = mix(light.ground((116, 138, 160), 0.4), light.snow(), 0.25)
    for x in rng.uniform(0.05, 0.95, 3).tolist():
        for dx, r in ((-0.05, 0.026), (0.0, 0.036), (0.05, 0.024)):
            canvas.ellipse(x + dx, horizon - 0.012, r, r * 1.05, tone)


LANDSCAPES: dict[str, Painter] = {
    "calm sea": _sea,
    "mountains": _mountains,
    "desert dunes": _dunes,
    "forest": _forest,
    "green hills": _hills,
    "city skyline": _city,
    "lake": _lake,
    "snowy plain": _plain,
}

GROUNDS: dict[str, RGB] = {  # under the subject: what its islet or its pond's bank is made of
    "calm sea": (196, 168, 122),
    "mountains": (106, 158, 94),
    "desert dunes": (226, 176, 112),
    "forest": (84, 122, 68),
    "green hills": (120, 190, 74),
    "city skyline": (122, 160, 106),
    "lake": (112, 150, 92),
    "snowy plain": (236, 242, 250),
}


def paint_foreground(canvas: Canvas, landscape: str, light: Light, position: str, rng: np.random.Generator) -> None:
    """What stands before the subject, at the picture's edges: a lake's reeds, a forest's trees."""
    sides = {"left": (1,), "right": (-1,), "middle": (-1, 1)}[position]
    u, v = rng.uniform(size=2).tolist()
    if landscape == "lake":
        shore = [
            (x, 0.955 + 0.012 * np.sin(5 * x + 6 * u) - 0.02 * abs(x - 0.5)) for x in np.linspace(0, 1, 9).tolist()
        ]
        canvas.shade(down_to(shore), light.ground((96, 136, 76)), light.ground((60, 100, 62)))
        reed = light.ground((70, 104, 52))
        for side in sides:
            for i, lean in enumerate((-0.3, 0.1, 0.4, 0.0)):
                x = 0.5 + side * (0.475 - 0.032 * i - 0.01 * v)
                tip = 0.80 + 0.03 * (i % 2) + 0.02 * v
                canvas.polygon([(x - 0.008, 0.99), (x + 0.008, 0.99), (x + 0.05 * lean * side, tip)], reed)
                if i % 2:
                    canvas.ellipse(x + 0.05 * lean * side, tip, 0.011, 0.03, light.ground((120, 76, 48)))
    elif landscape == "forest":
        tone = light.ground((20, 60, 54))
        for side in sides:
            x, top = 0.5 + side * (0.53 + 0.02 * v), 0.18 + 0.1 * u
            for low, high, half in ((1.02, 0.56, 0.17), (0.72, 0.36, 0.12), (0.50, top, 0.085)):
                canvas.polygon([(x - half, low), (x + half, low), (x, high)], tone)


def paint_islet(canvas: Canvas, landscape: str, light: Light, foot: Point, half: float) -> None:
    """An islet for what can't float: a low mound with a pale waterline."""
    x, y = foot
    earth = light.ground(GROUNDS[landscape])
    canvas.ellipse(x, y + 0.034, half * 1.10, 0.020, mix(light.horizon, WHITE, 0.3))
    canvas.ellipse(x, y + 0.022, half * 1.06, 0.026, scale(earth, (0.70, 0.68, 0.72)))
    canvas.ellipse(x, y + 0.010, half, 0.026, earth)
    canvas.ellipse(x - half * 0.2, y + 0.002, half * 0.66, 0.015, light.ground((112, 166, 88)))


def paint_pond(canvas: Canvas, landscape: str, light: Light, foot: Point, half: float) -> None:
    """A pond for a boat on land."""
    x, y = foot
    bank = light.snow(0, 0.6) if landscape == "snowy plain" else scale(light.ground(GROUNDS[landscape]), 0.72)
    canvas.ellipse(x, y + 0.018, half * 1.1, 0.068, bank)
    canvas.ellipse(x, y + 0.022, half * 1.04, 0.060, light.water(POND))
    canvas.ellipse(x - half * 0.2, y + 0.034, half * 0.62, 0.026, mix(light.water(POND), light.horizon, 0.35))


def paint_stream(canvas: Canvas, landscape: str, light: Light, foot: Point, half: float) -> None:
    """A stream that comes from afar and runs under a bridge towards us."""
    x, y = foot
    bank = light.snow(0, 0.6) if landscape == "snowy plain" else scale(light.ground(GROUNDS[landscape]), 0.76)
    water = light.water(POND)
    for grow, tone in ((0.03, bank), (0.0, water)):
        middle = half * 0.42 + grow
        canvas.polygon(
            [
                (x - middle * 0.5, y - 0.05), (x + middle * 0.5, y - 0.05), (x + middle, y + 0.005),
                (x + middle * 1.5 + 0.03, 1.01), (x - middle * 1.3 + 0.03, 1.01), (x - middle, y + 0.005),
            ],
            tone,
        )  # fmt: skip
    canvas.ellipse(x + 0.01, y + 0.05, half * 0.3, 0.009, mix(water, light.horizon, 0.4))


def paint_shadow(canvas: Canvas, light: Light, foot: Point, half: float) -> None:
    """The ground darkened under the subject, towards the right."""
    x, y = foot
    side = canvas.side
    box = (int((x - half) * side), int((y - 0.02) * side), int((x + half * 1.3) * side), int((y + 0.022) * side))
    if box[0] < 0 or box[2] > side:
        box = (max(box[0], 0), box[1], min(box[2], side), box[3])
    mask = Image.new("L", (box[2] - box[0], box[3] - box[1]))
    ImageDraw.Draw(mask).ellipse((0, 0, mask.width - 1, mask.height - 1), fill=84)
    canvas.image.paste(ink(scale(light.ground((60, 66, 90)), 0.7)), box, mask)
