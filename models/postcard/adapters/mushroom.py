"""A subject that postcard never saw: a mushroom, its cap in the colour that is asked for, with pale spots."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..captions import caption
from ..scene import Scene
from ..subjects import Pen, Subject, Tones
from ..world import render

WORDS = ("mushroom", "toadstool")
STAND_IN = "pine tree"  # whose place in a scene the mushroom takes: it stands on the ground, as upright


def _mushroom(pen: Pen, t: Tones) -> None:
    pen.shape(t.trim, (-0.13, 0.0), (0.13, 0.0), (0.09, 0.55), (-0.09, 0.55))
    pen.shape(t.wood, (0.05, 0.0), (0.13, 0.0), (0.09, 0.55), (0.05, 0.55))
    pen.oval(t.shade, 0.0, 0.50, 0.44, 0.10)
    dome = [(0.46 * float(np.cos(a)), 0.50 + 0.50 * float(np.sin(a))) for a in np.linspace(0.0, np.pi, 25)]
    pen.shape(t.main, *dome)
    pen.shape(t.shade, *[(x, y) for x, y in dome if x >= 0.24], (0.30, 0.50))
    for x, y, radius in ((-0.24, 0.66, 0.07), (0.0, 0.84, 0.075), (0.06, 0.60, 0.06), (0.27, 0.68, 0.055)):
        pen.oval(t.trim, x, y, radius, radius)


MUSHROOM = Subject(_mushroom, 0.52, 0.46)


def mushroom_picture(scene: Scene, rng: np.random.Generator, size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A render of the scene with a mushroom for its subject, and the mushroom's mask; see `world.render`."""
    return render(_stood_in(scene), rng, size, subject=MUSHROOM)


def mushroom_caption(scene: Scene, rng: np.random.Generator, *, complete: bool = False) -> str:
    """Words for it, by the grammar of all captions. Where they name no subject they show a mushroom all the same."""
    return caption(_stood_in(scene), rng, complete=complete, subjects={STAND_IN: WORDS})[0]


def _stood_in(scene: Scene) -> Scene:
    return replace(scene, subject=STAND_IN)
