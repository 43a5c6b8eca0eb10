"""What a kiosk goes through: hundreds of pictures in one process, and processes that are killed at any moment.

python -m tintype.bench.endurance pictures [BUNDLE]     # resident memory after the tenth and after the last
python -m tintype.bench.endurance kills [BUNDLE]        # builds and loads broken off; the next start has to work
"""

from __future__ import annotations

import random
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

import tintype
from tintype.bench.figures import bar_lines, picture_psnr_db, verdict
from tintype.bench.job import Job, generate_arguments
from tintype.bench.options import command_help, count_option, results_option
from tintype.bench.process import run_process, tintype_command
from tintype.bench.report import Report
from tintype.bench.runner import Peer, Schedule, measure

GROWTH = 0.02  # of resident memory, from the tenth picture to the last
TENTH = 10
NEAR_DB = 60.0  # each cache has builds of its own, whose kernels may be others: exact pictures, not the same bytes
KILLED_BETWEEN = (0.05, 1.0)  # of how long an undisturbed start takes
HANGS_SECONDS = 600.0  # a start that takes longer
CACHES = 5

memory_option = click.option("--memory", help="A budget, as in 1GiB [default: none].")


@click.group(help=command_help(__doc__))
def main() -> None:
    pass


@main.command()
@click.argument("bundle", default="postcard")
@count_option("--count", default=200, least=20, help="Pictures.")
@memory_option
@count_option("--steps", default=4)
@results_option
def pictures(bundle: str, count: int, memory: str | None, steps: int, results: Path | None) -> None:
    """Make pictures of one shape, then of shapes and batches that alternate, in one process."""
    job = Job(model=bundle, memory=memory, num_inference_steps=steps, device="cpu")
    shapes = shapes_of(bundle)
    peers = {
        name: Peer("tintype", job, warm_ups=(), requests=[each[number % len(each)] for number in range(count)])
        for name, each in shapes.items()
    }
    with Report(("endurance", "pictures"), results, bundle=bundle, memory=memory, count=count) as report:
        report["bars"] = []
        for name, made in measure(peers, Schedule(rounds=1)).items():
            resident = [answer["rss_bytes"] for answer in made.answers]
            growth = growth_of(resident, len(shapes[name]))
            report[name] = {"shapes": shapes[name], "rss_bytes": resident[::10], "growth": round(growth, 4)}
            report["bars"].append(verdict(f"{name}: growth of resident memory", growth, at_most=GROWTH))
        report.lines = bar_lines(report["bars"])


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


@dataclass(frozen=True, slots=True)
class Starts:
    """Pictures from fresh processes, each on a cache of its own below a folder."""

    bundle: str
    memory: str | None
    folder: Path

    def start(self, cache: str, kill_after: float | None = None) -> dict[str, Any]:
        """One start; killed after so many seconds it tells whether it was still at it, else what it drew."""
        picture = self.folder / "x.png"
        job = Job(model=self.bundle, num_inference_steps=2, exactness="exact", device="cpu")
        arguments = generate_arguments(job, picture) + ([] if self.memory is None else ["--memory", self.memory])
        environment = {"TINTYPE_CACHE": str(self.folder / cache)}
        run = run_process(tintype_command(*arguments), environment, kill_after=kill_after or HANGS_SECONDS)
        if kill_after is not None:
            return {"after_seconds": round(kill_after, 3), "was_running": run.was_killed, "exit_code": run.exit_code}
        if run.exit_code != 0:
            raise click.ClickException(f"a start after a kill failed: {run.stderr.strip()[-400:]}")
        return {"seconds": run.seconds, "picture": np.asarray(Image.open(picture))}


@main.command()
@click.argument("bundle", default="postcard")
@count_option("--count", default=50, help="Processes killed while at it.")
@memory_option
@click.option("--seed", type=int, default=0, show_default=True)
@results_option
def kills(bundle: str, count: int, memory: str | None, seed: int, results: Path | None) -> None:
    """Kill a process and its children at a random moment of its first picture; then the next one has to make one."""
    with (
        tempfile.TemporaryDirectory(prefix="tintype-bench-") as scratch,
        Report(("endurance", "kills"), results, bundle=bundle, memory=memory, killed=[], next_starts=[]) as report,
    ):
        starts = Starts(bundle, memory, Path(scratch))
        undisturbed = starts.start("undisturbed")
        moments, number, failures = random.Random(seed), 0, 0
        while sum(row["was_running"] for row in report["killed"]) < count:
            cache = f"cache-{number % CACHES}"  # each is hit again where it was left
            number += 1
            row = starts.start(cache, kill_after=undisturbed["seconds"] * moments.uniform(*KILLED_BETWEEN))
            report["killed"].append(row)
            if not row["was_running"]:  # all is built: from the beginning
                failures += row["exit_code"] != 0
                shutil.rmtree(starts.folder / cache, ignore_errors=True)  # one that failed at once made none
        for number in range(min(CACHES, count)):
            made = starts.start(f"cache-{number}")
            near = round(picture_psnr_db(undisturbed["picture"], made["picture"]), 2)
            left = [path.name for path in (starts.folder / f"cache-{number}").rglob(".partial-*")]
            failures += near < NEAR_DB or bool(left)
            report["next_starts"].append({"seconds": round(made["seconds"], 2), "psnr_db": near, "left": left})
        report["undisturbed_seconds"] = round(undisturbed["seconds"], 2)
        what = "next starts that failed, gave another picture or left something"
        report["bars"] = [verdict(what, failures, at_most=0)]
        report.lines = bar_lines(report["bars"])


if __name__ == "__main__":
    main()
