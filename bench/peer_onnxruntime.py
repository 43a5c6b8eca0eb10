"""Plain ONNX Runtime: the bundle's canonical graphs with default settings, and nothing of ours between.

Its pictures are right in kind (an Euler loop over the same sigmas as any) but are not looked at: its cost is.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tintype.bench.job import Job
from tintype.bundle import Bundle, open_bundle

SIGMA_MAX, SIGMA_MIN = 14.6, 0.03


class PlainPeer:
    def __init__(self, bundle: Bundle, job: Job) -> None:
        self._manifest = bundle.manifest
        self._job = job
        self._tokenizer = Tokenizer.from_file(str(bundle.path(bundle.manifest.tokenizer.file)))
        self._sessions = {role: _session(bundle, role, job) for role in ("text_encoder", "denoiser", "vae_decoder")}

    def picture(self, seed: int) -> float:
        embeddings = self._run("text_encoder", {"input_ids": self._input_ids()})
        started = time.perf_counter()
        latents = self._denoise(embeddings, seed)
        seconds = time.perf_counter() - started
        self._run("vae_decoder", {"latent_sample": latents / np.float32(self._manifest.scaling_factor)})
        return seconds

    def _denoise(self, embeddings: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
        default, factor = self._manifest.default_request, self._manifest.vae_scale_factor
        height, width = (self._job.height or default.height) // factor, (self._job.width or default.width) // factor
        sigmas = np.append(np.geomspace(SIGMA_MAX, SIGMA_MIN, self._job.num_inference_steps), 0.0).astype(np.float32)
        shape = (1, self._manifest.latent_channels, height, width)
        latents = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * sigmas[0]
        for index, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas)):
            sample = np.repeat(latents / np.sqrt(1 + sigma**2), 2, axis=0)
            timestep = 999 * (1 - index / self._job.num_inference_steps)
            inputs = {"sample": sample, "timestep": self._timestep(timestep), "encoder_hidden_states": embeddings}
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

    def _run(self, role: str, inputs: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        return np.asarray(self._sessions[role].run(None, inputs)[0])


def load(job: Job) -> PlainPeer:
    """Sessions as a first program makes them; only the thread count is shared with the others."""
    return PlainPeer(open_bundle(job.model), job)


def _session(bundle: Bundle, role: str, job: Job) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if job.threads is not None:
        options.intra_op_num_threads = job.threads
    return onnxruntime.InferenceSession(str(bundle.graph_path(role)), options, providers=["CPUExecutionProvider"])
