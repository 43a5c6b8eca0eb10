"""What adapters are trained on: renders, through postcard's own encoder, with their words, cached in shards.

Picture i of a kind is drawn from the generator (SEED, the kind's number, i), whatever process draws it and when. No
combination of attributes that is held out for judging is among them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tintype.image.preprocess import preprocess

from ..autoencoder import to_pixels
from ..dataset import write_atomically
from ..recipe import CHECKPOINT
from ..scene import Scene, random_scene
from ..text import write_caption
from ..world import render
from .looks import Picture, cyanotype, pixel_art
from .mushroom import mushroom_caption, mushroom_picture
from .recipe import CANNY, PICTURES, RUN

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

SEED = 21
SHARD = 250  # pictures a file
CELL = 4  # pixels of a latent's, each side
COMPLETE_SHARE = 0.35  # of the mushrooms' captions state all attributes, as of all others

Drawn = tuple[Picture, NDArray[np.uint8], str]  # a picture, the mask of what counts most in it, its words


def _plain(scene: Scene, rng: np.random.Generator) -> Drawn:
    picture, mask = render(scene, rng, PICTURES)
    return picture, mask, write_caption(scene, rng)[0]


def _with_mushroom(scene: Scene, rng: np.random.Generator) -> Drawn:
    picture, mask = mushroom_picture(scene, rng, PICTURES)
    return picture, mask, mushroom_caption(scene, rng, complete=rng.random() < COMPLETE_SHARE)


def _looking(look: Callable[[Picture], Picture]) -> Callable[[Scene, np.random.Generator], Drawn]:
    def drawn(scene: Scene, rng: np.random.Generator) -> Drawn:
        picture, mask, words = _plain(scene, rng)
        return look(picture), mask, words

    return drawn


KINDS: dict[str, Callable[[Scene, np.random.Generator], Drawn]] = {
    "plain": _plain,
    "mushroom": _with_mushroom,
    "cyanotype": _looking(cyanotype),
    "pixel-art": _looking(pixel_art),
}


def draw(kind: str, index: int) -> Drawn:
    """One training picture."""
    rng = np.random.default_rng((SEED, list(KINDS).index(kind), index))
    return KINDS[kind](random_scene(rng), rng)


@dataclass(frozen=True, slots=True)
class Pictures:
    """Cached pictures of one kind or several."""

    means: NDArray[np.float16]  # (n, 4, 32, 32), latents before they are scaled
    deviations: NDArray[np.float16]
    masks: NDArray[np.uint8]  # (n, 32, 32), 0..255
    edges: NDArray[np.uint8]  # (n, 128, 16), a bit a pixel
    captions: NDArray[np.str_]

    def __add__(self, other: Pictures) -> Pictures:
        return Pictures(
            *(np.concatenate([getattr(self, name), getattr(other, name)]) for name in self.__dataclass_fields__)
        )

    def __len__(self) -> int:
        return len(self.means)

    def latents(self, chosen: NDArray[np.int64], scale: float) -> torch.Tensor:
        """(n, 4, 32, 32), drawn anew from what the encoder says of each."""
        means = torch.from_numpy(self.means[chosen]).float()
        drawn = means + torch.from_numpy(self.deviations[chosen]).float() * torch.randn_like(means)
        return (drawn * scale).contiguous(memory_format=torch.channels_last)

    def edge_pictures(self, chosen: NDArray[np.int64]) -> torch.Tensor:
        """(n, 3, 128, 128), 0 and 1: white lines on black."""
        bits = np.unpackbits(self.edges[chosen], axis=-1)[:, None]
        return torch.from_numpy(np.repeat(bits, 3, axis=1)).float()


def load_autoencoder() -> AutoencoderKL:
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(CHECKPOINT / "vae", torch_dtype=torch.float32).eval()


def cached(kind: str, count: int) -> Pictures:
    """The first `count` pictures of a kind; those that no earlier run has cached are drawn and encoded now."""
    vae = load_autoencoder()
    shards = [_shard(vae, kind, start) for start in range(0, count, SHARD)]
    whole = sum(shards[1:], shards[0])
    chosen = slice(count)
    return Pictures(*(getattr(whole, name)[chosen] for name in whole.__dataclass_fields__))


def _shard(vae: AutoencoderKL, kind: str, start: int) -> Pictures:
    path: Path = RUN / "data" / f"{kind}-{start:05}.npz"
    if not path.exists():
        drawn = [draw(kind, index) for index in range(start, start + SHARD)]
        pictures = np.stack([picture for picture, _, _ in drawn])
        means, deviations = _encoded(vae, pictures)
        masks = np.stack([mask for _, mask, _ in drawn]).reshape(SHARD, PICTURES // CELL, CELL, PICTURES // CELL, CELL)
        edges = np.stack([np.asarray(preprocess(Image.fromarray(each), CANNY))[..., 0] > 0 for each in pictures])
        arrays = {
            "means": means,
            "deviations": deviations,
            "masks": masks.mean(axis=(2, 4)).round().astype(np.uint8),
            "edges": np.packbits(edges, axis=-1),
            "captions": np.array([words for _, _, words in drawn]),
        }
        write_atomically(path, arrays)
        print(f"{kind}: {start + SHARD} pictures", flush=True)
    with np.load(path) as file:
        return Pictures(**{name: file[name] for name in Pictures.__dataclass_fields__})


@torch.no_grad()
def _encoded(vae: AutoencoderKL, pictures: Picture, batch: int = 25) -> tuple[NDArray, NDArray]:
    means, deviations = [], []
    for start in range(0, len(pictures), batch):
        posterior = vae.encode(to_pixels(pictures[start : start + batch], torch.device("cpu"))).latent_dist
        means.append(posterior.mean.half().numpy())
        deviations.append(posterior.std.half().numpy())
    return np.concatenate(means), np.concatenate(deviations)
