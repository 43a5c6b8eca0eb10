"""The pictures that the README shows, drawn by the shipped bundle, none of them picked over another seed.

python -m tintype.models.postcard.gallery
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .recipe import HERE
from .world import contact_sheet

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


def main(folder: Path = FOLDER) -> None:
    """Write red-sailboat.png, with its record inside, and contact-sheet.png, the prompts under the pictures."""
    import tintype

    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    with tintype.load("postcard", provider="cpu") as pipeline:
        for prompt in PROMPTS:
            result = pipeline.generate(prompt, seed=SEED)
            pictures.append(np.asarray(result.image))
            if prompt == HERO:
                result.save(folder / "red-sailboat.png")
    contact_sheet(pictures, 4, PROMPTS).save(folder / "contact-sheet.png", optimize=True)


if __name__ == "__main__":
    main()
