"""One graph in one runtime, called on fixed noise: the peers of `python -m tintype.bench.sd15 graphs`."""

from __future__ import annotations

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


class GraphPeer:
    def __init__(self, job: GraphJob, run: Run) -> None:
        self._inputs = graph_inputs(job)
        self._output = job.output
        self._run = run

    def picture(self, seed: int, steps: int | None = None) -> Figures:
        answer = self._run(self._inputs)
        if self._output is not None:  # before anything is timed: the first call warms up
            np.save(self._output, answer)
            self._output = None
        return {}


def graph_inputs(job: GraphJob, seed: int = 0) -> dict[str, NDArray[Any]]:
    """The graph's inputs by name, in its order: noise of unit variance, as the real ones have."""
    random = np.random.default_rng(seed)
    latents = random.standard_normal((job.batch, 4, job.height, job.width), dtype=np.float32)
    if job.role == "vae_decoder":
        return {"latent_sample": latents}
    embeddings = random.standard_normal((job.batch, job.tokens, job.embedding), dtype=np.float32)
    return {"sample": latents, "timestep": np.array([500.0], dtype=np.float32), "encoder_hidden_states": embeddings}


def graph_dims(job: GraphJob) -> dict[str, int]:
    """Numbers for the named dims of the job's graph."""
    dims = {"batch": job.batch, "height": job.height, "width": job.width}
    return dims if job.role == "vae_decoder" else {**dims, "sequence": job.tokens}


def open_tintype_graph(job: GraphJob) -> Any:
    """The role's session, built for the shape and exactness of the job."""
    from tintype.engine import open_role, resolve_provider

    return open_role(open_bundle(job.model), job.role, resolve_provider("cpu"), options=graph_options(job))


def graph_options(job: GraphJob) -> BuildOptions:
    """What the job's graph is built for."""
    from tintype.engine import BuildOptions

    return BuildOptions.for_shape(
        graph_dims(job), exactness=job.exactness or "balanced", mapped=job.mapped, threads=job.threads
    )


def _tintype(job: GraphJob) -> Run:
    """As the loop calls it: what depends on the prompt alone is computed once, before the calls."""
    session = open_tintype_graph(job)
    name, kept = session.output_names[0], "encoder_hidden_states"
    held = session.hold({each: array for each, array in graph_inputs(job).items() if each == kept})
    return lambda inputs: held.run({each: array for each, array in inputs.items() if each != kept})[name]


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


def load(job: GraphJob) -> GraphPeer:
    return GraphPeer(job, RUNTIMES[job.runtime](job))
