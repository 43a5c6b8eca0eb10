"""The checkpoint as the bundle that the package ships: int8, calibrated on captions of its own world.

python -m tintype.models.postcard.pack [--precision int8|fp16|fp32] [--out FOLDER]
python -m tintype.models.postcard.pack --fast [CHECKPOINT]     the distilled denoiser, into the bundle that is there
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from .captions import caption
from .recipe import BUNDLE, CHECKPOINT, RECIPES
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
    recipe = RECIPES["cpu"]
    parser.add_argument(
        "--fast", type=Path, nargs="?", const=recipe.fast_folder,
        help="add the denoiser of this checkpoint, which `train --stage fast` made, and do nothing else",
    )  # fmt: skip
    options = parser.parse_args()

    from tintype.export import add_fast, export_bundle
    from tintype.export.checkpoint import open_checkpoint
    from tintype.export.command import show
    from tintype.export.defaults import usual_request

    if options.fast is not None:
        with TemporaryDirectory() as scratch:
            report = export_bundle(
                options.fast, Path(scratch) / "fast", precision=options.precision,
                prompts=calibration_prompts(), name="postcard-fast", few_steps=recipe.fast_steps, parity="full",
            )  # fmt: skip
            add_fast(options.out, Path(scratch) / "fast")
        show(report, options.out)
        return
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
