"""The ten subjects, each a bold silhouette in at most three tones of its colour.

A drawer works in its own frame: x right and y up from the foot's middle, in units of height.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from .canvas import Point
from .palette import RGB, SUBJECT_COLOURS, WHITE, Light, ink, mix, scale


@dataclass(frozen=True, slots=True)
class Tones:
    """A subject's inks under one light."""

    main: RGB
    shade: RGB
    light: RGB
    trim: RGB  # pale details
    dark: RGB  # doors, tyres, spars
    roof: RGB
    wood: RGB
    glass: RGB  # windows, lit when it is dim
    outline: RGB


def tones_for(colour: str, light: Light) -> Tones:
    """The inks of a named colour (a key of SUBJECT_COLOURS) under the light."""
    base = SUBJECT_COLOURS[colour]
    is_white = colour == "white"
    darker = {"white": (0.78, 0.82, 0.89), "yellow": (0.86, 0.76, 0.60)}
    shade = scale(base, darker.get(colour, (0.74, 0.72, 0.78)))
    pale = base if is_white else mix(base, WHITE, 0.10 if colour == "red" else 0.18)
    roof = mix((84, 72, 88), base, 0.0 if is_white else 0.22)
    outline = (104, 112, 132) if is_white else scale(base, 0.42)
    trim = (216, 224, 232) if is_white else (250, 240, 222)
    glass = (255, 222, 120) if light.is_dim else (92, 124, 150)
    see = light.subject
    return Tones(
        main=see(base), shade=see(shade), light=see(pale), trim=see(trim),
        dark=see((56, 50, 62)), roof=see(roof), wood=see((122, 84, 58)),
        glass=glass if light.is_dim else see(glass), outline=see(outline),
    )  # fmt: skip


class Pen:
    """Draws in the subject's frame onto an RGBA layer."""

    def __init__(self, layer: Image.Image, x: float, y: float, height: float) -> None:
        """(x, y) is the foot's middle in layer pixels, height the subject's in layer pixels."""
        self._draw = ImageDraw.Draw(layer)
        self._x, self._y, self._unit = x, y, height

    def _at(self, x: float, y: float) -> Point:
        return self._x + x * self._unit, self._y - y * self._unit

    def shape(self, colour: RGB, *points: Point) -> None:
        """A polygon."""
        self._draw.polygon([self._at(x, y) for x, y in points], fill=ink(colour, 255))

    def box(self, colour: RGB, x0: float, y0: float, x1: float, y1: float) -> None:
        """A rectangle; y0 is below y1."""
        left, top = self._at(x0, y1)
        right, bottom = self._at(x1, y0)
        self._draw.rectangle([left, top, max(right - 1, left), max(bottom - 1, top)], fill=ink(colour, 255))

    def oval(self, colour: RGB, x: float, y: float, rx: float, ry: float) -> None:
        """An ellipse around (x, y)."""
        left, top = self._at(x - rx, y + ry)
        right, bottom = self._at(x + rx, y - ry)
        self._draw.ellipse([left, top, right, bottom], fill=ink(colour, 255))

    def stroke(self, colour: RGB, width: float, *points: Point) -> None:
        """A line of a width in units of height."""
        line = [self._at(x, y) for x, y in points]
        self._draw.line(line, fill=ink(colour, 255), width=max(round(width * self._unit), 1))

    def arch(self, colour: RGB | None, x: float, spring: float, rx: float) -> None:
        """An arch upright from the foot to y = spring and round above; None cuts a hole."""
        fill = (0, 0, 0, 0) if colour is None else ink(colour, 255)
        left, top = self._at(x - rx, spring + rx)
        right, bottom = self._at(x + rx, spring - rx)
        self._draw.pieslice([left, top, right, bottom], 180, 360, fill=fill)
        _, middle = self._at(x, spring)
        _, foot = self._at(x, -0.02 if colour is None else 0.0)
        self._draw.rectangle([left, middle, right, foot], fill=fill)


def _mirrored(points: Sequence[Point]) -> list[Point]:
    return [(-x, y) for x, y in points]


def _sailboat(pen: Pen, t: Tones) -> None:
    pen.stroke(t.dark, 0.022, (0.0, 0.1), (0.0, 1.0))
    pen.shape(t.main, (0.02, 0.97), (0.10, 0.78), (0.22, 0.56), (0.37, 0.28), (0.40, 0.24), (0.02, 0.22))
    pen.shape(t.shade, (0.02, 0.34), (0.35, 0.32), (0.40, 0.24), (0.02, 0.22))
    pen.shape(t.light, (-0.03, 0.88), (-0.12, 0.64), (-0.30, 0.32), (-0.33, 0.25), (-0.03, 0.24))
    pen.shape(t.shade, (-0.44, 0.185), (0.47, 0.185), (0.41, 0.06), (0.33, 0.0), (-0.29, 0.0), (-0.38, 0.07))
    pen.shape(t.main, (-0.44, 0.185), (0.47, 0.185), (0.435, 0.105), (-0.405, 0.105))
    pen.shape(t.trim, (-0.44, 0.19), (0.47, 0.19), (0.465, 0.16), (-0.43, 0.16))


def _lighthouse(pen: Pen, t: Tones) -> None:
    def half(y: float) -> float:
        return 0.165 - 0.085 * y / 0.72

    pen.shape(t.main, (-half(0), 0), (half(0), 0), (half(0.72), 0.72), (-half(0.72), 0.72))
    for low, high in ((0.20, 0.31), (0.47, 0.57)):
        pen.shape(t.trim, (-half(low), low), (half(low), low), (half(high), high), (-half(high), high))
    pen.shape(t.shade, (0.06, 0), (half(0), 0), (half(0.72), 0.72), (0.03, 0.72))
    pen.box(t.dark, -0.045, 0.0, 0.035, 0.12)
    pen.box(t.dark, -0.13, 0.71, 0.13, 0.745)
    pen.box(t.glass if t.glass[0] > 200 else (255, 236, 160), -0.065, 0.745, 0.065, 0.86)
    pen.stroke(t.dark, 0.02, (-0.065, 0.745), (-0.065, 0.86))
    pen.stroke(t.dark, 0.02, (0.065, 0.745), (0.065, 0.86))
    pen.shape(t.main, (-0.105, 0.855), (0.105, 0.855), (0.02, 0.975), (-0.02, 0.975))
    pen.shape(t.shade, (0.02, 0.855), (0.105, 0.855), (0.02, 0.975))
    pen.box(t.dark, -0.012, 0.96, 0.012, 1.0)


def _house(pen: Pen, t: Tones) -> None:
    pen.box(t.roof, 0.20, 0.70, 0.31, 1.0)
    pen.shape(t.main, (-0.50, 0), (0.50, 0), (0.50, 0.52), (-0.50, 0.52))
    pen.box(t.shade, 0.18, 0.0, 0.50, 0.52)
    pen.shape(t.main, (-0.50, 0.5), (0.18, 0.5), (-0.16, 0.94))
    pen.shape(t.roof, (-0.16, 0.97), (0.22, 0.97), (0.60, 0.47), (0.23, 0.47))
    pen.shape(t.roof, (-0.16, 0.99), (-0.10, 0.90), (-0.50, 0.46), (-0.58, 0.47))
    pen.shape(t.roof, (-0.16, 0.99), (-0.16, 0.88), (0.19, 0.46), (0.27, 0.47))
    pen.box(t.dark, -0.25, 0.0, -0.07, 0.34)
    pen.oval(t.glass, -0.16, 0.60, 0.07, 0.07)
    pen.box(t.trim, 0.24, 0.17, 0.44, 0.39)
    pen.box(t.glass, 0.265, 0.195, 0.415, 0.365)
    pen.box(t.trim, -0.44, 0.17, -0.30, 0.36)
    pen.box(t.glass, -0.42, 0.195, -0.32, 0.34)


def _windmill(pen: Pen, t: Tones) -> None:
    pen.shape(t.main, (-0.23, 0), (0.23, 0), (0.125, 0.62), (-0.125, 0.62))
    pen.shape(t.shade, (0.07, 0), (0.23, 0), (0.125, 0.62), (0.04, 0.62))
    pen.box(t.dark, -0.07, 0.0, 0.06, 0.17)
    pen.oval(t.glass, -0.02, 0.34, 0.045, 0.055)
    pen.shape(t.roof, (-0.15, 0.60), (0.15, 0.60), (0.10, 0.72), (0.0, 0.77), (-0.10, 0.72))
    hub_y, reach = 0.63, 0.40
    for dx, dy in ((0.62, 0.785), (0.785, -0.62), (-0.62, -0.785), (-0.785, 0.62)):
        tip = (dx * reach, hub_y + dy * reach)
        near = (dx * 0.07, hub_y + dy * 0.07)
        side_x, side_y = dy * 0.105, -dx * 0.105
        pen.shape(
            t.trim,
            near, tip, (tip[0] + side_x, tip[1] + side_y), (near[0] + side_x, near[1] + side_y),
        )  # fmt: skip
        pen.stroke(t.dark, 0.024, (0.0, hub_y), tip)
    pen.oval(t.dark, 0.0, hub_y, 0.035, 0.035)


def _balloon(pen: Pen, t: Tones) -> None:
    def envelope(share: float, colour: RGB) -> None:
        pen.oval(colour, 0.0, 0.65, 0.35 * share, 0.35)
        pen.shape(
            colour,
            (-0.325 * share, 0.52), (0.325 * share, 0.52), (0.20 * share, 0.32),
            (0.085 * share, 0.19), (-0.085 * share, 0.19), (-0.20 * share, 0.32),
        )  # fmt: skip

    for x in (-0.07, 0.07):
        pen.stroke(t.dark, 0.014, (x * 1.1, 0.2), (x * 0.9, 0.1))
    envelope(1.0, t.shade)
    envelope(0.76, t.main)
    envelope(0.40, t.light)
    pen.box(t.trim, -0.085, 0.175, 0.085, 0.205)
    pen.shape(t.wood, (-0.075, 0.11), (0.075, 0.11), (0.06, 0.0), (-0.06, 0.0))


def _tent(pen: Pen, t: Tones) -> None:
    pen.stroke(t.dark, 0.018, (0.10, 0.92), (0.80, 0.02))
    pen.stroke(t.dark, 0.018, (-0.16, 0.94), (-0.74, 0.02))
    pen.shape(t.shade, (-0.14, 0.95), (0.28, 0.90), (0.70, 0.0), (0.2, 0.0))
    pen.shape(t.main, (-0.14, 0.95), (0.36, 0.0), (-0.64, 0.0))
    pen.shape(t.glass if t.glass[0] > 200 else t.dark, (-0.14, 0.68), (0.06, 0.0), (-0.34, 0.0))
    pen.shape(t.light, (-0.14, 0.70), (0.06, 0.0), (0.17, 0.0), (0.10, 0.12))
    pen.stroke(t.dark, 0.022, (-0.14, 0.90), (-0.14, 1.0))


def _pine(pen: Pen, t: Tones) -> None:
    pen.box(t.wood, -0.05, 0.0, 0.05, 0.18)
    for low, high, half in ((0.12, 0.50, 0.31), (0.32, 0.74, 0.245), (0.56, 1.0, 0.175)):
        pen.shape(t.main, (-half, low), (-half * 0.4, low - 0.03), (half * 0.4, low - 0.03), (half, low), (0.0, high))
        pen.shape(t.shade, (half * 0.2, low - 0.03), (half * 0.4, low - 0.03), (half, low), (0.0, high))
        pen.shape(t.light, (-half, low), (-half * 0.62, low - 0.02), (0.0, high))


def _castle(pen: Pen, t: Tones) -> None:
    def battlement(x0: float, x1: float, y: float, teeth: int) -> None:
        step = (x1 - x0) / (2 * teeth - 1)
        for tooth in range(teeth):
            pen.box(t.main, x0 + 2 * tooth * step, y - 0.01, x0 + (2 * tooth + 1) * step, y + 0.05)

    pen.box(t.shade, -0.15, 0.3, 0.15, 0.68)
    pen.shape(t.roof, (-0.18, 0.67), (0.18, 0.67), (0.0, 0.92))
    pen.stroke(t.dark, 0.016, (0.0, 0.9), (0.0, 1.0))
    pen.shape(t.main, (0.0, 1.0), (0.13, 0.965), (0.0, 0.93))
    pen.box(t.main, -0.34, 0.0, 0.34, 0.38)
    battlement(-0.24, 0.24, 0.38, 4)
    for side in (-1, 1):
        x = 0.36 * side
        pen.box(t.main, x - 0.12, 0.0, x + 0.12, 0.56)
        pen.box(t.shade, x + 0.03, 0.0, x + 0.12, 0.56)
        pen.shape(t.roof, (x - 0.15, 0.55), (x + 0.15, 0.55), (x, 0.82))
        pen.box(t.glass, x - 0.06, 0.34, x - 0.005, 0.46)
    pen.box(t.glass, -0.04, 0.5, 0.04, 0.6)
    pen.oval(t.dark, 0.0, 0.17, 0.10, 0.10)
    pen.box(t.dark, -0.10, 0.0, 0.10, 0.17)


def _car(pen: Pen, t: Tones) -> None:
    pen.shape(
        t.main,
        (-0.58, 0.50), (-0.40, 0.92), (-0.30, 1.0), (0.22, 1.0), (0.34, 0.92), (0.56, 0.52),
    )  # fmt: skip
    pen.shape(t.glass, (-0.46, 0.55), (-0.33, 0.86), (-0.08, 0.86), (-0.08, 0.55))
    pen.shape(t.glass, (0.0, 0.55), (0.0, 0.86), (0.22, 0.86), (0.40, 0.55))
    pen.shape(
        t.main,
        (-0.92, 0.18), (-0.93, 0.46), (-0.86, 0.55), (0.60, 0.56), (0.86, 0.50),
        (0.95, 0.40), (0.95, 0.18),
    )  # fmt: skip
    pen.box(t.shade, -0.92, 0.16, 0.95, 0.29)
    pen.oval(t.trim if t.glass[0] < 200 else (255, 240, 170), 0.885, 0.40, 0.055, 0.06)
    for x in (-0.54, 0.54):
        pen.oval(t.shade, x, 0.21, 0.27, 0.25)
        pen.oval(t.dark, x, 0.20, 0.21, 0.20)
        pen.oval(t.trim, x, 0.20, 0.09, 0.09)


def _bridge(pen: Pen, t: Tones) -> None:
    deck = [(-1.12, 0.50), (-0.7, 0.72), (-0.35, 0.84), (0.0, 0.88)]
    whole = [*deck, *reversed(_mirrored(deck[:-1]))]
    pen.shape(t.main, *whole, (1.12, 0.0), (-1.12, 0.0))
    for x, spring, radius in ((0.0, 0.18, 0.44), (-0.79, 0.16, 0.18), (0.79, 0.16, 0.18)):
        pen.arch(t.shade, x, spring, radius + 0.07)
        pen.arch(None, x, spring, radius)
    rail = [(x, y + 0.04) for x, y in whole]
    pen.stroke(t.shade, 0.075, *rail)
    for x, y in ((-1.08, 0.53), (1.08, 0.53), (-0.53, 0.80), (0.53, 0.80)):
        pen.box(t.main, x - 0.05, y - 0.04, x + 0.05, y + 0.17)


@dataclass(frozen=True, slots=True)
class Subject:
    """A drawer and the facts that place it."""

    draw: Callable[[Pen, Tones], None]
    height: float  # of the picture, when large
    half_width: float  # in units of height


SUBJECTS: dict[str, Subject] = {
    "sailboat": Subject(_sailboat, 0.56, 0.47),
    "lighthouse": Subject(_lighthouse, 0.60, 0.17),
    "house": Subject(_house, 0.44, 0.60),
    "windmill": Subject(_windmill, 0.58, 0.37),
    "hot air balloon": Subject(_balloon, 0.58, 0.35),
    "tent": Subject(_tent, 0.39, 0.76),
    "pine tree": Subject(_pine, 0.60, 0.31),
    "castle": Subject(_castle, 0.52, 0.51),
    "car": Subject(_car, 0.30, 0.95),
    "bridge": Subject(_bridge, 0.28, 1.13),
}
SMALL = 0.55  # a small subject's scale against a large one's


def draw_subject(side: int, subject: Subject, tones: Tones, foot: Point, height: float) -> Image.Image:
    """The subject alone on a clear RGBA layer of side x side; foot and height in pixels."""
    layer = Image.new("RGBA", (side, side))
    subject.draw(Pen(layer, *foot, height), tones)
    return layer
