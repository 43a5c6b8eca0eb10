"""The graphs of a bundle: traced, stored in the precision asked for, and judged against torch on the lowered graph.

Parts of the checkpoint are in memory one after another, in the order in which a picture needs them: each makes the
real inputs of the next. A graph is judged as it will run: canonical file -> the CPU's lowering -> ONNX Runtime. An
int8 or int4 graph that misses its gate gives layers back to more bits until it passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tintype.bundle import PreviewFactors
from tintype.bundle.preview import MAX_PREVIEW_FACTOR
from tintype.engine import BuildOptions, graph_session, measure_ranges, return_large_blocks
from tintype.export.calibration_data import CalibrationData
from tintype.export.calls import Call, TrajectoryPlan
from tintype.export.fallback import Choice, Trial, choose, rewrite_graph, write_integers
from tintype.export.known_graphs import graph_of, is_known
from tintype.export.modules import Modules
from tintype.export.parity import QUANTIZED, Gate, GraphReport, judge
from tintype.export.picture_channels import picture_channels
from tintype.export.placing import Scratch
from tintype.export.plans import ExportPlan
from tintype.export.progress import Progress
from tintype.export.quantization import Layer, Scales, find_layers
from tintype.export.roles import COMPONENT_OF, FLOAT_ROLES, GRAPH_FILES, KEPT_CALLS, has_four_bits
from tintype.export.simulation import ActivationStatistics, layer_scales, quantized
from tintype.export.storage import save_graph, stored_bytes
from tintype.export.timestep import take_scalar_timestep
from tintype.export.tokenizer import BundleTokenizer
from tintype.export.tracing import TracePlan
from tintype.export.trajectories import (
    PictureChannels,
    Words,
    calibration_walks,
    decoder_call,
    encoder_call,
    gate_walks,
    text_call,
    words_of,
)
from tintype.export.wrappers import trace_plan
from tintype.image.preview import fit_factors
from tintype.sources.families import tokenizer_of

# Weights that are read where they lie, not laid out for speed, need no second room; few calls are no slower by it.
BUILD_OPTIONS = {"quick": BuildOptions(mapped=True), "full": BuildOptions()}


@dataclass(frozen=True, slots=True)
class Job:
    """What every graph's making needs."""

    modules: Modules
    tokenizers: Mapping[str, BundleTokenizer]  # by folder: tokenizer, tokenizer_2
    plan: ExportPlan
    precision: str
    scratch: Scratch
    progress: Progress


@dataclass(frozen=True, slots=True)
class Quantized:
    """Which layers of a role are integers, and with which scales."""

    choice: Choice
    scales: Mapping[str, Scales]


def write_graphs(job: Job) -> list[GraphReport]:
    """Write every role's graph into the scratch bundle; the reports say how near each came, nothing is refused here.

    Graphs that an export which was broken off has finished are left as they are.
    """
    return_large_blocks()  # what torch computes with comes and goes, a gigabyte of it stays between small blocks else
    data, reports, partial = CalibrationData(), [], job.scratch.partial
    if job.modules.checkpoint.takes_picture and "denoiser" not in partial.reports:
        with job.progress.stage("pictures", 1):
            data.pictures = _pictures(job)
        job.modules.release("vae")
    for component in job.modules.checkpoint.components:
        roles = [role for role in GRAPH_FILES if COMPONENT_OF[role] == component]
        missing = [role for role in roles if role not in partial.reports]
        chosen: dict[str, Quantized] = {}
        if missing:
            _learn_structures(job, missing)
            layers = {role: _write_fp32(job, role) for role in missing}
            chosen = _calibrate(job, component, layers, data)
            job.modules.release(component)
            partial.write_inputs(component, data.arrays_of(component))
        else:
            data.restore(component, partial.read_inputs(component))
        for role in roles:
            reports.append(partial.reports.get(role) or _finish(job, role, data, chosen.get(role)))
    return reports


def unfinished(job: Job) -> list[str]:
    """Components of which a graph is still to be made, in order."""
    roles = [role for role in GRAPH_FILES if role not in job.scratch.partial.reports]
    return [each for each in job.modules.checkpoint.components if each in {COMPONENT_OF[role] for role in roles}]


def _finish(job: Job, role: str, data: CalibrationData, chosen: Quantized | None) -> GraphReport:
    """A role's graph, written and judged; one that passed is kept."""
    calls, partial, path = data.gate_calls[role], job.scratch.partial, job.scratch.bundle / GRAPH_FILES[role]
    with job.progress.stage(f"parity: {role}", 1):
        report = _write_graph(job, role, calls, chosen)
        report = replace(report, largest=_ranges(job, role, calls), preview=data.previews.get(role))
        if report.parity.passed:
            partial.keep(role, report, [*path.parent.iterdir(), partial.inputs_of(COMPONENT_OF[role])])
    (job.scratch.fp32 / GRAPH_FILES[role]).with_name("model.onnx_data").unlink(missing_ok=True)
    return report


def _pictures(job: Job) -> PictureChannels:
    """What every walk takes beside latents, by its seed: walks may be of different sizes."""
    gates, calibration, trials = job.plan.gates, job.plan.calibration, job.plan.trials
    found = dict(picture_channels(job.modules, gates, gates.gate_seeds))
    if job.precision in QUANTIZED:
        found |= picture_channels(job.modules, calibration, calibration.calibration_seeds)
        found |= {} if trials is None else picture_channels(job.modules, trials, trials.calibration_seeds)
    return found


def _ranges(job: Job, role: str, calls: Sequence[Call]) -> dict[str, float]:
    """How large the stored graph's values get, on the first, the last and a middle one of its calls."""
    chosen = sorted({0, len(calls) // 2, len(calls) - 1})
    return measure_ranges(job.scratch.bundle / GRAPH_FILES[role], [calls[index].feed for index in chosen])


def _learn_structures(job: Job, roles: Sequence[str]) -> None:
    """Trace what isn't known yet before any weight is read: the tracer keeps what it saw as long as the process lives,
    and weights would then be in memory beside the graph that is judged."""
    for role in roles:
        with job.progress.stage(f"tracing: {role}", 1):
            module, plan = job.modules.blank(role), _trace_plan(job, role)
            if not is_known(module, plan):
                graph_of(module, plan)


def _write_fp32(job: Job, role: str) -> Sequence[Layer]:
    """Write a role's fp32 graph; which of its layers could be integers."""
    folder = job.scratch.bundle if job.precision == "fp32" else job.scratch.fp32
    with job.progress.stage(f"writing: {role}", 1):
        model = graph_of(job.modules.wrapped(role), _trace_plan(job, role))
        take_scalar_timestep(model)
        layers = find_layers(model, four_bits=has_four_bits(role, job.precision))
        save_graph(model, folder / GRAPH_FILES[role])
    return layers


def _trace_plan(job: Job, role: str) -> TracePlan:
    return trace_plan(job.modules.checkpoint, role, next(iter(job.tokenizers.values())).facts.max_length)


def _calibrate(
    job: Job, component: str, layers: Mapping[str, Sequence[Layer]], data: CalibrationData
) -> dict[str, Quantized]:
    """Run a component on what it meets when pictures are made; choose the layers that become integers."""
    module, rounds = job.modules.part(component), job.precision in QUANTIZED
    chosen = {role: each for role, each in layers.items() if rounds and role not in FLOAT_ROLES}
    watched = [layer for each in chosen.values() for layer in each]
    decodes = component in (COMPONENT_OF["vae_decoder"], COMPONENT_OF["tiny_decoder"])
    calls = len(data.calibration_latents) if decodes else 2 * job.plan.calibration.calibration_calls
    statistics = ActivationStatistics(module, watched, calls)
    if component == "unet":
        _sample_trajectories(job, data, statistics)
    elif decodes:
        _decode(job, component, data, statistics)
    else:
        _read(job, component, data)
    found = {}
    for role, each in chosen.items():
        with job.progress.stage(f"scales: {role}", len(each)) as advance, torch.inference_mode():
            scales = layer_scales(module, each, statistics, advance)
        statistics.forget(each)
        found[role] = Quantized(_choose(job, role, each, scales, data.trial_calls[role]), scales)
    return found


def _read(job: Job, role: str, data: CalibrationData) -> None:
    tokenizer = job.tokenizers[tokenizer_of(role)]
    data.gate_calls[role] = [text_call(job.modules, role, tokenizer, ["", *job.plan.gates.gates])]
    data.trial_calls[role] = [text_call(job.modules, role, tokenizer, ["", *job.plan.calibration.calibration])]


def _sample_trajectories(job: Job, data: CalibrationData, statistics: ActivationStatistics) -> None:
    plan, modules = job.plan, job.modules
    words = _words(job, data.gate_calls, plan.gates)
    with job.progress.stage("real inputs", plan.gates.gate_prompts * (plan.gates.steps + 1)) as advance:
        data.gate_calls["denoiser"], data.gate_latents = gate_walks(modules, words, plan.gates, data.pictures, advance)
    if job.precision not in QUANTIZED:
        return
    walks, words = plan.calibration, _words(job, data.trial_calls, plan.calibration)
    with job.progress.stage("calibration", walks.calibration_calls) as advance, statistics.watching():
        kept, data.calibration_latents = calibration_walks(modules, words, walks, data.pictures, KEPT_CALLS, advance)
    if plan.trials is not None:
        words = _words(job, data.trial_calls, plan.trials)
        with job.progress.stage("trial inputs", plan.trials.calibration_calls) as advance:
            kept, _ = calibration_walks(modules, words, plan.trials, data.pictures, KEPT_CALLS, advance)
    data.trial_calls["denoiser"] = kept


def _words(job: Job, calls: Mapping[str, Sequence[Call]], plan: TrajectoryPlan) -> Words:
    return words_of(job.modules, plan, [calls[role][0] for role in job.modules.checkpoint.family.text_encoders])


def _decode(job: Job, component: str, data: CalibrationData, statistics: ActivationStatistics) -> None:
    encoder, decoder = (role for role in GRAPH_FILES if COMPONENT_OF[role] == component)
    calls = [decoder_call(job.modules, decoder, latents) for latents in data.gate_latents]
    data.gate_calls[decoder] = calls
    data.gate_calls[encoder] = [encoder_call(job.modules, encoder, call.reference) for call in calls]
    with statistics.watching():
        tried = [decoder_call(job.modules, decoder, latents) for latents in data.calibration_latents]
    data.trial_calls[decoder] = tried[:KEPT_CALLS]
    if decoder == "vae_decoder":
        latents, decoded = (data.calibration_latents, tried) if tried else (data.gate_latents, calls)
        found = _preview(torch.cat(latents).numpy(), np.concatenate([call.reference for call in decoded]))
        data.previews |= {} if found is None else {decoder: found}


def _preview(latents: NDArray[np.float32], samples: NDArray[np.float32]) -> PreviewFactors | None:
    """What these latents look like, by what the decoder made of them; None of a decoder that broke down."""
    if not (np.isfinite(latents).all() and np.isfinite(samples).all()):
        return None
    weights, bias = fit_factors(latents, samples)
    if max(abs(weights).max(), abs(bias).max()) > MAX_PREVIEW_FACTOR:
        return None
    rows = tuple((float(red), float(green), float(blue)) for red, green, blue in (*weights.round(4), bias.round(4)))
    return PreviewFactors(weights=rows[:-1], bias=rows[-1])


def _choose(
    job: Job, role: str, layers: Sequence[Layer], scales: Mapping[str, Scales], calls: Sequence[Call]
) -> Choice:
    """Which layers of a role become integers, by trial in torch."""
    module = job.modules.wrapped(role)

    def answer(call: Call) -> NDArray[np.float32]:
        outputs = module(**{name: torch.from_numpy(array) for name, array in call.feed.items()})
        first: torch.Tensor = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
        return first.numpy()

    def run(chosen: Sequence[Layer], calls: Sequence[Call]) -> list[NDArray[np.float32]]:
        with torch.inference_mode(), quantized(job.modules.of_role(role), chosen, scales):
            return [answer(call) for call in calls]

    trial = Trial(run, calls, Gate.of(role, job.precision))
    return choose(trial, layers, job.plan.damage_seconds, f"damage: {role}", job.progress)


def _write_graph(job: Job, role: str, calls: Sequence[Call], found: Quantized | None) -> GraphReport:
    """A role's graph in the precision asked for, judged. found: of one that is to have integers."""
    source, path = job.scratch.fp32 / GRAPH_FILES[role], job.scratch.bundle / GRAPH_FILES[role]
    if found is not None:
        return write_integers(
            found.choice, found.scales, source, path, lambda stored: _check_parity(job, role, calls, stored)
        )
    if job.precision == "fp32":
        return _check_parity(job, role, calls, "fp32")
    rewrite_graph(source, path, [], {})
    return _check_parity(job, role, calls, "fp16")


def run_calls(path: Path, calls: Sequence[Call], place: Path, options: BuildOptions) -> list[NDArray[np.float32]]:
    """The outputs of each call, on the graph as the CPU runs it: as many as the call has references, in order.

    place: a folder for the build, as large as the graph once more or twice.
    """
    found = []
    with graph_session(path, options=options, place=place) as session:
        for call in calls:
            outputs = session.run(call.feed)
            found += [outputs[name] for name in session.output_names[: len(call.references)]]
    return found


def _check_parity(job: Job, role: str, calls: Sequence[Call], precision: str) -> GraphReport:
    path = job.scratch.bundle / GRAPH_FILES[role]
    references = [reference for call in calls for reference in call.references]
    outputs = run_calls(path, calls, job.scratch.folder, BUILD_OPTIONS[job.plan.parity])
    parity = judge(Gate.of(role, job.precision), references, outputs, job.plan.parity)
    return GraphReport(role, precision, parity, stored_bytes(path))
