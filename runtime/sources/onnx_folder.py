"""A folder of ONNX graphs as optimum exports Stable Diffusion: which graphs it has, and whether they can be taken.

Graphs are read as bytes alone (`onnx_scan`): operators, ports and the types of weights, and where those lie. Data of a
graph lie within the folder, links followed, and are as long as the graph says.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tintype.errors import ExportError
from tintype.sources.folder import INDEX, read_config
from tintype.sources.onnx_scan import GraphFacts, MalformedGraph, scan_graph

GRAPH = "model.onnx"
PARTS = ("text_encoder", "text_encoder_2", "unet", "vae_decoder", "vae_encoder")
OLDEST_OPSET, NEWEST_OPSET = 14, 23
EXPORT_AGAIN = "export it again: optimum-cli export onnx --model CHECKPOINT --task text-to-image FOLDER"

_FLOAT, _INT8, _UINT8, _FLOAT16, _DOUBLE, _BFLOAT16 = 1, 3, 2, 10, 11, 16  # of TensorProto.DataType
TYPE_NAMES = {
    _FLOAT: "float32", _FLOAT16: "float16", _DOUBLE: "float64", _BFLOAT16: "bfloat16", _INT8: "int8", _UINT8: "uint8",
}  # fmt: skip
_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinear")
# optimum's own classes stand for those of diffusers.
_PREFIXES = ("ORT", "Onnx")
_CLASSES = {
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
_VAE_NAMES = {"vae": "vae_decoder", "unet": "unet"}  # by component, the part whose presence says that it is there


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """One graph of a folder. files: its own, then those that its weights lie in."""

    part: str
    path: Path
    facts: GraphFacts
    files: tuple[Path, ...]

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)

    @property
    def precision(self) -> str:
        """The type that most of its weights have."""
        known = {kind: count for kind, count in self.facts.elements.items() if kind in TYPE_NAMES}
        return TYPE_NAMES[max(known, key=lambda kind: known[kind])] if known else "no floats"

    @property
    def parameters(self) -> int:
        return sum(count for kind, count in self.facts.elements.items() if kind in TYPE_NAMES)


def is_onnx_folder(folder: Path) -> bool:
    """Whether a folder holds graphs, and no weights of diffusers' beside them."""
    unet = folder / "unet"
    try:
        return (folder / INDEX).is_file() and (unet / GRAPH).is_file() and not any(unet.glob("*.safetensors"))
    except (OSError, ValueError):  # a name too long, a NUL inside
        return False


def plain_index(folder: Path) -> dict[str, Any]:
    """model_index.json as diffusers would have it: optimum's own classes stand for those of diffusers."""
    index = read_config(folder / INDEX)
    name = index.get("_class_name")
    if isinstance(name, str):
        index["_class_name"] = _without_prefix(name)
    for component, usual in _CLASSES.items():
        entry, there = index.get(component), (folder / _VAE_NAMES.get(component, component) / GRAPH).is_file()
        stated = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if there and (not isinstance(stated, str) or stated.startswith(_PREFIXES)):
            index[component] = list(usual)
    return index


def _without_prefix(name: str) -> str:
    return next((name.removeprefix(prefix) for prefix in _PREFIXES if name.startswith(prefix)), name)


def read_graphs(folder: Path) -> Mapping[str, OnnxGraph]:
    """The graphs of a folder by part. Raises ExportError, by name, for one that isn't sound, or whose data aren't."""
    return {part: read_graph(folder, part) for part in PARTS if (folder / part / GRAPH).exists()}


def read_graph(folder: Path, part: str) -> OnnxGraph:
    """One graph. Raises ExportError."""
    path = folder / part / GRAPH
    _demand_inside(folder, path)
    try:
        facts = scan_graph(path)
    except (OSError, MalformedGraph) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ExportError(f"{path} can't be read: {reason}", fix=f"copy the folder again, or {EXPORT_AGAIN}") from None
    ends: dict[str, int] = {}
    for tensor in facts.external:
        ends[tensor.location] = max(ends.get(tensor.location, 0), tensor.offset + tensor.nbytes)
    return OnnxGraph(part, path, facts, (path, *(_data_file(folder, path, name, end) for name, end in ends.items())))


def _data_file(folder: Path, graph: Path, location: str, end: int) -> Path:
    """A file of weights. Raises ExportError where it isn't there, lies elsewhere or is cut short."""
    data = graph.parent / location
    try:
        _demand_inside(folder, data)
        if not data.is_file():
            raise FileNotFoundError(errno.ENOENT, "it isn't there, or is no plain file")
        size = data.stat().st_size
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ExportError(
            f"{graph} has weights in {location[:200]!r}: {reason}", fix="copy the whole folder, with its large files"
        ) from None
    if size < end:
        raise ExportError(
            f"{data} has {size:,} bytes, {graph.name} needs {end:,} of it: it was cut short",
            fix="copy the whole folder again, with its large files",
        )
    return data


def _demand_inside(folder: Path, path: Path) -> None:
    try:
        outside = not path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # a name that none can have, a loop of links
        outside = True
    if outside:
        raise ExportError(
            f"{path} lies outside {folder}",
            fix="copy the folder with links followed (cp -rL), if you trust what they point at",
        )


def problem_of(graph: OnnxGraph) -> tuple[str, str] | None:
    """Why a graph can't be taken, and what to do; None where nothing is known against it."""
    name, facts = f"{graph.part}/{GRAPH}", graph.facts
    kinds = {operator for _, operator in facts.operators}
    foreign = sorted((domain, operator) for domain, operator in facts.operators if domain)
    quantized = sorted(kind for kind in kinds if kind.startswith(_QUANTIZED))
    if quantized or graph.precision in ("int8", "uint8"):
        what = quantized[0] if quantized else graph.precision
        return f"{name} was quantized elsewhere ({what})", f"{EXPORT_AGAIN}, and don't quantize it"
    if foreign:
        domain, operator = foreign[0]
        what = f"{operator} of {domain}"
        return (
            f"{name} was optimized for one runtime: it has {what}",
            f"{EXPORT_AGAIN}, without --optimize; tintype optimizes for this machine itself",
        )
    halves = [kind for kind in (_FLOAT16, _BFLOAT16) if kind in (*facts.inputs.values(), *facts.outputs.values())]
    if halves or graph.precision in ("float16", "bfloat16"):
        return f"{name} computes in half precision", f"{EXPORT_AGAIN} --dtype fp32, on the processor"
    opset = facts.opsets.get("", 0)
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        known = f"{OLDEST_OPSET} to {NEWEST_OPSET} are known"
        return f"{name} is of operator set {opset}, and {known}", f"{EXPORT_AGAIN} --opset 18"
    return None
