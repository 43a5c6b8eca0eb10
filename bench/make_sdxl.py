"""A bundle of Stable Diffusion XL's shape (or another) with random weights, made one tensor at a time.

    tintype bench make-sdxl BUNDLE [--shape sdxl] [--precision fp16|int8] [--depth 10] [--seed 0]

Modules are traced with weights that are one number seen many times, and each weight is drawn when it is written. fp16
stores as `tintype export --precision fp16` does; int8 has linear layers as int8 with a scale a column and the rest as
fp16, uncalibrated. --depth cuts the transformer layers of the deepest blocks. Pictures are noise; parity isn't judged.
"""

from __future__ import annotations

import functools
import json
import math
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx_ir as ir
import torch

from tintype.bench.measurement import command_help
from tintype.bench.peer_diffusers import random_module
from tintype.bench.shapes import CLIP, SHAPES, Shape
from tintype.bundle import Parity, open_bundle
from tintype.engine import peak_rss_bytes
from tintype.export import tracing
from tintype.export.checkpoint import Checkpoint, hollow_module, open_checkpoint
from tintype.export.defaults import usual_request
from tintype.export.parity import GraphReport
from tintype.export.quantization import SMALLEST_HALF_BYTES, Scales, find_layers, halve_weights, quantize_graph
from tintype.export.roles import COMPONENT_OF, GRAPH_FILES
from tintype.export.storage import save_graph
from tintype.export.timestep import take_scalar_timestep
from tintype.export.tokenizer import read_tokenizer
from tintype.export.wrappers import trace_plan, wrap
from tintype.export.writing import write_rest
from tintype.files import write_text


def write_checkpoint(folder: Path, shape: Shape) -> None:
    """A checkpoint's configs and tokenizers; its weights are empty files, for nobody reads them."""
    files = {"model_index.json": shape.index, "scheduler/scheduler_config.json": shape.scheduler}
    for name, value in (files | {f"{name}/config.json": config for name, config in shape.configs.items()}).items():
        write_text(folder / name, json.dumps(value))
    for name in shape.configs:
        stem = "model" if name.startswith("text") else "diffusion_pytorch_model"
        (folder / name / f"{stem}.safetensors").touch()
    for place, pad_token in zip(shape.tokenizers, ("<|endoftext|>", "!"), strict=False):
        _write_tokenizer(folder / place, pad_token)


def _write_tokenizer(folder: Path, pad_token: str) -> None:
    """A tokenizer of CLIP's size that knows letters alone; its other words are never said."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    words += [f"unused{index}" for index in range(49406 - len(words))] + ["<|startoftext|>", "<|endoftext|>"]
    write_text(folder / "vocab.json", json.dumps({word: index for index, word in enumerate(words)}))
    write_text(folder / "merges.txt", "#version: 0.2\n")
    marks = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": pad_token}
    write_text(folder / "tokenizer_config.json", json.dumps(marks))


def make_checkpoint(folder: Path, shape: Shape) -> dict[str, int]:
    """A whole checkpoint in fp32, its weights as torch draws them; how many each component has."""
    write_checkpoint(folder, shape)
    torch.manual_seed(0)
    parameters = {}
    for name in sorted(shape.configs, reverse=True):
        module = random_module(shape.index[name], shape.configs[name])
        with torch.no_grad():  # so that the words make a difference, as in a trained model
            for parameter, weight in module.named_parameters():
                if parameter.endswith("attn2.to_out.0.weight"):
                    weight *= 16.0
        module.save_pretrained(folder / name)
        parameters[name] = sum(weight.numel() for weight in module.parameters())
    return parameters


def hollow(checkpoint: Checkpoint, component: str) -> torch.nn.Module:
    """A module whose every weight is one number in memory, seen in the weight's shape."""
    module, count = hollow_module(checkpoint, component), 0
    for part in module.modules():
        for name, weight in list(part._parameters.items()):
            if weight is not None:
                count += 1  # no two alike: the tracer makes one of small weights that are
                value = torch.tensor(count * 1e-6).expand(weight.shape)
                part._parameters[name] = torch.nn.Parameter(value, requires_grad=False)
        for name, buffer in list(part._buffers.items()):
            if buffer is not None and buffer.is_meta:  # position_ids of CLIP
                part._buffers[name] = torch.arange(buffer.numel(), dtype=buffer.dtype).reshape(buffer.shape)
    return module


def fill(model: ir.Model, precision: str, seed: int) -> tuple[int, str]:
    """Every weight becomes a random one that is drawn when it is written; how many there are, and the precision."""
    initializers, large = model.graph.initializers, SMALLEST_HALF_BYTES // 4
    linear = [layer for layer in find_layers(model) if layer.kind == "linear"]
    if precision == "int8":
        chosen = [layer for layer in linear if layer.parameters >= large]
        quantize_graph(model, chosen, {layer.module: _scales(initializers[layer.weight]) for layer in chosen})
    parameters = 0
    for name, value in initializers.items():
        if value.const_value is None or not name.endswith((".weight", ".weight_T", ".bias", "_int8")):
            continue
        shape, dtype = tuple(value.const_value.shape.numpy()), value.const_value.dtype
        parameters += math.prod(shape)
        if len(shape) >= 2 and math.prod(shape) >= large:
            draw = functools.partial(_drawn, name, shape, seed)
            value.const_value = ir.LazyTensor(draw, dtype=dtype, shape=ir.Shape(shape), name=name)
        else:
            ones = np.ones if name.endswith("weight") else np.zeros
            value.const_value = ir.tensor(ones(shape, np.float32), name=name)
    halve_weights(model)
    return parameters, precision if linear else "fp16"


def _scales(weight: ir.Value) -> Scales:
    """With which evenly drawn integers keep variance from layer to layer; 73.3 is the spread of -127 .. 127."""
    assert weight.const_value is not None
    inputs, columns = weight.const_value.shape.numpy()
    return Scales(np.full(columns, 0.7 / math.sqrt(inputs) / 73.3, np.float32))


def _drawn(name: str, shape: tuple[int, ...], seed: int) -> ir.TensorProtocol:
    """Integers, or floats with the spread that keeps variance from layer to layer."""
    random = np.random.default_rng([seed, zlib.crc32(name.removesuffix("_int8").encode())])
    if name.endswith("_int8"):
        return ir.tensor(random.integers(-127, 128, shape, np.int8), name=name)
    inputs = shape[0] if name.endswith("weight_T") else math.prod(shape[1:])
    spread = np.float32(0.7 / math.sqrt(inputs))
    return ir.tensor(random.standard_normal(shape, dtype=np.float32) * spread, name=name)


def make(bundle: Path, precision: str, seed: int, shape: Shape, name: str) -> dict[str, Any]:
    """Write the bundle; figures of how it was made. name: of the shape."""
    started, parameters, reports = time.perf_counter(), dict[str, int](), list[GraphReport]()
    bundle.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{bundle.name}.", dir=bundle.parent) as scratch:
        source, made = Path(scratch) / "checkpoint", Path(scratch) / "bundle"
        write_checkpoint(source, shape)
        checkpoint = open_checkpoint(source)
        for role, file in GRAPH_FILES.items():
            component = COMPONENT_OF[role]
            if component not in shape.configs:
                continue
            module = wrap(checkpoint, role, hollow(checkpoint, component))
            model = tracing.trace(module, trace_plan(checkpoint, role, 77))
            take_scalar_timestep(model)
            parameters[role], stored_as = fill(model, precision, seed)
            save_graph(model, made / file)
            parity = Parity(graph=role, reference="none: random weights", psnr_db=0.0, gate_db=0.0, passed=True)
            # These weights keep variance from layer to layer, so that nothing comes near float16's end.
            reports.append(GraphReport(role, stored_as, parity, 0, largest={}))
        tokenizers = {place: read_tokenizer(source / place, 77, CLIP["vocab_size"]) for place in shape.tokenizers}
        called = f"{name}-random-{precision}"
        write_rest(checkpoint, tokenizers, reports, made, called, "CC0-1.0", usual_request(checkpoint))
        made.replace(bundle)
    stored = sum(facts.bytes for facts in open_bundle(bundle).manifest.files.values())
    facts = {"bundle": str(bundle), "precision": precision, "parameters": parameters, "bytes": stored}
    return {**facts, "seconds": round(time.perf_counter() - started, 1), "peak_rss_bytes": peak_rss_bytes()}


@click.command(help=command_help(__doc__))
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--shape", type=click.Choice(tuple(SHAPES)), default="sdxl", show_default=True)
@click.option("--precision", type=click.Choice(["fp16", "int8"]), default="fp16", show_default=True)
@click.option("--depth", type=int, default=10, show_default=True, help="Transformer layers of the deepest blocks.")
@click.option("--seed", type=int, default=0, show_default=True)
def main(bundle: Path, shape: str, precision: str, depth: int, seed: int) -> None:
    if bundle.exists():
        raise click.UsageError(f"{bundle} is there already; name a new folder")
    made = make(bundle.resolve(), precision, seed, SHAPES[shape].with_depth(depth), shape)
    click.echo(json.dumps(made, indent=1))
