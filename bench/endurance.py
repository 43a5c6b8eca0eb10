"""What a kiosk goes through: hundreds of pictures in one process, and processes that are killed at any moment.

python -m tintype.bench.endurance pictures [BUNDLE]     # resident memory after the tenth and after the last
python -m tintype.bench.endurance kills [BUNDLE]        # builds and loads broken off; the next start has to work
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
from PIL import Image

import tintype
from tintype.bench.bars import lines, verdict
from tintype.bench.figures import picture_psnr_db
from tintype.bench.machine import machine_facts
from tintype.bench.report import default_results_folder, write_report

PROMPT = "a red sailboat on a calm sea at sunset"
GROWTH = 0.02  # of resident memory, from the tenth picture to the last
TENTH = 10
NEAR_DB = 60.0  # each cache has builds of its own, whose kernels were timed anew: exact pictures, not the same bytes
KILLED_BETWEEN = (0.05, 1.0)  # of how long an undisturbed start takes


@click.group(help=(__doc__ or "").replace("\n\n    python", "\n\n\b\n    python"))
def main() -> None:
    pass


@main.command()
@click.argument("bundle", default="postcard")
@click.option("--count", type=click.IntRange(min=20), default=200, show_default=True, help="Pictures.")
@click.option("--memory", help="A budget, as in 1GiB [default: none].")
@click.option("--steps", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--results", type=click.Path(file_okay=False, path_type=Path), help="Where the figures go.")
def pictures(bundle: str, count: int, memory: str | None, steps: int, results: Path | None) -> None:
    """Make pictures of one shape, then of shapes and batches that alternate, in one process."""
    report: dict[str, Any] = {"machine": machine_facts(None), "bundle": bundle, "memory": memory, "count": count}
    bars = []
    for name, shapes in shapes_of(bundle).items():
        resident = run_pictures(bundle, memory, count, steps, shapes)
        growth = growth_of(resident, len(shapes))
        report[name] = {"shapes": shapes, "rss_bytes": resident[::10], "growth": round(growth, 4)}
        bars.append(verdict(f"{name}: growth of resident memory", growth, at_most=GROWTH))
    report["bars"] = bars
    path = write_report(report, results or default_results_folder(), ("endurance", "pictures"))
    click.echo("\n".join([*lines(bars), f"written to {path}"]))


def growth_of(resident: list[int], period: int) -> float:
    """How much the last pictures hold more than those from the tenth on, the largest of each shape in turn."""
    return max(resident[-period:]) / max(resident[TENTH - 1 : TENTH - 1 + period]) - 1


def shapes_of(bundle: str) -> dict[str, list[dict[str, int]]]:
    """One shape, and three that differ in size and batch, in the units of a request."""
    with tintype.load(bundle) as pipeline:
        default, limits = pipeline.bundle.manifest.default_request, pipeline.bundle.manifest.size
    usual = {"width": default.width, "height": default.height}
    wide = {"width": min(default.width + limits.multiple, limits.maximum), "height": default.height}
    return {"one shape": [usual], "three shapes": [usual, wide, {**usual, "count": 2, "batch_size": 2}]}


def run_pictures(bundle: str, memory: str | None, count: int, steps: int, shapes: list[dict[str, int]]) -> list[int]:
    """Resident bytes after each request, of a process of its own that makes them in turn."""
    code = (
        "import json, sys, psutil, tintype\n"
        "job = json.load(sys.stdin)\n"
        "process = psutil.Process()\n"
        "with tintype.load(job['bundle'], memory=job['memory'], provider='cpu') as pipeline:\n"
        "    for number in range(job['count']):\n"
        "        shape = job['shapes'][number % len(job['shapes'])]\n"
        "        pipeline.generate(job['prompt'], seed=number, num_inference_steps=job['steps'], **shape)\n"
        "        print(process.memory_info().rss, flush=True)\n"
    )
    job = {"bundle": bundle, "memory": memory, "count": count, "steps": steps, "shapes": shapes, "prompt": PROMPT}
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(job), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise click.ClickException(done.stderr.strip()[-400:])
    return [int(line) for line in done.stdout.split()]


@main.command()
@click.argument("bundle", default="postcard")
@click.option(
    "--count", type=click.IntRange(min=1), default=50, show_default=True, help="Processes killed while they were at it."
)
@click.option("--memory", help="A budget, as in 1GiB [default: none].")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--results", type=click.Path(file_okay=False, path_type=Path), help="Where the figures go.")
def kills(bundle: str, count: int, memory: str | None, seed: int, results: Path | None) -> None:
    """Kill a process and its children at a random moment of its first picture; then the next one has to make one."""
    report: dict[str, Any] = {"machine": machine_facts(None), "bundle": bundle, "memory": memory, "killed": []}
    with tempfile.TemporaryDirectory(prefix="tintype-bench-") as scratch:
        whole = time.perf_counter()
        _picture(bundle, memory, Path(scratch) / "undisturbed", Path(scratch))
        whole = time.perf_counter() - whole
        expected = np.asarray(Image.open(Path(scratch) / "x.png"))
        moments = random.Random(seed)
        killed, number, failures = 0, 0, 0
        while killed < count:
            cache = Path(scratch) / f"cache-{number % 5}"  # each is hit again where it was left
            number += 1
            row = _kill_after(bundle, memory, cache, Path(scratch), whole * moments.uniform(*KILLED_BETWEEN))
            report["killed"].append(row)
            killed += row["was_running"]
            if not row["was_running"]:  # all is built: from the beginning
                failures += row["exit_code"] != 0
                shutil.rmtree(cache, ignore_errors=True)  # one that failed at once made none
        for number in range(min(5, count)):
            started = time.perf_counter()
            _picture(bundle, memory, Path(scratch) / f"cache-{number}", Path(scratch))
            near = picture_psnr_db(expected, np.asarray(Image.open(Path(scratch) / "x.png")))
            left = [path.name for path in (Path(scratch) / f"cache-{number}").rglob(".partial-*")]
            failures += near < NEAR_DB or bool(left)
            report.setdefault("next_starts", []).append(
                {"seconds": round(time.perf_counter() - started, 2), "psnr_db": round(near, 2), "left": left}
            )
    report["undisturbed_seconds"] = round(whole, 2)
    report["bars"] = [verdict("next starts that failed, gave another picture or left something", failures, at_most=0)]
    path = write_report(report, results or default_results_folder(), ("endurance", "kills"))
    click.echo("\n".join([*lines(report["bars"]), f"written to {path}"]))


def _command(bundle: str, memory: str | None, folder: Path) -> list[str]:
    command = [sys.executable, "-m", "tintype", "generate", PROMPT, "--model", bundle, "-o", str(folder / "x.png")]
    command += ["--seed", "7", "--num-inference-steps", "2", "--provider", "cpu", "--exactness", "exact"]
    return command if memory is None else [*command, "--memory", memory]


def _picture(bundle: str, memory: str | None, cache: Path, folder: Path) -> None:
    environment = {**os.environ, "TINTYPE_CACHE": str(cache)}
    done = subprocess.run(
        _command(bundle, memory, folder), env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    if done.returncode != 0:
        raise click.ClickException(f"a start after a kill failed: {done.stderr.strip()[-400:]}")


def _kill_after(bundle: str, memory: str | None, cache: Path, folder: Path, seconds: float) -> dict[str, Any]:
    """Start a picture and kill it with its children; tells when, whether it was still at it, and how it ended."""
    environment = {**os.environ, "TINTYPE_CACHE": str(cache)}
    process = subprocess.Popen(
        _command(bundle, memory, folder), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(timeout=seconds)
        running = False
    except subprocess.TimeoutExpired:
        running = True
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for child in family:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue
        process.wait()
    return {"after_seconds": round(seconds, 3), "was_running": running, "exit_code": process.returncode}


if __name__ == "__main__":
    main()
