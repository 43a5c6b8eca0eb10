"""What lasts: decodes in strips beside the whole, hundreds of pictures in one process, processes killed at any moment.

tintype bench memory strips BUNDLE [--role vae_encoder] [--sizes 512x512,1024x1024] [--strip-mib 4,8]
tintype bench memory pictures [BUNDLE]     # resident memory after the tenth and after the last
tintype bench memory kills [BUNDLE]        # builds and loads broken off; the next start has to work
"""

from __future__ import annotations

import dataclasses
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

import tintype
from tintype.bench.comparison import Bar, Comparison
from tintype.bench.figures import file_psnr_db, verdict
from tintype.bench.job import Job, generate_arguments
from tintype.bench.measurement import Report, Several, command_help, count_option, measurement, sizes_option
from tintype.bench.peers import graph_build
from tintype.bench.process import run_process, tintype_command
from tintype.bench.runner import Peer, measure
from tintype.engine import read_strips

MIB = 2**20
GROWTH_BAR = Bar(figure="growth", at_most=0.02, what="growth of resident memory, from the tenth picture to the last")
TENTH = 10
NEAR_DB = 60.0  # each cache has builds of its own, whose kernels may be others: exact pictures, not the same bytes
KILLED_BETWEEN = (0.05, 1.0)  # of how long an undisturbed start takes
HANGS_SECONDS = 600.0  # a start that takes longer
CACHES = 5

_bundle = click.argument("bundle", default="postcard")
_memory = click.option("--memory", help="A budget, as in 1GiB [default: none].")


@click.group(help=command_help(__doc__))
def main() -> None:
    pass


@measurement(
    "memory-strips", click.argument("bundle"),
    click.option("--role", type=click.Choice(["vae_decoder", "vae_encoder"]), default="vae_decoder", show_default=True),
    sizes_option("512x512,768x768,1024x1024"),
    click.option("--strip-mib", type=Several(click.FLOAT), default="4,8,16,32,64", show_default=True),
    count_option("--calls", default=2, help="In each process."), rounds=1, group=main,
)  # fmt: skip
def strips(
    report: Report, bundle: str, role: str, sizes: Sequence[tuple[int, int]], strip_mib: Sequence[float], calls: int,
    threads: int,
) -> None:  # fmt: skip
    """What a decode in strips costs in time and saves in memory, beside the whole: twice in a process of its own, the
    first time as for one picture, with all weights to be mapped. --role vae_encoder: the way back."""
    for width, height in sizes:
        whole = Job(model=bundle, role=role, width=width, height=height, exactness="exact", threads=threads)
        jobs = {f"{mib:g}MiB": dataclasses.replace(whole, strip_bytes=int(mib * MIB)) for mib in strip_mib}
        jobs = {"whole": whole, **jobs}
        facts = {name: read_strips(graph_build(job)) for name, job in jobs.items()}  # makes the builds, too
        cut = {name: fact.stages for name, fact in facts.items() if fact is not None}
        comparison = Comparison(
            contestants={name: Peer("tintype", job, warm_ups=(), requests=[{}] * calls) for name, job in jobs.items()},
            near={name: "whole" for name in jobs if name != "whole"},
            ratios=(("seconds", "whole"), ("processor_seconds", "whole")),
        )
        counts = {name: [len(list(stage.strips())) for stage in stages] for name, stages in cut.items()}
        report.compare(f"{width}x{height}", comparison, role=role, strips_a_stage=counts)


@measurement(
    "endurance-pictures", _bundle, count_option("--count", default=200, least=20, help="Pictures."), _memory,
    count_option("--steps", default=4), rounds=1, threads=None, group=main,
)  # fmt: skip
def pictures(report: Report, bundle: str, count: int, steps: int, **fields: Any) -> None:
    """Make pictures of one shape, then of shapes and batches that alternate, in one process."""
    job, shapes, table = Job(model=bundle, num_inference_steps=steps, device="cpu", **fields), shapes_of(bundle), {}
    peers = {
        name: Peer("tintype", job, warm_ups=(), requests=[each[number % len(each)] for number in range(count)])
        for name, each in shapes.items()
    }
    for name, made in measure(peers, report.schedule).items():
        resident = [answer["rss_bytes"] for answer in made.answers]
        growth = round(growth_of(resident, len(shapes[name])), 4)
        table[name] = {**made.figures(), "shapes": shapes[name], "every_tenth_rss": resident[::10], "growth": growth}
    report.judge("pictures", table, [GROWTH_BAR])


def growth_of(resident: list[int], period: int) -> float:
    """How much the last pictures hold more than those from the tenth on, the largest of each shape in turn."""
    return max(resident[-period:]) / max(resident[TENTH - 1 : TENTH - 1 + period]) - 1


def shapes_of(bundle: str) -> dict[str, list[dict[str, int]]]:
    """One shape, and three that differ in size and batch, as fields of a request."""
    manifest = tintype.open_bundle(bundle).manifest
    default, limits = manifest.default_request, manifest.size
    usual = {"width": default.width, "height": default.height}
    wide = {"width": min(default.width + limits.multiple, limits.maximum), "height": default.height}
    return {"one shape": [usual], "three shapes": [usual, wide, {**usual, "count": 2, "batch_size": 2}]}


@measurement(
    "endurance-kills", _bundle, count_option("--count", default=50, help="Processes killed while at it."), _memory,
    click.option("--seed", type=int, default=0, show_default=True), rounds=1, threads=None, group=main,
)  # fmt: skip
def kills(report: Report, bundle: str, count: int, seed: int, **fields: Any) -> None:
    """Kill a process and its children at a random moment of its first picture; then the next one has to make one."""
    job, folder = Job(model=bundle, num_inference_steps=2, exactness="exact", device="cpu", **fields), report.scratch
    table, rows = {"undisturbed": start(job, folder, "undisturbed")}, list[dict[str, Any]]()
    moments, failures = random.Random(seed), 0
    while sum(row["was_running"] for row in rows) < count:
        cache = f"cache-{len(rows) % CACHES}"  # each is hit again where it was left
        rows.append(start(job, folder, cache, table["undisturbed"]["seconds"] * moments.uniform(*KILLED_BETWEEN)))
        if not rows[-1]["was_running"]:  # all is built: from the beginning
            failures += rows[-1]["exit_code"] != 0
            shutil.rmtree(folder / cache, ignore_errors=True)  # one that failed at once made none
    for cache in (f"cache-{number}" for number in range(min(CACHES, count))):
        table[cache] = start(job, folder, cache)
        near = file_psnr_db(folder / "undisturbed.png", folder / f"{cache}.png")
        left = [path.name for path in (folder / cache).rglob(".partial-*")]
        table[cache] |= {"psnr_db": near, "left": left}
        failures += near < NEAR_DB or bool(left)
    bar = verdict("next starts that failed, gave another picture or left something", failures, at_most=0)
    report.add("kills", {"peers": table, "bars": [bar]}, killed=rows)


def start(job: Job, folder: Path, cache: str, kill_after: float | None = None) -> dict[str, Any]:
    """A picture from a fresh process on a cache of its own; killed after so many seconds, whether it was at it."""
    command = tintype_command(*generate_arguments(job, folder / f"{cache}.png", marked=False))
    run = run_process(command, {"TINTYPE_CACHE": str(folder / cache)}, kill_after=kill_after or HANGS_SECONDS)
    if kill_after is None and run.exit_code != 0:
        raise click.ClickException(f"a start after a kill failed: {run.stderr.strip()[-400:]}")
    return {"seconds": round(run.seconds, 3), "was_running": run.was_killed, "exit_code": run.exit_code}
