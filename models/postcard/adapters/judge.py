"""Who tells whether a picture has a mushroom: the judge of postcards, which knows none, and one more linear head on it.

What the judge's own layers see of a picture is enough to tell a subject that it has no name for. The head is trained on
renders with and without, never on what a generator drew.

    python -m tintype.models.postcard.adapters.judge train
    python -m tintype.models.postcard.adapters.judge score     on renders that it never saw
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..judge import Judge, Network, _augmented, _tensor
from ..scene import random_scene
from ..world import render
from .mushroom import mushroom_picture
from .recipe import MUSHROOM_JUDGE, PICTURES

TEST_SEED = 910_000_000  # far from any training seed
LOOKS = 3  # at each render, blurred and brightened in another way


class MushroomJudge:
    """Tells pictures with a mushroom from all others."""

    def __init__(self, trunk: Network, weight: Tensor, bias: Tensor) -> None:
        self._trunk, self._weight, self._bias = trunk, weight, bias

    @classmethod
    def load(cls, path: Path = MUSHROOM_JUDGE) -> MushroomJudge:
        with safe_open(path, framework="pt") as file:
            return cls(Judge.load().network, file.get_tensor("weight").float(), file.get_tensor("bias").float())

    @torch.inference_mode()
    def sees(self, pictures: NDArray[np.uint8], batch: int = 128) -> NDArray[np.bool_]:
        """Whether there is one in each of pictures, (n, h, w, 3) of any size."""
        found = [
            (_cells(self._trunk, _tensor(pictures[start : start + batch])) @ self._weight + self._bias > 0).numpy()
            for start in range(0, len(pictures), batch)
        ]
        return np.concatenate(found) if found else np.zeros(0, bool)


def _cells(trunk: Network, pictures: Tensor) -> Tensor:
    """What the judge's heads are shown, (n, 1536)."""
    return F.adaptive_max_pool2d(trunk.trunk(pictures * 4.0 - 2.0), 4).flatten(1)


def fresh_renders(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Renders of all combinations, and whether a mushroom is in each: in every other one."""
    rng = np.random.default_rng(seed)
    has_mushroom = np.arange(count) % 2 == 1
    pictures = [
        (mushroom_picture if has else render)(random_scene(rng, held_out=None), rng, PICTURES)[0]
        for has in has_mushroom
    ]
    return np.stack(pictures), has_mushroom


def train(out: Path, *, pictures: int = 6000, steps: int = 1500, seed: int = 0) -> dict[str, float]:
    """Train the head, write it in fp16, and return its test accuracies."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    images, has_mushroom = fresh_renders(pictures, seed)
    trunk = Judge.load().network
    with torch.inference_mode():
        cells = torch.cat(
            [
                _cells(trunk, _augmented(_tensor(images[start : start + 100]), generator))
                for _ in range(LOOKS)
                for start in range(0, pictures, 100)
            ]
        )
    cells = cells.clone()
    targets = torch.from_numpy(has_mushroom).float().repeat(LOOKS)
    head = torch.nn.Linear(cells.shape[1], 1)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(len(cells), (512,), generator=generator)
        loss = F.binary_cross_entropy_with_logits(head(cells[chosen])[:, 0], targets[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    weights = {"weight": head.weight.detach()[0].half(), "bias": head.bias.detach()[0].half()}
    save_file(weights, out)
    accuracies = score(out)
    save_file(weights, out, metadata={"test_accuracy": json.dumps(accuracies), "test_renders": "2000"})
    return accuracies


def score(path: Path = MUSHROOM_JUDGE, *, pictures: int = 2000) -> dict[str, float]:
    """On renders that it never saw: how many mushrooms it sees, and how many of other subjects it takes for one."""
    images, has_mushroom = fresh_renders(pictures, TEST_SEED)
    seen = MushroomJudge.load(path).sees(images)
    return {"seen": float(seen[has_mushroom].mean()), "seen_where_none_is": float(seen[~has_mushroom].mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "score"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    accuracies = train(MUSHROOM_JUDGE) if options.what == "train" else score()
    for name, share in accuracies.items():
        print(f"{name:20s} {100 * share:6.2f} %")


if __name__ == "__main__":
    main()
