"""What a decode in strips costs in time and saves in memory, beside the same decode as a whole.

    python -m tintype.bench.decode_memory BUNDLE [--sizes 512x512,1024x1024] [--strip-mib 4,8,16,32,64] [--threads 2]

`--role vae_encoder` measures the way back. Each decodes twice (--calls) in a process of its own: the first time as for
one picture, with all weights to be mapped, then once more.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np

from tintype.bench.figures import psnr_db
from tintype.bench.job import GraphJob
from tintype.bench.options import Sizes, command_help, count_option, lock_option, results_option, threads_option
from tintype.bench.peer_graphs import graph_build
from tintype.bench.report import Report
from tintype.bench.runner import Peer, Schedule, measure
from tintype.bundle import open_bundle
from tintype.engine import read_strips

ENCODER = "vae_encoder"
MIB = 2**20


@click.command(help=command_help(__doc__))
@click.argument("bundle")
@click.option("--role", type=click.Choice(["vae_decoder", ENCODER]), default="vae_decoder", show_default=True)
@click.option("--sizes", type=Sizes(), default="512x512,768x768,1024x1024", show_default=True, help="Width x height.")
@click.option("--strip-mib", default="4,8,16,32,64", show_default=True)
@threads_option(2)
@count_option("--calls", default=2, help="Decodes in each process.")
@lock_option
@results_option
def main(
    bundle: str,
    role: str,
    sizes: tuple[tuple[int, int], ...],
    strip_mib: str,
    threads: int,
    calls: int,
    lock: Path | None,
    results: Path | None,
) -> None:
    strips = [float(each) for each in strip_mib.split(",")]
    name = "encode-memory" if role == ENCODER else "decode-memory"
    with Report((name,), results, threads=threads, bundle=Path(bundle).name, role=role, sizes={}) as report:
        for size in sizes:
            table = measure_size(graph_job(bundle, role, size, threads), strips, calls, lock)
            title = f"{size[0]}x{size[1]}"
            report["sizes"][title] = table
            report.lines += [f"{title} {name:>6}: {figures}" for name, figures in table.items()]


def graph_job(bundle: str, role: str, size: tuple[int, int], threads: int) -> GraphJob:
    """The role as a whole, on noise of a picture of that size; width first."""
    manifest = open_bundle(bundle).manifest
    width, height = size if role == ENCODER else (side // manifest.vae_scale_factor for side in size)
    whole = GraphJob(runtime="tintype", model=bundle, role=role, exactness="exact", threads=threads)
    return dataclasses.replace(whole, height=height, width=width, channels=manifest.latent_channels)


def measure_size(whole: GraphJob, strips: list[float], calls: int, lock: Path | None) -> dict[str, dict[str, Any]]:
    """Every way to decode, or encode, a picture of that size, the whole one first; ratios are to it."""
    with tempfile.TemporaryDirectory(prefix="tintype-bench-") as scratch:
        jobs = {"whole": whole}
        jobs |= {f"{mib:g}MiB": dataclasses.replace(whole, strip_bytes=int(mib * MIB)) for mib in strips}
        outputs = {name: Path(scratch) / f"{name}.npy" for name in jobs}
        jobs = {name: dataclasses.replace(job, output=str(outputs[name])) for name, job in jobs.items()}
        facts = {name: read_strips(graph_build(job)) for name, job in jobs.items()}  # makes the builds, too
        peers = {name: Peer("graph", job, warm_ups=(), requests=[{}] * calls) for name, job in jobs.items()}
        measured = measure(peers, Schedule(rounds=1, lock=lock))
        answers = {name: np.load(path) for name, path in outputs.items()}
    table: dict[str, dict[str, Any]] = {}
    for name, made in measured.items():
        fact = facts[name]
        stages = () if fact is None else fact.stages
        figures: dict[str, Any] = {"bare_bytes": made.memory["bare_bytes"], "peak_bytes": made.memory["peak_rss_bytes"]}
        figures |= {kind: [round(each[kind], 3) for each in made.answers] for kind in ("seconds", "processor_seconds")}
        figures |= {"stages": len(stages), "strips": sum(len(list(stage.strips())) for stage in stages)}
        figures["psnr_db"] = round(psnr_db(answers["whole"], answers[name]), 1)
        for kind in ("seconds", "processor_seconds"):
            pairs = zip(figures[kind], table.get("whole", figures)[kind], strict=True)
            figures[f"{kind}_ratio"] = [round(own / other, 3) for own, other in pairs]
        table[name] = figures
    return table


if __name__ == "__main__":
    main()
