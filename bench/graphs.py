"""A bundle's graphs by themselves: their inputs and builds, a peer that calls one, and a loop over three.

The loop serves any runtime of bare graphs, as a first program has it. Its pictures are right in kind (Euler over the
same sigmas as any) but are not looked at: its cost is.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tintype.bench.job import Job
from tintype.bench.worker import Figures, Peer
from tintype.bundle import Bundle, open_bundle
from tintype.engine import BuildOptions, ensure_build, resolve_provider

Inputs = Mapping[str, NDArray[Any]]
Run = Callable[[Inputs], NDArray[np.float32]]  # inputs by name, in the graph's order -> the first output
CONDITION = "encoder_hidden_states"
SIGMA_MAX, SIGMA_MIN = 14.6, 0.03
ROWS = {"text_encoder": 2, "denoiser": 2, "vae_decoder": 1}  # of a picture with guidance, by role


def graph_size(job: Job) -> tuple[int, int]:
    """Height and width in latent cells, of the VAE's encoder in pixels."""
    manifest = open_bundle(job.model).manifest
    default, factor = manifest.default_request, 1 if job.role == "vae_encoder" else manifest.vae_scale_factor
    return (job.height or default.height) // factor, (job.width or default.width) // factor


def graph_inputs(job: Job, seed: int = 0) -> dict[str, NDArray[Any]]:
    """The graph's inputs by name, in its order: noise of unit variance, as the real ones have."""
    manifest, random, rows = open_bundle(job.model).manifest, np.random.default_rng(seed), job.batch_size or 1
    if job.role == "text_encoder":
        return {"input_ids": random.integers(0, 256, (rows, manifest.tokenizer.max_length), dtype=np.int64)}
    channels = 3 if job.role == "vae_encoder" else manifest.latent_channels
    image = random.standard_normal((rows, channels, *graph_size(job)), dtype=np.float32)
    if job.role != "denoiser":
        return {"latent_sample" if job.role == "vae_decoder" else "sample": image}
    port = next(each for each in manifest.graphs["denoiser"]["full"].inputs if each.name == CONDITION)
    shape = (rows, manifest.tokenizer.max_length, int(port.shape[2]))
    embeddings = random.standard_normal(shape, dtype=np.float32)
    timestep = np.array([float(random.integers(1, 1000))], dtype=np.float32)
    return {"sample": image, "timestep": timestep, CONDITION: embeddings}


def graph_dims(job: Job) -> dict[str, int]:
    """Numbers for the named dims of the job's graph."""
    height, width = graph_size(job)
    dims = {"batch": job.batch_size or 1, "height": height, "width": width}
    tokens = open_bundle(job.model).manifest.tokenizer.max_length
    return {**dims, "sequence": tokens} if job.role == "denoiser" else dims


def graph_options(job: Job) -> BuildOptions:
    """What the job's graph is built for."""
    return BuildOptions.for_shape(
        graph_dims(job),
        exactness=job.exactness or "balanced",
        mapped=job.mapped,
        strip_bytes=job.strip_bytes,
        threads=job.threads,
        timed=job.timed,
    )


def graph_build(job: Job) -> Path:
    """The folder of the build of the job's graph, made where it is missing."""
    bundle, cpu = open_bundle(job.model), resolve_provider("cpu")
    return ensure_build(bundle, job.role or "denoiser", cpu, options=graph_options(job))


class GraphPeer:
    """Calls one graph on the same inputs each time."""

    def __init__(self, job: Job, run: Run) -> None:
        self._inputs, self._run = graph_inputs(job), run

    def picture(self, seed: int, job: Job) -> Figures:
        started, worked = time.perf_counter(), time.process_time()
        output = self._run(self._inputs)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "processor_seconds": time.process_time() - worked, "output": output}


def bare_peer(job: Job, open_graph: Callable[[Job], Run]) -> Peer:
    """One graph, or pictures of three, of a runtime that opens the graph of a job with a role."""
    if job.role is not None:
        return GraphPeer(job, open_graph(job))
    runs = {role: open_graph(dataclasses.replace(job, role=role, batch_size=rows)) for role, rows in ROWS.items()}
    return EulerPeer(open_bundle(job.model), runs)


class EulerPeer:
    """Pictures with guidance as one batch of 2, of a bundle's graphs by role."""

    def __init__(self, bundle: Bundle, runs: Mapping[str, Run]) -> None:
        from tokenizers import Tokenizer

        self._manifest, self._runs = bundle.manifest, runs
        self._tokenizer = Tokenizer.from_file(str(bundle.path(bundle.manifest.tokenizer.file)))

    def picture(self, seed: int, job: Job) -> Figures:
        started = time.perf_counter()
        embeddings = self._runs["text_encoder"]({"input_ids": self._input_ids(("", job.prompt))})
        encoded = time.perf_counter()
        latents = self._denoise(embeddings, seed, job)
        denoised = time.perf_counter()
        self._runs["vae_decoder"]({"latent_sample": latents / np.float32(self._manifest.scaling_factor)})
        return {
            "encode_seconds": encoded - started,
            "denoise_seconds": denoised - encoded,
            "decode_seconds": time.perf_counter() - denoised,
        }

    def _denoise(self, embeddings: NDArray[np.float32], seed: int, job: Job) -> NDArray[np.float32]:
        steps = job.num_inference_steps
        sigmas = np.append(np.geomspace(SIGMA_MAX, SIGMA_MIN, steps), 0.0).astype(np.float32)
        shape = (1, self._manifest.latent_channels, *graph_size(job))
        latents = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * sigmas[0]
        for index, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas)):
            sample = np.repeat(latents / np.sqrt(1 + sigma**2), 2, axis=0)
            timestep = np.array([999 * (1 - index / steps)], dtype=np.float32)
            inputs = {"sample": sample, "timestep": timestep, CONDITION: embeddings}
            without, with_words = np.split(self._runs["denoiser"](inputs), 2)
            noise = without + job.guidance_scale * (with_words - without)
            latents = (latents + noise * (sigma_next - sigma)).astype(np.float32)
        return latents

    def _input_ids(self, prompts: tuple[str, ...]) -> NDArray[np.int64]:
        facts = self._manifest.tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        rows = []
        for text in prompts:
            words = self._tokenizer.encode(text, add_special_tokens=False).ids[: facts.max_length - 2]
            row = [facts.bos_token_id, *words, facts.eos_token_id]
            rows.append(row + [facts.pad_token_id] * (facts.max_length - len(row)))
        return np.array(rows, dtype=np.int64)


def load(job: Job) -> Peer:
    """Plain ONNX Runtime: default settings, as a first program opens them; only the thread count is shared."""
    return bare_peer(job, _open_graph)


def _open_graph(job: Job) -> Run:
    session = plain_session(open_bundle(job.model).graph_path(job.role or ""), job.threads)
    return lambda inputs: np.asarray(session.run(None, dict(inputs))[0])


def plain_session(model: Path | bytes, threads: int | None) -> Any:
    """Of a file, or of a graph in memory."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
