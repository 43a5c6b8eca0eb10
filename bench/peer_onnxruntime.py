"""Plain ONNX Runtime: the bundle's canonical graphs with default settings, in a loop as a first program has it.

The loop serves any runtime of bare graphs. Its pictures are right in kind (Euler over the same sigmas as any) but are
not looked at: its cost is.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tintype.bench.job import Job
from tintype.bench.worker import Figures
from tintype.bundle import Bundle, open_bundle

SIGMA_MAX, SIGMA_MIN = 14.6, 0.03
ROLES = ("text_encoder", "denoiser", "vae_decoder")

Run = Callable[[str, Mapping[str, NDArray[Any]]], NDArray[np.float32]]  # role, inputs by name -> the first output


class EulerPeer:
    """Pictures with guidance as one batch of 2; `run` calls a graph of the bundle in some runtime."""

    def __init__(self, bundle: Bundle, run: Run) -> None:
        from tokenizers import Tokenizer

        self._manifest = bundle.manifest
        self._tokenizer = Tokenizer.from_file(str(bundle.path(bundle.manifest.tokenizer.file)))
        self._run = run

    def picture(self, seed: int, job: Job) -> Figures:
        started = time.perf_counter()
        embeddings = self._run("text_encoder", {"input_ids": self._input_ids(("", job.prompt))})
        encoded = time.perf_counter()
        latents = self._denoise(embeddings, seed, job)
        denoised = time.perf_counter()
        self._run("vae_decoder", {"latent_sample": latents / np.float32(self._manifest.scaling_factor)})
        return {
            "encode_seconds": encoded - started,
            "denoise_seconds": denoised - encoded,
            "decode_seconds": time.perf_counter() - denoised,
        }

    def _denoise(self, embeddings: NDArray[np.float32], seed: int, job: Job) -> NDArray[np.float32]:
        steps = job.num_inference_steps
        sigmas = np.append(np.geomspace(SIGMA_MAX, SIGMA_MIN, steps), 0.0).astype(np.float32)
        shape = (1, self._manifest.latent_channels, *latent_size(self._manifest, job))
        latents = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * sigmas[0]
        for index, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas)):
            sample = np.repeat(latents / np.sqrt(1 + sigma**2), 2, axis=0)
            timestep = self._timestep(999 * (1 - index / steps))
            inputs = {"sample": sample, "timestep": timestep, "encoder_hidden_states": embeddings}
            without, with_words = np.split(self._run("denoiser", inputs), 2)
            noise = without + job.guidance_scale * (with_words - without)
            latents = (latents + noise * (sigma_next - sigma)).astype(np.float32)
        return latents

    def _timestep(self, value: float) -> NDArray[Any]:
        port = next(p for p in self._manifest.graphs["denoiser"]["full"].inputs if p.name == "timestep")
        shape = tuple(size if isinstance(size, int) else 2 for size in port.shape)
        return np.full(shape, value, dtype=np.dtype(port.dtype))

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


def latent_size(manifest: Any, job: Job) -> tuple[int, int]:
    """Height and width in latent cells; the model's own where the job leaves them out."""
    default, factor = manifest.default_request, manifest.vae_scale_factor
    return (job.height or default.height) // factor, (job.width or default.width) // factor


def load(job: Job) -> EulerPeer:
    """Sessions as a first program makes them; only the thread count is shared with the others."""
    bundle = open_bundle(job.model)
    sessions = {role: plain_session(bundle.graph_path(role), job.threads) for role in ROLES}
    return EulerPeer(bundle, lambda role, inputs: np.asarray(sessions[role].run(None, dict(inputs))[0]))


def plain_session(model: Path | bytes, threads: int | None) -> Any:
    """Of a file, or of a graph in memory."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
