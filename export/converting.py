"""The graphs of a folder that optimum exported: rewritten to canonical ones, stored, and judged against what they were.

No torch is needed: both graphs run in ONNX Runtime on the same inputs, the folder's own as it is, the canonical one as
the processor runs it. Words are encoded by the folder's own text encoders; latents and pictures are noise.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.engine import graph_session, measure_ranges
from tintype.errors import ExportError
from tintype.export.calls import Feed
from tintype.export.canonical import PortError, RolePlan, UnknownOperatorError, canonical_graph
from tintype.export.checkpoint import Checkpoint
from tintype.export.fallback import write_integers
from tintype.export.onnx_int8 import Quantizing
from tintype.export.parity import QUANTIZED, Gate, GraphReport, judge
from tintype.export.placing import Scratch
from tintype.export.plans import ExportPlan
from tintype.export.progress import Progress
from tintype.export.quantization import halve_weights
from tintype.export.roles import CLIP_LAYERS, COMPONENT_OF, GRAPH_FILES, clip_skips
from tintype.export.storage import save_graph, stored_bytes
from tintype.export.tokenizer import BundleTokenizer
from tintype.sources.families import tokenizer_of
from tintype.sources.onnx_folder import EXPORT_AGAIN, GRAPH

REFERENCE = "the folder's own graph, fp32"
TIMES = (999.0, 500.0, 1.0)
GATE_UNITS = (2, 3)  # height and width of what graphs are judged on, in what they may be multiples of


@dataclass(frozen=True, slots=True)
class Call:
    """One call of both graphs."""

    feed: Feed
    references: Mapping[str, NDArray[Any]]  # what the folder's own graph gives, by our names


def write_graphs(
    checkpoint: Checkpoint,
    tokenizers: Mapping[str, BundleTokenizer],
    precision: str,
    plan: ExportPlan,
    scratch: Scratch,
    progress: Progress,
) -> list[GraphReport]:
    """Write every role's graph into the scratch bundle; the reports say how near each came, nothing is refused here.

    plan: of what is walked to choose layers of integers; in other precisions its words alone are read. Raises
    ExportError for a graph that isn't known well enough to be rewritten.
    """
    roles = roles_of(checkpoint, progress)
    if precision in QUANTIZED:
        return _write_quantized(Quantizing(checkpoint, tokenizers, precision, plan, scratch, progress), roles)
    random = np.random.default_rng(0)
    reports, texts = [], dict[str, Mapping[str, NDArray[Any]]]()
    for role in roles:
        rewriting = _Rewriting.of(checkpoint, role)
        path = scratch.bundle / GRAPH_FILES[role]
        with progress.stage(f"rewriting: {role}", 1):
            rewriting.write(path, precision)
        with progress.stage(f"parity: {role}", 1):
            feeds = _feeds(checkpoint, role, tokenizers, plan.gates.prompts[:1], texts, random)
            calls = rewriting.answers(path, feeds)
            if role.startswith("text_encoder"):
                texts[role] = calls[0].references
            report = _judged(Gate.of(role, precision), path, calls, precision)
            reports.append(replace(report, largest=_largest(path, calls)))
    return reports


def _write_quantized(work: Quantizing, roles: Sequence[str]) -> list[GraphReport]:
    """The same with layers of integers; those that would miss a gate go finer, in the end to fp16."""
    reports = []
    for role in work.in_order(roles):
        rewriting, path = _Rewriting.of(work.checkpoint, role), work.scratch.bundle / GRAPH_FILES[role]
        with work.progress.stage(f"rewriting: {role}", 1):
            rewriting.write(work.fp32(role), "fp32")
        prepared = work.prepare(role)
        with work.progress.stage(f"parity: {role}", 1):
            calls = rewriting.answers(work.fp32(role), prepared.feeds)
            gate = Gate.of(role, work.precision)
            judged = functools.partial(_judged, gate, path, calls)
            report = write_integers(prepared.choice, prepared.scales, work.fp32(role), path, judged)
            reports.append(replace(report, largest=_largest(path, calls)))
        work.fp32(role).with_name("model.onnx_data").unlink(missing_ok=True)
    return reports


def role_plan(checkpoint: Checkpoint, role: str) -> RolePlan:
    """What a role's graph takes and gives."""
    latent = checkpoint.latent_channels
    if role == "vae_decoder":
        return RolePlan(role, {"latent_sample": ("batch", latent, "height", "width")}, {"sample": "sample"})
    if role == "vae_encoder":
        picture = ("batch", 3, "height", "width")
        names = {"latent_parameters": "latent_parameters"}
        return RolePlan(role, {"sample": picture}, names, checkpoint.vae_scale_factor)
    if role == "denoiser":
        return _denoiser_plan(checkpoint)
    tokens, _ = checkpoint.text_limits(role)
    layers = int(checkpoint.configs[role].get("num_hidden_layers", CLIP_LAYERS))
    is_xl = checkpoint.family.is_xl
    return RolePlan(
        role, {"input_ids": ("batch", tokens)}, {}, layers=layers, is_xl=is_xl,
        most_skips=clip_skips(layers, is_xl=is_xl),
    )  # fmt: skip


def _denoiser_plan(checkpoint: Checkpoint) -> RolePlan:
    width = int(checkpoint.configs["unet"]["cross_attention_dim"])
    inputs: dict[str, tuple[int | str, ...]] = {
        "sample": ("batch", checkpoint.sample_channels, "height", "width"),
        "timestep": (),
        "encoder_hidden_states": ("batch", "sequence", width),
    }
    if checkpoint.family.is_xl:
        inputs["text_embeds"] = ("batch", checkpoint.projection_dim)
        inputs["time_ids"] = ("batch", checkpoint.family.time_ids)
    if checkpoint.guidance_embedding is not None:
        inputs["timestep_cond"] = ("batch", checkpoint.guidance_embedding)
    return RolePlan("denoiser", inputs, {"out_sample": "out_sample"}, checkpoint.latent_multiple)


def roles_of(checkpoint: Checkpoint, progress: Progress) -> list[str]:
    """The roles that the folder has graphs of, in the order of a picture."""
    roles = [role for role in GRAPH_FILES if COMPONENT_OF[role] in checkpoint.components]
    if (
        not checkpoint.has("vae_encoder")
        or "latent_parameters" not in checkpoint.source.graphs["vae_encoder"].facts.outputs
    ):
        sentence = "the folder has no vae_encoder that gives latent_parameters"
        if checkpoint.takes_picture or checkpoint.family.name.endswith("refiner"):
            raise ExportError(f"{sentence}, and this model begins with a picture", fix=EXPORT_AGAIN)
        progress.remark(f"{sentence}: the bundle draws from words, and takes no picture to begin with")
        roles.remove("vae_encoder")
    return roles


@dataclass(frozen=True, slots=True)
class _Rewriting:
    """A folder's own graph of a role, and what it is to become."""

    source: Path
    plan: RolePlan

    @classmethod
    def of(cls, checkpoint: Checkpoint, role: str) -> _Rewriting:
        part = "unet" if role == "denoiser" else role
        return cls(checkpoint.source.graphs[part].path, role_plan(checkpoint, role))

    def write(self, path: Path, precision: str) -> None:
        """The canonical graph. Raises ExportError."""
        model = rewritten(self.source, self.plan)
        if precision == "fp16":
            halve_weights(model)
        save_graph(model, path)

    def answers(self, path: Path, feeds: Sequence[Feed]) -> list[Call]:
        """What the folder's own graph gives for each feed, by the names of the one at `path`."""
        ports = {str(value.name): value for value in ir.load(self.source).graph.inputs}
        ours = [str(value.name) for value in ir.load(path).graph.outputs]
        theirs = {name: _their_name(name, self.plan) for name in ours}
        calls = []
        with graph_session(self.source, lowered=False) as session:
            for feed in feeds:
                outputs = session.run({name: _as_port(array, ports[name]) for name, array in feed.items()})
                calls.append(Call(feed, {name: outputs[theirs[name]] for name in ours if theirs[name] in outputs}))
        return calls


def rewritten(source: Path, plan: RolePlan) -> ir.Model:
    """The canonical graph of one of a folder's. Raises ExportError."""
    name = f"{source.parent.name}/{GRAPH}"
    try:
        return canonical_graph(source, plan)[0]
    except UnknownOperatorError as error:
        raise ExportError(
            f"{name} has {error}, which isn't known here",
            fix=f"{EXPORT_AGAIN} (optimum-onnx 0.1 is what this is tested with), or export the checkpoint itself",
        ) from None
    except PortError as error:
        raise ExportError(f"{name} isn't the graph of a {plan.role}: {error}", fix=EXPORT_AGAIN) from None
    except Exception as error:  # whatever the libraries that read graphs say of one that isn't sound
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ExportError(f"{name} can't be rewritten: {told}", fix=EXPORT_AGAIN) from None


def _judged(gate: Gate, path: Path, calls: Sequence[Call], precision: str) -> GraphReport:
    references, found = list[NDArray[Any]](), list[NDArray[Any]]()
    with graph_session(path) as session:
        for call in calls:
            outputs = session.run(call.feed)
            references += call.references.values()
            found += [outputs[name] for name in call.references]
    parity = replace(judge(gate, references, found, "quick"), reference=REFERENCE)
    return GraphReport(gate.role, precision, parity, stored_bytes(path))


def _largest(path: Path, calls: Sequence[Call]) -> dict[str, float]:
    return measure_ranges(path, [call.feed for call in calls])


def _their_name(name: str, plan: RolePlan) -> str:
    """What optimum calls an output of ours; earlier states of 1.x have no output there, and no reference."""
    if plan.layers and plan.is_xl and name != "text_embeds":
        skip = 0 if name == "hidden_states" else int(name.rpartition(".")[2])
        return f"hidden_states.{plan.layers - 1 - skip}"
    return plan.outputs.get(name, name)


def _as_port(array: NDArray[Any], port: ir.Value) -> NDArray[Any]:
    """A timestep may be (1,) there, or a whole number; ids may be shorter."""
    cast = array.astype(port.dtype.numpy()) if port.dtype is not None else array
    return cast.reshape((1,) * len(port.shape)) if cast.ndim == 0 and port.shape is not None else cast


def _feeds(
    checkpoint: Checkpoint,
    role: str,
    tokenizers: Mapping[str, BundleTokenizer],
    words: Sequence[str],
    texts: Mapping[str, Mapping[str, NDArray[Any]]],
    random: np.random.Generator,
) -> list[Feed]:
    """Small inputs of a role; the batch is two, the first without words."""
    if role.startswith("text_encoder"):
        tokenizer = tokenizers[tokenizer_of(role)]
        return [{"input_ids": np.array([tokenizer.ids(text) for text in ("", *words)], np.int64)}]
    if role == "denoiser":
        return _denoiser_feeds(checkpoint, texts, random)
    height, width = GATE_UNITS
    if role == "vae_decoder":
        latents = random.standard_normal((2, checkpoint.latent_channels, 4 * height, 4 * width), np.float32)
        return [{"latent_sample": latents / np.float32(checkpoint.scaling_factor)}]
    factor = 4 * checkpoint.vae_scale_factor
    return [{"sample": random.uniform(-1, 1, (2, 3, factor * height, factor * width)).astype(np.float32)}]


def _denoiser_feeds(
    checkpoint: Checkpoint, texts: Mapping[str, Mapping[str, NDArray[Any]]], random: np.random.Generator
) -> list[Feed]:
    height, width = (checkpoint.latent_multiple * units for units in GATE_UNITS)
    states = [next(iter(outputs.values())) for outputs in texts.values()]
    fixed: Feed = {"encoder_hidden_states": np.concatenate(states, axis=-1)}
    if checkpoint.family.is_xl:
        side = float(checkpoint.latent_size * checkpoint.vae_scale_factor)
        ids = [side, side, 0.0, 0.0, side, side] if checkpoint.family.time_ids == 6 else [side, side, 0.0, 0.0, 6.0]
        fixed |= {"text_embeds": texts["text_encoder_2"]["text_embeds"], "time_ids": np.array([ids, ids], np.float32)}
    if checkpoint.guidance_embedding is not None:
        fixed["timestep_cond"] = random.uniform(-1, 1, (2, checkpoint.guidance_embedding)).astype(np.float32)
    feeds = []
    for time in TIMES:
        one = random.standard_normal((1, checkpoint.sample_channels, height, width), np.float32)
        feeds.append({"sample": np.repeat(one, 2, axis=0), "timestep": np.array(time, np.float32), **fixed})
    return feeds
