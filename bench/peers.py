"""Tintype beside others on the same machine in the same minutes: rounds are interleaved, so drift hits all alike."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
from typing import Any

import click

from tintype.bench.figures import summary
from tintype.bench.job import Job


class Worker:
    """A runtime in a child process (tintype.bench.worker); leaving the `with` block ends it and tells its peak RSS."""

    def __init__(self, name: str, job: Job) -> None:
        self.name = name
        self.peak_rss_bytes: int | None = None
        command = [sys.executable, "-m", "tintype.bench.worker", name, json.dumps(dataclasses.asdict(job))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Worker:
        try:
            self.load_seconds: float = self._read()["load_seconds"]
        except BaseException:
            self._process.kill()
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._process.stdin is not None:
            self._process.stdin.close()
            self.peak_rss_bytes = self._read()["peak_rss_bytes"]
        else:
            self._process.kill()
        self._close()

    def picture(self) -> dict[str, float]:
        """Have one picture made; seconds as the worker measured them."""
        if self._process.stdin is None:
            raise RuntimeError("the worker has no input")
        self._process.stdin.write("picture\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            raise click.ClickException(f"the {self.name} worker ended; what it said is above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _close(self) -> None:
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def measure_peers(
    job: Job, repeats: int, names: tuple[str, ...] = ("tintype", "diffusers", "onnxruntime")
) -> dict[str, Any]:
    """Whole pictures from each runtime, one after another in each round; ratios are peer over tintype, by medians."""
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(name, job)) for name in names]
        for worker in workers:
            worker.picture()  # the first picture fills caches and pools; it is not counted
        answers: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for _ in range(repeats):
            for worker in workers:
                answers[worker.name].append(worker.picture())
    table = {worker.name: _figures(worker, answers[worker.name]) for worker in workers}
    ours = table["tintype"]["seconds"]["median"]
    for figures in table.values():
        figures["ratio_to_tintype"] = round(figures["seconds"]["median"] / ours, 3)
    return table


def _figures(worker: Worker, answers: list[dict[str, float]]) -> dict[str, Any]:
    return {
        "load_seconds": worker.load_seconds,
        "seconds": summary([answer["seconds"] for answer in answers]),
        "denoise_seconds": summary([answer["denoise_seconds"] for answer in answers]),
        "peak_rss_bytes": worker.peak_rss_bytes,
    }
