"""Export at the real size of Stable Diffusion 1.5, random weights: time, memory, and one UNet call of each bundle.

    python -m tintype.bench.export_sd15 [--precisions fp32,int8] [--folder /tmp/sd15] [--latent-size 32]

Each step is a process of its own; what was made is deleted at the end. Memory is the resident set of a process and all
its children together, file-mapped pages included: what a machine needs at most.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

from tintype.bench.job import GraphJob
from tintype.bench.options import Names, command_help, count_option, results_option
from tintype.bench.peer_graphs import graph_inputs
from tintype.bench.process import run_process
from tintype.bench.report import Report

BAR_BYTES = 12 * 2**30


def export(checkpoint: str, bundle: str, precision: str, latent_size: str, damage_seconds: str) -> dict[str, Any]:
    """`tintype export` with little calibration; its report, with the seconds of each stage."""
    from tintype.export import Effort, export_bundle

    clock = _Clock()
    effort = Effort(steps=4, gate_calls=2, latent_size=int(latent_size), damage_seconds=float(damage_seconds))
    report = export_bundle(checkpoint, bundle, precision=precision, effort=effort, progress=clock)
    return {**report.as_dict(), "stage_seconds": clock.seconds}


class _Clock:
    """Told of an export's stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        started = time.perf_counter()
        print(title, file=sys.stderr, flush=True)
        yield lambda units: None
        self.seconds[title] = round(time.perf_counter() - started, 1)


def call_unet(bundle: str, latent_size: str) -> dict[str, Any]:
    """Build and open a bundle's UNet for any shape, and call it once, two prompts in a batch."""
    from tintype.bundle import open_bundle
    from tintype.engine import open_role, resolve_provider

    side = int(latent_size)
    inputs = graph_inputs(GraphJob(runtime="tintype", model=bundle, role="denoiser", batch=2, height=side, width=side))
    started = time.perf_counter()
    session = open_role(open_bundle(bundle), "denoiser", resolve_provider("cpu"))
    opened = time.perf_counter()
    output = session.run(inputs)["out_sample"]
    return {
        "build_and_open_seconds": round(opened - started, 2),
        "call_seconds": round(time.perf_counter() - opened, 2),
        "latent_size": side,
        "batch": 2,
        "finite": bool(np.isfinite(output).all()),
        "deviation": float(output.std()),
    }


def run_measured(module: str, *arguments: object, environment: dict[str, str]) -> dict[str, Any]:
    """Run a module in a process; its last line of output is JSON, to which time and memory are added."""
    run = run_process([sys.executable, "-m", module, *map(str, arguments)], environment)
    figures: dict[str, Any] = json.loads(run.stdout.strip().splitlines()[-1])
    memory = {"peak_rss_bytes": run.own_peak_bytes, "peak_rss_with_children_bytes": run.together_peak_bytes}
    return {**figures, "wall_seconds": round(run.seconds, 1), **memory}


def measure(folder: Path, precision: str, latent_size: int, damage_seconds: float, environment: dict[str, str]) -> Any:
    """Export in one precision, then one call of the bundle's UNet; the bundle is deleted again."""
    bundle = folder / precision
    try:
        asked = ("export", folder / "checkpoint", bundle, precision, latent_size, damage_seconds)
        exported = run_measured(__spec__.name, *asked, environment=environment)
        called = run_measured(__spec__.name, "call_unet", bundle, latent_size, environment=environment)
    finally:
        shutil.rmtree(bundle, ignore_errors=True)
        shutil.rmtree(folder / "cache", ignore_errors=True)
    within_bar = exported["peak_rss_with_children_bytes"] <= BAR_BYTES
    return {"export": exported, "unet_call": called, "within_bar": within_bar}


@click.command(help=command_help(__doc__))
@click.option("--precisions", type=Names(("fp32", "fp16", "int8")), default="fp32,int8", show_default=True)
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="For the weights; about 16 GB.")
@count_option("--latent-size", default=32, least=8)
@click.option("--damage-seconds", type=float, default=900.0, show_default=True)
@results_option
def main(
    precisions: tuple[str, ...], folder: Path | None, latent_size: int, damage_seconds: float, results: Path | None
) -> None:
    # OMP_NUM_THREADS is torch's; the machine's cores where null
    facts: dict[str, Any] = {
        "latent_size": latent_size,
        "bar_bytes": BAR_BYTES,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
    }
    with (
        tempfile.TemporaryDirectory(prefix="sd15-", dir=folder, ignore_cleanup_errors=True) as scratch,
        Report(("export-sd15",), results, **facts) as report,
    ):
        place = Path(scratch)
        environment = {"TINTYPE_CACHE": str(place / "cache")}
        made = ("checkpoint", place, place / "checkpoint")
        report["checkpoint"] = run_measured("tintype.bench.sd15_make", *made, environment=environment)
        for precision in precisions:
            report[precision] = measure(place, precision, latent_size, damage_seconds, environment)
            click.echo(json.dumps(report[precision], indent=1))


if __name__ == "__main__":
    parts: dict[str, Callable[..., dict[str, Any]]] = {"export": export, "call_unet": call_unet}
    if sys.argv[1:2] and sys.argv[1] in parts:
        print(json.dumps(parts[sys.argv[1]](*sys.argv[2:])))
    else:
        main()
