"""What a LoRA costs while a picture is drawn: the denoiser's seconds with one of random numbers, over those without.

    tintype bench lora
    tintype bench lora FOLDER/int8 --exactness balanced --num-inference-steps 2

LoRAs are of all layers of a kind: queries, keys, values and outputs of attentions; what else transformers consist of;
every linear layer and convolution. Kernels are timed before (`tintype build`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from tintype.bench.comparison import Bar, Comparison
from tintype.bench.job import Job, build_arguments
from tintype.bench.measurement import Report, count_option, folder_argument, measurement, names_option
from tintype.bench.runner import Peer
from tintype.bundle import Bundle, open_bundle
from tintype.engine import adaptable_shapes
from tintype.uses import LAYERS, GraphRef

WITHOUT, USUAL = "without", "transformer"  # what most published LoRAs change
SPREAD = 0.01  # of a pair's numbers


@measurement(
    "lora",
    folder_argument("bundle", cache="../cache", required=False),
    names_option("--layers", LAYERS),
    count_option("--rank", default=16),
    count_option("--num-inference-steps", default=4),
    click.option("--guidance-scale", type=float, help="[default: the model's own]"),
    click.option("--exactness", type=click.Choice(["exact", "balanced"]), help="[default: the model's own]"),
    rounds=3,
    help=__doc__,
)
def main(report: Report, bundle: Path | None, layers: Sequence[str], rank: int, **fields: Any) -> None:
    opened = open_bundle("postcard" if bundle is None else bundle)
    job = Job(model="postcard" if bundle is None else str(bundle), **fields)
    contestants = {WITHOUT: Peer("tintype", job, build=build_arguments(job))}
    for kind in layers:
        file = write_lora(opened, report.scratch / f"{kind}.safetensors", kind, rank)
        build = (*build_arguments(job), "--lora", str(file))
        contestants[kind] = Peer("tintype", dataclasses.replace(job, more={"loras": [str(file)]}), build=build)
    bars = [Bar(USUAL, "denoise_seconds", over=WITHOUT, at_most=1.08)] if USUAL in layers else []
    comparison = Comparison(contestants=contestants, ratios=[("denoise_seconds", WITHOUT)], bars=bars)
    report.names.append(opened.name)
    report.compare("lora", comparison)


def write_lora(bundle: Bundle, path: Path, kind: str, rank: int) -> Path:
    """A LoRA by diffusers' names, of random numbers, for all layers of a bundle's denoiser up to that kind."""
    from safetensors.numpy import save_file

    known, random = adaptable_shapes(bundle, GraphRef("denoiser")), np.random.default_rng(0)
    tensors = {}
    for name, (outputs, inputs, *kernel) in known.shapes.items():
        if LAYERS.index(known.among[name]) <= LAYERS.index(kind):
            for part, shape in (("A", (rank, inputs, *kernel)), ("B", (outputs, rank, *(1 for _ in kernel)))):
                numbers = random.standard_normal(shape, np.float32) * np.float32(SPREAD)
                tensors[f"unet.{name}.lora_{part}.weight"] = numbers
    save_file(tensors, path)
    return path
