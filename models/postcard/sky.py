"""Sky and weather: what is behind the land, and what falls before it."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from .canvas import Canvas
from .palette import RGB, WHITE, Light, mix, scale
from .scene import Scene

_GRID = 64  # the sky is smooth: it is computed on this grid and enlarged


@functools.cache
def _grid() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    axis = (np.arange(_GRID, dtype=np.float32) + np.float32(0.5)) / np.float32(_GRID)
    return axis[None, :], axis[:, None]


def paint_sky(side: int, scene: Scene, light: Light, horizon: float, rng: np.random.Generator) -> tuple[Canvas, float]:
    """A canvas with gradient, glow, sun or moon, stars and clouds, and the sun's x.

    The horizon is a y in 0..1.
    """
    sun_x, sun_y, radius = _place_disc(scene, horizon, rng)
    x, y = _grid()
    depth = np.clip(y / horizon, 0.0, 1.0)
    stops = np.array([light.top, light.mid, light.horizon], np.float32)
    low = np.clip(depth * 2.0 - 1.0, 0.0, 1.0) ** 0.9
    rows = stops[0] + (stops[1] - stops[0]) * np.clip(depth * 2.0, 0.0, 1.0)
    rows = rows + (stops[2] - stops[1]) * low
    reach = {"dawn": 0.055, "noon": 0.03, "sunset": 0.07, "night": 0.02}[scene.time]
    strength = {"clear": 0.75, "cloudy": 0.35, "rain": 0.12, "snow": 0.2}[scene.weather]
    if scene.time == "night":
        strength *= 0.5
    glow = strength * np.exp(-((x - sun_x) ** 2 + 1.3 * (y - sun_y) ** 2) / reach)
    disc_colour = np.array(light.hour.disc, np.float32)
    sky = rows[:, None, :] + (disc_colour - rows[:, None, :]) * glow[:, :, None]
    image = Image.fromarray(np.clip(sky.reshape(_GRID, _GRID, 3), 0, 255).astype(np.uint8))
    canvas = Canvas(image.resize((side, side), Image.Resampling.BICUBIC))
    if scene.weather == "clear":
        if scene.time == "night":
            _stars(canvas, horizon, light, rng)
            _moon(canvas, sun_x, sun_y, radius, light)
        elif radius:
            canvas.ellipse(sun_x, sun_y, radius, radius, light.hour.disc)
    else:
        _clouds(canvas, scene, light, horizon, rng)
    return canvas, sun_x


def _place_disc(scene: Scene, horizon: float, rng: np.random.Generator) -> tuple[float, float, float]:
    """Where the sun or the moon is, away from the subject, and its radius (0: out of sight)."""
    roll, jitter, choice = rng.uniform(size=3)
    rightwards = {"left": True, "right": False, "middle": bool(choice < 0.5)}[scene.position]
    x = 0.74 + 0.17 * roll if rightwards else 0.26 - 0.17 * roll
    if scene.time == "dawn":
        return x, horizon - 0.10 - 0.04 * jitter, 0.058
    if scene.time == "sunset":
        return x, horizon - 0.02 - 0.03 * jitter, 0.105
    if scene.time == "night":
        return x, 0.105 + 0.045 * jitter, 0.066
    return x, 0.075 + 0.05 * jitter, 0.062 if jitter < 0.8 else 0.0


def _moon(canvas: Canvas, x: float, y: float, radius: float, light: Light) -> None:
    canvas.ellipse(x, y, radius, radius, light.hour.disc)
    maria = scale(light.hour.disc, 0.90)
    canvas.ellipse(x - radius * 0.30, y - radius * 0.2, radius * 0.28, radius * 0.28, maria)
    canvas.ellipse(x + radius * 0.32, y + radius * 0.3, radius * 0.2, radius * 0.2, maria)


def _stars(canvas: Canvas, horizon: float, light: Light, rng: np.random.Generator) -> None:
    """A few soft dots, one to a cell so that they never crowd."""
    colour = mix(light.top, WHITE, 0.72)
    for cell in range(10):
        u, v, w = rng.uniform(size=3).tolist()
        x = (cell % 5 + 0.2 + 0.6 * u) / 5
        y = (cell // 5 + 0.15 + 0.6 * v) * horizon * 0.36
        radius = 0.0065 + 0.004 * w
        canvas.ellipse(x, y, radius, radius, colour)


def _cloud(canvas: Canvas, x: float, y: float, width: float, colour: RGB, under: RGB) -> None:
    """A flat-footed heap, lit from above."""
    puffs = ((-0.30, 0.05, 0.20), (-0.08, 0.16, 0.27), (0.17, 0.10, 0.23), (0.36, 0.02, 0.14))
    for tone, rise, fill in ((under, 0.0, 1.0), (colour, 0.05, 0.86)):
        for dx, dy, radius in puffs:
            r = radius * width * fill
            canvas.ellipse(x + dx * width, y - (dy + rise) * width, r, r * 0.82, tone)
    # The foot: a lens that joins the puffs.
    canvas.ellipse(x, y + 0.01 * width, 0.56 * width, 0.085 * width, under)


def _clouds(canvas: Canvas, scene: Scene, light: Light, horizon: float, rng: np.random.Generator) -> None:
    if scene.weather == "cloudy":
        colour = mix(light.hour.cloud, light.hour.overcast, 0.10)
        under = mix(colour, mix(light.mid, light.hour.overcast, 0.6), 0.55)
        for cell in range(5):
            u, v, w = rng.uniform(size=3).tolist()
            x = (cell % 3 + 0.2 + 0.6 * u) / 3 + (0.17 if cell >= 3 else 0.0)
            y = (0.20 if cell < 3 else 0.40) * horizon / 0.6 + 0.07 * (v - 0.5)
            width = (0.36 if cell < 3 else 0.26) * (0.85 + 0.35 * w)
            _cloud(canvas, x, y, width, colour, under)
        return
    # A bank along the top: dark for rain, pale for snow.
    if scene.weather == "rain":
        tones = (mix(scale(light.hour.overcast, 0.78), light.top, 0.3), scale(light.hour.overcast, 0.66))
    else:
        tones = (mix(light.hour.snowfall, light.top, 0.45), mix(light.hour.snowfall, light.top, 0.15))
    for row, (tone, drop) in enumerate(zip(tones, (0.15, 0.06), strict=True)):
        for cell in range(6):
            u, v = rng.uniform(size=2).tolist()
            x = (cell + 0.15 + 0.7 * u + 0.4 * row) / 5.4 - 0.04
            canvas.ellipse(x, drop - 0.05 + 0.04 * v, 0.15, 0.085 + 0.02 * v, tone)
        canvas.rectangle(0.0, 0.0, 1.0, max(drop - 0.05, 0.0), tone)


def paint_glint(canvas: Canvas, scene: Scene, light: Light, top: float, sun_x: float) -> None:
    """The low sun's or the moon's path on open water from y = top, in a few broad lenses."""
    if scene.weather != "clear" or scene.time == "noon":
        return
    lenses = []
    for row in range(7):
        depth = row / 6
        width = (0.085 if row % 2 else 0.055) * (1.0 - 0.25 * depth)
        lenses.append(
            (sun_x + (0.012 if row % 3 else -0.012), top + 0.018 + 0.38 * depth, width, 0.006 + 0.005 * depth)
        )
    canvas.soft_ellipses(lenses, light.hour.disc, 0.5 if scene.time != "night" else 0.36)


def paint_weather(canvas: Canvas, scene: Scene, light: Light, rng: np.random.Generator) -> None:
    """Rain or snow before everything: a cast, and a few long streaks or large soft flakes."""
    if scene.weather == "rain":
        count, slant = int(rng.integers(14, 23)), float(rng.uniform(0.10, 0.16))
        mask = Image.new("L", canvas.image.size, 16)
        draw = ImageDraw.Draw(mask)
        for cell in range(count):
            u, v, w = rng.uniform(size=3).tolist()
            x = (cell + u) / count * 1.15
            y = (0.02 + 0.62 * v) if cell % 2 else (0.3 * v)
            length = 0.20 + 0.12 * w
            line = canvas.scaled([(x, y), (x - slant * length / 0.3, y + length)])
            draw.line(line, fill=84, width=max(round(canvas.side * 0.0085), 1))
        canvas.veil(mask, mix(light.hour.overcast, WHITE, 0.45 if not light.is_night else 0.35))
    elif scene.weather == "snow":
        count = int(rng.integers(18, 29))
        mask = Image.new("L", (128, 128), 26 if not light.is_night else 14)
        draw = ImageDraw.Draw(mask)
        for cell in range(count):
            u, v, w = rng.uniform(size=3).tolist()
            x = ((cell % 5) + u) / 5 * 128
            y = ((cell // 5) + v) / (count / 5) * 128
            r = (0.009 + 0.009 * w) * 128
            draw.ellipse([x - r, y - r, x + r, y + r], fill=236)
        mask = mask.filter(ImageFilter.BoxBlur(0.7))
        canvas.veil(mask, mix(light.hour.snow, WHITE, 0.75 if not light.is_night else 0.5))
