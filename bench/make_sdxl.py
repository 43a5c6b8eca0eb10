"""What comparisons run on, of random weights: bundles made one tensor at a time, and all that `sd15` needs.

    tintype bench make-sdxl BUNDLE [--shape sdxl] [--precision fp16|int8] [--depth 10] [--seed 0]

Modules are traced without weights, and each weight is drawn when it is written. fp16 stores as `tintype export
--precision fp16` does; int8 has linear layers as int8 with a scale a column and the rest as fp16, uncalibrated. --depth
cuts the transformer layers of the deepest blocks. Pictures are noise; parity isn't judged.
"""

from __future__ import annotations

import functools
import json
import math
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx_ir as ir
import torch
from tokenizers import pre_tokenizers

from tintype.bench.job import Job
from tintype.bench.options import command_help
from tintype.bench.peers import float_bundle, graph_inputs, openvino_file
from tintype.bench.process import run_process
from tintype.bench.shapes import SHAPES, TAESD, Shape
from tintype.bundle import Parity, open_bundle
from tintype.bundle.manifest import ENCODERS
from tintype.engine import peak_rss_bytes
from tintype.export import Effort, export_bundle
from tintype.export.checkpoint import hollow_module, open_checkpoint
from tintype.export.defaults import usual_request
from tintype.export.known_graphs import graph_of
from tintype.export.modules import Modules
from tintype.export.parity import GraphReport
from tintype.export.quantization import SMALLEST_HALF_BYTES, Scales, find_layers, halve_weights, quantize_graph
from tintype.export.roles import COMPONENT_OF, GRAPH_FILES
from tintype.export.sources.source import TINY_VAE, SourceOptions
from tintype.export.storage import save_graph
from tintype.export.timestep import take_scalar_timestep
from tintype.export.tokenizer import read_tokenizer
from tintype.export.wrappers import trace_plan
from tintype.export.writing import write_rest
from tintype.files import write_text

VOCABULARY, TOKENS = 49408, 77  # CLIP's
MARKS = ["<|startoftext|>", "<|endoftext|>"]
# An export's least: what is judged are time and memory. Sides are in latent cells.
LEAST_EFFORT = {"steps": 2, "calibration_prompts": 1, "gate_prompts": 1, "gate_calls": 1, "latent_size": 64}
CALIBRATION_SAMPLES = 2
TRACED_SIDE = 128  # pixels of what OpenVINO's conversion traces, which leaves sizes free: a large picture takes minutes
SPREAD = 0.7  # of a layer's output where its input's is 1: values keep their size from layer to layer
EVEN_SPREAD = 73.3  # of integers that are drawn evenly of -127 .. 127


def write_checkpoint(folder: Path, shape: Shape) -> None:
    """A checkpoint's configs, with a tiny autoencoder's beside, and tokenizers of CLIP's size that know letters alone;
    its weights are empty files."""
    files: dict[str, Any] = {"model_index": shape.index, "scheduler/scheduler_config": shape.scheduler}
    for name, config in {**shape.configs, TINY_VAE: TAESD}.items():
        files[f"{name}/config"] = config
        stem = "model" if name.startswith("text") else "diffusion_pytorch_model"
        write_text(folder / name / f"{stem}.safetensors", "")
    words = [letter + end for end in ("", "</w>") for letter in sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += [f"unused{index}" for index in range(VOCABULARY - len(words) - len(MARKS))] + MARKS
    for place, pad_token in zip(shape.tokenizers, ("<|endoftext|>", "!"), strict=False):
        write_text(folder / place / "merges.txt", "#version: 0.2\n")
        files[f"{place}/vocab"] = {word: index for index, word in enumerate(words)}
        marks = {"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS, "pad_token": pad_token}
        files[f"{place}/tokenizer_config"] = marks
    for name, value in files.items():
        write_text(folder / f"{name}.json", json.dumps(value))


def fill(model: ir.Model, precision: str, seed: int) -> tuple[int, str]:
    """Every weight becomes a random one that is drawn when it is written; how many there are, and the precision."""
    initializers, large = model.graph.initializers, SMALLEST_HALF_BYTES // 4
    linear = [layer for layer in find_layers(model) if layer.kind == "linear"]
    if precision == "int8":
        scales = {}
        for layer in (chosen := [layer for layer in linear if layer.parameters >= large]):
            inputs, columns = _shape(initializers[layer.weight])
            scales[layer.module] = Scales(np.full(columns, SPREAD / math.sqrt(inputs) / EVEN_SPREAD, np.float32))
        quantize_graph(model, chosen, scales)
    parameters = 0
    for name, value in initializers.items():
        if value.const_value is None or not name.endswith((".weight", ".weight_T", ".bias", "_int8")):
            continue
        shape, dtype = _shape(value), value.const_value.dtype
        parameters += math.prod(shape)
        if len(shape) >= 2 and math.prod(shape) >= large:
            draw = functools.partial(_drawn, name, shape, seed)
            value.const_value = ir.LazyTensor(draw, dtype=dtype, shape=ir.Shape(shape), name=name)
        else:
            value.const_value = ir.tensor(np.full(shape, name.endswith("weight"), np.float32), name=name)
    halve_weights(model)
    return parameters, precision if linear else "fp16"


def _shape(weight: ir.Value) -> tuple[int, ...]:
    assert weight.const_value is not None
    return tuple(weight.const_value.shape.numpy())


def _drawn(name: str, shape: tuple[int, ...], seed: int) -> ir.TensorProtocol:
    """Integers, or floats."""
    random = np.random.default_rng([seed, zlib.crc32(name.removesuffix("_int8").encode())])
    if name.endswith("_int8"):
        return ir.tensor(random.integers(-127, 128, shape, np.int8), name=name)
    inputs = shape[0] if name.endswith("weight_T") else math.prod(shape[1:])
    return ir.tensor(random.standard_normal(shape, np.float32) * np.float32(SPREAD / math.sqrt(inputs)), name=name)


def make(bundle: Path, precision: str, seed: int, shape: Shape, name: str) -> dict[str, Any]:
    """Write the bundle; figures of how it was made. name: of the shape."""
    started, parameters, reports = time.perf_counter(), dict[str, int](), list[GraphReport]()
    bundle.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{bundle.name}.", dir=bundle.parent) as scratch:
        source, made = Path(scratch) / "checkpoint", Path(scratch) / "bundle"
        write_checkpoint(source, shape)
        checkpoint = open_checkpoint(source)
        for role in (role for role in GRAPH_FILES if COMPONENT_OF[role] in shape.configs):
            model = graph_of(Modules(checkpoint).blank(role), trace_plan(checkpoint, role, TOKENS))
            take_scalar_timestep(model)
            parameters[role], stored_as = fill(model, precision, seed)
            save_graph(model, made / GRAPH_FILES[role])
            parity = Parity(graph=role, reference="none: random weights", psnr_db=0.0, gate_db=0.0, passed=True)
            # These weights keep variance from layer to layer, so that nothing comes near float16's end.
            reports.append(GraphReport(role, stored_as, parity, 0, largest={}))
        tokenizers = {place: read_tokenizer(source / place, TOKENS, VOCABULARY) for place in shape.tokenizers}
        called = f"{name}-random-{precision}"
        write_rest(checkpoint, tokenizers, reports, made, called, "CC0-1.0", usual_request(checkpoint))
        made.replace(bundle)
    stored = sum(facts.bytes for facts in open_bundle(bundle).manifest.files.values())
    facts = {"bundle": str(bundle), "precision": precision, "parameters": parameters, "bytes": stored}
    return {**facts, "seconds": round(time.perf_counter() - started, 1), "peak_rss_bytes": peak_rss_bytes()}


def make_parts(folder: Path, chosen: Sequence[str], damage_seconds: float, shape: str) -> dict[str, dict[str, Any]]:
    """Make what is missing of the `chosen` PARTS, each in a process of its own beside its place, so that a run that was
    broken off goes on where it stopped; time and memory of each that was made. Weights of float16 are "fp16".

    damage_seconds: what an export may take to measure what each layer's quantization costs. shape: of a checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, dict[str, Any]] = {}
    floats = "fp16" if SHAPES[shape].dtype == "float16" else "fp32"
    for name in (floats if part == "fp32" else part for part in chosen):
        if (folder / name).exists():
            click.echo(f"{name:<15} there already", err=True)
            continue
        click.echo(f"making {name}", err=True)
        partial = folder / f".partial-{name}"
        shutil.rmtree(partial, ignore_errors=True)
        command = [sys.executable, "-m", "tintype.bench.make_sdxl", name, str(folder), str(partial)]
        run = run_process([*command, shape, str(damage_seconds)])
        partial.rename(folder / name)
        memory = {"peak_rss_bytes": run.own_peak_bytes, "together_peak_bytes": run.together_peak_bytes}
        figures[name] = {"seconds": round(run.seconds, 1), **memory}
        for line in (line for line in run.stdout.splitlines() if line.startswith("{")):  # others are libraries' own
            figures[name]["report"] = json.loads(line)
    return figures


def _make_checkpoint(folder: Path, into: Path, shape: str, damage_seconds: float) -> None:
    """A whole diffusers folder, its weights as torch draws them, one component at a time."""
    write_checkpoint(into, SHAPES[shape])
    checkpoint = open_checkpoint(into, SourceOptions(tiny_vae=into / TINY_VAE))
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, SHAPES[shape].dtype))
    for name in sorted(checkpoint.components, reverse=True):
        module: Any = hollow_module(checkpoint, name, on_meta=False)
        with torch.no_grad():  # so that the words make a difference, as in a trained model
            for parameter, weight in module.named_parameters():
                if parameter.endswith("attn2.to_out.0.weight"):
                    weight *= 16.0
        module.save_pretrained(into / name)


def _make_bundle(precision: str, folder: Path, into: Path, shape: str, damage_seconds: float) -> None:
    """An export like any other, gates and all, with the least denoising behind its ranges."""
    effort, name = Effort(**LEAST_EFFORT, damage_seconds=damage_seconds), f"{shape}-{precision}"
    source, options = folder / "checkpoint", _options(folder)
    report = export_bundle(source, into, precision=precision, name=name, effort=effort, options=options)
    print(json.dumps(report.as_dict()))


def _options(folder: Path) -> SourceOptions:
    """The tiny autoencoder beside a checkpoint; checkpoints of before November 30th 2026 have none."""
    tiny = folder / "checkpoint" / TINY_VAE
    return SourceOptions(tiny_vae=tiny if tiny.is_dir() else None)


def _drawing_roles(folder: Path) -> list[str]:
    """Graphs that lead from words to pixels."""
    return [role for role in open_bundle(float_bundle(folder)).manifest.graphs if role not in ENCODERS.values()]


def _make_openvino(folder: Path, into: Path, shape: str, damage_seconds: float) -> None:
    """Convert as OpenVINO's documentation does, one graph at a time; weights stay as they are, sizes stay free."""
    import openvino
    from openvino.frontend.pytorch.patch_model import __make_16bit_traceable as halves_traceable

    into.mkdir()
    modules = Modules(open_checkpoint(folder / "checkpoint", _options(folder)))
    is_half = SHAPES[shape].dtype == "float16"
    for role in _drawing_roles(folder):
        job = Job(model=str(float_bundle(folder)), role=role, batch_size=2, width=TRACED_SIDE, height=TRACED_SIDE)
        example = {name: torch.from_numpy(array) for name, array in graph_inputs(job).items()}
        module = modules.wrapped(role).eval()
        if is_half:  # as optimum-intel traces weights of 16 bits: they stay so, all else is fp32
            halves_traceable(module.half())
        with torch.inference_mode():
            model = openvino.convert_model(module, example_input=example)
        openvino.save_model(model, into / openvino_file(role), compress_to_fp16=is_half)
        del model, module
        modules.release(COMPONENT_OF[role])


def _make_openvino_int8(folder: Path, into: Path, shape: str, damage_seconds: float) -> None:
    """NNCF's post-training quantization as its documentation does it for transformers, on a few samples."""
    import nncf
    import openvino

    into.mkdir()
    for role in (role for role in _drawing_roles(folder) if not role.startswith("text_encoder")):
        model = openvino.Core().read_model(folder / "openvino-f32" / openvino_file(role))
        job = Job(model=str(float_bundle(folder)), role=role)
        samples = [graph_inputs(job, seed) for seed in range(CALIBRATION_SAMPLES)]
        quantized = nncf.quantize(
            model, nncf.Dataset(samples, lambda sample: list(sample.values())),
            model_type=nncf.ModelType.TRANSFORMER, subset_size=CALIBRATION_SAMPLES,
        )  # fmt: skip
        openvino.save_model(quantized, into / openvino_file(role), compress_to_fp16=SHAPES[shape].dtype == "float16")
        del model, quantized


def _make_sdcpp(folder: Path, into: Path, shape: str, damage_seconds: float) -> None:
    """transformers 5 writes a text encoder's names without the `text_model.` that stable-diffusion.cpp looks for."""
    from safetensors.numpy import load_file, save_file

    for part in sorted((folder / "checkpoint").glob("*/*.safetensors")):
        name = part.parent.name
        if not name.startswith("text_encoder"):
            (into / name).symlink_to(Path("..") / "checkpoint" / name, target_is_directory=True)
            continue
        (into / name).mkdir(parents=True)
        weights = {w if w.startswith("text_") else f"text_model.{w}": value for w, value in load_file(part).items()}
        save_file(weights, into / name / part.name)


# Each makes its part of the folder's others, in a place of its own: folder, place, shape, damage_seconds.
PARTS: dict[str, Callable[[Path, Path, str, float], None]] = {
    "checkpoint": _make_checkpoint,
    "fp32": functools.partial(_make_bundle, "fp32"),
    "fp16": functools.partial(_make_bundle, "fp16"),
    "int8": functools.partial(_make_bundle, "int8"),
    "openvino-f32": _make_openvino,
    "openvino-int8": _make_openvino_int8,
    "sdcpp": _make_sdcpp,
}


@click.command(help=command_help(__doc__))
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--shape", type=click.Choice(tuple(SHAPES)), default="sdxl", show_default=True)
@click.option("--precision", type=click.Choice(["fp16", "int8"]), default="fp16", show_default=True)
@click.option("--depth", type=int, default=10, show_default=True, help="Transformer layers of the deepest blocks.")
@click.option("--seed", type=int, default=0, show_default=True)
def make_sdxl(bundle: Path, shape: str, precision: str, depth: int, seed: int) -> None:
    if bundle.exists():
        raise click.UsageError(f"{bundle} is there already; name a new folder")
    made = make(bundle.resolve(), precision, seed, SHAPES[shape].with_depth(depth), shape)
    click.echo(json.dumps(made, indent=1))


if __name__ == "__main__":
    part, folder, into, shape, damage_seconds = sys.argv[1:]
    PARTS[part](Path(folder), Path(into), shape, float(damage_seconds))
