"""The child process that makes builds: the one place of the runtime where onnx graphs are read and rewritten.

Reads a list of jobs as JSON on stdin; for each it writes `model.onnx` and its weights into the job's folder, and
`once.onnx` beside it where a part of the graph need run only once a prompt. Answers with the reports, see `child`. Run
as `python -m tintype.engine.build.lower`.
"""

from __future__ import annotations

import gc
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tintype.engine.build.cache import WEIGHTS
from tintype.engine.build.change import change_graph
from tintype.engine.build.child import answer_parent, attempt_all
from tintype.engine.build.late import import_late
from tintype.engine.build.options import ANY_SHAPE, BuildOptions
from tintype.engine.device.machine import default_threads, processor_kind
from tintype.engine.device.process_memory import peak_rss_bytes
from tintype.engine.device.providers import TARGETS, Target, load_onnxruntime
from tintype.engine.run.session_options import MODEL, NUMPY_TYPES, ONCE, UNREAD, session_options

if TYPE_CHECKING:
    import onnx_ir as ir

    from tintype.engine.build.measure import Way
    from tintype.engine.run.chain import ChainFacts, Port
    from tintype.kernels.graph.choice import Layer

SMALLEST_EXTERNAL_BYTES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to build, and where to."""

    source: Path
    folder: Path
    target: Target
    lowered: bool = True  # False: only as ONNX Runtime optimizes it
    options: BuildOptions = ANY_SHAPE
    costs: Path | None = None  # what was measured before
    weights: Path | None = None  # where builds share large weights
    largest: Mapping[str, float] | None = None  # of the canonical graph's values, as the export measured them
    changed: Path | None = None  # weights in the place of the graph's own, as `merge.merge_weights` wrote them

    @property
    def computes_half(self) -> bool:
        """Whether a balanced build for this target computes in float16, where the device can."""
        from tintype.kernels.registry import HALF_TARGETS

        return self.target.name in HALF_TARGETS and self.options.exactness == "balanced"

    @property
    def threads(self) -> int:
        return self.options.threads or default_threads()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        paths = {name: str(path.resolve()) if path else None for name, path in self._paths().items()}
        rest = {"target": self.target.name, "lowered": self.lowered, "options": asdict(self.options)}
        rest["largest"] = None if self.largest is None else dict(self.largest)
        return {**paths, **rest}

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> Job:
        paths = {name: Path(told[name]) if told[name] else None for name in ("costs", "weights", "changed")}
        return cls(
            source=Path(told["source"]),
            folder=Path(told["folder"]),
            target=TARGETS[told["target"]],
            lowered=bool(told["lowered"]),
            options=BuildOptions.from_dict(told["options"]),
            largest=told["largest"],
            **paths,
        )

    def _paths(self) -> dict[str, Path | None]:
        names = ("source", "folder", "costs", "weights", "changed")
        return {name: getattr(self, name) for name in names}


def make_build(job: Job) -> dict[str, Any]:
    """Write the build into its folder, which exists; returns the report."""
    import onnx_ir as ir
    from onnx_ir.passes.common import NameFixPass

    started = time.perf_counter()
    model = ir.load(job.source)
    if job.changed is not None:
        from tintype.engine.build.merge import changed_weights
        from tintype.kernels.graph.merge import put_weights

        put_weights(model.graph, changed_weights(job.changed))
    NameFixPass()(model)  # layers are told apart by their nodes' names, which a graph may leave out
    if job.options.is_changed:
        change_graph(model, job.options)
    report: dict[str, Any] = {"kernels": {}, "choices": [], "others": {}, "optimized": job.target.is_host}
    report["timed"] = bool(job.options.timed and job.options.dims)
    scratch = job.folder / ".scratch"
    scratch.mkdir()
    if job.options.strip_bytes is not None:
        _save_strips(model, job, scratch, report)
        shutil.rmtree(scratch)
        return report | {"lower_seconds": time.perf_counter() - started, "optimize_seconds": 0.0}
    once = _lower(model, job, scratch, report) if job.lowered else None
    report["lower_seconds"] = time.perf_counter() - started
    graphs = {name: graph for name, graph in ((ONCE, once), (MODEL, model)) if graph is not None}
    if job.options.segment_bytes is not None:
        _save_segments(graphs, job, scratch)
    else:
        for name, graph in graphs.items():
            _save(graph, name, job, scratch)
    shutil.rmtree(scratch)
    report["optimize_seconds"] = time.perf_counter() - started - report["lower_seconds"]
    return report


def _lower(model: ir.Model, job: Job, scratch: Path, report: dict[str, Any]) -> ir.Model | None:
    """Rewrite the model in place; returns the part that runs once a prompt, if there is one."""
    from tintype.engine.device.abilities import abilities
    from tintype.kernels.base import DOMAINS
    from tintype.kernels.graph.dims import fold_sizes, pin
    from tintype.kernels.graph.hoist import split_held
    from tintype.kernels.registry import PINNED_TARGETS, finish, kernels_for, lower

    options, able = job.options, abilities(job.target)
    named = {node.name for node in model.graph}
    if options.dims or job.target.name in PINNED_TARGETS:
        pin(model, dict(options.dims))
    if options.dims and not job.target.is_host:
        fold_sizes(model)
    half = job.computes_half and "float16" in able
    if half:
        report["too_large"] = _mark_large(model, job)
    chosen = kernels_for(job.target.name, able, exactness=options.exactness, choosing=bool(options.dims))
    kernels = lower(model, job.target.name, kernels=chosen).as_dict()
    report["abilities"] = sorted(able)
    report["half_nodes"] = finish(model, job.target.name, able, exactness=options.exactness)
    once, choosable = None, set[str]()
    if options.dims:
        kernels |= _choose(model, job, able, scratch, report)
        choosable = {choice["node"] for choice in report["choices"]}
    others = (node.op_type for node in model.graph if node.name in named and node.name not in choosable)
    report["others"] = dict(Counter(others))
    if options.dims:
        model.opset_imports.update(DOMAINS)
        # Segments are for where memory is dear: no more is kept from step to step than a layer may weigh there.
        once = split_held(model, largest_bytes=_largest(options) if options.segment_bytes is not None else None)
    report["kernels"] = kernels
    return once


def _choose(model: ir.Model, job: Job, able: frozenset[str], scratch: Path, report: dict[str, Any]) -> dict[str, int]:
    """Choose between kernels that may or may not pay, in place; returns how often each was put in."""
    from tintype.engine.build import measure
    from tintype.engine.build.spill import Spill
    from tintype.kernels.graph.priors import priors_for
    from tintype.kernels.registry import measured_kernels, tidy

    options, target = job.options, job.target
    table = measure.CostTable.read(job.costs) if options.timed else measure.CostTable()
    priors = priors_for(processor_kind(), job.threads, able)

    def ways_of(layer: Layer) -> dict[str, Way]:
        if not options.timed:
            return measure.likely_ways(layer, priors)
        return measure.timed_ways(layer, model, target, threads=job.threads, mapped=options.mapped, table=table)

    spill = Spill(scratch / "spilled", job.folder / WEIGHTS if target.is_host else None, job.weights)
    choices = measure.choose(
        model,
        measured_kernels(target.name, able, exactness=options.exactness),
        ways_of,
        largest_bytes=_largest(options),
        after_each=lambda: spill.weights_of(model.graph),
    )
    spill.settle(model.graph)
    table.write()
    report["choices"] = [asdict(choice) for choice in choices]
    if not options.timed:
        report["priors"] = {"processor": priors.processor, "threads": priors.threads}
    counts = Counter(choice.chosen for choice in choices if choice.chosen != measure.AS_IS)
    return dict(counts) | tidy(model, target.name)


def _mark_large(model: ir.Model, job: Job) -> int:
    """Note which values float16 may not hold; returns how many come near its end."""
    from tintype.kernels.graph.ranges import mark

    largest = _largest_values(job)
    mark(model, largest)
    return len(largest)


def _largest_values(job: Job) -> Mapping[str, float]:
    """How large the canonical graph's values get: as the export measured them, or on noise."""
    from tintype.engine.build.ranges import ranges_on_noise

    return ranges_on_noise(job.source, threads=job.threads) if job.largest is None else job.largest


def _largest(options: BuildOptions) -> int | None:
    """Bytes that a layer's weights may grow to: None is no bound, 0 none at all."""
    if options.segment_bytes is not None:
        return options.segment_bytes // 2
    if options.strip_bytes is not None:
        return options.strip_bytes * 5 // 2  # about half of what a strip's maps need together
    return 0 if options.mapped else None


def _save(model: ir.Model, name: str, job: Job, scratch: Path) -> None:
    """Write one graph of the build, as ONNX Runtime optimizes it here when it runs on the processor."""
    import onnx_ir as ir

    if not job.target.is_host:
        # A device's own optimizations happen when the session opens, and some cannot be saved. OpenVINO takes inputs by
        # their places, and counts none that nothing reads.
        unread = [value for value in model.graph.inputs if not value.uses()]
        for value in unread:
            model.graph.inputs.remove(value)
        model.metadata_props[UNREAD] = ",".join(str(value.name) for value in unread)
        ir.save(model, job.folder / name, external_data=f"{name}_data")
        return
    from tintype.engine.build.spill import take_final
    from tintype.engine.build.weights import share_weights

    lowered, final = scratch / f"lowered_{name}", take_final(model, job.folder / WEIGHTS)
    ir.save(model, lowered, external_data=f"{lowered.name}_data")
    optimize(lowered, job.folder / name, job.target)
    lowered.unlink()
    lowered.with_name(f"{lowered.name}_data").unlink(missing_ok=True)
    share_weights(job.folder / name, job.weights, final)


def _save_strips(model: ir.Model, job: Job, scratch: Path, report: dict[str, Any]) -> None:
    """Write a graph in pieces that run one after another, most of them strip by strip."""
    from tintype.engine.build.strip_build import save_strips
    from tintype.kernels.graph.dims import pin

    options, strip_bytes = job.options, job.options.strip_bytes
    if strip_bytes is None or not options.dims:
        raise ValueError("a graph runs in strips for one shape only")
    pin(model, dict(options.dims))
    if job.computes_half:
        job = replace(job, largest=_largest_values(job))  # once, not for each piece

    def lower_piece(piece: ir.Model) -> None:
        told: dict[str, Any] = {}
        if _lower(piece, job, scratch, told) is not None:
            raise ValueError("a graph that takes a prompt does not run in strips")
        report["choices"] += told["choices"]
        report["priors"] = told.get("priors")
        for name in ("kernels", "others"):
            report[name] = dict(Counter(report[name]) + Counter(told[name]))

    save_strips(
        model,
        strip_bytes,
        job.folder,
        ports=_ports(model),
        lower=lower_piece if job.lowered else lambda piece: None,
        save=lambda piece, name: _save(piece, name, job, scratch),
        save_chain=lambda piece, name: _save_chain(piece, name, job, scratch),
    )


def _save_segments(graphs: dict[str, ir.Model], job: Job, scratch: Path) -> None:
    """Write graphs in parts that run one after another."""
    from tintype.engine.run.chain import write_chains

    write_chains(job.folder, {name: _save_chain(graph, name, job, scratch) for name, graph in graphs.items()})


def _save_chain(graph: ir.Model, name: str, job: Job, scratch: Path) -> ChainFacts:
    """Write one graph in parts whose weights stay within the plan's limit."""
    from tintype.engine.build.weights import weight_files
    from tintype.engine.run.chain import ChainFacts, Part
    from tintype.kernels.graph.segments import cut, layer_bytes

    parts, limit = [], job.options.segment_bytes
    if limit is None:
        # What runs before strips has no limit of its own: about a layer a part, so that its maps alone make the peak. A
        # device takes longer to open a part than its weights are worth.
        sizes = layer_bytes(graph)
        limit = max(sizes) * 17 // 16 + 2**16 if job.target.is_host else sum(sizes) + 1
    for number, segment in enumerate(cut(graph, limit)):
        file = f"{Path(name).stem}-{number:03}.onnx"
        inputs, outputs = (tuple(str(value.name) for value in side) for side in _sides(segment))
        _save(segment, file, job, scratch)  # which makes inputs of weights
        parts.append(Part(file, inputs, outputs, weight_files(job.folder / file)))
    return ChainFacts(tuple(parts), *_ports(graph))


def _ports(graph: ir.Model) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    from tintype.engine.run.chain import Port

    inputs, outputs = (
        tuple(Port(str(value.name), _type_name(value), _fixed(value)) for value in side) for side in _sides(graph)
    )
    return inputs, outputs


def _type_name(value: ir.Value) -> str:
    """A value's type as ONNX Runtime names it."""
    if value.dtype is None:
        raise ValueError(f"{value.name} has no type")
    return next(name for name, kind in NUMPY_TYPES.items() if np.dtype(kind) == value.dtype.numpy())


def _fixed(value: ir.Value) -> tuple[int, ...]:
    if value.shape is None or not value.shape.is_static():
        raise ValueError(f"{value.name} has the shape {value.shape}")
    return tuple(value.shape.numpy())


def _sides(model: ir.Model) -> tuple[Sequence[ir.Value], Sequence[ir.Value]]:
    return model.graph.inputs, model.graph.outputs


def optimize(source: Path, path: Path, target: Target) -> None:
    """Save the graph as ONNX Runtime optimizes it here, weights external so that they can be memory-mapped."""
    options = session_options(target, threads=default_threads(), optimize=True, mapped=True)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads would wait for a run: none comes
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{path.name}_data")
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_min_size_in_bytes", str(SMALLEST_EXTERNAL_BYTES)
    )
    # Not session.save_external_prepacked_constant_initializers: ONNX Runtime 1.31 writes packed weights at whatever
    # offset comes next, maps them, and its kernels load them as if they were aligned: a segmentation fault.
    load_onnxruntime().InferenceSession(str(source), options, providers=[target.provider], enable_fallback=0)


def make_builds(jobs: str) -> dict[str, Any]:
    """Make the builds of a JSON list of jobs: for each in `results` its report, as `attempt` has it."""
    gc.disable()  # what modules are made of stays
    import tintype.kernels.registry  # noqa: F401 - both imported once for all jobs

    load_onnxruntime()
    gc.enable()
    return {"results": attempt_all(_make_measured, [Job.from_dict(job) for job in json.loads(jobs)])}


def _make_measured(job: Job) -> dict[str, Any]:
    """The report also has the most memory that the process of a build had."""
    return make_build(job) | {"peak_bytes": peak_rss_bytes()}


def main() -> int:
    """Do the jobs on stdin; 0 when each of them was tried."""
    import_late()
    return answer_parent(make_builds)


if __name__ == "__main__":
    sys.exit(main())
