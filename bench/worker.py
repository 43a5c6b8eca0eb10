"""One runtime in a process of its own: it loads, then does its work once for each line that it reads.

A line is one JSON object, {"steps": n} or {"steps": null} for as many as the job says. It answers one JSON line to
each: {"load_seconds", "anonymous_bytes"} when ready, {"seconds", "others_share", "anonymous_bytes"} and the peer's own
figures for a picture or a call, and {"peak_rss_bytes"} when its input ends. Between pictures it sleeps in a read, so
others can be measured meanwhile.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from tintype.bench.job import GraphJob, Job, RatesJob
from tintype.engine import peak_rss_bytes
from tintype.engine.device.disturbance import Reading, others_share

AnyJob = Job | GraphJob | RatesJob

PEERS: dict[str, tuple[str, type[AnyJob]]] = {
    "tintype": ("tintype.bench.peer_tintype", Job),
    "diffusers": ("tintype.bench.peer_diffusers", Job),
    "diffusers-gpu": ("tintype.bench.peer_torch", Job),
    "onnxruntime": ("tintype.bench.peer_onnxruntime", Job),
    "openvino": ("tintype.bench.peer_openvino", Job),
    "stable-diffusion.cpp": ("tintype.bench.peer_sdcpp", Job),
    "graph": ("tintype.bench.peer_graphs", GraphJob),
    "rates": ("tintype.bench.rates", RatesJob),
}

Figures = Mapping[str, float | None]


class Peer(Protocol):
    """A runtime that has loaded a model."""

    def picture(self, seed: int, steps: int | None = None) -> Figures:
        """Make one picture, or one call of a graph; returns what it knows better than a clock around it.

        steps: fewer than the job's, to warm up; None is the job's own.
        """
        ...


def main() -> None:
    """The worker's loop: argv holds the peer's name and the job as JSON."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not come between the answers

    def answer(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    module, job_type = PEERS[sys.argv[1]]
    job = job_type(**json.loads(sys.argv[2]))
    started = time.perf_counter()
    peer: Peer = importlib.import_module(module).load(job)
    answer({"load_seconds": round(time.perf_counter() - started, 4), "anonymous_bytes": anonymous_bytes()})
    for seed, line in enumerate(sys.stdin):
        steps = json.loads(line)["steps"]
        before = Reading.now()
        figures = peer.picture(seed, steps)
        after = Reading.now()
        told = {"seconds": after.wall_seconds - before.wall_seconds, "others_share": others_share(before, after)}
        answer({**told, "anonymous_bytes": anonymous_bytes(), **figures})
    answer({"peak_rss_bytes": peak_rss_bytes()})


def anonymous_bytes() -> int | None:
    """Resident memory of this process that no file backs; None where the system doesn't tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("RssAnon:")).split()[1]) * 1024
    except (OSError, StopIteration):
        return None


if __name__ == "__main__":
    main()
