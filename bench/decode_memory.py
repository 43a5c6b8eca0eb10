"""What a decode in strips costs in time and saves in memory, beside the same decode as a whole.

    python -m tintype.bench.decode_memory BUNDLE [--sizes 512x512,1024x1024] [--strip-mib 4,8,16,32,64] [--threads 2]

`--role vae_encoder` measures the way back. Each decodes twice (--calls) in a process of its own: the first time as for
one picture, with all weights to be mapped, then once more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import click

from tintype.bench.comparison import Comparison
from tintype.bench.graphs import graph_build
from tintype.bench.job import Job
from tintype.bench.options import count_option, measurement, sizes_option
from tintype.bench.report import Report
from tintype.bench.runner import Peer, Schedule
from tintype.engine import read_strips

REPORTS = {"vae_decoder": "decode-memory", "vae_encoder": "encode-memory"}  # by role
MIB = 2**20


@measurement(
    "decode-memory",
    click.argument("bundle"),
    click.option("--role", type=click.Choice(tuple(REPORTS)), default="vae_decoder", show_default=True),
    sizes_option("512x512,768x768,1024x1024"),
    click.option("--strip-mib", default="4,8,16,32,64", show_default=True),
    count_option("--calls", default=2, help="Decodes in each process."),
    rounds=1,
    help=__doc__,
)
def main(
    report: Report, scratch: Path, schedule: Schedule, *, bundle: str, role: str, sizes: Sequence[tuple[int, int]],
    strip_mib: str, threads: int, calls: int,
) -> None:  # fmt: skip
    report.names = [REPORTS[role]]
    for width, height in sizes:
        whole = Job(model=bundle, role=role, width=width, height=height, exactness="exact", threads=threads)
        jobs = {"whole": whole}
        for mib in map(float, strip_mib.split(",")):
            jobs[f"{mib:g}MiB"] = dataclasses.replace(whole, strip_bytes=int(mib * MIB))
        facts = {name: read_strips(graph_build(job)) for name, job in jobs.items()}  # makes the builds, too
        part = Comparison(
            contestants={name: Peer("tintype", job, warm_ups=(), requests=[{}] * calls) for name, job in jobs.items()},
            schedule=schedule,
            near={name: "whole" for name in jobs if name != "whole"},
            ratios=(("seconds", "whole"), ("processor_seconds", "whole")),
        ).run(scratch)
        for name, fact in facts.items():
            stages = () if fact is None else fact.stages
            part["peers"][name]["stages"] = len(stages)
            part["peers"][name]["strips"] = sum(len(list(stage.strips())) for stage in stages)
        report.add(f"{width}x{height}", part)


if __name__ == "__main__":
    main()
