"""Runtimes that load a job once and then draw, or call one graph, each as its own documentation has it; diffusers has a
file of its own, since it needs torch. A runtime of bare graphs draws by a loop as a first program has it: its cost is
looked at, and not its pictures. Here are the inputs, dims and builds of a job's graph, too.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import tintype
from tintype.bench.job import Job, needed_checkpoint
from tintype.bench.worker import Draw, Figures
from tintype.bundle import Manifest, open_bundle
from tintype.bundle.manifest import DECODERS, TINY_DECODER
from tintype.engine import BuildOptions, ensure_build, open_role, resolve_provider
from tintype.families.model import Model
from tintype.prompt.chunks import encode_prompt

Inputs = Mapping[str, NDArray[Any]]
CONDITION = "encoder_hidden_states"
Run = Callable[[Inputs], Sequence[NDArray[np.float32]]]  # inputs by name, in the graph's order -> outputs in theirs
SIGMA_MAX, SIGMA_MIN = 14.6, 0.03
SDCPP = "stable-diffusion.cpp"
TINY_VAE = "tiny_vae"  # the folder of a checkpoint's tiny autoencoder
SDCPP_SIDE = 512  # pixels, where the job leaves the size out
FIELDS = (
    "num_inference_steps", "guidance_scale", "width", "height", "exactness", "sampler", "decoder", "count", "batch_size"
)  # fmt: skip


def float_bundle(folder: Path) -> Path:
    """Of what `sd15 make` leaves, the bundle whose weights are all floats, as the checkpoint has them."""
    return folder / ("fp16" if (folder / "fp16").is_dir() else "fp32")


def openvino_file(role: str) -> str:
    return f"{'unet' if role == 'denoiser' else role}.xml"


def graph_dims(job: Job) -> dict[str, int]:
    """Numbers for the named dims of the job's graph; sides are latent cells, of the VAE's encoder pixels."""
    manifest = open_bundle(job.model).manifest
    usual, factor = manifest.default_request, 1 if job.role == "vae_encoder" else manifest.vae_scale_factor
    height, width = (side // factor for side in (job.height or usual.height, job.width or usual.width))
    dims = {"batch": job.batch_size or 1, "height": height, "width": width}
    return {**dims, "sequence": manifest.tokenizer.max_length} if job.role == "denoiser" else dims


def graph_inputs(job: Job, seed: int = 0) -> dict[str, NDArray[Any]]:
    """The graph's inputs by name, in its order: noise of unit variance, as the real ones have, ids, a timestep."""
    random, dims, inputs = np.random.default_rng(seed), graph_dims(job), dict[str, NDArray[Any]]()
    for port in open_bundle(job.model).graph(job.role or "denoiser").inputs:
        shape = [int(dims.get(str(size), size)) for size in port.shape]
        if port.name == "timestep":
            inputs[port.name] = np.full(shape, random.integers(1, 1000), np.float32)  # () or (1,)
        elif port.dtype == "int64":
            inputs[port.name] = random.integers(0, 256, shape, dtype=np.int64)
        else:
            inputs[port.name] = random.standard_normal(shape, dtype=np.float32)
    return inputs


def guidance_scale(manifest: Manifest, job: Job) -> float:
    """1 is without guidance."""
    return manifest.default_request.guidance_scale if job.guidance_scale is None else job.guidance_scale


def picture_rows(job: Job) -> dict[str, int]:
    """Rows of a call of each graph that a picture takes, by role: with guidance two, of the decoder one."""
    manifest = open_bundle(job.model).manifest
    most = 2 if guidance_scale(manifest, job) != 1.0 else 1
    return {**dict.fromkeys((*manifest.text_encoders, "denoiser"), most), DECODERS[job.decoder]: 1}


def graph_options(job: Job) -> BuildOptions:
    """What the job's graph is built for."""
    return BuildOptions.for_shape(
        graph_dims(job), exactness=job.exactness or "balanced", mapped=job.mapped, strip_bytes=job.strip_bytes,
        threads=job.threads, timed=job.timed,
    )  # fmt: skip


def graph_build(job: Job) -> Path:
    """The folder of the build of the job's graph, made where it is missing."""
    bundle, cpu = open_bundle(job.model), resolve_provider("cpu")
    return ensure_build(bundle, job.role or "denoiser", cpu, options=graph_options(job))


def load(job: Job, kind: str) -> Draw:
    """A runtime with a job's graph, or ready to draw; one of bare graphs opens three and draws by a loop of its own."""
    if kind == SDCPP:
        return _sdcpp(job)
    if job.role is not None:
        return _graph_calls(job, GRAPHS[kind](job))
    return _tintype(job) if kind == "tintype" else _EulerLoop(job, GRAPHS[kind]).draw


def _tintype(job: Job) -> Draw:
    pipeline = tintype.load(job.model, provider=job.device or "auto", memory=job.memory, threads=job.threads)

    def draw(seed: int, job: Job) -> Figures:
        fields: dict[str, Any] = {name: getattr(job, name) for name in FIELDS if getattr(job, name) is not None}
        fields |= job.more
        fields["watermark"] = job.output is None  # it follows from the picture: what is compared has none
        result = pipeline.generate(job.prompt, seed=seed, **fields)
        timings = result.timings
        told = {name: getattr(timings, name) for name in ("denoise_seconds", "encode_seconds", "decode_seconds")}
        outside = 1.0 - timings.denoise_graph_seconds / timings.denoise_seconds
        return {**told, "outside_share": outside, "output": np.asarray(result.image), "picture": result}

    return draw


def _graph_calls(job: Job, run: Run) -> Draw:
    """Calls of one graph, on the same inputs each time."""
    inputs = graph_inputs(job)

    def draw(seed: int, job: Job) -> Figures:
        started, worked = time.perf_counter(), time.process_time()
        output = run(inputs)[0]
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "processor_seconds": time.process_time() - worked, "output": output}

    return draw


class _EulerLoop:
    """Pictures of a bundle's graphs by role, with guidance as one batch of 2; Euler's steps over the sigmas of a first
    program, which are right in kind. Of XL, both text encoders and the sizes are told as its pipeline does."""

    def __init__(self, job: Job, open_graph: Callable[[Job], Run]) -> None:
        bundle = open_bundle(job.model)
        self._manifest, self._tokenizers = bundle.manifest, Model.of(bundle).tokenizers()
        rows, self._decoder = picture_rows(job), DECODERS[job.decoder]
        self._runs = {r: open_graph(dataclasses.replace(job, role=r, batch_size=each)) for r, each in rows.items()}

    def draw(self, seed: int, job: Job) -> Figures:
        times = [time.perf_counter()]
        told = self._encode(job)
        times.append(time.perf_counter())
        latents = self._denoise(told, seed, job)
        times.append(time.perf_counter())
        factor = 1.0 if self._decoder == TINY_DECODER else self._manifest.scaling_factor
        (sample,) = self._runs[self._decoder]({"latent_sample": latents / np.float32(factor)})[0]
        pixels = np.rint(np.clip(sample.transpose(1, 2, 0) * 127.5 + 127.5, 0, 255)).astype(np.uint8)
        picture = Image.fromarray(pixels)
        times.append(time.perf_counter())
        stages = ("encode_seconds", "denoise_seconds", "decode_seconds")
        return {**dict(zip(stages, np.diff(times).tolist(), strict=True)), "picture": picture}

    def _encode(self, job: Job) -> dict[str, NDArray[np.float32]]:
        """What the denoiser is told."""
        texts = ("", job.prompt) if guidance_scale(self._manifest, job) != 1.0 else (job.prompt,)
        encoded = []
        for role, tokenizer in self._tokenizers.items():
            input_ids = np.concatenate([encode_prompt(tokenizer, text).input_ids for text in texts])
            encoded.append(self._runs[role]({"input_ids": input_ids}))
        told = {CONDITION: np.concatenate([states for states, *_ in encoded], axis=-1)}
        if len(encoded) > 1:
            cell, dims = self._manifest.vae_scale_factor, graph_dims(job)
            height, width = cell * dims["height"], cell * dims["width"]
            sizes = np.array([[height, width, 0, 0, height, width]], np.float32)
            told |= {"text_embeds": encoded[-1][1], "time_ids": sizes.repeat(len(texts), axis=0)}
        return told

    def _denoise(self, told: Inputs, seed: int, job: Job) -> NDArray[np.float32]:
        steps, scale, dims = job.num_inference_steps, guidance_scale(self._manifest, job), graph_dims(job)
        sigmas = np.append(np.geomspace(SIGMA_MAX, SIGMA_MIN, steps), 0.0).astype(np.float32)
        shape = (1, self._manifest.latent_channels, dims["height"], dims["width"])
        latents = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * sigmas[0]
        ports = self._manifest.graphs["denoiser"]["full"].inputs
        timestep_shape: Any = next(each.shape for each in ports if each.name == "timestep")  # () or (1,)
        for index, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas)):
            sample = np.repeat(latents / np.sqrt(1 + sigma**2), len(told[CONDITION]), axis=0)
            timestep = np.full(timestep_shape, 999 * (1 - index / steps), np.float32)
            inputs = {"sample": sample, "timestep": timestep, **told}
            predicted = self._runs["denoiser"]({port.name: inputs[port.name] for port in ports})[0]
            without, with_words = predicted[:1], predicted[-1:]  # the same without guidance
            noise = without + scale * (with_words - without)
            latents = (latents + noise * (sigma_next - sigma)).astype(np.float32)
        return latents


def _tintype_graph(job: Job) -> Run:
    """What depends on the prompt alone is computed once, before the calls."""
    role = job.role or "denoiser"
    session = open_role(open_bundle(job.model), role, resolve_provider("cpu"), options=graph_options(job))
    if role != "denoiser":
        return lambda inputs: list(session.run(inputs).values())
    held = session.hold({CONDITION: graph_inputs(job)[CONDITION]})
    return lambda inputs: list(held.run({n: array for n, array in inputs.items() if n != CONDITION}).values())


def _onnxruntime_graph(job: Job) -> Run:
    """Plain ONNX Runtime: default settings, as a first program opens them; only the thread count is shared."""
    session = plain_session(open_bundle(job.model).graph_path(job.role or ""), job.threads)
    return lambda inputs: session.run(None, dict(inputs))  # type: ignore[no-any-return]


def plain_session(model: Path | bytes, threads: int | None) -> Any:
    """Of a file, or of a graph in memory."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _openvino_graph(job: Job) -> Run:
    """OpenVINO as its documentation has it: sizes fixed before compiling, latency hint, f32 said aloud, for on a
    processor with bfloat16 it computes in that by default, which is another picture.

    A job's `checkpoint` is the folder of representations; inputs go by position, as the trace left their names. For
    whole pictures what was compiled is kept beside, as CACHE_DIR has it. Outputs are the caller's to keep.
    """
    import openvino

    core, role, folder = openvino.Core(), job.role or "", Path(needed_checkpoint(job, "OpenVINO"))
    file = folder / openvino_file(role)
    if not file.is_file():  # one that wasn't quantized is found beside, in fp32
        file = folder.with_name("openvino-f32") / file.name
    model = core.read_model(file)
    ports = zip(model.inputs, graph_inputs(job).values(), strict=True)
    model.reshape({port: openvino.PartialShape(list(array.shape)) for port, array in ports})
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": job.exactness or "f32", "PERFORMANCE_HINT": "LATENCY"}
    if job.threads is not None:
        options["INFERENCE_NUM_THREADS"] = job.threads
    if job.whole:
        options["CACHE_DIR"] = str(folder.with_name("cache") / "openvino")
    request = core.compile_model(model, "CPU", options).create_infer_request()

    def run(inputs: Inputs) -> Any:
        request.infer(list(inputs.values()))
        return [np.array(tensor.data) for tensor in request.output_tensors]

    return run


GRAPHS: Mapping[str, Callable[[Job], Run]] = {  # what opens the graph of a job's role, by runtime
    "tintype": _tintype_graph,
    "onnxruntime": _onnxruntime_graph,
    "openvino": _openvino_graph,
}


def _sdcpp(job: Job) -> Draw:
    """stable-diffusion.cpp through its Python binding, on the same weights; Euler over its own discrete schedule,
    guidance as two calls of one picture.

    Linear layers stay fp32 as on disk; convolutions it keeps in fp16 of its own accord. Its flash attention is off: on
    a processor with AVX-512 a step at 512x512 took 22.9 s without and 56.3 s with it.
    """
    import stable_diffusion_cpp

    threads, folder = job.threads if job.threads is not None else -1, needed_checkpoint(job, SDCPP)
    place = Path(folder) / (TINY_VAE if job.decoder == "tiny" else "vae")
    is_tiny = json.loads((place / "config.json").read_text(encoding="utf-8"))["_class_name"] == "AutoencoderTiny"
    tiny = str(place / "diffusion_pytorch_model.safetensors") if is_tiny else ""  # which it wants named, of SDXS too
    model = stable_diffusion_cpp.StableDiffusion(
        model_path=folder, taesd_path=tiny, n_threads=threads, vae_decode_only=True, verbose=False
    )

    def draw(seed: int, job: Job) -> Figures:
        """Steps are told apart by the callback at each one's end; so is what comes before and after them."""
        ends: list[tuple[int, float]] = []

        def note(step: int, total: int, _seconds: float) -> None:
            if total == job.num_inference_steps:
                ends.append((step, time.perf_counter()))

        (picture,) = model.generate_image(
            prompt=job.prompt, width=job.width or SDCPP_SIDE, height=job.height or SDCPP_SIDE, sample_method="euler",
            sample_steps=job.num_inference_steps, cfg_scale=job.guidance_scale, seed=seed, progress_callback=note,
        )  # fmt: skip
        return {**loop_figures(ends, job.num_inference_steps), "picture": picture}

    return draw


def loop_figures(ends: list[tuple[int, float]], steps: int) -> Figures:
    """The loop's seconds from when steps ended; where the start wasn't told, the others' rate stands for the first."""
    times = {step: when for step, when in ends if 0 <= step <= steps}
    if len(times) < 2:
        return {"denoise_seconds": None}
    first, last = min(times), max(times)
    return {"denoise_seconds": (times[last] - times[first]) * steps / (last - first)}
