"""A whole picture over bare graphs, and nothing of ours between: what a first program on a runtime writes.

Its pictures are right in kind (an Euler loop over the same sigmas as any) but are not looked at: its cost is.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tintype.bench.job import Job
from tintype.bench.worker import Figures
from tintype.bundle import Bundle

SIGMA_MAX, SIGMA_MIN = 14.6, 0.03

Run = Callable[[str, Mapping[str, NDArray[Any]]], NDArray[np.float32]]  # role, inputs by name -> the first output


class EulerPeer:
    """Pictures with guidance as one batch of 2; `run` calls a graph of the bundle in some runtime."""

    def __init__(self, bundle: Bundle, job: Job, run: Run) -> None:
        self._manifest = bundle.manifest
        self._job = job
        self._tokenizer = Tokenizer.from_file(str(bundle.path(bundle.manifest.tokenizer.file)))
        self._run = run

    def picture(self, seed: int, steps: int | None = None) -> Figures:
        started = time.perf_counter()
        embeddings = self._run("text_encoder", {"input_ids": self._input_ids()})
        encoded = time.perf_counter()
        latents = self._denoise(embeddings, seed, self._job.num_inference_steps if steps is None else steps)
        denoised = time.perf_counter()
        self._run("vae_decoder", {"latent_sample": latents / np.float32(self._manifest.scaling_factor)})
        return {
            "encode_seconds": encoded - started,
            "denoise_seconds": denoised - encoded,
            "decode_seconds": time.perf_counter() - denoised,
        }

    def _denoise(self, embeddings: NDArray[np.float32], seed: int, steps: int) -> NDArray[np.float32]:
        height, width = latent_size(self._manifest, self._job)
        sigmas = np.append(np.geomspace(SIGMA_MAX, SIGMA_MIN, steps), 0.0).astype(np.float32)
        shape = (1, self._manifest.latent_channels, height, width)
        latents = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * sigmas[0]
        for index, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas)):
            sample = np.repeat(latents / np.sqrt(1 + sigma**2), 2, axis=0)
            timestep = self._timestep(999 * (1 - index / steps))
            inputs = {"sample": sample, "timestep": timestep, "encoder_hidden_states": embeddings}
            without, with_words = np.split(self._run("denoiser", inputs), 2)
            noise = without + self._job.guidance_scale * (with_words - without)
            latents = (latents + noise * (sigma_next - sigma)).astype(np.float32)
        return latents

    def _timestep(self, value: float) -> NDArray[Any]:
        port = next(p for p in self._manifest.graphs["denoiser"]["full"].inputs if p.name == "timestep")
        shape = tuple(size if isinstance(size, int) else 2 for size in port.shape)
        return np.full(shape, value, dtype=np.dtype(port.dtype))

    def _input_ids(self) -> NDArray[np.int64]:
        facts = self._manifest.tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        rows = []
        for text in ("", self._job.prompt):
            words = self._tokenizer.encode(text, add_special_tokens=False).ids[: facts.max_length - 2]
            row = [facts.bos_token_id, *words, facts.eos_token_id]
            rows.append(row + [facts.pad_token_id] * (facts.max_length - len(row)))
        return np.array(rows, dtype=np.int64)


def latent_size(manifest: Any, job: Job) -> tuple[int, int]:
    """Height and width in latent cells; the model's own where the job leaves them out."""
    default, factor = manifest.default_request, manifest.vae_scale_factor
    return (job.height or default.height) // factor, (job.width or default.width) // factor
