"""Graphs that were traced before, without their weights: a second model of the same structure is filled, not traced.

Tracing takes a minute for a UNet of Stable Diffusion's size, and what comes of it depends on the modules' settings and
shapes, not on what the weights are: meanwhile large ones are one number in memory, seen in the weight's shape, so that
it costs no second copy of them. A structure is kept in the cache by a hash of all it depends on; its weights are
graph inputs there, named as in torch. Whatever else the tracer computed stands in it as it was; were any of that made
of weights, the gate of the export would see it, as it compares every graph with torch.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from google.protobuf.message import DecodeError
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor

from tintype import strict_json
from tintype.bounds import MAX_GRAPH_BYTES
from tintype.engine import cache_folder
from tintype.export.tracing import TracePlan, plain_name, trace
from tintype.files import read_plain, write_whole

HOLLOW_BYTES = 2**20  # larger weights are one number in memory while they are traced
LARGEST_CONSTANT_BYTES = 2**16  # what the tracer computes itself; a larger one is a weight that isn't recognised
WEIGHTS_KEY = "tintype.weights"
CODE = ("tracing.py", "wrappers.py", "known_graphs.py")
LIBRARIES = ("torch", "onnx", "onnxscript", "onnx-ir", "diffusers", "transformers")


@dataclass(frozen=True, slots=True)
class _Weight:
    """An initializer, in the order of the graph's. weight: of the module, by name; empty for a constant."""

    name: str
    weight: str = ""
    transposed: bool = False
    shape: tuple[int, ...] = ()  # where it isn't the weight's own: position embeddings are looked up while tracing


@dataclass(frozen=True, slots=True)
class _Weights:
    initializers: tuple[_Weight, ...]


def graph_of(module: torch.nn.Module, plan: TracePlan) -> ir.Model:
    """What `trace` gives, from the cache where a module of this structure was traced before. Raises ExportError."""
    path = _place(module, plan)
    known = _read(path)
    if known is None:
        with _told_apart(module):
            model = trace(module, plan)
            weights = _recognised(model, module)
        if weights is None:
            return trace(module, plan)
        _keep(path, model, weights)
        known = model, weights
    _fill(*known, module)
    return known[0]


def is_known(module: torch.nn.Module, plan: TracePlan) -> bool:
    """Whether a graph of this structure is in the cache; the module may be one without weights."""
    return _place(module, plan).is_file()


def _place(module: torch.nn.Module, plan: TracePlan) -> Path:
    return cache_folder() / "traces" / f"{structure_of(module, plan)}.onnx"


def structure_of(module: torch.nn.Module, plan: TracePlan) -> str:
    """24 hexadecimal digits: of all that a traced graph depends on but the values of weights."""
    facts = {
        "code": _code_digest(),
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
        "wrapper": type(module).__qualname__,
        "parts": {name: [type(part).__qualname__, _settings(part)] for name, part in module.named_children()},
        "weights": {name: [str(weight.dtype), *weight.shape] for name, weight in module.state_dict().items()},
        "inputs": {name: [str(tensor.dtype), *tensor.shape] for name, tensor in plan.inputs.items()},
        "plan": [plan.dims, plan.outputs, plan.multiples],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _settings(module: torch.nn.Module) -> Mapping[str, Any]:
    """A model's config, without where it came from."""
    config: Any = getattr(module, "config", {})
    known = dict(config.to_dict() if hasattr(config, "to_dict") else config)
    return {name: value for name, value in known.items() if not name.startswith("_")}


@functools.cache
def _code_digest() -> str:
    folder = resources.files("tintype.export")
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in CODE)).hexdigest()


@contextmanager
def _told_apart(module: torch.nn.Module) -> Iterator[None]:
    """The module with weights that differ from one another: the tracer joins those that are equal."""
    generator, kept = torch.Generator().manual_seed(0), dict[int, tuple[Tensor, Tensor]]()
    for count, weight in enumerate(module.state_dict(keep_vars=True).values(), 1):
        if not weight.is_floating_point() or id(weight) in kept:
            continue
        kept[id(weight)] = weight, weight.data
        if _is_hollow(weight):
            weight.data = torch.tensor(count * 1e-6, dtype=weight.dtype).expand(weight.shape)
        else:
            weight.data = torch.rand(weight.shape, generator=generator, dtype=weight.dtype)
    try:
        yield
    finally:
        for weight, data in kept.values():
            weight.data = data


def _is_hollow(weight: Tensor) -> bool:
    """Whether a weight is one number in memory while it is traced."""
    return weight.numel() * weight.element_size() > HOLLOW_BYTES


def _recognised(model: ir.Model, module: torch.nn.Module) -> _Weights | None:
    """Which weight each initializer is; None where one is too large for a constant, and no weight."""
    state = _state(module)
    found = [_recognised_as(value, state) for value in model.graph.initializers.values()]
    return None if None in found else _Weights(tuple(each for each in found if each is not None))


def _state(module: torch.nn.Module) -> dict[str, Tensor]:
    return {plain_name(name): weight for name, weight in module.state_dict().items()}


def _recognised_as(value: ir.Value, state: Mapping[str, Tensor]) -> _Weight | None:
    name, tensor = str(value.name), value.const_value
    assert tensor is not None
    for transposed, weight in ((False, state.get(name)), (True, state.get(name.removesuffix("_T")))):
        if weight is None or (transposed and weight.ndim != 2):
            continue
        laid = weight.T if transposed else weight
        if tuple(laid.shape) == tuple(tensor.shape.numpy()) and torch.equal(_torch(tensor), laid):
            return _Weight(name, name.removesuffix("_T") if transposed else name, transposed)
    shape = tuple(tensor.shape.numpy())
    if len(shape) > 1 and tensor.dtype == ir.DataType.FLOAT:
        flat = _torch(tensor).flatten()
        for each, weight in state.items():
            # The numbers of a hollow one don't tell in which order they were laid.
            if weight.numel() == flat.numel() and not _is_hollow(weight) and torch.equal(weight.flatten(), flat):
                return _Weight(name, each, shape=shape)
    return _Weight(name) if tensor.nbytes <= LARGEST_CONSTANT_BYTES else None


def _torch(tensor: ir.TensorProtocol) -> Tensor:
    return tensor.raw if isinstance(tensor, TorchTensor) else torch.from_numpy(tensor.numpy().copy())  # type: ignore[no-any-return]


def _keep(path: Path, model: ir.Model, weights: _Weights) -> None:
    """A graph's structure, in the cache. One that can't be kept costs time later, and is no obstacle now."""
    with _without_weights(model, weights), contextlib.suppress(OSError):
        content = ir.to_proto(model).SerializeToString()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda file: file.write(content))


@contextmanager
def _without_weights(model: ir.Model, weights: _Weights) -> Iterator[None]:
    """The graph with its weights as inputs, and a remark which they are."""
    graph, initializers = model.graph, list(model.graph.initializers.values())
    chosen = [graph.initializers[each.name] for each in weights.initializers if each.weight]
    inputs = len(graph.inputs)
    graph.metadata_props[WEIGHTS_KEY] = json.dumps(asdict(weights))
    for value in chosen:
        del graph.initializers[str(value.name)]
        graph.inputs.append(value)
    try:
        yield
    finally:
        del graph.inputs[inputs:]
        del graph.metadata_props[WEIGHTS_KEY]
        _register(graph, initializers)


def _register(graph: ir.Graph, initializers: Iterable[ir.Value]) -> None:
    """Make these the graph's initializers, in this order."""
    values = list(initializers)
    for name in list(graph.initializers):
        del graph.initializers[name]
    for value in values:
        graph.initializers.add(value)


def _read(path: Path) -> tuple[ir.Model, _Weights] | None:
    """A structure that was kept, its weights still without values; None where there is none."""
    try:
        model = ir.from_proto(onnx.load_model_from_string(read_plain(path, MAX_GRAPH_BYTES)))
        weights = strict_json.read(_Weights, strict_json.parse(model.graph.metadata_props.pop(WEIGHTS_KEY)))
    except (OSError, ValueError, KeyError, DecodeError):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # it is in use
    graph = model.graph
    own = len(graph.inputs) - sum(1 for each in weights.initializers if each.weight)
    values = {str(value.name): value for value in (*graph.inputs[own:], *graph.initializers.values())}
    del graph.inputs[own:]
    for name in list(graph.initializers):
        del graph.initializers[name]
    for each in weights.initializers:  # a graph takes no initializer without a value
        value = values[each.name]
        value.const_value = value.const_value or ir.tensor([0.0], name=each.name)
        graph.initializers.add(value)
    return model, weights


def _fill(model: ir.Model, weights: _Weights, module: torch.nn.Module) -> None:
    """Give a structure a module's weights, whose memory stays the module's."""
    state = _state(module)
    for each in weights.initializers:
        if each.weight:
            weight = state[each.weight].detach().numpy()
            laid = weight.T if each.transposed else weight.reshape(each.shape or weight.shape)
            model.graph.initializers[each.name].const_value = ir.Tensor(laid, name=each.name)
