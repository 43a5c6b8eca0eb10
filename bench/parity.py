"""How near two devices' pictures are: the same requests on each of them, postcard, several prompts and seeds.

    python -m tintype.bench.parity DEVICE [--prompts 12] [--seeds 1] [--num-inference-steps 20]

Each is drawn on the device as the bundle asks for it, twice, since the same bytes are promised. The processor's own
`balanced` picture is compared too, which says what rounding to 8 bits costs.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

import tintype
from tintype.bench.figures import Verdict, bar_lines, judge_outside, picture_psnr_db, verdict
from tintype.bench.job import PROMPT
from tintype.bench.options import command_help, count_option, results_option
from tintype.bench.report import Report
from tintype.cli.options import PROVIDERS
from tintype.engine import BuildOptions, open_role, resolve_provider
from tintype.models.postcard.gallery import PROMPTS, SEED

# Prompts that postcard is undecided about: a small difference in the first steps makes another picture.
UNDECIDED = ("a city at night in the rain", "a snowy mountain with a cabin", "a desert with a cactus at dusk")
PICTURE_GATE_DB = 45.0

Picture = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture, and the share of its denoising loop that was spent outside the graph."""

    picture: Picture
    outside_share: float


@click.command(help=command_help(__doc__))
@click.argument("device", type=click.Choice(PROVIDERS[1:]))
@click.option("--prompts", type=click.IntRange(1, len(PROMPTS)), default=len(PROMPTS), show_default=True)
@count_option("--seeds", default=1, help="Pictures of each prompt.")
@count_option("--num-inference-steps", default=20)
@results_option
def main(device: str, prompts: int, seeds: int, num_inference_steps: int, results: Path | None) -> None:
    asked = (*PROMPTS[:prompts], *UNDECIDED)
    with Report(("parity", device), results, device=device, prompts=asked, seeds=seeds) as report:
        report |= compare(device, asked, seeds, num_inference_steps)
        report.lines = bar_lines(report["bars"])


def compare(device: str, prompts: Sequence[str], seeds: int, steps: int) -> dict[str, Any]:
    """dB of each picture to the processor's, in the order of the prompts, seeds within; and the verdicts on them."""
    requests = [
        {"prompt": prompt, "seed": seed, "num_inference_steps": steps}
        for prompt in prompts
        for seed in range(SEED, SEED + seeds)
    ]
    drawn = [*draw(device, requests)]
    ours, again, processors, rounded = (
        [each.picture for each in made]
        for made in (drawn, draw(device, requests), draw("cpu", requests), draw("cpu", requests, exactness="balanced"))
    )
    usual, balanced = (_nearness(processors, pictures) for pictures in (ours, rounded))
    same = sum(np.array_equal(*pair) for pair in zip(ours, again, strict=True)) / len(ours)
    outside = round(statistics.median(each.outside_share for each in drawn), 4)
    farthest = f"{device} to the processor, dB, the farthest picture"
    return {
        "steps": steps,
        "usual": usual,
        "processor_balanced": balanced,
        "same_bytes_twice": same,
        "outside_share": outside,
        "bars": [
            verdict(farthest, usual["smallest_db"], at_least=PICTURE_GATE_DB),
            verdict("share of pictures that are the same bytes twice", same, at_least=1.0),
            *judge_outside({device: {"outside_share": {"median": outside}}}),
        ],
    }


def draw(device: str, requests: Sequence[Mapping[str, Any]], exactness: str | None = None) -> Iterator[Drawn]:
    """A picture for each request, as postcard's bundle asks for it unless `exactness` says how."""
    with tintype.load("postcard", provider=device) as pipeline:
        for request in requests:
            result = pipeline.generate(**request, exactness=exactness)
            timings = result.timings
            yield Drawn(np.asarray(result.image), 1.0 - timings.denoise_graph_seconds / timings.denoise_seconds)


def _nearness(expected: Sequence[Picture], pictures: Sequence[Picture]) -> dict[str, Any]:
    each = [round(picture_psnr_db(*pair), 2) for pair in zip(expected, pictures, strict=True)]
    return {"smallest_db": min(each), "median_db": round(statistics.median(each), 2), "each_db": each}


def check(device: str, *, steps: int | None = None, size: int | None = None) -> dict[str, Any]:
    """Whether a device draws postcard's picture as the processor does, exactly, and the same bytes twice, with heavy
    nodes on it. steps, size: smaller than postcard's own, to try it."""
    fields = {"prompt": PROMPT, "seed": SEED, "num_inference_steps": steps, "width": size, "height": size}
    request = {name: value for name, value in fields.items() if value is not None}
    (expected,) = draw("cpu", [request], exactness="exact")
    pictures: dict[str, Any] = {}
    bars: list[Verdict] = []
    for exactness in ("exact", "balanced"):
        first, second = (next(draw(device, [request], exactness)).picture for _ in range(2))
        near, same = round(picture_psnr_db(expected.picture, first), 2), bool(np.array_equal(first, second))
        pictures[exactness] = {
            "psnr_db": near,
            "same_bytes_twice": same,
            "psnr_db_twice": round(picture_psnr_db(first, second), 2),
            "placement": placement(device, exactness),
        }
        if device == "cuda":
            uncaptured = _uncaptured(device, request, exactness)
            pictures[exactness]["psnr_db_without_cuda_graphs"] = round(picture_psnr_db(first, uncaptured), 2)
        bars.append(verdict(f"{exactness}: postcard, dB to the processor", near, at_least=PICTURE_GATE_DB))
        # Balanced builds on CUDA normalize with atomic sums; there the figure is told and not judged.
        if exactness == "exact":
            bars.append(verdict("exact: the same bytes twice", float(same), at_least=1.0))
    return {"pictures": pictures, "bars": bars}


def placement(device: str, exactness: str) -> dict[str, dict[str, int]]:
    """By role of a small guided picture, nodes by provider. Opening refuses a heavy node off the device."""
    bundle = tintype.open_bundle("postcard")
    side = max(1, bundle.manifest.size.minimum // bundle.manifest.vae_scale_factor)
    cells = {"height": side, "width": side}
    shapes = {
        "text_encoder": {"batch": 1},
        "denoiser": {"batch": 2, "sequence": bundle.manifest.tokenizer.max_length, **cells},
        "vae_decoder": {"batch": 1, **cells},
    }
    nodes = {}
    for role, dims in shapes.items():
        options = BuildOptions.for_shape(dims, exactness=exactness)
        with open_role(bundle, role, resolve_provider(device), options=options) as session:
            nodes[role] = {name: sum(counts.values()) for name, counts in session.placement.nodes.items()}
    return nodes


def _uncaptured(device: str, request: Mapping[str, Any], exactness: str) -> Picture:
    usual = dict(os.environ)
    os.environ["TINTYPE_CUDA_GRAPHS"] = "0"
    try:
        return next(draw(device, [request], exactness)).picture
    finally:
        os.environ.clear()
        os.environ.update(usual)


if __name__ == "__main__":
    main()
