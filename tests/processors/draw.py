"""Draw postcard on one thread: `python draw.py EXACTNESS FOLDER` leaves latents.npy, picture.png and features.json.

Run by the Python of each processor, in a cache of its own: every graph is built, in child processes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

import tintype

REQUEST = {"seed": 7, "width": 64, "height": 64, "num_inference_steps": 2}


def main() -> None:
    exactness, folder = sys.argv[1], Path(sys.argv[2])
    with tintype.load("postcard", provider="cpu", threads=1) as pipeline:
        result = pipeline.generate("a red sailboat on a calm sea at sunset", exactness=exactness, **REQUEST)
    np.save(folder / "latents.npy", result.latents)
    result.save(folder / "picture.png")
    features = np._core._multiarray_umath.__cpu_features__
    (folder / "features.json").write_text(json.dumps(sorted(name for name, here in features.items() if here)))


if __name__ == "__main__":
    main()
