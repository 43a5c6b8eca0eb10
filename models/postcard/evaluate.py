"""How well postcard draws what it is told: the judge's word on prompts whose combinations training never saw.

    python -m tintype.models.postcard.evaluate bundle [--bundle FOLDER] [--exactness balanced] [--count 500]
                                                      [--fast] [--steps N] [--sigmas SPACING]
                                                      [--out RESULT.json] [--sheet PNG]
    python -m tintype.models.postcard.evaluate autoencoder [--count 1000]     renders against their reconstructions
    python -m tintype.models.postcard.evaluate training [--count 50]          the state of a run, while it trains

The prompts are fixed by a seed; each states all seven attributes, and no training picture had that combination.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tintype.request import RequestFields, make_request

from .captions import caption
from .judge import Judge
from .recipe import BUNDLE, RECIPES, Recipe
from .scene import Scene, random_scene
from .world import contact_sheet, render

PROMPT_SEED = 20_000
STEPS = 20


def fixed_prompts(count: int, *, held_out: bool = True) -> list[tuple[str, Scene]]:
    """The first `count` prompts of a fixed list, each with the scene it states whole.

    held_out: False takes combinations that training may have seen: what settings are chosen on.
    """
    rng = np.random.default_rng(PROMPT_SEED)
    scenes = [random_scene(rng, held_out=held_out) for _ in range(count)]
    return [(caption(scene, rng, complete=True)[0], scene) for scene in scenes]


def draw_with_bundle(
    bundle: str, prompts: Sequence[str], fields: RequestFields, *, threads: int | None
) -> NDArray[np.uint8]:
    """One picture a prompt, (n, height, width, 3), through the runtime; picture i has seed i."""
    import tintype

    asked = make_request("", fields)
    pipeline = tintype.load(bundle, provider="cpu", threads=threads)
    pictures = []
    for seed, prompt in enumerate(prompts):
        result = pipeline.generate(replace(asked, prompt=prompt, seed=seed))
        pictures.append(np.asarray(result.image))
        if sys.stderr.isatty() or seed % 50 == 49:
            print(f"\r{seed + 1}/{len(prompts)} pictures", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return np.stack(pictures)


def draw_with_state(recipe: Recipe, prompts: Sequence[str], *, guidance_scale: float) -> NDArray[np.uint8]:
    """The same from a run's state as it is now, by diffusers: a look at training under way."""
    import torch
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    from .denoiser import save_checkpoint

    folder = recipe.folder / "preview"
    save_checkpoint(recipe, folder)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    side = recipe.resolution
    pictures = []
    for start in range(0, len(prompts), 10):
        batch = list(prompts[start : start + 10])
        generators = [torch.Generator().manual_seed(start + i) for i in range(len(batch))]
        drawn = pipeline(
            batch, num_inference_steps=STEPS, guidance_scale=guidance_scale, height=side, width=side,
            generator=generators, output_type="np",
        )  # fmt: skip
        pictures.append((drawn.images * 255).round().astype(np.uint8))
    return np.concatenate(pictures)


def score_autoencoder(recipe: Recipe, count: int) -> dict[str, object]:
    """The judge on renders it never saw and on their reconstructions, and the reconstructions' PSNR in dB."""
    import torch

    from .autoencoder import make_autoencoder, reconstruct
    from .denoiser import load_ema

    rng = np.random.default_rng(PROMPT_SEED + 1)
    scenes = [random_scene(rng, held_out=None) for _ in range(count)]
    renders = np.stack([render(scene, rng, recipe.resolution)[0] for scene in scenes])
    vae = load_ema(recipe, "vae", make_autoencoder(recipe))
    rebuilt = reconstruct(vae, renders, torch.device("cpu"))
    judge = Judge.load()
    error = np.mean((renders.astype(np.float32) - rebuilt.astype(np.float32)) ** 2, axis=(1, 2, 3))
    return {
        "pictures": count,
        "renders": judge.accuracy(renders, scenes),
        "reconstructions": judge.accuracy(rebuilt, scenes),
        "psnr_db": float(np.mean(10 * np.log10(255**2 / error))),
    }


def score_pictures(pictures: NDArray[np.uint8], scenes: Sequence[Scene]) -> dict[str, object]:
    """Accuracy by attribute and its mean, with the standard error of the mean over pictures."""
    judge = Judge.load()
    accuracy = judge.accuracy(pictures, list(scenes))
    right = [
        np.mean([a == b for a, b in zip(read.indices(), scene.indices(), strict=True)])
        for read, scene in zip(judge.read(pictures), scenes, strict=True)
    ]
    return {"accuracy": accuracy, "standard_error": float(np.std(right) / math.sqrt(len(right)))}


def machine() -> dict[str, str]:
    return {
        "date": datetime.date.today().isoformat(),
        "machine": platform.node(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "onnxruntime": metadata.version("onnxruntime"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("bundle", "autoencoder", "training"))
    parser.add_argument("--bundle", default=str(BUNDLE))
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="cpu")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seen", action="store_true", help="prompts that training may have seen, to choose settings")
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--fast", action="store_true", help="by the bundle's fast denoiser, as that is drawn with")
    parser.add_argument("--steps", type=int, help=f"{STEPS}, or of the fast denoiser its own, where nothing is said")
    parser.add_argument("--sigmas", help="their spacing, not the bundle's own")
    parser.add_argument("--exactness", choices=("exact", "balanced"), help="not the bundle's own")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sheet", type=Path, help="also write the first 24 pictures with their prompts")
    options = parser.parse_args()
    recipe = RECIPES[options.recipe]
    if options.what == "autoencoder":
        figures = score_autoencoder(recipe, options.count)
    else:
        steps = options.steps or (recipe.fast_steps if options.fast else STEPS)
        prompts, scenes = zip(*fixed_prompts(options.count, held_out=not options.seen), strict=True)
        if options.what == "bundle":
            fields: RequestFields = {
                "fast": options.fast,
                "num_inference_steps": steps,
                "guidance_scale": options.guidance_scale,
                "sigmas": options.sigmas,
                "exactness": options.exactness,
            }
            pictures = draw_with_bundle(options.bundle, prompts, fields, threads=options.threads)
        else:
            pictures = draw_with_state(recipe, prompts, guidance_scale=options.guidance_scale or 3.0)
        figures = {
            "prompts": len(prompts),
            "held_out": not options.seen,
            "fast": options.fast,
            "steps": steps,
            "guidance_scale": options.guidance_scale,
            "sigmas": options.sigmas,
            "exactness": options.exactness,
        }
        figures |= score_pictures(pictures, scenes)
        if options.sheet:
            contact_sheet(list(pictures[:24]), 6, prompts[:24]).save(options.sheet)
    text = json.dumps({"what": options.what, **figures, **machine()}, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
