"""Tintype on a GPU beside diffusers in float16, with SDPA and with torch.compile, on random weights of real shapes.

    make bench-gpu                                # an environment of its own, then everything below; hours, 30 GB
    tintype bench gpu FOLDER [--shapes sd15,sdxl,sdxl-turbo] [--device cuda]
    tintype bench gpu FOLDER --shapes tiny --device cpu --peers diffusers    # to try it without a GPU

Nothing of this has been run on a GPU yet.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from tintype.bench.comparison import Bar, Comparison
from tintype.bench.job import Job
from tintype.bench.measurement import Report, count_option, folder_argument, measurement, names_option
from tintype.bench.parity import check
from tintype.bench.process import run_process, tintype_command, used_bytes
from tintype.bench.runner import Changes, Peer
from tintype.bench.shapes import SHAPES
from tintype.engine import gpus

OURS, COMPILED, PLAIN = "tintype", "torch.compile", "diffusers"
PEERS = (PLAIN, COMPILED)
WARM_STEPS = 2
MEMORY_BAR = Bar(OURS, "device_peak_bytes", over=COMPILED, at_most=0.7)
BARS = {"sd15": (*(Bar(OURS, each, over=COMPILED, at_most=0.8) for each in ("seconds_a_step", "seconds")), MEMORY_BAR)}
FIGURES = ("seconds_a_step", "seconds", "device_peak_bytes")


@measurement(
    "gpu",
    folder_argument("folder", exists=False),
    names_option("--shapes", SHAPES, "sd15,sdxl,sdxl-turbo"),
    click.option("--device", default="cuda", show_default=True, help="Tintype's provider and torch's device."),
    names_option("--peers", PEERS),
    count_option("--pictures", default=2, help="Timed in each round."),
    count_option("--steps", default=None, least=2, help="In place of each shape's own."),
    click.option("--compile-mode", default="max-autotune", show_default=True, help="Of torch.compile."),
    click.option(
        "--checks/--no-checks", default=True, show_default=True, help="Compare postcard with the processor's."
    ),
    threads=None,
    help=__doc__,
)
def main(report: Report, folder: Path, shapes: Sequence[str], checks: bool, **chosen: Any) -> None:
    folder = folder.resolve()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
    report["gpu"] = {"gpus": [dataclasses.asdict(card) for card in gpus()], "used_bytes_before": used_bytes()}
    if checks:
        click.echo(f"comparing {chosen['device']} with the processor", err=True)
        report.add("checks", check(chosen["device"]))
    for cache in ("cache", "inductor"):  # so that the first picture is a first picture
        shutil.rmtree(folder / cache, ignore_errors=True)
    for shape in shapes:
        if not (folder / shape).is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            click.echo(f"making {folder / shape}", err=True)
            run_process(tintype_command("bench", "make-sdxl", str(folder / shape), "--shape", shape))
        report.compare(shape, comparison(shape, peers_of(folder, shape, **chosen)))


def peers_of(
    folder: Path, name: str, *, peers: Sequence[str] = PEERS, device: str = "cuda", steps: int | None = None,
    pictures: int = 2, compile_mode: str = "max-autotune", threads: int | None = None,
) -> dict[str, Peer]:  # fmt: skip
    """Every contestant for one shape."""
    shape = SHAPES[name]
    job = Job(
        model=str(folder / name), num_inference_steps=steps or shape.steps, width=shape.side,
        height=shape.side, guidance_scale=shape.guidance_scale, sampler=shape.sampler, threads=threads, device=device,
        exactness="balanced",
    )  # fmt: skip
    compiled = dataclasses.replace(job, compile=compile_mode)
    jobs = {OURS: ("tintype", job), PLAIN: ("diffusers", job), COMPILED: ("diffusers", compiled)}
    warm_ups: Sequence[Changes] = [{"num_inference_steps": WARM_STEPS}]
    requests: Sequence[Changes] = [{}] * pictures
    return {
        peer: Peer(*jobs[peer], warm_ups=warm_ups, requests=requests, opens_cold=True)
        for peer in jobs
        if peer in (OURS, *peers)
    }


def comparison(shape: str, contestants: Mapping[str, Peer]) -> Comparison:
    """Of one shape; of those without bars of their own the device's memory is judged."""
    ratios = [(figure, peer) for peer in PEERS for figure in FIGURES]
    return Comparison(contestants=contestants, ratios=ratios, bars=BARS.get(shape, (MEMORY_BAR,)))
