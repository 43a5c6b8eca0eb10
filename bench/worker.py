"""One runtime in a process of its own: it loads, then does its work once for each line that it reads.

A line is one JSON object of the job's fields that are to be others this time. It answers one JSON line to each:
{"load_seconds", "bare_bytes", "opened_anonymous_bytes"} when ready, {"seconds", "others_share", "anonymous_bytes",
"rss_bytes"} and the peer's own figures for a picture or a call, and {"peak_rss_bytes"} when its input ends.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tintype.bench.job import Job, with_steps
from tintype.engine import Reading, others_share, peak_rss_bytes, status_bytes

OTHERS = {"diffusers": "peer_diffusers", "rates": "rates"}  # by kind, the module that isn't `peers`

Figures = dict[str, Any]
# Makes one picture of a seed and a job, or one call of a graph, and tells what it knows better than a clock around it,
# what it made as "output", and as "picture" something with a `save`. The job is the one that it was loaded for, but for
# what differs this time.
Draw = Callable[[int, Job], Figures]


def main() -> None:
    """The worker's loop: argv holds the peer's kind and the job as JSON."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not come between the answers

    def answer(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    kind, job = sys.argv[1], Job(**json.loads(sys.argv[2]))
    bare, started = peak_rss_bytes(), time.perf_counter()
    module = importlib.import_module(f"tintype.bench.{OTHERS.get(kind, 'peers')}")
    if kind != "tintype" and kind not in OTHERS:
        started = time.perf_counter()  # what was imported is Tintype, for its loop: none of a runtime's own
    draw: Draw = module.load(job, kind)
    load_seconds = round(time.perf_counter() - started, 4)
    answer({"load_seconds": load_seconds, "bare_bytes": bare, "opened_anonymous_bytes": status_bytes("RssAnon")})
    for number, line in enumerate(sys.stdin):
        asked = dataclasses.replace(job, **json.loads(line))
        if asked.whole:
            asked = dataclasses.replace(asked, prompt=f"{asked.prompt} {number}")
        before = Reading.now()
        figures = draw(number if asked.seed is None else asked.seed, asked)
        picture = figures.pop("picture", None)
        if asked.whole:
            figures["save_seconds"] = save_seconds(picture)
        after = Reading.now()
        made = figures.pop("output", None)
        if asked.output is not None:
            np.save(asked.output, made)
        measured = {"seconds": after.wall_seconds - before.wall_seconds, "others_share": others_share(before, after)}
        memory = {"anonymous_bytes": status_bytes("RssAnon"), "rss_bytes": status_bytes("VmRSS")}
        answer(with_steps({**measured, **memory, **figures}, asked))
    answer({"peak_rss_bytes": peak_rss_bytes()})


def save_seconds(picture: Any) -> float:
    """What it takes to write a picture as a PNG by its own `save`: Pillow's, or Tintype's with its record."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        picture.save(Path(folder) / "picture.png")
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
