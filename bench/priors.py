"""Times the ways to do layers of many sizes on this machine, for `kernels/priors.json`: first builds choose by it.

    tintype bench priors --threads 1 --threads 2

The layers are those of Stable Diffusion's shapes and of smaller models, with random weights; no checkpoint is needed. A
table of the same kind of processor and number of threads is replaced, all others stay. Let little else run beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray

from tintype.bench.rates import graph_of, rounded
from tintype.engine import block_scales, has_ability, layer_costs, processor_kind, resolve_provider, to_integers

DEFAULT = Path(__file__).resolve().parents[1] / "kernels" / "priors.json"
# Input channels, output channels and the side of a square picture, or of the small one that is upsampled.
CONVOLUTIONS = (
    (4, 320, 64), (320, 4, 64), (320, 320, 64), (640, 320, 64), (960, 320, 64), (320, 640, 32), (640, 640, 32),
    (1280, 640, 32), (1920, 640, 32), (1280, 1280, 16), (2560, 1280, 16), (1280, 1280, 8), (2560, 1280, 8),
    (512, 512, 64), (512, 512, 128), (512, 256, 256), (256, 256, 256), (256, 128, 256), (128, 128, 512), (128, 3, 512),
    (16, 16, 64), (32, 32, 32), (32, 64, 16), (64, 64, 16), (64, 64, 64), (128, 128, 8), (128, 128, 32), (192, 192, 8),
    (192, 192, 16), (256, 256, 16), (256, 256, 32),
)  # fmt: skip
UPSAMPLED = (
    (32, 32, 32), (64, 64, 16), (64, 64, 64), (128, 128, 16), (192, 192, 8), (256, 256, 64), (256, 256, 128),
    (512, 512, 64), (512, 512, 128), (640, 640, 32), (1280, 1280, 8), (1280, 1280, 16),
)  # fmt: skip
POINTWISE = (
    (320, 320, 64), (960, 320, 64), (640, 640, 32), (1920, 640, 32), (1280, 1280, 16), (2560, 1280, 16),
    (1280, 1280, 8), (64, 64, 16),
)  # fmt: skip
# Rows, inputs, outputs.
PRODUCTS = (
    (1, 320, 1280), (1, 64, 256), (77, 64, 64), (77, 768, 768), (77, 768, 3072), (77, 3072, 768), (77, 768, 320),
    (64, 128, 128), (256, 64, 64), (256, 64, 256), (256, 1280, 1280), (256, 1280, 5120), (1024, 128, 128),
    (1024, 640, 640), (1024, 640, 2560), (1024, 2560, 640), (4096, 320, 320), (4096, 320, 1280), (4096, 1280, 320),
)  # fmt: skip
GATED = ((64, 128, 512), (256, 96, 384), (256, 1280, 5120), (1024, 640, 2560), (4096, 320, 1280))
# Pixels and channels of a GroupNormalization, of 32 groups; queries, keys, heads and a head's numbers of an attention.
NORMS = (
    (64, 160), (64, 1280), (256, 96), (256, 1280), (1024, 32), (1024, 640), (4096, 320), (4096, 960), (65536, 256),
    (262144, 128),
)  # fmt: skip
ATTENTIONS = (
    (64, 64, 8, 160), (64, 77, 4, 40), (256, 256, 4, 24), (256, 77, 8, 160), (256, 256, 8, 160), (1024, 77, 8, 80),
    (1024, 1024, 8, 80), (1024, 1024, 10, 64), (4096, 77, 8, 40), (4096, 4096, 8, 40),
)  # fmt: skip
AFFINES = ((64, 64), (256, 64), (256, 192), (1024, 320), (4096, 320), (4096, 512), (65536, 256), (262144, 128))


@click.command()
@click.option("--threads", type=click.IntRange(1), multiple=True, default=(1, 2), show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=DEFAULT, show_default=True)
@click.option("--only", default="", help="Layers whose name begins so, such as int8; what is known of others stays.")
def priors(threads: tuple[int, ...], out: Path, only: str) -> None:
    """Time layers and write the table of this kind of processor into --out."""
    cpu, kind = resolve_provider("cpu"), processor_kind()
    stored = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"tables": []}
    for count in threads:
        rows = []
        for label, model in models(has_ability(cpu, "mixed_products")):
            if not label.startswith(only):
                continue
            for layer_kind, size, ways in layer_costs(model, cpu, threads=count):
                best = min(seconds for seconds, _, _ in ways.values())
                click.echo(f"{label:<40} {layer_kind:<28} {best * 1e3:9.3f} ms {min(ways, key=lambda w: ways[w][0])}")
                rows.append([layer_kind, size, ways])
        timed, others = {(row[0], tuple(row[1])) for row in rows}, []
        for table in stored["tables"]:
            if (table["processor"], table["threads"]) != (kind, count):
                others.append(table)
            elif only:
                rows += [row for row in table["rows"] if (row[0], tuple(row[1])) not in timed]
        stored["tables"] = [*others, {"processor": kind, "threads": count, "rows": rows}]
        out.write_text(_text(stored), encoding="utf-8")


def _text(stored: dict[str, list[dict[str, Any]]]) -> str:
    """JSON with a line for each layer."""
    tables = []
    for table in sorted(stored["tables"], key=lambda each: (each["processor"], each["threads"])):
        lines = ",\n".join(map(json.dumps, table["rows"]))
        tables.append(f'{{"processor": "{table["processor"]}", "threads": {table["threads"]}, "rows": [\n{lines}]}}')
    return '{"tables": [\n' + ",\n".join(tables) + "]}\n"


def models(mixed_products: bool) -> Iterator[tuple[str, onnx.ModelProto]]:
    """A name and a canonical graph of one layer each. mixed_products: int8 weights stay so, see `unsigned_weights`."""
    for convolutions, is_upsampled in ((CONVOLUTIONS, False), (UPSAMPLED, True)):
        for inputs, outputs, side in convolutions:
            for is_rounded in (False, True):
                nodes, constants = _convolution(inputs, outputs, is_upsampled, is_rounded, mixed_products)
                label = f"{'int8 ' if is_rounded else ''}{'up' if is_upsampled else 'conv'} {inputs} {outputs} {side}"
                yield label, _model(nodes, [1, inputs, side, side], constants)
    for inputs, outputs, side in POINTWISE:
        nodes, constants = _convolution(inputs, outputs, False, True, mixed_products, cells=1)
        yield f"int8 pointwise {inputs} {outputs} {side}", _model(nodes, [1, inputs, side, side], constants)
    for rows, inputs, outputs in PRODUCTS:
        constants = _integers(_weight(inputs, outputs), mixed_products) | {"bias": np.zeros(outputs, np.float32)}
        nodes = f"{_WEIGHT.format(axis=1)} product = MatMul(x, weight) y = Add(product, bias)"
        yield f"int8 product {rows} {inputs} {outputs}", _model(nodes, [1, rows, inputs], constants)
        constants = _blocks(inputs, outputs) | {"bias": np.zeros(outputs, np.float32)}
        nodes = f"{_BLOCKED.format(name='weight')} product = MatMul(x, weight) y = Add(product, bias)"
        yield f"int4 product {rows} {inputs} {outputs}", _model(nodes, [1, rows, inputs], constants)
        constants = {"weight": _weight(inputs, outputs), "bias": np.zeros(outputs, np.float32)}
        nodes = "product = MatMul(x, weight) y = Add(product, bias)"
        yield f"product {rows} {inputs} {outputs}", _model(nodes, [1, rows, inputs], constants)
    for rows, inputs, outputs in GATED:
        constants = {name: _weight(inputs, outputs) for name in ("weight", "gate")}
        biases = {name: np.zeros(outputs, np.float32) for name in ("bias", "shift")}
        nodes = "product = MatMul(x, weight) value = Add(product, bias) g = MatMul(x, gate) "
        nodes += "shifted = Add(g, shift) gelu = Gelu(shifted) y = Mul(value, gelu)"
        yield f"geglu {rows} {inputs} {outputs}", _model(nodes, [1, rows, inputs], constants | biases)
        stored = _integers(constants["weight"], mixed_products)
        int8 = f"{_WEIGHT.format(axis=1)} gate = DequantizeLinear<axis=1>(integers, scale, zero) {nodes}"
        yield f"int8 geglu {rows} {inputs} {outputs}", _model(int8, [1, rows, inputs], stored | biases)
        int4 = f"{_BLOCKED.format(name='weight')} {_BLOCKED.format(name='gate')} {nodes}"
        yield (
            f"int4 geglu {rows} {inputs} {outputs}",
            _model(int4, [1, rows, inputs], _blocks(inputs, outputs) | biases),
        )
    for pixels, channels in NORMS:
        constants = {name: np.ones(channels, np.float32) for name in ("scale", "shift")}
        for activation in ("y = Identity(normed)", "s = Sigmoid(normed) y = Mul(normed, s)"):
            nodes = f"normed = GroupNormalization<num_groups=32>(x, scale, shift) {activation}"
            yield f"norm {pixels} {channels}", _model(nodes, [1, channels, pixels // 8, 8], constants)
    for queries, keys, heads, size in ATTENTIONS:
        nodes = f"y = com.microsoft.MultiHeadAttention<num_heads={heads}>(x, {'x, x' if keys == queries else 'k, v'})"
        constants = {name: _weight(keys, heads * size)[np.newaxis] for name in ("k", "v") if keys != queries}
        yield f"attention {queries} {keys} {heads} {size}", _model(nodes, [1, queries, heads * size], constants)
    for pixels, channels in AFFINES:
        constants = {name: np.ones((1, channels, 1, 1), np.float32) for name in ("scale", "shift")}
        nodes = "scaled = Mul(x, scale) y = Add(scaled, shift)"
        yield f"affine {pixels} {channels}", _model(nodes, [1, channels, pixels // 8, 8], constants)


_BLOCKED = "{name} = DequantizeLinear<axis=0, block_size=32>(integers, scale, zero)"
_WEIGHT = "weight = DequantizeLinear<axis={axis}>(integers, scale, zero)"
_RESIZE = (
    'wide = Resize<mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric">(x, , sizes) '
)


def _convolution(
    inputs: int, outputs: int, is_upsampled: bool, is_rounded: bool, mixed_products: bool, cells: int = 9
) -> tuple[str, dict[str, NDArray[Any]]]:
    """Nodes and constants of a 3x3 or 1x1 convolution in float or in integers, of x or of x upsampled."""
    weight, source = _weight(cells * inputs, outputs), "wide" if is_upsampled else "x"
    pads, side = ("[1, 1, 1, 1]", 3) if cells == 9 else ("[0, 0, 0, 0]", 1)
    nodes = _RESIZE if is_upsampled else ""
    constants: dict[str, NDArray[Any]] = {"sizes": np.array([1, 1, 2, 2], np.float32)} if is_upsampled else {}
    if not is_rounded:
        constants |= {"weight": _kernel(weight, side), "bias": np.zeros(outputs, np.float32)}
        return nodes + f"y = Conv<pads={pads}>({source}, weight, bias)", constants
    constants |= _integers(weight, mixed_products)
    constants["integers"] = _kernel(constants["integers"], side)
    constants |= {"step": np.array(8 / 255, np.float32), "middle": np.array(128, np.uint8)}
    nodes += f"xq = QuantizeLinear({source}, step, middle) xd = DequantizeLinear(xq, step, middle) "
    nodes += f"{_WEIGHT.format(axis=0)} c = Conv<pads={pads}>(xd, weight) "
    return nodes + "cq = QuantizeLinear(c, step, middle) y = DequantizeLinear(cq, step, middle)", constants


def _weight(inputs: int, outputs: int) -> NDArray[np.float32]:
    return (np.random.default_rng(0).standard_normal((inputs, outputs)) / np.sqrt(inputs)).astype(np.float32)


def _kernel(weight: NDArray[Any], side: int) -> NDArray[Any]:
    """(cells * inputs, outputs) as a convolution has it: (outputs, inputs, side, side)."""
    return np.ascontiguousarray(weight.T).reshape(weight.shape[1], -1, side, side)


def _integers(weight: NDArray[np.float32], mixed_products: bool) -> dict[str, NDArray[Any]]:
    """A weight (inputs, outputs) as 8-bit integers with a scale for each output, as a build has them here."""
    integers, scale = rounded(weight)
    kind, zero = (np.int8, 0) if mixed_products else (np.uint8, 128)
    return {"integers": (integers + zero).astype(kind), "scale": scale, "zero": np.full(len(scale), zero, kind)}


def _blocks(inputs: int, outputs: int) -> dict[str, NDArray[Any]]:
    """A weight (inputs, outputs) as 4-bit integers with a scale and a zero point for each 32 inputs of an output."""
    weight = _weight(inputs, outputs)
    scales = block_scales(weight)
    return {
        "integers": to_integers(weight, scales).astype(ml_dtypes.uint4),
        "scale": scales.scale.astype(np.float32),
        "zero": scales.zero_point.astype(ml_dtypes.uint4),
    }


def _model(nodes: str, shape: list[int | str], constants: dict[str, NDArray[Any]]) -> onnx.ModelProto:
    """With every value's shape; onnx infers none for a GroupNormalization, which is called `normed` here."""
    model = graph_of(nodes, shape, constants)
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("normed", onnx.TensorProto.FLOAT, shape))
    return onnx.shape_inference.infer_shapes(model, data_prop=True)
