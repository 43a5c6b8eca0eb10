"""Colours and light: what the hour and the weather make of every colour in a picture.

Colours are (red, green, blue) floats in 0..255.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .scene import Scene

RGB = tuple[float, float, float]

SUBJECT_COLOURS: dict[str, RGB] = {
    "red": (206, 38, 42),
    "orange": (243, 124, 22),
    "yellow": (252, 212, 48),
    "green": (40, 156, 78),
    "blue": (36, 98, 206),
    "purple": (122, 54, 168),
    "pink": (250, 140, 184),
    "white": (250, 249, 245),
}

WHITE: RGB = (255, 255, 255)


@dataclass(frozen=True, slots=True)
class Hour:
    """The palette of one time of day."""

    top: RGB  # sky, from the top of the picture
    mid: RGB
    horizon: RGB
    overcast: RGB  # what cloud cover pulls the sky towards
    snowfall: RGB  # what falling snow pulls everything towards
    snow: RGB  # lying snow
    cloud: RGB
    disc: RGB  # sun or moon
    tint: RGB  # factor on ground colours
    cast: RGB  # ground colours are drawn towards this ...
    cast_share: float  # ... by this much
    subject_tint: RGB  # factor on the subject's colours


HOURS: dict[str, Hour] = {
    "dawn": Hour(
        top=(150, 180, 216), mid=(226, 196, 222), horizon=(255, 226, 212),
        overcast=(198, 194, 214), snowfall=(236, 228, 238), snow=(236, 234, 246),
        cloud=(250, 232, 240), disc=(255, 250, 226),
        tint=(0.86, 0.92, 0.96), cast=(188, 202, 216), cast_share=0.26,
        subject_tint=(0.97, 0.96, 1.0),
    ),
    "noon": Hour(
        top=(56, 148, 222), mid=(120, 194, 238), horizon=(208, 236, 244),
        overcast=(168, 186, 200), snowfall=(230, 238, 244), snow=(248, 251, 255),
        cloud=(252, 253, 255), disc=(255, 246, 190),
        tint=(1.0, 1.0, 1.0), cast=(255, 250, 220), cast_share=0.04,
        subject_tint=(1.0, 1.0, 1.0),
    ),
    "sunset": Hour(
        top=(92, 42, 116), mid=(222, 68, 96), horizon=(255, 164, 60),
        overcast=(150, 84, 108), snowfall=(246, 182, 156), snow=(248, 202, 182),
        cloud=(248, 142, 118), disc=(255, 226, 128),
        tint=(0.78, 0.56, 0.50), cast=(142, 38, 84), cast_share=0.22,
        subject_tint=(1.0, 0.93, 0.88),
    ),
    "night": Hour(
        top=(12, 18, 50), mid=(26, 42, 92), horizon=(62, 86, 142),
        overcast=(42, 52, 80), snowfall=(112, 126, 164), snow=(138, 152, 194),
        cloud=(66, 82, 122), disc=(250, 246, 222),
        tint=(0.38, 0.45, 0.62), cast=(22, 36, 92), cast_share=0.28,
        subject_tint=(0.88, 0.85, 0.92),
    ),
}  # fmt: skip

_SKY_COVER = {"clear": 0.0, "cloudy": 0.42, "rain": 0.62, "snow": 0.30}


def mix(a: RGB, b: RGB, share: float) -> RGB:
    """a, drawn towards b by share."""
    return (
        a[0] + (b[0] - a[0]) * share,
        a[1] + (b[1] - a[1]) * share,
        a[2] + (b[2] - a[2]) * share,
    )


def scale(colour: RGB, factor: RGB | float) -> RGB:
    """Channel by channel product, cut at 255."""
    red, green, blue = (factor,) * 3 if isinstance(factor, int | float) else factor
    return (
        min(colour[0] * red, 255.0),
        min(colour[1] * green, 255.0),
        min(colour[2] * blue, 255.0),
    )


def ink(colour: RGB, alpha: int | None = None) -> tuple[int, ...]:
    """The colour as Pillow wants it."""
    rgb = tuple(int(min(max(channel, 0.0), 255.0)) for channel in colour)
    return rgb if alpha is None else (*rgb, alpha)


@dataclass(frozen=True, slots=True)
class Light:
    """The light of one picture: its hour after its weather."""

    hour: Hour
    weather: str
    is_night: bool
    is_dim: bool  # windows and lamps are lit
    top: RGB
    mid: RGB
    horizon: RGB

    def ground(self, colour: RGB, distance: float = 0.0) -> RGB:
        """A ground colour as seen; distance 0 is here, 1 is lost in the haze."""
        seen = mix(scale(colour, self.hour.tint), self.hour.cast, self.hour.cast_share)
        if self.weather == "snow":
            seen = mix(seen, self.hour.snow, 0.40)
        elif self.weather == "rain":
            seen = mix(scale(seen, 0.86), self.hour.overcast, 0.22)
        elif self.weather == "cloudy":
            seen = mix(scale(seen, 0.95), self.hour.overcast, 0.10)
        return mix(seen, self.horizon, 0.62 * distance)

    def water(self, colour: RGB) -> RGB:
        """A water colour as seen: half of it is the sky overhead."""
        return mix(self.ground(colour), self.top, 0.40)

    def snow(self, distance: float = 0.0, shade: float = 0.0) -> RGB:
        """Lying snow; shade 0..1 goes to its blue side."""
        seen = mix(self.hour.snow, scale(self.hour.snow, (0.72, 0.79, 0.93)), shade)
        if self.weather == "rain":
            seen = mix(seen, self.hour.overcast, 0.24)
        return mix(seen, self.horizon, 0.4 * distance)

    def subject(self, colour: RGB) -> RGB:
        """A subject's colour as seen: only mildly changed, so that it stays tellable."""
        seen = scale(colour, self.hour.subject_tint)
        if self.weather == "rain":
            seen = mix(scale(seen, 0.94), self.hour.overcast, 0.06)
        elif self.weather == "snow":
            seen = mix(seen, self.hour.snowfall, 0.06)
        return seen


def light_for(scene: Scene, rng: np.random.Generator) -> Light:
    """The scene's light, with a little jitter in the sky's palette."""
    hour = HOURS[scene.time]
    cover = _SKY_COVER[scene.weather]
    veil = hour.snowfall if scene.weather == "snow" else hour.overcast
    shift = rng.normal(0.0, 4.0 if scene.time != "night" else 2.0, (3, 3))
    sky = []
    for (red, green, blue), (d_red, d_green, d_blue), share in zip(
        (hour.top, hour.mid, hour.horizon), shift.tolist(), (1.0, 0.9, 0.6), strict=True
    ):  # the hour shows through at the horizon
        sky.append(mix((red + d_red, green + d_green, blue + d_blue), veil, cover * share))
    is_night = scene.time == "night"
    is_dim = is_night or (scene.time == "sunset" and scene.weather in ("rain", "snow"))
    return Light(hour, scene.weather, is_night, is_dim, *sky)
