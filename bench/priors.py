"""Times the ways to do layers of many sizes on this machine, for `kernels/priors.json`: first builds choose by it.

    tintype bench priors --threads 1 --threads 2

The layers are of Stable Diffusion's shapes and of smaller models (layers.json), with random weights. A table of one
kind of processor and number of threads is replaced, all others stay. Let little else run beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from numpy.typing import NDArray

from tintype.bench.rates import graph_of, rounded
from tintype.engine import has_ability, layer_costs, processor_kind, resolve_provider

DEFAULT = Path(__file__).resolve().parents[1] / "kernels" / "priors.json"
# By kind. conv, up (of what is made twice as large before) and pointwise: channels in and out, the side of the square
# picture; product and geglu: rows, inputs, outputs; norm (of 32 groups) and affine: pixels, channels; attention:
# queries, keys, heads and a head's numbers.
SIZES = json.loads(Path(__file__).with_name("layers.json").read_text(encoding="utf-8"))
_RESIZE = (
    'wide = Resize<mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric">(x, , sizes) '
)
_DEQUANTIZE = "{} = DequantizeLinear<axis={}>(integers, scale, zero) "
_ROUND = "{0}q = QuantizeLinear({0}, step, middle) {1} = DequantizeLinear({0}q, step, middle) "
_PRODUCT = "product = MatMul(x, weight) y = Add(product, bias)"
_GEGLU = "product = MatMul(x, weight) value = Add(product, bias) g = MatMul(x, gate) "
_GEGLU += "shifted = Add(g, shift) gelu = Gelu(shifted) y = Mul(value, gelu)"
Layer = tuple[
    str, str, list[int | str], dict[str, NDArray[Any]]
]  # its name, nodes from x to y, the shape of x, constants


@click.command()
@click.option("--threads", type=click.IntRange(1), multiple=True, default=(1, 2), show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=DEFAULT, show_default=True)
@click.option("--only", default="", help="Layers whose name begins so, such as int8; what is known of others stays.")
def priors(threads: tuple[int, ...], out: Path, only: str) -> None:
    """Time layers and write the table of this kind of processor into --out."""
    cpu, kind = resolve_provider("cpu"), processor_kind()
    stored = json.loads(out.read_text(encoding="utf-8"))["tables"] if out.exists() else []
    tables = {(table["processor"], table["threads"]): table["rows"] for table in stored}
    for count in threads:
        rows = []
        for label, nodes, shape, constants in layers(has_ability(cpu, "mixed_products")):
            if label.startswith(only):
                model = model_of(nodes, shape, constants)
                for layer_kind, size, ways in layer_costs(model, cpu, threads=count):
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
            if name != "pointwise":
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


def model_of(nodes: str, shape: list[int | str], constants: dict[str, NDArray[Any]]) -> onnx.ModelProto:
    """With every value's shape; onnx infers none for a GroupNormalization, which is called `normed` here."""
    model = graph_of(nodes, shape, constants)
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("normed", onnx.TensorProto.FLOAT, shape))
    return onnx.shape_inference.infer_shapes(model, data_prop=True)
