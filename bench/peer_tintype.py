"""Tintype as a program uses it: load once, generate many."""

from __future__ import annotations

import inspect
import time
from typing import Any

import tintype
from tintype.bench.job import Job
from tintype.bench.worker import Figures


class TintypePeer:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._pipeline = open_pipeline(job)
        self._graph_runs = GraphRuns()

    def picture(self, seed: int, steps: int | None = None) -> Figures:
        with self._pipeline.stage("denoiser") as session:
            self._graph_runs.watch(session)
        result = self._pipeline.generate(self._job.prompt, seed=seed, **_request_fields(self._job, steps))
        return {
            "denoise_seconds": result.timings.denoise_seconds,
            "encode_seconds": result.timings.encode_seconds,
            "decode_seconds": result.timings.decode_seconds,
            "outside_share": self._graph_runs.take_outside_share(),
        }


class GraphRuns:
    """When a session ran, told by a clock around its `run`; the rest of the loop is what the loop itself costs."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []
        self._watched: Any = None

    def watch(self, session: Any) -> None:
        """From now on; watching the same session again changes nothing."""
        if session is self._watched:
            return
        run = session.run

        def timed(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return run(*arguments, **named)
            finally:
                self._spans.append((started, time.perf_counter()))

        session.run = timed
        self._watched = session

    def take_outside_share(self) -> float | None:
        """Share of the loop outside the runs since the last call, by the gaps between runs; None below two runs."""
        spans, self._spans = self._spans, []
        if len(spans) < 2:
            return None
        inside = sum(end - start for start, end in spans)
        gaps = spans[-1][1] - spans[0][0] - inside
        outside = gaps * len(spans) / (len(spans) - 1)  # the last run too is followed by its step
        return outside / (outside + inside)


def open_pipeline(job: Job) -> Any:
    """The one place that opens a pipeline; exactness goes to `load` where this version's takes it."""
    return tintype.load(job.model, threads=job.threads, **_exactness(tintype.load, job.exactness))


def _request_fields(job: Job, steps: int | None) -> dict[str, Any]:
    """The job as the fields of a request; exactness goes here where a request takes it and `load` doesn't."""
    fields: dict[str, Any] = {
        "num_inference_steps": job.num_inference_steps if steps is None else steps,
        "guidance_scale": job.guidance_scale,
        "width": job.width,
        "height": job.height,
    }
    if job.sampler is not None:
        fields["sampler"] = job.sampler
    if not _exactness(tintype.load, job.exactness):
        fields.update(_exactness(tintype.Request, job.exactness))
    return fields


def _exactness(taker: Any, exactness: str | None) -> dict[str, Any]:
    takes = exactness is not None and "exactness" in inspect.signature(taker).parameters
    return {"exactness": exactness} if takes else {}


def load(job: Job) -> TintypePeer:
    return TintypePeer(job)
