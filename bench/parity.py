"""How near two devices' pictures are: the same requests on each of them, postcard, several prompts and seeds.

    python -m tintype.bench.parity DEVICE [--prompts 12] [--seeds 1] [--num-inference-steps 20]

Each request is drawn on the device as the bundle asks for it, twice, since the same bytes are promised, and compared
with the processor's picture; the processor's own `balanced` picture is compared with that too, which says what rounding
to 8 bits costs. The prompts are the gallery's, and some that postcard is undecided about: there a small difference in
the first steps makes another picture. What of the device's denoising loop is spent outside the graph is told as well.
The result goes to bench/results as JSON.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

import tintype
from tintype.bench.bars import lines, verdict
from tintype.bench.figures import picture_psnr_db
from tintype.bench.gpu_checks import PICTURE_GATE_DB
from tintype.bench.machine import load_average, machine_facts
from tintype.bench.peers import OUTSIDE_BAR
from tintype.bench.report import default_results_folder, told_plainly, write_report
from tintype.cli.options import PROVIDERS
from tintype.models.postcard.gallery import PROMPTS, SEED

UNDECIDED = ("a city at night in the rain", "a snowy mountain with a cabin", "a desert with a cactus at dusk")

Picture = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture, and the share of its denoising loop that was spent outside the graph."""

    picture: Picture
    outside_share: float


@click.command()
@click.argument("device", type=click.Choice(PROVIDERS[1:]))
@click.option("--prompts", type=click.IntRange(1, len(PROMPTS)), default=len(PROMPTS), show_default=True)
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Pictures of each prompt.")
@click.option("--num-inference-steps", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--results", type=click.Path(file_okay=False, path_type=Path), help="The folder that the figures go to.")
def main(device: str, prompts: int, seeds: int, num_inference_steps: int, results: Path | None) -> None:
    """Draw postcard's pictures on DEVICE and on the processor, and tell how near they are."""
    asked = (*PROMPTS[:prompts], *UNDECIDED)
    report: dict[str, Any] = {"machine": machine_facts(None), "device": device, "prompts": asked, "seeds": seeds}
    with told_plainly():
        report |= compare(device, asked, seeds, num_inference_steps)
    report["machine"]["load_average_at_end"] = load_average()
    for line in lines(report["bars"]):
        click.echo(line)
    click.echo(f"written to {write_report(report, results or default_results_folder(), ('parity', device))}")


def compare(device: str, prompts: Sequence[str], seeds: int, steps: int) -> dict[str, Any]:
    """dB of each picture to the processor's, in the order of the prompts, seeds within; and the verdicts on them."""
    drawn = [*draw(device, prompts, seeds, steps)]
    ours, again, processors, rounded = (
        [each.picture for each in made]
        for made in (
            drawn,
            draw(device, prompts, seeds, steps),
            draw("cpu", prompts, seeds, steps),
            draw("cpu", prompts, seeds, steps, exactness="balanced"),
        )
    )
    usual, balanced = (_nearness(processors, pictures) for pictures in (ours, rounded))
    same = sum(np.array_equal(*pair) for pair in zip(ours, again, strict=True)) / len(ours)
    outside = round(statistics.median(each.outside_share for each in drawn), 4)
    name = f"{device} to the processor, dB, the farthest picture"
    return {
        "steps": steps,
        "usual": usual,
        "processor_balanced": balanced,
        "same_bytes_twice": same,
        "outside_share": outside,
        "bars": [
            verdict(name, usual["smallest_db"], at_least=PICTURE_GATE_DB),
            verdict("share of pictures that are the same bytes twice", same, at_least=1.0),
            verdict(f"{device}, share of the loop outside the graph", outside, at_most=OUTSIDE_BAR),
        ],
    }


def draw(device: str, prompts: Sequence[str], seeds: int, steps: int, exactness: str | None = None) -> Iterator[Drawn]:
    """One picture for each prompt and seed, as postcard's bundle asks for it unless `exactness` says how."""
    with tintype.load("postcard", provider=device) as pipeline:
        for prompt in prompts:
            for seed in range(SEED, SEED + seeds):
                result = pipeline.generate(prompt, seed=seed, num_inference_steps=steps, exactness=exactness)
                timings = result.timings
                yield Drawn(np.asarray(result.image), 1.0 - timings.denoise_graph_seconds / timings.denoise_seconds)


def _nearness(expected: Sequence[Picture], found: Sequence[Picture]) -> dict[str, Any]:
    each = [round(picture_psnr_db(*pair), 2) for pair in zip(expected, found, strict=True)]
    return {"smallest_db": min(each), "median_db": round(statistics.median(each), 2), "each_db": each}


if __name__ == "__main__":
    main()
