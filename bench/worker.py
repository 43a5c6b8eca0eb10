"""One runtime in a process of its own: it loads, then makes a picture for each line that it reads.

It answers one JSON line to each: {"load_seconds"} when ready, {"seconds", "denoise_seconds"} for a picture, and
{"peak_rss_bytes"} when its input ends. Between pictures it sleeps in a read, so others can be measured meanwhile.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from typing import Protocol

from tintype.bench.job import Job
from tintype.result import peak_rss_bytes

PEERS = {
    "tintype": "tintype.bench.peer_tintype",
    "diffusers": "tintype.bench.peer_diffusers",
    "onnxruntime": "tintype.bench.peer_onnxruntime",
}


class Peer(Protocol):
    """A runtime that has loaded a model."""

    def picture(self, seed: int) -> float | None:
        """Make one picture; returns the seconds of its denoising loop where they can be told apart."""
        ...


def main() -> None:
    """The worker's loop: argv holds the peer's name and the job as JSON."""
    name, job = sys.argv[1], Job(**json.loads(sys.argv[2]))
    started = time.perf_counter()
    peer: Peer = importlib.import_module(PEERS[name]).load(job)
    _answer({"load_seconds": round(time.perf_counter() - started, 4)})
    for seed, _ in enumerate(sys.stdin):
        started = time.perf_counter()
        denoise_seconds = peer.picture(seed)
        _answer({"seconds": time.perf_counter() - started, "denoise_seconds": denoise_seconds})
    _answer({"peak_rss_bytes": peak_rss_bytes()})


def _answer(value: dict[str, float | int | None]) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
