"""A checkpoint of one graph becomes a bundle of its own: traced, stored in the precision asked for, judged in torch.

There is no model beside it whose pictures could be drawn, so it is judged on what its kind makes up. So no convolution
computes in int8, whose fixed ranges would have to be seen on real inputs: in an int8 bundle the weights of its layers
are integers (in an int4 bundle linear ones of four bits), and the rest is fp16.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
import torch

from tintype.bundle import FileFacts, Graph, Parity, Source, file_facts, write_manifest
from tintype.errors import ExportError
from tintype.export.calls import Call
from tintype.export.checkpoint import Checkpoint, check_weights, demand_tensors, load
from tintype.export.fallback import Choice, Unit, rewrite_graph, write_integers
from tintype.export.graphs import BUILD_OPTIONS, run_calls
from tintype.export.known_graphs import graph_of, is_known
from tintype.export.modules import blank_module
from tintype.export.parity import Gate, GraphReport, ParityReport, judge, refuse_failures
from tintype.export.partial import export_key
from tintype.export.placing import Scratch, check_place, placed
from tintype.export.progress import Progress
from tintype.export.quantization import find_layers
from tintype.export.roles import has_four_bits
from tintype.export.simulation import layer_scales
from tintype.export.storage import load_graph, save_graph, stored_bytes
from tintype.export.tracing import TracePlan
from tintype.export.writing import port_of, source_of, write_json
from tintype.strict_json import Misfit

Module = torch.nn.Module


@dataclass(frozen=True, slots=True, kw_only=True)
class Stated:
    """What every manifest of such a bundle says."""

    name: str
    licence: str
    source: Source
    graph: Graph
    files: Mapping[str, FileFacts]
    parity: tuple[Parity, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OneGraph:
    """What is particular to a kind.

    role: of its graph, and its component's name. wrap: the module behind its graph's names. calls: what it is judged
    on, of the wrapped module. finish: changes the traced graph in place. manifest: of what all say.
    """

    role: str
    plan: TracePlan
    wrap: Callable[[Module], Module]
    calls: Callable[[Module], list[Call]]
    finish: Callable[[ir.Model], object]
    manifest: Callable[[Stated], object]

    @property
    def file(self) -> str:
        return f"{self.role}/model.onnx"


def export_one_graph(
    checkpoint: Checkpoint,
    kind: OneGraph,
    bundle: Path,
    *,
    precision: str,
    name: str | None,
    licence: str | None,
    overwrite: bool,
    progress: Progress,
) -> ParityReport:
    """Export it to a bundle folder, which appears whole or not at all; see `export_bundle`."""
    started = time.perf_counter()
    for sentence in checkpoint.source.assumed:
        progress.remark(sentence)
    check_place(bundle, checkpoint, overwrite=overwrite)
    demand_tensors(checkpoint, kind.role)
    with progress.stage("checkpoint", len(checkpoint.entries(kind.role))) as advance:
        check_weights(checkpoint, kind.role, advance)
    key = export_key(checkpoint, {"precision": precision})
    with placed(bundle, checkpoint, key=key, overwrite=overwrite) as scratch:
        report = _write_graph(checkpoint, kind, precision, scratch, progress)
        whole = ParityReport(name or bundle.resolve().name, precision, (report,), 0, 0.0, "quick")
        refuse_failures(whole)
        _write_manifest(checkpoint, kind, report, scratch.bundle, whole.name, licence)
        size = sum(path.stat().st_size for path in scratch.bundle.rglob("*") if path.is_file())
    return replace(whole, bundle_bytes=size, seconds=time.perf_counter() - started)


def _write_graph(
    checkpoint: Checkpoint, kind: OneGraph, precision: str, scratch: Scratch, progress: Progress
) -> GraphReport:
    role, path = kind.role, scratch.bundle / kind.file
    with progress.stage(f"tracing: {role}", 1):  # what isn't known yet, before any weight is read
        blank = kind.wrap(blank_module(checkpoint, role)).eval()
        if not is_known(blank, kind.plan):
            graph_of(blank, kind.plan)
    module = load(checkpoint, role)
    wrapped = kind.wrap(module).eval()
    with progress.stage(f"writing: {role}", 1):
        model = graph_of(wrapped, kind.plan)
        kind.finish(model)
        layers = find_layers(model, four_bits=has_four_bits(role, precision))
        written = path if precision == "fp32" else scratch.fp32 / kind.file
        save_graph(model, written)
    calls = kind.calls(wrapped)

    def judged(stored: str) -> GraphReport:
        with progress.stage(f"parity: {role}", 1):
            outputs = run_calls(path, calls, scratch.folder, BUILD_OPTIONS["quick"])
        references = [reference for call in calls for reference in call.references]
        parity = judge(Gate.of(role, precision), references, outputs, "quick")
        return GraphReport(role, stored, parity, stored_bytes(path))

    if precision == "fp32":
        return judged("fp32")
    if precision == "fp16":
        rewrite_graph(written, path, [], {})
        return judged("fp16")
    with progress.stage(f"scales: {role}", len(layers)) as advance, torch.inference_mode():
        scales = layer_scales(module, layers, None, advance)
    units = sorted((Unit(layer.module, (layer,)) for layer in layers), key=lambda unit: unit.growth)
    return write_integers(Choice(tuple(units), 0), scales, written, path, judged)


def _write_manifest(
    checkpoint: Checkpoint, kind: OneGraph, report: GraphReport, folder: Path, name: str, licence: str | None
) -> None:
    write_json(checkpoint.configs[kind.role], (folder / kind.file).parent / "config.json")
    model = load_graph(folder / kind.file)
    graph = Graph(
        file=kind.file,
        precision=report.precision,
        inputs=tuple(map(port_of, model.graph.inputs)),
        outputs=tuple(map(port_of, model.graph.outputs)),
    )
    try:
        manifest = kind.manifest(
            Stated(
                name=name,
                licence=licence if licence is not None else checkpoint.source.licence,
                source=source_of(checkpoint),
                graph=graph,
                files=file_facts(folder),
                parity=(report.parity,),
            )
        )
    except Misfit as misfit:
        raise ExportError(f"the bundle would not open: {misfit}", fix="give another checkpoint") from None
    write_manifest(folder, manifest)
