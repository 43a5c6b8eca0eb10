"""A bundle of Stable Diffusion XL's shape (or another) with random weights, made one tensor at a time.

    python -m tintype.bench.make_sdxl BUNDLE [--shape sdxl] [--precision fp16|int8] [--depth 10] [--seed 0]

For measuring memory and time at the real size (2.6 B UNet, two text encoders, factor 8) without 14 GB of weights in
memory: modules are traced with weights that are one number seen many times, and each weight is drawn when it is
written. fp16 stores as `tintype export --precision fp16` does; int8 stores linear layers as int8 with a scale a column
and everything else as fp16, uncalibrated. --depth cuts the transformer layers of the deepest blocks, for a quick try.
Pictures are noise; parity isn't judged. Prints one JSON object with sizes, seconds and the peak memory.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from tintype.bench.export_sd15 import write_plain_tokenizer
from tintype.bench.shapes import CLIP, SHAPES, Shape
from tintype.bundle import Parity, open_bundle
from tintype.engine import peak_rss_bytes
from tintype.export import tracing
from tintype.export.checkpoint import open_checkpoint
from tintype.export.graphs import GRAPH_FILES
from tintype.export.parity import GraphReport
from tintype.export.quantization import FLOAT16_MAX, SMALLEST_HALF_BYTES, find_layers
from tintype.export.seen import COMPONENT_OF, seen, trace_plan
from tintype.export.storage import save_graph
from tintype.export.tokenizer import read_tokenizer
from tintype.export.writing import usual_request, write_rest


def write_checkpoint(folder: Path, shape: Shape) -> None:
    """A checkpoint's configs and tokenizers; its weights are empty files, for nobody reads them."""
    for name, config in shape.configs.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
        stem = "model" if name.startswith("text") else "diffusion_pytorch_model"
        (folder / name / f"{stem}.safetensors").touch()
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(shape.scheduler))
    (folder / "model_index.json").write_text(json.dumps(shape.index))
    write_plain_tokenizer(folder / "tokenizer", "<|endoftext|>")
    if shape.is_xl:
        write_plain_tokenizer(folder / "tokenizer_2", "!")


def hollow(component: str, config: dict[str, Any], index: dict[str, Any]) -> torch.nn.Module:
    """A module whose every weight is one number in memory, seen in the weight's shape."""
    import diffusers
    import transformers

    with torch.device("meta"):
        if component == "unet":
            module = diffusers.UNet2DConditionModel.from_config(config)
        elif component == "vae":
            module = diffusers.AutoencoderKL.from_config(config)
        else:
            module = getattr(transformers, index[component][1])(transformers.CLIPTextConfig(**config))
    count = 0
    for part in module.modules():
        for name, weight in list(part._parameters.items()):
            if weight is not None:
                count += 1  # no two alike: the tracer makes one of small weights that are
                value = torch.tensor(count * 1e-6).expand(weight.shape)
                part._parameters[name] = torch.nn.Parameter(value, requires_grad=False)
        for name, buffer in list(part._buffers.items()):
            if buffer is not None and buffer.is_meta:  # position_ids of CLIP
                part._buffers[name] = torch.arange(buffer.numel(), dtype=buffer.dtype).reshape(buffer.shape)
    return module.eval()


def fill(model: ir.Model, precision: str, seed: int) -> tuple[int, str]:
    """Every weight becomes a random one that is drawn when it is written; how many there are, and the precision."""
    linear = {layer.weight for layer in find_layers(model) if layer.kind == "linear"}
    parameters = 0
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or not _is_weight(str(name)):
            continue
        shape = tuple(tensor.shape.numpy())
        parameters += math.prod(shape)
        if len(shape) < 2 or tensor.nbytes < SMALLEST_HALF_BYTES:
            ones = np.ones if str(name).endswith("weight") else np.zeros
            value.const_value = ir.tensor(ones(shape, np.float32), name=str(name))
        elif precision == "int8" and name in linear:
            _as_int8(model.graph, value, shape, seed)
        else:
            _as_fp16(model.graph, value, shape, seed)
    return parameters, precision if linear else "fp16"


def _is_weight(name: str) -> bool:
    return name.endswith((".weight", ".weight_T", ".bias"))


def _draw(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Normal with the spread that keeps variance from layer to layer."""
    inputs = shape[0] if name.endswith("weight_T") else math.prod(shape[1:])
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return random.standard_normal(shape, dtype=np.float32) * np.float32(0.7 / math.sqrt(inputs))


def _lazy(graph: ir.Graph, name: str, dtype: ir.DataType, shape: tuple[int, ...], draw: Any) -> ir.Value:
    tensor = ir.LazyTensor(lambda: ir.tensor(draw(), name=name), dtype=dtype, shape=ir.Shape(shape), name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _behind(graph: ir.Graph, old: ir.Value, kind: str, inputs: list[ir.Value], attributes: dict[str, Any]) -> None:
    """The readers of a weight read a node in front of them, which makes it."""
    first = next(node for node in graph if any(node is use.node for use in old.uses()))
    node = ir.node(kind, inputs=inputs, attributes=attributes, name=f"{old.name}/{kind}")
    node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = f"{old.name}_float", old.shape, old.type
    graph.insert_before(first, node)
    old.replace_all_uses_with(node.outputs[0])
    del graph.initializers[str(old.name)]


def _as_fp16(graph: ir.Graph, old: ir.Value, shape: tuple[int, ...], seed: int) -> None:
    name = str(old.name)

    def draw() -> np.ndarray:
        return np.clip(_draw(name, shape, seed), -FLOAT16_MAX, FLOAT16_MAX).astype(np.float16)

    half = _lazy(graph, f"{name}_fp16", ir.DataType.FLOAT16, shape, draw)
    users = [use.node for use in old.uses()]
    if len(users) == 1 and users[0].op_type == "Gather":  # a table: cast the rows that are taken, not all of it
        table, output = users[0], users[0].outputs[0]
        readers = [(use.node, use.idx) for use in output.uses()]
        table.replace_input_with(0, half)
        cast = ir.node("Cast", inputs=[output], attributes={"to": int(ir.DataType.FLOAT)}, name=f"{name}/Cast")
        cast.outputs[0].name, cast.outputs[0].shape, cast.outputs[0].type = f"{name}_rows", output.shape, old.type
        output.type = ir.TensorType(ir.DataType.FLOAT16)
        graph.insert_after(table, cast)
        for node, index in readers:
            node.replace_input_with(index, cast.outputs[0])
        del graph.initializers[name]
        return
    _behind(graph, old, "Cast", [half], {"to": int(ir.DataType.FLOAT)})


def _as_int8(graph: ir.Graph, old: ir.Value, shape: tuple[int, ...], seed: int) -> None:
    name = str(old.name)

    def draw() -> np.ndarray:
        random = np.random.default_rng([seed, zlib.crc32(name.encode())])
        return random.integers(-127, 128, shape, dtype=np.int8)

    integers = _lazy(graph, f"{name}_int8", ir.DataType.INT8, shape, draw)
    spread = np.full(shape[1], 0.7 / math.sqrt(shape[0]) / 73.3, np.float32)  # 73.3: that of -127 .. 127
    scale = _lazy(graph, f"{name}_scale", ir.DataType.FLOAT, (shape[1],), lambda: spread)
    _behind(graph, old, "DequantizeLinear", [integers, scale], {"axis": 1})


def make(bundle: Path, precision: str, seed: int, shape: Shape, name: str) -> dict[str, Any]:
    """Write the bundle; figures of how it was made. name: of the shape."""
    started, scratch = time.perf_counter(), bundle.with_name(f".{bundle.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        write_checkpoint(scratch / "checkpoint", shape)
        checkpoint = open_checkpoint(scratch / "checkpoint")
        made = scratch / "bundle"
        parameters, reports = {}, []
        for role, file in GRAPH_FILES.items():
            if COMPONENT_OF[role] not in shape.configs:
                continue
            module = hollow(COMPONENT_OF[role], dict(checkpoint.configs[COMPONENT_OF[role]]), shape.index)
            model = tracing.trace(seen(checkpoint, role, module), trace_plan(checkpoint, role, 77))
            parameters[role], stored = fill(model, precision, seed)
            save_graph(model, made / file)
            parity = Parity(graph=role, reference="none: random weights", psnr_db=0.0, gate_db=0.0, passed=True)
            # These weights keep variance from layer to layer, so that nothing comes near float16's end.
            reports.append(GraphReport(role, stored, parity, 0, largest={}))
        tokenizers = {
            place: read_tokenizer(scratch / "checkpoint" / place, 77, CLIP["vocab_size"])
            for place in (("tokenizer", "tokenizer_2") if shape.is_xl else ("tokenizer",))
        }
        called = f"{name}-random-{precision}"
        write_rest(checkpoint, tokenizers, reports, made, called, "CC0-1.0", usual_request(checkpoint))
        made.replace(bundle)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    opened = open_bundle(bundle)
    return {
        "bundle": str(bundle),
        "precision": precision,
        "parameters": parameters,
        "bytes": sum(facts.bytes for facts in opened.manifest.files.values()),
        "seconds": round(time.perf_counter() - started, 1),
        "peak_rss_bytes": peak_rss_bytes(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="sdxl")
    parser.add_argument("--precision", choices=("fp16", "int8"), default="fp16")
    parser.add_argument("--depth", type=int, default=10, help="transformer layers of the deepest blocks; 10 is SDXL's")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.bundle.exists():
        parser.error(f"{chosen.bundle} is there already; name a new folder")
    shape = SHAPES[chosen.shape].with_depth(chosen.depth)
    made = make(chosen.bundle.resolve(), chosen.precision, chosen.seed, shape, chosen.shape)
    print(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
