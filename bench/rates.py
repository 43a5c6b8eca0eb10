"""What the processor can do at best, GFLOP/s of products and GB/s of a copy, what of it each stage reaches, and which
way to do a layer is the fastest.

The rates are measured in turn with what is timed. A product is one node of ONNX Runtime: MatMul in fp32,
DynamicQuantizeMatMul in int8, quantizing the input included, as in a graph. A multiplication and an addition are two
operations, in int8 too. A stage's operations and bytes are those of the canonical graph, the same for every runtime:
kernels that compute with fewer (Winograd's) may be above 1, and one that keeps values in a cache moves fewer bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import statistics
import timeit
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from tintype import engine
from tintype.bench.figures import Table, figure_value
from tintype.bench.job import Job
from tintype.bench.peers import graph_build, graph_dims, picture_rows, plain_session
from tintype.bench.worker import Draw, Figures
from tintype.bundle import open_bundle
from tintype.bundle.manifest import DECODERS

RATES = "rates"  # the contestant that measures them
# Rows, inner, columns of linear layers in SD 1.5 at 512x512, from the first level to the last.
PRODUCTS = ((4096, 320, 320), (4096, 320, 1280), (4096, 1280, 320), (1024, 640, 2560), (256, 1280, 5120))
COPIED_BYTES = 256 * 2**20
CALLS = 5
STAGES = {"text_encoder": "encode", "text_encoder_2": "encode", "denoiser": "denoise"}
STAGES |= dict.fromkeys(DECODERS.values(), "decode")
PICTURE_FIGURES = {"encode": "encode_seconds", "denoise": "seconds_a_step", "decode": "decode_seconds"}
DEFAULT = Path(__file__).resolve().parents[1] / "kernels" / "priors.json"
# By kind. conv, up (of what is made twice as large before) and pointwise: channels in and out, the side of the square
# picture; product and geglu: rows, inputs, outputs; norm (of 32 groups) and affine: pixels, channels; attention:
# queries, keys, heads and a head's numbers.
SIZES = json.loads(Path(__file__).with_name("layers.json").read_text(encoding="utf-8"))
_RESIZE = (
    'wide = Resize<mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric">(x, , sizes) '
)
_DEQUANTIZE = "{} = DequantizeLinear<axis={}>(integers, scale, zero) "
_BLOCKED = "{} = DequantizeLinear<axis=0, block_size=32>(integers, scale, zero) "
_ROUND = "{0}q = QuantizeLinear({0}, step, middle) {1} = DequantizeLinear({0}q, step, middle) "
_PRODUCT = "product = MatMul(x, weight) y = Add(product, bias)"
_GEGLU = "product = MatMul(x, weight) value = Add(product, bias) g = MatMul(x, gate) "
_GEGLU += "shifted = Add(g, shift) gelu = Gelu(shifted) y = Mul(value, gelu)"
Layer = tuple[
    str, str, list[int | str], dict[str, NDArray[Any]]
]  # its name, nodes from x to y, the shape of x, constants


def load(job: Job, kind: str) -> Draw:
    """Nothing is loaded before."""
    return measure_rates


def measure_rates(seed: int, job: Job) -> Figures:
    """Of every product, each in a session that is alone: threads of one that is open spin on; and of a copy."""
    threads, random, figures = job.threads or 1, np.random.default_rng(0), {}
    for rows, inner, columns in job.products:
        x, weight = (random.standard_normal(shape, np.float32) for shape in ((rows, inner), (inner, columns)))
        for kind, model in (("fp32", float_product(weight)), ("int8", int8_product(weight))):
            run = functools.partial(plain_session(model, threads).run, None, {"x": x})
            rate = 2e-9 * rows * inner * columns / median_seconds(run)
            figures[f"{kind} {rows}x{inner}x{columns} GFLOP/s"] = round(rate, 1)
            del run
    return {**figures, "copy GB/s": round(copy_rate(threads, COPIED_BYTES), 2)}


def float_product(weight: NDArray[np.float32]) -> bytes:
    """y = x weight, as a model."""
    return graph_of("y = MatMul(x, w)", ["rows", len(weight)], {"w": weight}).SerializeToString()


def int8_product(weight: NDArray[np.float32]) -> bytes:
    """The same with int8 weights, one scale a column; x is quantized as it comes."""
    integers, scale = rounded(weight)
    node = "y = com.microsoft.DynamicQuantizeMatMul(x, w, s)"
    constants: dict[str, NDArray[Any]] = {"w": integers.astype(np.int8), "s": scale}
    return graph_of(node, ["rows", len(weight)], constants).SerializeToString()


def rounded(weight: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Whole numbers of -127..127, and a scale for each column."""
    scale = (np.abs(weight).max(axis=0) / 127).astype(np.float32)
    return np.rint(weight / scale), scale


def graph_of(nodes: str, shape: list[int | str], constants: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    """A model from x to y of nodes in ONNX's own notation."""
    opsets = '<ir_version: 10, opset_import: ["": 23, "com.microsoft": 1]>'
    model = parser.parse_model(f"{opsets} layer (float[{','.join(map(str, shape))}] x) => (float[] y) {{ {nodes} }}")
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(each), name) for name, each in constants.items())
    return model


def copy_rate(threads: int, size: int) -> float:
    """GB/s that memory moves, read and written bytes together, in a copy by so many threads."""
    source = np.ones(size, dtype=np.uint8)
    target = np.zeros(size, dtype=np.uint8)  # touched, so that no page is missing later
    edges = np.linspace(0, size, threads + 1, dtype=np.int64)
    parts = [slice(int(start), int(end)) for start, end in itertools.pairwise(edges)]
    with ThreadPoolExecutor(threads) as pool:
        copy = lambda: list(pool.map(lambda part: np.copyto(target[part], source[part]), parts))  # noqa: E731
        return 2e-9 * size / median_seconds(copy)


def median_seconds(run: Callable[[], Any]) -> float:
    """Of several calls, after one that warms up."""
    run()
    return statistics.median(timeit.repeat(run, number=1, repeat=CALLS))


@dataclass(frozen=True, slots=True)
class Stage:
    """One pass of a stage. figure: which of a contestant's are its seconds. operations: by operator."""

    figure: str
    operations: Mapping[str, int]
    moved_bytes: int


def graph_stage(job: Job, figure: str = "seconds") -> Stage:
    """A call of a job's graph."""
    graph, dims = open_bundle(job.model).graph_path(job.role or "denoiser"), graph_dims(job)
    return Stage(figure, engine.graph_operations(graph, dims), engine.graph_bytes(graph, dims))


def picture_stages(job: Job) -> dict[str, Stage]:
    """Of a picture: all words, a step, a decode; with guidance words and steps are of two rows."""
    found = dict[str, Stage]()
    for role, rows in picture_rows(job).items():
        name = STAGES[role]
        stage = graph_stage(dataclasses.replace(job, role=role, batch_size=rows), PICTURE_FIGURES[name])
        if other := found.get(name):  # XL's second text encoder
            operations = dict(Counter(stage.operations) + Counter(other.operations))
            stage = Stage(stage.figure, operations, stage.moved_bytes + other.moved_bytes)
        found[name] = stage
    return found


def product_rate(rates: Table, precision: str, statistic: str = "median") -> float:
    """GFLOP/s of the product that is the fastest."""
    return max(each[statistic] for name, each in rates.items() if name.startswith(precision))


def add_shares(
    table: Mapping[str, dict[str, Any]], stages: Mapping[str, Stage], rates: Table, int8: Collection[str] = ()
) -> None:
    """Give each contestant its `shares` by stage, as far as it tells the stage's seconds. int8: whose products are of
    integers; theirs are held against the rate of such."""
    copied = rates["copy GB/s"]["median"]
    for who, figures in table.items():
        precision = "int8" if who in int8 else "fp32"
        rate = product_rate(rates, precision)
        for name, stage in stages.items():
            if seconds := figure_value(figures.get(stage.figure)):
                gflops = sum(stage.operations.values()) / seconds / 1e9
                figures.setdefault("shares", {})[name] = {
                    "gflops": round(gflops, 1), "of_products": round(gflops / rate, 4), "products_gflops": rate,
                    "precision": precision, "of_copy": round(stage.moved_bytes / seconds / copied / 1e9, 4),
                    "copy_gbytes": copied,
                }  # fmt: skip


def tried_layers(job: Job, stage: Stage, rates: Table) -> dict[str, Any]:
    """What a call of our build of a job's graph is made of: each kind of layer with its ways as they were timed when it
    was built, what takes longest first; and seconds (`limits`) of the layers, and of parts at the machine's rates."""
    layers = engine.explained(engine.read_report(graph_build(job)))["layers"]
    for row in layers:
        row["milliseconds_together"] = row["count"] * row["ways"][row["chosen"]]["milliseconds"]
    limits = {
        "layers_as_chosen_seconds": sum(row["milliseconds_together"] for row in layers) / 1e3,
        "layers_as_is_seconds": sum(row["count"] * row["ways"][engine.AS_IS]["milliseconds"] for row in layers) / 1e3,
        "bytes_moved": float(stage.moved_bytes),
        "bytes_moved at the copy rate, seconds": stage.moved_bytes / rates["copy GB/s"]["median"] / 1e9,
    }
    for name, statistic in (("best", "largest"), ("median", "median")):
        rate = product_rate(rates, "fp32", statistic)
        for operator, count in stage.operations.items():
            limits[f"{operator} at the {name} product rate, seconds"] = count / rate / 1e9
    layers.sort(key=lambda row: -row["milliseconds_together"])
    return {"limits": {name: round(value, 4) for name, value in limits.items()}, "layers": layers}


@click.command()
@click.option("--threads", type=click.IntRange(1), multiple=True, default=(1, 2), show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=DEFAULT, show_default=True)
@click.option("--only", default="", help="Layers whose name begins so, such as int8; what is known of others stays.")
def priors(threads: tuple[int, ...], out: Path, only: str) -> None:
    """Times the ways to do layers of many sizes on this machine, for `kernels/priors.json`: first builds choose by it.

        tintype bench priors --threads 1 --threads 2

    The layers are of Stable Diffusion's shapes and of smaller models, with random weights. A table of one kind of
    processor and number of threads is replaced, all others stay. Let little else run beside it.
    """
    cpu, kind = engine.resolve_provider("cpu"), engine.processor_kind()
    stored = json.loads(out.read_text(encoding="utf-8"))["tables"] if out.exists() else []
    tables = {(table["processor"], table["threads"]): table["rows"] for table in stored}
    for count in threads:
        rows = []
        for label, nodes, shape, constants in layers(engine.has_ability(cpu, "mixed_products")):
            if label.startswith(only):
                model = model_of(nodes, shape, constants)
                for layer_kind, size, ways in engine.layer_costs(model, cpu, threads=count):
                    best = min(ways, key=lambda way: ways[way][0])
                    click.echo(f"{label:<40} {layer_kind:<28} {ways[best][0] * 1e3:9.3f} ms {best}")
                    rows.append([layer_kind, size, ways])
        timed = {(row[0], tuple(row[1])) for row in rows}
        known = tables.pop((kind, count), []) if only else []
        tables[kind, count] = rows + [row for row in known if (row[0], tuple(row[1])) not in timed]
        texts = []
        for (processor, used), each in sorted(tables.items()):
            lines = ",\n".join(map(json.dumps, each))
            texts.append(f'{{"processor": "{processor}", "threads": {used}, "rows": [\n{lines}]}}')
        out.write_text('{"tables": [\n' + ",\n".join(texts) + "]}\n", encoding="utf-8")


def layers(mixed_products: bool) -> Iterator[Layer]:
    """One layer each, of every kind and size. mixed_products: int8 weights stay so, see `unsigned_weights`."""
    for name, cells in (("conv", 9), ("up", 9), ("pointwise", 1)):
        for inputs, outputs, side in SIZES[name]:
            label, shape = f"{name} {inputs} {outputs} {side}", [1, inputs, side, side]
            weight, conv = _weight(cells * inputs, outputs), f"Conv<pads={[cells // 9] * 4}>"
            sizes = {"sizes": np.array([1, 1, 2, 2], np.float32)}
            begin, source, constants = (_RESIZE, "wide", sizes) if name == "up" else ("", "x", {})
            floats = {"weight": _kernel(weight, cells), "bias": np.zeros(outputs, np.float32)}
            yield label, f"{begin}y = {conv}({source}, weight, bias)", shape, constants | floats
            constants = constants | _integers(weight, mixed_products)
            constants |= {"step": np.array(8 / 255, np.float32), "middle": np.array(128, np.uint8)}
            constants["integers"] = _kernel(constants["integers"], cells)
            nodes = f"{begin}{_ROUND.format(source, 'xd')}{_DEQUANTIZE.format('weight', 0)}c = {conv}(xd, weight) "
            yield f"int8 {label}", nodes + _ROUND.format("c", "y"), shape, constants
    for name, weights, nodes in (("product", ["weight"], _PRODUCT), ("geglu", ["weight", "gate"], _GEGLU)):
        for rows, inputs, outputs in SIZES[name]:
            label, shape, weight = f"{name} {rows} {inputs} {outputs}", [1, rows, inputs], _weight(inputs, outputs)
            biases = {each: np.zeros(outputs, np.float32) for each in ("bias", "shift") if each in nodes}
            yield label, nodes, shape, dict.fromkeys(weights, weight) | biases
            dequantized = "".join(_DEQUANTIZE.format(each, 1) for each in weights)
            yield f"int8 {label}", dequantized + nodes, shape, _integers(weight, mixed_products) | biases
            blocked = "".join(_BLOCKED.format(each) for each in weights)
            yield f"int4 {label}", blocked + nodes, shape, _blocks(weight) | biases
    for pixels, channels in SIZES["norm"]:
        constants = {name: np.ones(channels, np.float32) for name in ("scale", "shift")}
        for activation in ("y = Identity(normed)", "s = Sigmoid(normed) y = Mul(normed, s)"):
            nodes = f"normed = GroupNormalization<num_groups=32>(x, scale, shift) {activation}"
            yield f"norm {pixels} {channels}", nodes, [1, channels, pixels // 8, 8], constants
    for queries, keys, heads, size in SIZES["attention"]:
        nodes = f"y = com.microsoft.MultiHeadAttention<num_heads={heads}>(x, {'x, x' if keys == queries else 'k, v'})"
        constants = {name: _weight(keys, heads * size)[np.newaxis] for name in ("k", "v") if keys != queries}
        yield f"attention {queries} {keys} {heads} {size}", nodes, [1, queries, heads * size], constants
    for pixels, channels in SIZES["affine"]:
        constants = {name: np.ones((1, channels, 1, 1), np.float32) for name in ("scale", "shift")}
        nodes = "scaled = Mul(x, scale) y = Add(scaled, shift)"
        yield f"affine {pixels} {channels}", nodes, [1, channels, pixels // 8, 8], constants


def _weight(inputs: int, outputs: int) -> NDArray[np.float32]:
    return (np.random.default_rng(0).standard_normal((inputs, outputs)) / np.sqrt(inputs)).astype(np.float32)


def _kernel(weight: NDArray[Any], cells: int) -> NDArray[Any]:
    """(cells * inputs, outputs) as a convolution has it: (outputs, inputs, side, side)."""
    side = round(cells**0.5)
    return np.ascontiguousarray(weight.T).reshape(weight.shape[1], -1, side, side)


def _integers(weight: NDArray[np.float32], mixed_products: bool) -> dict[str, NDArray[Any]]:
    """A weight (inputs, outputs) as 8-bit integers with a scale for each output, as a build has them here."""
    integers, scale = rounded(weight)
    kind, zero = (np.int8, 0) if mixed_products else (np.uint8, 128)
    return {"integers": (integers + zero).astype(kind), "scale": scale, "zero": np.full(len(scale), zero, kind)}


def _blocks(weight: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """A weight (inputs, outputs) as 4-bit integers with a scale and a zero point for each 32 inputs of an output."""
    scales = engine.block_scales(weight)
    return {
        "integers": engine.to_integers(weight, scales).astype(ml_dtypes.uint4),
        "scale": scales.scale.astype(np.float32),
        "zero": scales.zero_point.astype(ml_dtypes.uint4),
    }


def model_of(nodes: str, shape: list[int | str], constants: dict[str, NDArray[Any]]) -> onnx.ModelProto:
    """With every value's shape; onnx infers none for a GroupNormalization, which is called `normed` here."""
    model = graph_of(nodes, shape, constants)
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("normed", onnx.TensorProto.FLOAT, shape))
    return onnx.shape_inference.infer_shapes(model, data_prop=True)
