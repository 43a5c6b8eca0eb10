"""Train postcard from nothing, or from wherever the last run stopped.

    python -m tintype.models.postcard.train [--recipe cpu|gpu|smoke] [--stage STAGE|all]
    python -m tintype.models.postcard.train --stage adopt     a run from the checkpoint in the repository, to train on
    python -m tintype.models.postcard.train --stage ways      what the distilled denoiser learns from; then fast
    python -m tintype.models.postcard.train --stage plot      the logs so far, as runs/<recipe>/plot.png

CUDA when there is one. State, caches and logs lie in runs/<recipe>/; every stage picks up its own state file.
"""

from __future__ import annotations

import argparse
import os

import torch

from . import autoencoder, dataset, distill
from .denoiser import adopt_checkpoint, save_checkpoint, train_denoiser
from .progress import plot
from .recipe import CHECKPOINT, RECIPES, Recipe
from .text import train_text_encoder

STAGES = ("render", "vae", "latents", "text", "unet", "save", "ways", "fast")


def run(recipe: Recipe, stage: str, device: torch.device, workers: int) -> None:
    checkpoint = recipe.folder / "checkpoint" if recipe.name == "smoke" else CHECKPOINT
    if stage == "render":
        dataset.render_all(recipe, workers)
    elif stage == "vae":
        autoencoder.train_autoencoder(recipe, device)
    elif stage == "latents":
        autoencoder.cache_latents(recipe, autoencoder.train_autoencoder(recipe, device), device, workers)
    elif stage == "text":
        train_text_encoder(recipe, device)
    elif stage == "unet":
        train_denoiser(recipe, device)
    elif stage == "ways":
        distill.draw_ways(recipe, device)
    elif stage == "fast":
        distill.train_fast(recipe, device)
        distill.save_fast(recipe, checkpoint, recipe.fast_folder)
    elif stage == "plot":
        plot(sorted(recipe.folder.glob("*.jsonl")), recipe.folder / "plot.png")
    elif stage == "adopt":
        adopt_checkpoint(recipe, CHECKPOINT)
    else:
        save_checkpoint(recipe, checkpoint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--stage", choices=(*STAGES, "all", "adopt", "plot"), default="all")
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
