"""Tintype beside others on the same machine in the same minutes: rounds are interleaved, so drift hits all alike."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import click

from tintype.bench.bars import RatioBar, verdict
from tintype.bench.figures import summary
from tintype.bench.job import Job
from tintype.bench.others import quiet_answer
from tintype.bench.worker import AnyJob

LOOP_BAR = 0.7  # of plain onnxruntime's, on the same exported graphs, which round activations as `balanced` does
BALANCED = "tintype-balanced"  # beside tintype as the bundle asks for it
OUTSIDE_BAR = 0.03  # of the loop, spent outside the graphs
SETTLE_SECONDS = 0.5  # before each picture: threads of a runtime that has just worked may spin on, on the next's cores


class Worker:
    """A runtime in a child process (tintype.bench.worker); leaving the `with` block ends it and tells its peak RSS."""

    def __init__(self, name: str, job: AnyJob) -> None:
        self.name = name
        self.peak_rss_bytes: int | None = None
        command = [sys.executable, "-m", "tintype.bench.worker", name, json.dumps(dataclasses.asdict(job))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Worker:
        try:
            opened = self._read()
        except BaseException:
            self._process.kill()
            self._close()
            raise
        self.load_seconds: float = opened["load_seconds"]
        self.opened_anonymous_bytes: int | None = opened["anonymous_bytes"]
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._process.stdin is not None:
            self._process.stdin.close()
            self.peak_rss_bytes = self._read()["peak_rss_bytes"]
        else:
            self._process.kill()
        self._close()

    def picture(self, steps: int | None = None) -> dict[str, Any]:
        """Have one picture made (or one call); seconds and other figures as the worker measured them."""
        if self._process.stdin is None:
            raise RuntimeError("the worker has no input")
        self._process.stdin.write(json.dumps({"steps": steps}) + "\n")
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
    job: Job,
    repeats: int,
    names: tuple[str, ...] = ("tintype", BALANCED, "diffusers", "onnxruntime"),
    patience_seconds: float = 0.0,
) -> dict[str, Any]:
    """Whole pictures from each runtime, one after another in each round; ratios are peer over tintype, by medians.

    patience_seconds: for each picture to be had without other processes disturbing it.
    """
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(_worker(name, job)) for name in names}
        for worker in workers.values():
            worker.picture()  # the first picture fills caches and pools; it is not counted
        answers: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for _ in range(repeats):
            for name, worker in workers.items():
                answers[name].append(quiet_answer(functools.partial(_settled_picture, worker), patience_seconds))
    table = {name: _figures(worker, answers[name]) for name, worker in workers.items()}
    ours = table["tintype"]
    for figures in table.values():
        for ratio, seconds in (("ratio_to_tintype", "seconds"), ("loop_ratio_to_tintype", "denoise_seconds")):
            figures[ratio] = round(figures[seconds]["median"] / ours[seconds]["median"], 3)
    return table


def _worker(name: str, job: Job) -> Worker:
    return Worker("tintype", dataclasses.replace(job, exactness="balanced")) if name == BALANCED else Worker(name, job)


def _settled_picture(worker: Worker) -> dict[str, Any]:
    time.sleep(SETTLE_SECONDS)
    return worker.picture()


def judge_peers(table: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The bars of a denoising loop: beside plain onnxruntime's, and what of it is spent outside the graphs."""
    medians = {f"{name}'s loop": figures["denoise_seconds"]["median"] for name, figures in table.items()}
    judged = RatioBar(f"{BALANCED}'s loop", "onnxruntime's loop", LOOP_BAR).judge(medians)
    found = [] if judged is None else [judged]
    share = table["tintype"].get("outside_share")
    if share is not None:
        found.append(verdict("tintype, share of the loop outside the graph", share["median"], at_most=OUTSIDE_BAR))
    return found


def _figures(worker: Worker, answers: list[dict[str, Any]]) -> dict[str, Any]:
    figures = {
        "load_seconds": worker.load_seconds,
        "seconds": summary([answer["seconds"] for answer in answers]),
        "denoise_seconds": summary([answer["denoise_seconds"] for answer in answers]),
        "peak_rss_bytes": worker.peak_rss_bytes,
    }
    for name in ("outside_share", "others_share"):
        shares = [answer[name] for answer in answers if answer.get(name) is not None]
        if shares:
            figures[name] = summary(shares)
    return figures
