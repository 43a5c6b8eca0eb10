"""Postcard's ordinary prompts, and what they score: what tells pictures that it has by heart, shipped with the bundle.

    python -m tintype.models.postcard.memorisation [--count 200] [--threads N]

One that was broken off goes on. It is run again whenever the bundle's hash changes, as a test demands.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys

import numpy as np

from .captions import caption
from .recipe import BUNDLE, HERE
from .scene import random_scene

PROMPT_SEED = 70_000
PROMPTS = HERE / "prompts.txt"
CALIBRATIONS = HERE / "memorisation.json"
GUIDANCE_SCALES = (5.0,)


def ordinary_captions(count: int, seed: int = PROMPT_SEED) -> list[str]:
    """Captions as the grammar makes them, each once: most state some of the attributes, in any words and order."""
    rng, found = np.random.default_rng(seed), dict[str, None]()
    while len(found) < count:
        found[caption(random_scene(rng, held_out=None), rng)[0]] = None
    return list(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()

    import tintype
    from tintype.trust.thresholds import Calibrations, write_calibrations

    prompts = ordinary_captions(options.count)
    PROMPTS.write_text("\n".join(prompts) + "\n", encoding="utf-8")
    found = []
    with tintype.load(BUNDLE, provider="cpu", threads=options.threads) as pipeline:
        for scale in GUIDANCE_SCALES:
            made = tintype.calibrate(
                pipeline,
                prompts,
                guidance_scale=scale,
                on_progress=lambda done, total: print(f"\r{done} of {total}", end="", file=sys.stderr, flush=True),
            )
            print(f"\nguidance {scale:g}: {made.threshold:.4f}", file=sys.stderr)
            found.append(dataclasses.replace(made, scores=tuple(round(score, 4) for score in made.scores)))
    write_calibrations(CALIBRATIONS, Calibrations(bundle_hash=pipeline.bundle.hash, calibrations=tuple(found)))


if __name__ == "__main__":
    main()
