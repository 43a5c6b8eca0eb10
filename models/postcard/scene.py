"""What a postcard shows: seven attributes, one value each. No drawing here.

The order of ATTRIBUTES and of their values is the order of every index in this package.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "time": ("dawn", "noon", "sunset", "night"),
    "weather": ("clear", "cloudy", "rain", "snow"),
    "landscape": (
        "calm sea", "mountains", "desert dunes", "forest",
        "green hills", "city skyline", "lake", "snowy plain",
    ),
    "subject": (
        "sailboat", "lighthouse", "house", "windmill", "hot air balloon",
        "tent", "pine tree", "castle", "car", "bridge",
    ),
    "colour": ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white"),
    "position": ("left", "middle", "right"),
    "size": ("small", "large"),
}  # fmt: skip

HELD_OUT_SHARE = 0.10  # of all attribute combinations


@dataclass(frozen=True, slots=True)
class Scene:
    """One value an attribute; raises ValueError for a value that ATTRIBUTES lacks."""

    time: str
    weather: str
    landscape: str
    subject: str
    colour: str
    position: str
    size: str

    def __post_init__(self) -> None:
        for (name, values), value in zip(ATTRIBUTES.items(), self.values(), strict=True):
            if value not in values:
                raise ValueError(f"{name} is {value!r}, not one of {', '.join(values)}")

    def values(self) -> tuple[str, ...]:
        """In the order of ATTRIBUTES."""
        return self.time, self.weather, self.landscape, self.subject, self.colour, self.position, self.size

    def indices(self) -> tuple[int, ...]:
        """Each value's place in its attribute's tuple, in the order of ATTRIBUTES."""
        return tuple(values.index(value) for values, value in zip(ATTRIBUTES.values(), self.values(), strict=True))

    @classmethod
    def from_indices(cls, indices: tuple[int, ...]) -> Scene:
        """The inverse of indices()."""
        return cls(*(values[i] for values, i in zip(ATTRIBUTES.values(), indices, strict=True)))


def is_held_out(scene: Scene) -> bool:
    """Whether training must never draw this combination: a stable tenth of them all."""
    digest = hashlib.sha256("|".join(scene.values()).encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def random_scene(rng: np.random.Generator, *, held_out: bool | None = False) -> Scene:
    """A uniform scene: of the training set (False), held out from it (True), or any (None)."""
    counts = [len(values) for values in ATTRIBUTES.values()]
    while True:
        scene = Scene.from_indices(tuple(int(i) for i in rng.integers(counts)))
        if held_out is None or is_held_out(scene) == held_out:
            return scene
