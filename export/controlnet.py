"""A ControlNet becomes a bundle of its own: traced, stored in the precision asked for, and judged against torch.

There is no model beside it whose pictures could be drawn, so it is judged on noisy latents at several noise levels,
words of unit variance and pictures of edges and of blotches. So no convolution computes in int8, whose fixed ranges
would have to be seen on real inputs: in an int8 bundle the weights of its layers are, and the rest is fp16.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tintype.bundle import FileFacts, Graph, file_facts, write_manifest
from tintype.bundle.controlnet import ControlManifest
from tintype.bundle.manifest import FULL, XL
from tintype.errors import ExportError
from tintype.export.calls import Call
from tintype.export.checkpoint import Checkpoint, check_weights, demand_tensors, load
from tintype.export.fallback import Choice, Unit, until_it_passes
from tintype.export.graphs import BUILD_OPTIONS, run_calls
from tintype.export.known_graphs import graph_of, is_known
from tintype.export.modules import blank_module
from tintype.export.parity import Gate, GraphReport, ParityReport, judge, refuse_failures
from tintype.export.partial import export_key
from tintype.export.placing import Scratch, check_place, placed
from tintype.export.progress import Progress
from tintype.export.quantization import Layer, Scales, find_layers, halve_weights, quantize_graph
from tintype.export.simulation import layer_scales
from tintype.export.sources.controlnet import open_controlnet_checkpoint
from tintype.export.storage import load_graph, save_graph, stored_bytes
from tintype.export.timestep import take_scalar_timestep
from tintype.export.tracing import TracePlan
from tintype.export.writing import port_of, source_of, write_json
from tintype.strict_json import Misfit
from tintype.uses import CONTROLNET, CONTROLNET_PICTURE, MID_RESIDUAL, down_residual

GRAPH_FILE = "controlnet/model.onnx"
TOKENS, TIME_IDS, POOLED_WIDTH = 77, 6, 1280
TIMES = (981.0, 501.0, 21.0)  # noise levels that it is judged at
JUDGED_UNITS = (4, 3)  # height and width of what it is judged on, in the multiples of latents that it takes


class ControlNet(torch.nn.Module):
    """A ControlNet behind its graph's names, its residuals in the order of `residual_names`.

    sample (batch, C, h, w), timestep (1,), encoder_hidden_states (batch, seq, dim) as a denoiser's; controlnet_cond
    (batch, 3, H, W), 0 to 1. Traces know a wrapper by its name (`known_graphs.structure_of`): one whose forward does
    something else needs another.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.unet = module  # what the names of weights are known without, see `tracing.plain_name`

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        added = None if text_embeds is None else {"text_embeds": text_embeds, "time_ids": time_ids}
        down, middle = self.unet(
            sample, timestep, encoder_hidden_states, controlnet_cond, added_cond_kwargs=added, return_dict=False
        )
        return (*down, middle)


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a ControlNet's inputs and outputs, by its config."""

    channels: int  # of latents
    cell: int  # pixels of its picture for each of theirs, each side
    multiple: int  # of their sides
    words: int  # numbers of a token
    pooled: int | None  # of the prompt as a whole; None where it isn't told of that
    residuals: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        levels = len(config.get("block_out_channels", (320, 640, 1280, 1280)))
        layers = int(config.get("layers_per_block", 2))
        is_xl = config.get("addition_embed_type") == "text_time"
        sizes = TIME_IDS * int(config.get("addition_time_embed_dim") or 0)
        return cls(
            channels=int(config.get("in_channels", 4)),
            cell=2 ** (len(config.get("conditioning_embedding_out_channels") or (16, 32, 96, 256)) - 1),
            multiple=2 ** (levels - 1),
            words=int(config.get("cross_attention_dim", POOLED_WIDTH)),
            pooled=int(config["projection_class_embeddings_input_dim"]) - sizes if is_xl else None,
            residuals=levels * (layers + 1) + 1,
        )

    @property
    def residual_names(self) -> list[str]:
        return [*map(down_residual, range(self.residuals - 1)), MID_RESIDUAL]

    def inputs(self, batch: int, units: tuple[int, int]) -> dict[str, Tensor]:
        """Noise, and a time in the middle. units: height and width in multiples of latents."""
        height, width = (unit * self.multiple for unit in units)
        found = {
            "sample": torch.randn(batch, self.channels, height, width),
            "timestep": torch.tensor([500.0]),
            "encoder_hidden_states": torch.randn(batch, TOKENS, self.words),
            CONTROLNET_PICTURE: torch.rand(batch, 3, height * self.cell, width * self.cell),
        }
        if self.pooled is not None:
            found["text_embeds"] = torch.randn(batch, self.pooled)
            found["time_ids"] = torch.full((batch, TIME_IDS), 512.0)
        return found

    def trace_plan(self) -> TracePlan:
        """The example is small, oblong and of batch 3, so no dim equals another."""
        inputs = self.inputs(3, (6, 4))
        dims: dict[str, dict[int, str]] = {name: {0: "batch"} for name in inputs}
        dims["sample"] = {0: "batch", 2: "height", 3: "width"}
        dims["timestep"] = {}
        dims["encoder_hidden_states"] = {0: "batch", 1: "sequence"}
        dims[CONTROLNET_PICTURE] = {0: "batch", 2: "rows", 3: "columns"}
        outputs = {name: {0: "batch"} for name in self.residual_names}
        return TracePlan(inputs, dims, outputs, {"height": self.multiple, "width": self.multiple})


def export_controlnet(
    source: Path,
    bundle: Path,
    *,
    precision: str,
    name: str | None,
    licence: str | None,
    overwrite: bool,
    progress: Progress,
) -> ParityReport:
    """Export a ControlNet to a bundle folder, which appears whole or not at all; see `export_bundle`."""
    started = time.perf_counter()
    checkpoint = open_controlnet_checkpoint(source)
    for sentence in checkpoint.source.assumed:
        progress.remark(sentence)
    check_place(bundle, checkpoint, overwrite=overwrite)
    demand_tensors(checkpoint, CONTROLNET)
    with progress.stage("checkpoint", len(checkpoint.entries(CONTROLNET))) as advance:
        check_weights(checkpoint, CONTROLNET, advance)
    key = export_key(checkpoint, {"precision": precision})
    with placed(bundle, checkpoint, key=key, overwrite=overwrite) as scratch:
        report = _write_graph(checkpoint, precision, scratch, progress)
        whole = ParityReport(name or bundle.resolve().name, precision, (report,), 0, 0.0, "quick")
        refuse_failures(whole)
        _write_manifest(checkpoint, report, scratch.bundle, whole.name, licence)
        size = sum(path.stat().st_size for path in scratch.bundle.rglob("*") if path.is_file())
    return replace(whole, bundle_bytes=size, seconds=time.perf_counter() - started)


def _write_graph(checkpoint: Checkpoint, precision: str, scratch: Scratch, progress: Progress) -> GraphReport:
    shape = Shape.of(checkpoint.configs[CONTROLNET])
    plan, path = shape.trace_plan(), scratch.bundle / GRAPH_FILE
    with progress.stage(f"tracing: {CONTROLNET}", 1):  # what isn't known yet, before any weight is read
        blank = ControlNet(_unpooled(blank_module(checkpoint, CONTROLNET))).eval()
        if not is_known(blank, plan):
            graph_of(blank, plan)
    module = _unpooled(load(checkpoint, CONTROLNET))
    with progress.stage(f"writing: {CONTROLNET}", 1):
        model = graph_of(ControlNet(module).eval(), plan)
        take_scalar_timestep(model)
        layers = find_layers(model)
        written = path if precision == "fp32" else scratch.fp32 / GRAPH_FILE
        save_graph(model, written)
    calls = _calls(ControlNet(module).eval(), shape)

    def judged(stored: str, choice: Choice | None = None) -> GraphReport:
        with progress.stage(f"parity: {CONTROLNET}", 1):
            outputs = run_calls(path, calls, scratch.folder, BUILD_OPTIONS["quick"])
        references = [reference for call in calls for reference in call.references]
        parity = judge(Gate.of(CONTROLNET, precision), references, outputs, "quick")
        counts = () if choice is None else (len(choice.int8), len(choice.layers), choice.float_names)
        return GraphReport(CONTROLNET, stored, parity, stored_bytes(path), *counts)

    if precision == "fp32":
        return judged("fp32")
    if precision == "fp16":
        _rewrite(written, path, [], {})
        return judged("fp16")
    with progress.stage(f"scales: {CONTROLNET}", len(layers)) as advance, torch.inference_mode():
        scales = layer_scales(module, layers, None, advance)
    units = sorted((Unit(layer.module, (layer,)) for layer in layers), key=lambda unit: unit.parameters)
    choice = Choice(tuple(units), 0)

    def attempt(chosen: Sequence[Layer]) -> GraphReport:
        _rewrite(written, path, chosen, scales)
        return judged("int8" if chosen else "fp16", choice)

    return until_it_passes(choice, attempt)


def _unpooled(module: Any) -> torch.nn.Module:
    """The module without the mean over its residuals, which whoever runs its graph takes."""
    module.register_to_config(global_pool_conditions=False)
    return module  # type: ignore[no-any-return]


def _rewrite(source: Path, path: Path, layers: Sequence[Layer], scales: Mapping[str, Scales]) -> None:
    """The fp32 graph with these layers int8 and all other weights fp16."""
    model = load_graph(source)
    quantize_graph(model, layers, scales)
    halve_weights(model)
    save_graph(model, path)


def _calls(module: torch.nn.Module, shape: Shape) -> list[Call]:
    """What the module gives for noise at several levels, and a picture of edges or of blotches."""
    generator, found = torch.Generator().manual_seed(7), []
    for time_, coarse in zip(TIMES, (2, 4, 8), strict=True):
        inputs = shape.inputs(2, JUDGED_UNITS)
        for name, value in inputs.items():
            if name not in ("timestep", "time_ids"):
                inputs[name] = torch.randn(value.shape, generator=generator)
        cond = inputs[CONTROLNET_PICTURE]
        small = torch.nn.functional.avg_pool2d(cond, coarse) * coarse
        soft = torch.nn.functional.interpolate(small, size=cond.shape[2:], mode="bilinear")
        inputs[CONTROLNET_PICTURE] = (soft > 1.0).float() if coarse == 4 else (soft * 0.25 + 0.5).clamp(0, 1)
        inputs["timestep"] = torch.tensor([time_])
        with torch.inference_mode():
            outputs = module(**inputs)
        feed: dict[str, NDArray[Any]] = {name: value.numpy() for name, value in inputs.items()}
        feed["timestep"] = np.array(time_, np.float32)
        first, *others = (output.numpy() for output in outputs)
        found.append(Call(feed, first, tuple(others)))
    return found


def _write_manifest(checkpoint: Checkpoint, report: GraphReport, folder: Path, name: str, licence: str | None) -> None:
    config = checkpoint.configs[CONTROLNET]
    shape = Shape.of(config)
    write_json(config, (folder / GRAPH_FILE).parent / "config.json")
    model = load_graph(folder / GRAPH_FILE)
    graph = Graph(
        file=GRAPH_FILE,
        precision=report.precision,
        inputs=tuple(map(port_of, model.graph.inputs)),
        outputs=tuple(map(port_of, model.graph.outputs)),
    )
    files: Mapping[str, FileFacts] = file_facts(folder)
    try:
        manifest = ControlManifest(
            name=name,
            licence=licence if licence is not None else checkpoint.source.licence,
            source=source_of(checkpoint),
            controls="stable-diffusion" if shape.pooled is None else XL,
            latent_channels=shape.channels,
            vae_scale_factor=shape.cell,
            pooled=bool(config.get("global_pool_conditions", False)),
            graphs={CONTROLNET: {FULL: graph}},
            files=files,
            parity=(report.parity,),
        )
    except Misfit as misfit:
        raise ExportError(f"the bundle would not open: {misfit}", fix="give another ControlNet") from None
    write_manifest(folder, manifest)
