"""Rendered pictures and their latents on disk, in shards that exist whole or not at all.

Picture i of a run is drawn from the generator (SEED, i), whatever process draws it and when.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tintype.files import write_whole

from .recipe import Recipe
from .scene import ATTRIBUTES, Scene
from .world import random_scene, render

SEED = 1
SHARD = 1000  # pictures a file


@dataclass(frozen=True, slots=True)
class Shard:
    pictures: NDArray[np.uint8]  # (n, resolution, resolution, 3)
    masks: NDArray[np.uint8]  # (n, latent_side, latent_side), the subject's share of each cell, 0..255
    scenes: NDArray[np.int8]  # (n, attributes), indices into ATTRIBUTES


def shard_sizes(recipe: Recipe) -> list[int]:
    full, rest = divmod(recipe.pictures, SHARD)
    return [SHARD] * full + ([rest] if rest else [])


def write_atomically(path: Path, arrays: dict[str, NDArray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def shard_path(recipe: Recipe, number: int) -> Path:
    return recipe.folder / "data" / f"pictures-{number:03}.npz"


def render_shard(recipe: Recipe, number: int) -> None:
    """Draw one shard if it isn't there yet. Held-out combinations of attributes never enter."""
    path = shard_path(recipe, number)
    if path.exists():
        return
    pictures, masks, scenes = [], [], []
    cell = recipe.vae_scale_factor
    for index in range(number * SHARD, number * SHARD + shard_sizes(recipe)[number]):
        rng = np.random.default_rng((SEED, index))
        scene = random_scene(rng)
        picture, mask = render(scene, rng, recipe.resolution)
        pictures.append(picture)
        masks.append(mask.reshape(recipe.latent_side, cell, recipe.latent_side, cell).mean(axis=(1, 3)))
        scenes.append(scene.indices())
    write_atomically(
        path,
        {
            "pictures": np.stack(pictures),
            "masks": np.stack(masks).round().astype(np.uint8),
            "scenes": np.array(scenes, np.int8),
        },
    )


def render_all(recipe: Recipe, workers: int) -> None:
    """Draw every shard that is missing, in `workers` processes."""
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(render_shard, *zip(*((recipe, n) for n in range(len(shard_sizes(recipe)))), strict=True)))


def load_shard(recipe: Recipe, number: int) -> Shard:
    with np.load(shard_path(recipe, number)) as file:
        return Shard(file["pictures"], file["masks"], file["scenes"])


def rendered_shards(recipe: Recipe) -> list[int]:
    """The shards that are there now; another process may be drawing the rest."""
    return [n for n in range(len(shard_sizes(recipe))) if shard_path(recipe, n).exists()]


def scene_from(indices: NDArray[np.int8]) -> Scene:
    return Scene(**{name: values[i] for (name, values), i in zip(ATTRIBUTES.items(), indices, strict=True)})


def random_crops(
    recipe: Recipe, seed: tuple[int, ...], batch: int
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Endless batches of crops, (batch, crop, crop, 3), and their masks, (batch, cells, cells); half are mirrored.

    From the shards drawn so far. Crops start at a latent cell, so that each cell of a mask covers whole pixels.
    """
    rng = np.random.default_rng(seed)
    cell = recipe.vae_scale_factor
    cells = recipe.crop // cell
    while True:
        shard = load_shard(recipe, int(rng.choice(rendered_shards(recipe))))
        for chosen in rng.permutation(len(shard.pictures))[: len(shard.pictures) // batch * batch].reshape(-1, batch):
            corners = rng.integers(0, recipe.latent_side - cells + 1, (batch, 2))
            pictures, masks = [], []
            for i, (y, x) in zip(chosen, corners, strict=True):
                masks.append(shard.masks[i, y : y + cells, x : x + cells])
                y, x = y * cell, x * cell
                pictures.append(shard.pictures[i, y : y + recipe.crop, x : x + recipe.crop])
            step = -1 if rng.random() < 0.5 else 1
            yield np.stack(pictures)[:, :, ::step], np.stack(masks)[:, :, ::step]
