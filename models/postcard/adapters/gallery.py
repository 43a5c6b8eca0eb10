"""One sheet of what postcard's adapters do: the same words and seeds without, and with each.

python -m tintype.models.postcard.adapters.gallery [--out models/postcard/gallery/adapters.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

import tintype
from tintype.request import RequestFields

from ..world import contact_sheet
from .evaluate import controls, draw, edges_of, mushroom_prompts
from .recipe import CANNY, EDGES, HERE, LORAS

COLUMNS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE.parent / "gallery" / "adapters.png")
    options = parser.parse_args()
    prompts, _, renders = controls(COLUMNS)
    mushrooms = [prompt for prompt, _ in mushroom_prompts(COLUMNS)]
    rows: list[np.ndarray] = []
    with tintype.load("postcard", provider="cpu") as pipeline:

        def add(words: list[str], fields: RequestFields) -> None:
            rows.extend(draw(pipeline, words, fields))

        add(prompts, {})
        add(mushrooms, {"loras": [LORAS["mushroom"].file]})
        add(prompts, {"loras": [LORAS["cyanotype"].file]})
        add(prompts, {"loras": [LORAS["pixel-art"].file]})
        rows.extend(np.where(edges_of(each)[..., None], 255, 0).astype(np.uint8).repeat(3, axis=2) for each in renders)
        control = [[{"model": EDGES, "image": Image.fromarray(each), "preprocess": CANNY}] for each in renders]
        rows.extend(draw(pipeline, prompts, {}, control=control))
    contact_sheet(rows, COLUMNS).save(options.out, optimize=True)


if __name__ == "__main__":
    main()
