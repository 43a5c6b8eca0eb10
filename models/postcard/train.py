"""Train postcard from nothing, or from wherever the last run stopped.

    python -m tintype.models.postcard.train [--recipe cpu|gpu|smoke] [--stage render|vae|latents|text|unet|save|all]

CUDA when there is one. State, caches and logs lie in runs/<recipe>/; every stage picks up its own state file.
"""

from __future__ import annotations

import argparse
import os

import torch

from . import autoencoder, dataset
from .recipe import CHECKPOINT, RECIPES, Recipe

STAGES = ("render", "vae", "latents", "text", "unet", "save")


def run(recipe: Recipe, stage: str, device: torch.device, workers: int) -> None:
    if stage == "render":
        dataset.render_all(recipe, workers)
    elif stage == "vae":
        autoencoder.train_autoencoder(recipe, device)
    elif stage == "latents":
        autoencoder.cache_latents(recipe, autoencoder.train_autoencoder(recipe, device), device, workers)
    elif stage == "text":
        from .text import train_text_encoder

        train_text_encoder(recipe, device)
    elif stage == "unet":
        from .denoiser import train_denoiser

        train_denoiser(recipe, device)
    else:
        from .denoiser import save_checkpoint

        save_checkpoint(recipe, recipe.folder / "checkpoint" if recipe.name == "smoke" else CHECKPOINT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that render")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="torch's threads on the CPU")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for stage in STAGES if options.stage == "all" else (options.stage,):
        run(RECIPES[options.recipe], stage, device, options.workers)


if __name__ == "__main__":
    main()
