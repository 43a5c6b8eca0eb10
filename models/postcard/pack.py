"""The checkpoint as the bundle that the package ships: int8, calibrated on captions of its own world.

python -m tintype.models.postcard.pack [--precision int8|fp16|fp32] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from .captions import caption
from .recipe import BUNDLE, CHECKPOINT
from .scene import random_scene

GUIDANCE_SCALE = 5.0  # of 3 and 5 the better on prompts of training: `evaluate bundle --seen`
EXACTNESS = "exact"  # so small a model gains little by rounding, and exact pictures are the same on every device
CAPTION_SEED = 30_000


def calibration_prompts(count: int = 40) -> list[str]:
    """Captions of scenes that training may have seen; the held-out ones are for judging alone."""
    rng = np.random.default_rng(CAPTION_SEED)
    return [caption(random_scene(rng), rng)[0] for _ in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("int8", "fp16", "fp32"), default="int8")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--out", type=Path, default=BUNDLE)
    options = parser.parse_args()

    from tintype.export import export_bundle
    from tintype.export.checkpoint import open_checkpoint
    from tintype.export.command import show
    from tintype.export.defaults import usual_request

    request = dataclasses.replace(
        usual_request(open_checkpoint(options.checkpoint)), guidance_scale=GUIDANCE_SCALE, exactness=EXACTNESS
    )
    report = export_bundle(
        options.checkpoint, options.out, precision=options.precision, prompts=calibration_prompts(),
        name="postcard", parity="full", default_request=request, overwrite=True,
    )  # fmt: skip
    show(report, options.out)


if __name__ == "__main__":
    main()
