"""An unlimited world of captioned postcards, drawn from seven attributes and a seed.

All randomness is passed in and none depends on the size: the same generator state draws the same
picture at every size, only finer.

    python -m tintype.models.postcard.world --out sheet.png --count 24 --seed 1
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

from .canvas import SUPERSAMPLING, Canvas, Point
from .captions import caption
from .palette import Light, ink, light_for
from .scene import ATTRIBUTES, Scene, is_held_out, random_scene
from .scenery import (
    LANDSCAPES,
    WATERS,
    paint_foreground,
    paint_islet,
    paint_pond,
    paint_shadow,
    paint_stream,
)
from .sky import paint_glint, paint_sky, paint_weather
from .subjects import SMALL, SUBJECTS, Subject, draw_subject, tones_for

__all__ = [
    "ATTRIBUTES",
    "Scene",
    "caption",
    "contact_sheet",
    "is_held_out",
    "random_scene",
    "render",
]

_CENTRES = {"left": 0.25, "middle": 0.5, "right": 0.75}


def render(
    scene: Scene, rng: np.random.Generator, size: int = 128, *, subject: Subject | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw the scene. subject: one that the world hasn't, in the place of the scene's own.

    Returns the picture, (size, size, 3), and the subject's soft mask, (size, size), 0..255: the
    subject alone, without its islet, pond, shadow or reflection. Raises ValueError for a size
    under 32 pixels.
    """
    if size < 32:
        raise ValueError(f"size is {size} pixels, at least 32 are needed")
    side = size * SUPERSAMPLING
    light = light_for(scene, rng)
    horizon = float(rng.uniform(0.53, 0.61))
    subject = subject or SUBJECTS[scene.subject]
    foot, height = _place(scene, subject, rng)
    canvas, sun_x = paint_sky(side, scene, light, horizon, rng)
    LANDSCAPES[scene.landscape](canvas, light, horizon, rng)
    if scene.landscape in WATERS:
        paint_glint(canvas, scene, light, horizon + (0.04 if scene.landscape == "lake" else 0.0), sun_x)

    tones = tones_for(scene.colour, light)
    pixels = (round(foot[0] * side), round(foot[1] * side))
    layer = draw_subject(side, subject, tones, pixels, height * side)
    _paint_footing(canvas, scene, light, foot, height * subject.half_width)
    if scene.subject != "hot air balloon" and _stands_in_water(scene):
        lift = 0.0 if _floats(scene) else 0.03
        reach = 0.5 * height if scene.landscape in WATERS else 0.05
        _reflect(canvas, layer, foot[1] + lift, reach)
    if scene.subject == "lighthouse" and light.is_dim:
        _beam(canvas, foot, height)
    _paste_outlined(canvas, layer, ink(tones.outline))
    paint_foreground(canvas, scene.landscape, light, scene.position, rng)
    paint_weather(canvas, scene, light, rng)

    picture = np.asarray(canvas.image.reduce(SUPERSAMPLING))
    mask = np.asarray(layer.getchannel("A").reduce(SUPERSAMPLING))
    return picture, mask


def _place(scene: Scene, subject: Subject, rng: np.random.Generator) -> tuple[Point, float]:
    """The subject's foot (its middle, unit coordinates) and height (of the picture)."""
    u, v, w = rng.uniform(-1.0, 1.0, 3).tolist()
    is_large = scene.size == "large"
    height = subject.height * (1.0 if is_large else SMALL) * (1.0 + 0.04 * w)
    half = height * subject.half_width
    x = _CENTRES[scene.position] + 0.02 * u
    x = min(max(x, half + 0.015), 1.0 - half - 0.015)
    if scene.subject == "hot air balloon":
        foot_y = (0.68 if is_large else 0.46) + 0.03 * v
    else:
        foot_y = (0.85 if is_large else 0.79) + 0.015 * v
    return (x, foot_y), height


def _floats(scene: Scene) -> bool:
    return scene.subject in ("sailboat", "bridge")


def _stands_in_water(scene: Scene) -> bool:
    return scene.landscape in WATERS or scene.subject == "sailboat"


def _paint_footing(canvas: Canvas, scene: Scene, light: Light, foot: Point, half: float) -> None:
    """What the subject stands on, where the landscape alone would not carry it."""
    if scene.subject == "hot air balloon":
        return
    if scene.landscape in WATERS:
        if not _floats(scene):
            paint_islet(canvas, scene.landscape, light, foot, half * 1.2 + 0.05)
    elif scene.subject == "sailboat":
        paint_pond(canvas, scene.landscape, light, foot, half * 1.1 + 0.05)
    elif scene.subject == "bridge":
        paint_stream(canvas, scene.landscape, light, foot, half)
    else:
        paint_shadow(canvas, light, foot, half)


def _reflect(canvas: Canvas, layer: Image.Image, y: float, reach: float) -> None:
    """The subject upside down in the water from y to y + reach, squashed and faint."""
    side = canvas.side
    line = round(y * side)
    box = layer.getbbox()
    if box is None:
        return
    tall = max(int((box[3] - box[1]) * 0.5), 1)
    mirrored = layer.crop(box).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    mirrored = mirrored.resize((box[2] - box[0], tall), Image.Resampling.BOX)
    tall = min(tall, max(int(reach * side), 1))
    mirrored = mirrored.crop((0, 0, box[2] - box[0], tall))
    column = np.linspace(120, 40, tall).astype(np.uint8)[:, None]
    fade = Image.fromarray(np.broadcast_to(column, (tall, box[2] - box[0])).copy())
    alpha = ImageChops.multiply(mirrored.getchannel("A"), fade)
    canvas.image.paste(mirrored.convert("RGB"), (box[0], line), alpha)


def _paste_outlined(canvas: Canvas, layer: Image.Image, outline: tuple[int, ...]) -> None:
    """The subject over a thin darker rim of its own shape, which parts it from any background."""
    box = layer.getbbox()
    if box is None:
        return
    cut = layer.crop(box)
    alpha = cut.getchannel("A")
    step = max(round(canvas.side / 256), 1)
    faint = alpha.point(lambda value: value * 3 // 5)
    for dx, dy in ((-step, 0), (step, 0), (0, -step), (0, step)):
        corner = (box[0] + dx, box[1] + dy)
        canvas.image.paste(outline, (*corner, corner[0] + cut.width, corner[1] + cut.height), faint)
    canvas.image.paste(cut, box[:2], alpha)


def _beam(canvas: Canvas, foot: Point, height: float) -> None:
    """A lighthouse's light, to both sides."""
    side = canvas.side
    x, y = foot[0], foot[1] - 0.80 * height
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    for reach in (-1.1, 1.1):
        ends = [(x, y - 0.01), (x + reach, y - 0.15), (x + reach, y + 0.07), (x, y + 0.01)]
        draw.polygon(canvas.scaled(ends), fill=62)
    canvas.veil(mask, (255, 240, 170))


def contact_sheet(pictures: Sequence[NDArray[np.uint8]], columns: int, labels: Sequence[str] = ()) -> Image.Image:
    """Pictures of one size (size, size, 3) in a grid, each with its label under it."""
    size, gap = pictures[0].shape[0], 8
    strip = 64 if labels else 0
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (gap + columns * (size + gap), gap + rows * (size + strip + gap)), (250, 248, 242))
    draw = ImageDraw.Draw(sheet)
    for index, picture in enumerate(pictures):
        x = gap + index % columns * (size + gap)
        y = gap + index // columns * (size + strip + gap)
        sheet.paste(Image.fromarray(picture), (x, y))
        if labels:
            lines = textwrap.wrap(labels[index], max(size // 6, 8))[:5]
            draw.multiline_text((x, y + size + 2), "\n".join(lines), fill=(50, 46, 56), spacing=1)
    return sheet


def main() -> None:
    """Write a sheet of random postcards with their captions."""
    parser = argparse.ArgumentParser(description="Draw a sheet of captioned postcards.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--size", type=int, default=256, help="pixels a side of one picture")
    parser.add_argument("--columns", type=int, default=6)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    pictures, labels = [], []
    for _ in range(options.count):
        scene = random_scene(rng, held_out=None)
        pictures.append(render(scene, rng, options.size)[0])
        labels.append(caption(scene, rng)[0])
    contact_sheet(pictures, options.columns, labels).save(options.out)


if __name__ == "__main__":
    main()
