"""A T2I-Adapter becomes a bundle of its own: traced, stored in the precision asked for, and judged against torch.

It consists of convolutions, and runs once a picture. Their int8 form has fixed ranges, which would have to be seen on
real inputs, and it saves no time that could be seen: so asked for int8 it is stored in fp16, and its manifest says so.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tintype.bundle import Graph, file_facts, write_manifest
from tintype.bundle.manifest import FULL, XL
from tintype.bundle.t2i_adapter import AdapterManifest
from tintype.errors import ExportError
from tintype.export.calls import Call
from tintype.export.checkpoint import Checkpoint, check_weights, demand_tensors, load
from tintype.export.graphs import BUILD_OPTIONS, run_calls
from tintype.export.known_graphs import graph_of, is_known
from tintype.export.modules import blank_module
from tintype.export.parity import Gate, GraphReport, ParityReport, judge, refuse_failures
from tintype.export.partial import export_key
from tintype.export.placing import Scratch, check_place, placed
from tintype.export.progress import Progress
from tintype.export.quantization import halve_weights
from tintype.export.sources.t2i_adapter import FULL as FULL_ADAPTER
from tintype.export.sources.t2i_adapter import FULL_XL, LIGHT
from tintype.export.storage import save_graph, stored_bytes
from tintype.export.tracing import TracePlan
from tintype.export.writing import port_of, source_of, write_json
from tintype.strict_json import Misfit
from tintype.uses import ADAPTER_PICTURE, T2I_ADAPTER, adapter_feature

GRAPH_FILE = "t2i_adapter/model.onnx"
JUDGED_UNITS = (4, 3)  # height and width of what it is judged on, in the multiples of pixels that it takes


class T2IAdapterGraph(torch.nn.Module):
    """A T2I-Adapter behind its graph's names: a picture (batch, 1 or 3, rows, columns), 0 to 1, to features.

    Rows and columns are multiples of the coarsest feature's cells, so that no mean is over less than a whole cell.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        for part in module.modules():
            if isinstance(part, torch.nn.AvgPool2d):
                part.ceil_mode = False
        self.unet = module  # what the names of weights are known without, see `tracing.plain_name`

    def forward(self, adapter_cond: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.unet(adapter_cond))


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a T2I-Adapter's input and outputs, by its config."""

    kind: str
    channels: int  # of its picture
    features: int
    multiple: int  # of pixels, each side, that its picture has

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        kind, levels = config.get("adapter_type", FULL_ADAPTER), len(config.get("channels", range(4)))
        halvings = {FULL_ADAPTER: levels - 1, FULL_XL: int(levels > 2), LIGHT: levels}[kind]
        return cls(
            kind=kind,
            channels=int(config.get("in_channels", 3)),
            features=levels + (kind == LIGHT),
            multiple=int(config.get("downscale_factor", 8)) * 2**halvings,
        )

    def picture(self, batch: int, units: tuple[int, int]) -> Tensor:
        return torch.rand(batch, self.channels, *(unit * self.multiple for unit in units))

    def trace_plan(self) -> TracePlan:
        """The example is small, oblong and of batch 2, so no dim equals another."""
        return TracePlan(
            {ADAPTER_PICTURE: self.picture(2, (4, 3))},
            {ADAPTER_PICTURE: {0: "batch", 2: "rows", 3: "columns"}},
            {adapter_feature(number): {0: "batch"} for number in range(self.features)},
            {"rows": self.multiple, "columns": self.multiple},
        )


def export_t2i_adapter(
    checkpoint: Checkpoint,
    bundle: Path,
    *,
    precision: str,
    name: str | None,
    licence: str | None,
    overwrite: bool,
    progress: Progress,
) -> ParityReport:
    """Export a T2I-Adapter to a bundle folder, which appears whole or not at all; see `export_bundle`."""
    started = time.perf_counter()
    for sentence in checkpoint.source.assumed:
        progress.remark(sentence)
    check_place(bundle, checkpoint, overwrite=overwrite)
    demand_tensors(checkpoint, T2I_ADAPTER)
    with progress.stage("checkpoint", len(checkpoint.entries(T2I_ADAPTER))) as advance:
        check_weights(checkpoint, T2I_ADAPTER, advance)
    key = export_key(checkpoint, {"precision": precision})
    with placed(bundle, checkpoint, key=key, overwrite=overwrite) as scratch:
        report, graph = _write_graph(checkpoint, precision, scratch, progress)
        whole = ParityReport(name or bundle.resolve().name, precision, (report,), 0, 0.0, "quick")
        refuse_failures(whole)
        _write_manifest(checkpoint, report, graph, scratch.bundle, whole.name, licence)
        size = sum(path.stat().st_size for path in scratch.bundle.rglob("*") if path.is_file())
    return replace(whole, bundle_bytes=size, seconds=time.perf_counter() - started)


def _write_graph(
    checkpoint: Checkpoint, precision: str, scratch: Scratch, progress: Progress
) -> tuple[GraphReport, Graph]:
    shape = Shape.of(checkpoint.configs[T2I_ADAPTER])
    plan, path, stored = shape.trace_plan(), scratch.bundle / GRAPH_FILE, "fp32" if precision == "fp32" else "fp16"
    with progress.stage(f"tracing: {T2I_ADAPTER}", 1):  # what isn't known yet, before any weight is read
        blank = T2IAdapterGraph(blank_module(checkpoint, T2I_ADAPTER)).eval()
        if not is_known(blank, plan):
            graph_of(blank, plan)
    module = T2IAdapterGraph(load(checkpoint, T2I_ADAPTER)).eval()
    with progress.stage(f"writing: {T2I_ADAPTER}", 1):
        model = graph_of(module, plan)
        if stored == "fp16":
            halve_weights(model)
        graph = Graph(
            file=GRAPH_FILE,
            precision=stored,
            inputs=tuple(map(port_of, model.graph.inputs)),
            outputs=tuple(map(port_of, model.graph.outputs)),
        )
        save_graph(model, path)
    calls = _calls(module, shape)
    with progress.stage(f"parity: {T2I_ADAPTER}", 1):
        outputs = run_calls(path, calls, scratch.folder, BUILD_OPTIONS["quick"])
    references = [reference for call in calls for reference in call.references]
    parity = judge(Gate.of(T2I_ADAPTER, precision), references, outputs, "quick")
    return GraphReport(T2I_ADAPTER, stored, parity, stored_bytes(path)), graph


def _calls(module: torch.nn.Module, shape: Shape) -> list[Call]:
    """What the module gives for pictures of edges, of blotches and of noise."""
    generator, found = torch.Generator().manual_seed(7), []
    for coarse in (2, 4, 1):
        picture = torch.rand(shape.picture(1, JUDGED_UNITS).shape, generator=generator)
        small = torch.nn.functional.avg_pool2d(picture, coarse)
        soft = torch.nn.functional.interpolate(small, size=picture.shape[2:], mode="bilinear")
        picture = (soft > 0.6).float() if coarse == 2 else soft
        with torch.inference_mode():
            first, *others = (output.numpy() for output in module(picture))
        found.append(Call({ADAPTER_PICTURE: picture.numpy()}, first, tuple(others)))
    return found


def _write_manifest(
    checkpoint: Checkpoint, report: GraphReport, graph: Graph, folder: Path, name: str, licence: str | None
) -> None:
    config = checkpoint.configs[T2I_ADAPTER]
    write_json(config, (folder / GRAPH_FILE).parent / "config.json")
    try:
        manifest = AdapterManifest(
            name=name,
            licence=licence if licence is not None else checkpoint.source.licence,
            source=source_of(checkpoint),
            controls=XL if Shape.of(config).kind == FULL_XL else "stable-diffusion",
            graphs={T2I_ADAPTER: {FULL: graph}},
            files=file_facts(folder),
            parity=(report.parity,),
        )
    except Misfit as misfit:
        raise ExportError(f"the bundle would not open: {misfit}", fix="give another T2I-Adapter") from None
    write_manifest(folder, manifest)
