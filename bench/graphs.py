"""A bundle's graphs by themselves, as a job with a role asks for one: their inputs, dims and builds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tintype.bench.job import Job
from tintype.bundle import open_bundle
from tintype.engine import BuildOptions, ensure_build, resolve_provider

Inputs = Mapping[str, NDArray[Any]]
CONDITION = "encoder_hidden_states"
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
