"""One graph in one runtime, called on fixed noise: single graphs of `sd15 graphs`, whole and in strips."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tintype.bench.job import GraphJob
from tintype.bench.worker import Figures
from tintype.bundle import open_bundle

if TYPE_CHECKING:
    from tintype.engine import BuildOptions

Inputs = Mapping[str, NDArray[Any]]
Run = Callable[[Inputs], NDArray[np.float32]]
CONDITION = "encoder_hidden_states"


class GraphPeer:
    def __init__(self, job: GraphJob) -> None:
        self._inputs = graph_inputs(job)
        self._run = RUNTIMES[job.runtime](job)
        self._output = job.output

    def picture(self, seed: int, job: GraphJob) -> Figures:
        started, worked = time.perf_counter(), time.process_time()
        answer = self._run(self._inputs)
        seconds, worked = time.perf_counter() - started, time.process_time() - worked
        if self._output is not None:  # before anything is timed: the first call warms up
            np.save(self._output, answer)
            self._output = None
        return {"seconds": seconds, "processor_seconds": worked}


def graph_inputs(job: GraphJob, seed: int = 0) -> dict[str, NDArray[Any]]:
    """The graph's inputs by name, in its order: noise of unit variance, as the real ones have."""
    random = np.random.default_rng(seed)
    if job.role == "text_encoder":
        return {"input_ids": random.integers(0, 256, (job.batch, job.tokens), dtype=np.int64)}
    channels = 3 if job.role == "vae_encoder" else job.channels
    image = random.standard_normal((job.batch, channels, job.height, job.width), dtype=np.float32)
    if job.role != "denoiser":
        return {"latent_sample" if job.role == "vae_decoder" else "sample": image}
    embeddings = random.standard_normal((job.batch, job.tokens, job.embedding), dtype=np.float32)
    timestep = np.array([float(random.integers(1, 1000))], dtype=np.float32)
    return {"sample": image, "timestep": timestep, CONDITION: embeddings}


def graph_dims(job: GraphJob) -> dict[str, int]:
    """Numbers for the named dims of the job's graph."""
    dims = {"batch": job.batch, "height": job.height, "width": job.width}
    return {**dims, "sequence": job.tokens} if job.role == "denoiser" else dims


def graph_options(job: GraphJob) -> BuildOptions:
    """What the job's graph is built for."""
    from tintype.engine import BuildOptions

    return BuildOptions.for_shape(
        graph_dims(job),
        exactness=job.exactness or "balanced",
        mapped=job.mapped,
        strip_bytes=job.strip_bytes,
        threads=job.threads,
        timed=job.timed,
    )


def graph_build(job: GraphJob) -> Path:
    """The folder of the job's build, made where it is missing."""
    from tintype.engine import ensure_build, resolve_provider

    return ensure_build(open_bundle(job.model), job.role, resolve_provider("cpu"), options=graph_options(job))


def _tintype(job: GraphJob) -> Run:
    """As the loop calls it: what depends on the prompt alone is computed once, before the calls."""
    from tintype.engine import open_role, resolve_provider

    session = open_role(open_bundle(job.model), job.role, resolve_provider("cpu"), options=graph_options(job))
    name = session.output_names[0]
    if job.role != "denoiser":
        return lambda inputs: session.run(inputs)[name]
    held = session.hold({CONDITION: graph_inputs(job)[CONDITION]})
    return lambda inputs: held.run({each: array for each, array in inputs.items() if each != CONDITION})[name]


def _openvino(job: GraphJob) -> Run:
    from tintype.bench.peer_openvino import OpenVinoGraph, file_in

    shapes = [array.shape for array in graph_inputs(job).values()]
    return OpenVinoGraph(file_in(Path(job.model), job.role), shapes, job.threads).run


def _onnxruntime(job: GraphJob) -> Run:
    from tintype.bench.peer_onnxruntime import plain_session

    session = plain_session(open_bundle(job.model).graph_path(job.role), job.threads)
    return lambda inputs: np.asarray(session.run(None, dict(inputs))[0])


RUNTIMES: dict[str, Callable[[GraphJob], Run]] = {
    "tintype": _tintype,
    "openvino": _openvino,
    "onnxruntime": _onnxruntime,
}

load = GraphPeer
