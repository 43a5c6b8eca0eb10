"""The pictures that the README shows, drawn by the shipped bundle, none of them picked over another seed.

python -m tintype.models.postcard.gallery
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .recipe import HERE
from .world import contact_sheet

if TYPE_CHECKING:
    from tintype.pipeline import Pipeline

FOLDER = HERE / "gallery"
SEED = 7
HERO = "a red sailboat on a calm sea at sunset"
PROMPTS = (
    HERO,
    "a small yellow house under the mountains at noon, clear sky",
    "a big white lighthouse by the lake at dawn",
    "a purple tent in the forest at night, on the left",
    "a large pink hot air balloon over the desert dunes at sunset",
    "an orange windmill on green hills, cloudy, by day",
    "a blue car in front of the city skyline in the rain",
    "a green pine tree on a snowy plain, snowing, on the right",
    "a small red bridge in the mountains at dawn",
    "Night over the sea: a large yellow castle in the middle",
    "a tiny blue hot air balloon above green hills at noon",
    "a white sailboat on a lake, midday, to the right",
)


NEW_SKY_STRENGTH = 0.95  # what README.md says of it


@dataclass(frozen=True, slots=True)
class Change:
    """One of PROMPTS' pictures, made new in two ways."""

    prompt: str
    box: tuple[int, int, int, int]  # left, top, right, bottom: where another colour is asked for, in pixels
    recoloured: str
    new_sky: str


CHANGES = (
    Change(
        HERO, (0, 28, 72, 128),
        "a yellow sailboat on a calm sea at sunset", "a red sailboat on a calm sea at night",
    ),
    Change(
        PROMPTS[4], (1, 6, 64, 96),
        "a large blue hot air balloon on the left, over the desert dunes at sunset",
        "a large pink hot air balloon over the desert dunes at noon, clear sky",
    ),
    Change(
        PROMPTS[6], (0, 60, 82, 118),
        "a red car in front of the city skyline in the rain",
        "a blue car in front of the city skyline at dawn, snowing",
    ),
)  # fmt: skip


def main(folder: Path = FOLDER) -> None:
    """Write red-sailboat.png, with its record inside, and its mask; contact-sheet.png, the prompts under the pictures;
    edits.png, where some of them become others."""
    import tintype

    folder.mkdir(parents=True, exist_ok=True)
    pictures: list[NDArray[np.uint8]] = []
    with tintype.load("postcard", provider="cpu") as pipeline:
        for prompt in PROMPTS:
            result = pipeline.generate(prompt, seed=SEED)
            pictures.append(np.asarray(result.image))
            if prompt == HERO:
                result.save(folder / "red-sailboat.png")
        _edits(pipeline, dict(zip(PROMPTS, pictures, strict=True))).save(folder / "edits.png", optimize=True)
    contact_sheet(pictures, 4, PROMPTS).save(folder / "contact-sheet.png", optimize=True)
    Image.fromarray(_mask(CHANGES[0])).save(folder / "red-sailboat-mask.png", optimize=True)


def _edits(pipeline: Pipeline, originals: dict[str, NDArray[np.uint8]]) -> Image.Image:
    """A row a change: the picture, the mask, what was made new under the mask, and the whole picture made new."""
    pictures, labels = [], []
    for change in CHANGES:
        original, mask = originals[change.prompt], _mask(change)
        recoloured = pipeline.generate(change.recoloured, seed=SEED, image=original, mask=mask)
        new_sky = pipeline.generate(change.new_sky, seed=SEED, image=original, strength=NEW_SKY_STRENGTH)
        pictures += [
            original, np.stack([mask] * 3, axis=-1), np.asarray(recoloured.image), np.asarray(new_sky.image)
        ]  # fmt: skip
        labels += [
            change.prompt, "white is made new", change.recoloured, f"{change.new_sky} (strength {NEW_SKY_STRENGTH})"
        ]  # fmt: skip
    return contact_sheet(pictures, 4, labels)


def _mask(change: Change) -> NDArray[np.uint8]:
    left, top, right, bottom = change.box
    mask = np.zeros((128, 128), np.uint8)
    mask[top:bottom, left:right] = 255
    return mask


if __name__ == "__main__":
    main()
