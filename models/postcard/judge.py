"""An independent reader of postcards: a small CNN that names all seven attributes of a picture.

It is trained on the world's own renders of all combinations, never on a generator's pictures, so
that what it reads in those is evidence. It is the only file here that needs PyTorch.

    python -m tintype.models.postcard.judge train --out models/postcard/judge.safetensors
    python -m tintype.models.postcard.judge score models/postcard/judge.safetensors
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .scene import ATTRIBUTES, Scene
from .world import random_scene, render

SIDE = 128  # pixels a side that the network reads
WEIGHTS = Path(__file__).with_name("judge.safetensors")
TEST_SEED = 900_000_000  # far from any training seed
_COUNTS = [len(values) for values in ATTRIBUTES.values()]
_CHUNK = 250  # pictures a rendering task


class Network(nn.Module):
    """(batch, 3, 128, 128) in 0..1 to one row of logits a picture, all attributes side by side."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 40, 72, 112, 96)
        layers: list[nn.Module] = []
        for index, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            kernel, stride = (5 if index == 0 else 3), (2 if index < 4 else 1)
            layers += [
                nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            ]
        self.trunk = nn.Sequential(*layers)
        # Position and size need to know where: 4 x 4 cells are kept apart.
        self.heads = nn.Linear(widths[-1] * 16, sum(_COUNTS))

    def forward(self, pictures: Tensor) -> Tensor:
        cells = F.adaptive_max_pool2d(self.trunk(pictures * 4.0 - 2.0), 4).flatten(1)
        logits: Tensor = self.heads(F.dropout(cells, 0.1, self.training))
        return logits


class Judge:
    """Reads the attributes of pictures."""

    def __init__(self, network: Network, metadata: dict[str, str] | None = None) -> None:
        self.network = network.eval()
        self.metadata = metadata or {}

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> Judge:
        """A trained judge; raises FileNotFoundError where there is none."""
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing; make it with `judge train --out {path}`")
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        network = Network()
        network.load_state_dict(weights)
        return cls(network, metadata)

    @torch.inference_mode()
    def read_indices(self, pictures: NDArray[np.uint8], batch: int = 128) -> NDArray[np.int64]:
        """The values read in pictures (n, h, w, 3), as (n, 7) indices into ATTRIBUTES."""
        if pictures.ndim != 4 or pictures.shape[-1] != 3 or pictures.dtype != np.uint8:
            raise ValueError(f"pictures are {pictures.dtype} of shape {pictures.shape}, not uint8 (n, h, w, 3)")
        rows = []
        for start in range(0, len(pictures), batch):
            logits = self.network(_tensor(pictures[start : start + batch]))
            rows.append(torch.stack([p.argmax(1) for p in logits.split(_COUNTS, 1)], 1).numpy())
        return np.concatenate(rows) if rows else np.zeros((0, len(_COUNTS)), np.int64)

    def read(self, pictures: NDArray[np.uint8]) -> list[Scene]:
        """The scene read in each of pictures, (n, h, w, 3) of any size."""
        indices = self.read_indices(pictures).tolist()
        return [Scene.from_indices(tuple(row)) for row in indices]

    def accuracy(
        self,
        pictures: NDArray[np.uint8],
        scenes: Sequence[Scene],
        stated: Sequence[frozenset[str]] | None = None,
    ) -> dict[str, float]:
        """The share of pictures that show what was asked for, 0..1 by attribute and as "mean".

        Only pictures whose prompt states an attribute count for it (None: all do); an attribute
        that none states is nan and left out of the unweighted mean. Raises ValueError when the
        lengths differ.
        """
        if not len(pictures) == len(scenes) == (len(scenes) if stated is None else len(stated)):
            raise ValueError("pictures, scenes and stated differ in length")
        wanted = np.array([scene.indices() for scene in scenes]).reshape(-1, len(_COUNTS))
        right = self.read_indices(pictures) == wanted
        result = {}
        for column, name in enumerate(ATTRIBUTES):
            counts = [stated is None or name in stated[i] for i in range(len(scenes))]
            chosen = right[np.array(counts, bool), column]
            result[name] = float(chosen.mean()) if chosen.size else float("nan")
        result["mean"] = float(np.nanmean(list(result.values())))
        return result


def _tensor(pictures: NDArray[np.uint8]) -> Tensor:
    """uint8 (n, h, w, 3) to float32 (n, 3, 128, 128) in 0..1, reduced with antialiasing."""
    tensor = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
    if tensor.shape[-2:] != (SIDE, SIDE):
        tensor = F.interpolate(tensor, (SIDE, SIDE), mode="bilinear", antialias=True)
    return tensor


def _render_chunk(task: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    seed, count = task
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng, held_out=None) for _ in range(count)]
    pictures = np.stack([render(scene, rng, SIDE)[0] for scene in scenes])
    return pictures, np.array([scene.indices() for scene in scenes])


def fresh_renders(count: int, seed: int, processes: int = 1) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Random renders of all combinations: pictures (n, 128, 128, 3), indices (n, 7)."""
    starts = range(0, count, _CHUNK)
    tasks = [(seed + start, min(_CHUNK, count - start)) for start in starts]
    if processes == 1:
        chunks = [_render_chunk(task) for task in tasks]
    else:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            chunks = pool.map(_render_chunk, tasks, chunksize=1)
    return np.concatenate([c[0] for c in chunks]), np.concatenate([c[1] for c in chunks])


def _augmented(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """A batch with a decoder's faults: a little blur, noise, brightness and contrast."""
    n = len(pictures)
    if torch.rand((), generator=generator) < 0.5:
        smaller = int(torch.randint(60, 118, (), generator=generator))
        pictures = F.interpolate(pictures, (smaller, smaller), mode="bilinear", antialias=True)
        pictures = F.interpolate(pictures, (SIDE, SIDE), mode="bilinear")
    gain = 1 + 0.06 * (2 * torch.rand((n, 1, 1, 1), generator=generator) - 1)
    shift = 0.03 * (2 * torch.rand((n, 3, 1, 1), generator=generator) - 1)
    level = 0.03 * torch.rand((n, 1, 1, 1), generator=generator)
    noise = torch.randn(pictures.shape, generator=generator) * level
    return (pictures * gain + shift + noise).clamp(0, 1)


def _loss(logits: Tensor, indices: Tensor) -> Tensor:
    parts = logits.split(_COUNTS, 1)
    losses = [F.cross_entropy(p, indices[:, i], label_smoothing=0.02) for i, p in enumerate(parts)]
    return torch.stack(losses).sum()


def train(
    out: Path,
    *,
    pictures: int = 24000,
    epochs: int = 5,
    seed: int = 0,
    threads: int = 1,
    batch: int = 96,
) -> dict[str, float]:
    """Train a judge, write it to `out` as fp16 safetensors, and return its test accuracies."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    began = time.perf_counter()
    images, indices = fresh_renders(pictures, seed * 1_000_000, threads)
    targets = torch.from_numpy(indices)
    print(f"{pictures} renders in {time.perf_counter() - began:.0f} s", flush=True)
    network = Network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.02)
    steps = epochs * (pictures // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps, pct_start=0.2)
    for epoch in range(epochs):
        network.train()
        order = torch.randperm(pictures, generator=generator)[: pictures // batch * batch]
        total = 0.0
        for chosen in order.split(batch):
            inputs = _augmented(_tensor(images[chosen.numpy()]), generator)
            loss = _loss(network(inputs), targets[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item() / (pictures // batch)
        seconds = time.perf_counter() - began
        print(f"epoch {epoch + 1}/{epochs}: loss {total:.3f}, {seconds:.0f} s", flush=True)
    return _finish(network, out)


def _finish(network: Network, out: Path) -> dict[str, float]:
    """Write the weights in fp16, and what the written file reads in 2,000 unseen renders."""
    weights = {
        name: value.half().contiguous() if value.is_floating_point() else value.clone()
        for name, value in network.state_dict().items()
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, out)
    accuracies = score(out)
    save_file(weights, out, metadata={"test_accuracy": json.dumps(accuracies), "test_renders": "2000"})
    return accuracies


def score(path: Path = WEIGHTS, *, pictures: int = 2000) -> dict[str, float]:
    """A judge's accuracies, 0..1, on renders that it never saw."""
    images, indices = fresh_renders(pictures, TEST_SEED)
    scenes = [Scene.from_indices(tuple(row)) for row in indices.tolist()]
    return Judge.load(path).accuracy(images, scenes)


def main() -> None:
    """Train a judge or score one."""
    parser = argparse.ArgumentParser(description="Train or score the judge of postcards.")
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("--out", type=Path, default=WEIGHTS)
    training.add_argument("--pictures", type=int, default=24000)
    training.add_argument("--epochs", type=int, default=5)
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--threads", type=int, default=1)
    scoring = commands.add_parser("score")
    scoring.add_argument("path", type=Path, nargs="?", default=WEIGHTS)
    options = parser.parse_args()
    if options.command == "train":
        accuracies = train(
            options.out, pictures=options.pictures, epochs=options.epochs,
            seed=options.seed, threads=options.threads,
        )  # fmt: skip
    else:
        accuracies = score(options.path)
    for name, share in accuracies.items():
        print(f"{name:10s} {100 * share:6.2f} %")


if __name__ == "__main__":
    main()
