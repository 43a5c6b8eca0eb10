"""One sheet of what postcard's adapters do: the same words and seeds without, and with each.

python -m tintype.models.postcard.adapters.gallery [--out models/postcard/gallery/adapters.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import tintype

from ..world import contact_sheet
from .evaluate import Studio, controls, edges_of, mushroom_prompts
from .recipe import HERE

COLUMNS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE.parent / "gallery" / "adapters.png")
    options = parser.parse_args()
    prompts, _, renders = controls(COLUMNS)
    mushrooms = [prompt for prompt, _ in mushroom_prompts(COLUMNS)]
    with tintype.load("postcard", provider="cpu") as pipeline:
        studio = Studio(pipeline, {})
        rows = [
            *studio.plain(prompts),
            *studio.with_lora("mushroom", mushrooms),
            *studio.with_lora("cyanotype", prompts),
            *studio.with_lora("pixel-art", prompts),
            *(np.where(edges_of(each)[..., None], 255, 0).astype(np.uint8).repeat(3, axis=2) for each in renders),
            *studio.after_edges(prompts, renders),
        ]
    contact_sheet(rows, COLUMNS).save(options.out, optimize=True)


if __name__ == "__main__":
    main()
