"""The graphs of a bundle: traced, stored in the precision asked for, and judged against torch on the lowered graph.

A graph is judged as it will run: canonical file -> the CPU's lowering -> ONNX Runtime. An int8 graph that misses its
gate gives layers back to fp16 until it passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tintype.engine import graph_session
from tintype.export import tracing
from tintype.export.checkpoint import Checkpoint
from tintype.export.fallback import FIRST_STEP, Choice, Trial, choose
from tintype.export.parity import Gate, GraphReport, judge
from tintype.export.placing import Scratch
from tintype.export.progress import Progress
from tintype.export.quantization import Layer, Scales, find_layers, halve_weights, quantize_graph
from tintype.export.simulation import ActivationStatistics, layer_scales
from tintype.export.storage import load_graph, save_graph
from tintype.export.tokenizer import BundleTokenizer
from tintype.export.trajectories import Call, Modules, TrajectoryPlan, calibration_walks, text_call

GRAPH_FILES = {
    "text_encoder": "text_encoder/model.onnx",
    "vae_encoder": "vae_encoder/model.onnx",
    "vae_decoder": "vae_decoder/model.onnx",
    "denoiser": "unet/model.onnx",
}
INT8_ROLES = ("text_encoder", "vae_decoder", "denoiser")  # the encoder runs once, if at all: fp16
KEPT_CALLS = 6  # of the denoiser, for measuring damage


@dataclass(frozen=True, slots=True)
class Job:
    """What every graph's making needs."""

    checkpoint: Checkpoint
    modules: Modules
    tokenizer: BundleTokenizer
    plan: TrajectoryPlan
    calls: Mapping[str, Sequence[Call]]  # by role: what graphs are judged on
    precision: str
    scratch: Scratch
    progress: Progress
    damage_seconds: float


@dataclass(frozen=True, slots=True)
class Calibrated:
    """How a role's layers would be quantized, and calls to try that on; not those that it is judged on."""

    scales: Mapping[str, Scales]
    calls: Sequence[Call]


def write_graphs(job: Job) -> list[GraphReport]:
    """Write every role's graph into the scratch bundle; the reports say how near each came, nothing is refused here."""
    folder = job.scratch.bundle if job.precision == "fp32" else job.scratch.fp32
    layers = {}
    with job.progress.stage("tracing", len(GRAPH_FILES)) as advance:
        for role, file in GRAPH_FILES.items():
            model = tracing.trace(_seen(role, job.modules), _trace_plan(role, job))
            layers[role] = find_layers(model)
            save_graph(model, folder / file)
            del model
            advance(1)
    calibrated = _calibrate(job, layers) if job.precision == "int8" else {}
    reports = []
    with job.progress.stage("parity", len(GRAPH_FILES)) as advance:
        for role in GRAPH_FILES:
            if role in calibrated:
                choice = _choose(job, role, layers[role], calibrated[role])
                reports.append(_int8(job, role, choice, calibrated[role].scales))
            elif job.precision == "fp32":
                reports.append(_judged(job, role, "fp32"))
            else:
                _rewrite(job, role, [], {})
                reports.append(_judged(job, role, "fp16"))
            advance(1)
    return reports


def run_calls(path: Path, calls: Sequence[Call]) -> list[NDArray[np.float32]]:
    """The first output of each call, on the graph as the CPU runs it."""
    with graph_session(path) as session:
        return [session.run(call.feed)[session.output_names[0]] for call in calls]


def graph_bytes(path: Path) -> int:
    """Graph and weights on disk."""
    data = path.with_name(path.name + "_data")
    return path.stat().st_size + (data.stat().st_size if data.is_file() else 0)


def _int8(job: Job, role: str, choice: Choice, scales: Mapping[str, Scales]) -> GraphReport:
    """Write an int8 graph; layers go float until the real graph passes, and the last try is fp16 throughout."""
    share = FIRST_STEP
    while True:
        layers = choice.int8
        _rewrite(job, role, layers, scales)
        report = _judged(job, role, "int8" if layers else "fp16", choice)
        if report.parity.passed or not layers:
            return report
        choice.retreat(share)
        share *= 2.0


def _judged(job: Job, role: str, precision: str, choice: Choice | None = None) -> GraphReport:
    path, calls = job.scratch.bundle / GRAPH_FILES[role], job.calls[role]
    parity = judge(Gate.of(role, job.precision), [call.reference for call in calls], run_calls(path, calls))
    if choice is None:
        return GraphReport(role, precision, parity, graph_bytes(path))
    return GraphReport(
        role, precision, parity, graph_bytes(path), len(choice.int8), len(choice.layers), choice.float_names
    )


def _rewrite(job: Job, role: str, layers: Sequence[Layer], scales: Mapping[str, Scales]) -> None:
    """The fp32 graph with these layers int8 and all other weights fp16, into the scratch bundle."""
    model = load_graph(job.scratch.fp32 / GRAPH_FILES[role])
    quantize_graph(model, layers, scales)
    halve_weights(model)
    save_graph(model, job.scratch.bundle / GRAPH_FILES[role])


def _calibrate(job: Job, layers: Mapping[str, Sequence[Layer]]) -> dict[str, Calibrated]:
    """Walk real trajectories with an eye on every convolution; then each role's scales and calls to try them on."""
    plan, modules = job.plan, job.modules
    total = plan.calibration_prompts * (plan.steps + 1)
    unet = ActivationStatistics(modules.unet, layers["denoiser"], 2 * total)
    vae = ActivationStatistics(modules.vae, layers["vae_decoder"], plan.calibration_prompts)
    with job.progress.stage("calibration", total) as advance, unet.watching(), vae.watching():
        denoiser_calls, decoder_calls = calibration_walks(modules, job.tokenizer, plan, KEPT_CALLS, advance)
    calls = {
        "text_encoder": [text_call(modules, job.tokenizer, plan.calibration)],
        "vae_decoder": decoder_calls[:KEPT_CALLS],
        "denoiser": denoiser_calls,
    }
    found = {}
    with job.progress.stage("scales", sum(len(layers[role]) for role in INT8_ROLES)) as advance, torch.inference_mode():
        for role, statistics in (("text_encoder", None), ("vae_decoder", vae), ("denoiser", unet)):
            module = _module(role, modules)
            found[role] = Calibrated(layer_scales(module, layers[role], statistics, advance), calls[role])
    return found


def _choose(job: Job, role: str, layers: Sequence[Layer], calibrated: Calibrated) -> Choice:
    """Which layers of a role may be int8, by trial in torch."""
    seen = _seen(role, job.modules)

    def run(call: Call) -> NDArray[np.float32]:
        return seen(**{name: torch.from_numpy(array) for name, array in call.feed.items()}).numpy()  # type: ignore[no-any-return]

    trial = Trial(_module(role, job.modules), run, calibrated.calls, calibrated.scales, Gate.of(role, job.precision))
    return choose(trial, layers, job.damage_seconds, f"damage: {role}", job.progress)


def _module(role: str, modules: Modules) -> torch.nn.Module:
    return {"text_encoder": modules.text_encoder, "denoiser": modules.unet}.get(role, modules.vae)


def _seen(role: str, modules: Modules) -> torch.nn.Module:
    """A role's module as a graph sees it: inputs and output by the graph's names."""
    wrappers = {
        "text_encoder": tracing.TextEncoder,
        "denoiser": tracing.Denoiser,
        "vae_decoder": tracing.VaeDecoder,
        "vae_encoder": tracing.VaeEncoder,
    }
    return wrappers[role](_module(role, modules)).eval()


def _trace_plan(role: str, job: Job) -> tracing.TracePlan:
    configs, tokens = job.checkpoint.configs, job.tokenizer.facts.max_length
    channels = int(configs["vae"].get("latent_channels", 4))
    if role == "text_encoder":
        return tracing.text_encoder_plan(tokens)
    if role == "denoiser":
        width = int(configs["text_encoder"]["hidden_size"])
        return tracing.denoiser_plan(channels, width, job.checkpoint.latent_multiple, tokens)
    if role == "vae_decoder":
        return tracing.vae_decoder_plan(channels)
    return tracing.vae_encoder_plan(job.checkpoint.vae_scale_factor)
