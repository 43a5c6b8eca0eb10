"""Times the ways to do layers of many sizes on this machine, for `kernels/priors.json`: first builds choose by it.

    python -m tintype.bench.priors --threads 1 --threads 2

The layers are those of Stable Diffusion's shapes and of smaller models, with random weights; no checkpoint is needed. A
table of the same kind of processor and number of threads is replaced, all others stay. Let little else run beside it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from tintype.engine.build.measure import layer_costs
from tintype.engine.device.abilities import abilities
from tintype.engine.device.machine import processor_kind
from tintype.engine.device.providers import TARGETS

if TYPE_CHECKING:
    import onnx

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
# Rows, inputs, outputs.
PRODUCTS = (
    (1, 320, 1280), (1, 64, 256), (77, 64, 64), (77, 768, 768), (77, 768, 3072), (77, 3072, 768), (77, 768, 320),
    (64, 128, 128), (256, 64, 64), (256, 64, 256), (256, 1280, 1280), (256, 1280, 5120), (1024, 128, 128),
    (1024, 640, 640), (1024, 640, 2560), (1024, 2560, 640), (4096, 320, 320), (4096, 320, 1280), (4096, 1280, 320),
)  # fmt: skip
HEADS = ((4096, 320), (1024, 640), (256, 1280), (256, 64), (64, 128), (77, 768))  # rows, width: query, key and value
AFFINES = ((64, 64), (256, 64), (256, 192), (1024, 320), (4096, 320), (4096, 512), (65536, 256), (262144, 128))


@click.command()
@click.option("--threads", type=click.IntRange(1), multiple=True, default=(1, 2), show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=DEFAULT, show_default=True)
@click.option("--processor", help="The kind to write down [default: this machine's].")
def main(threads: tuple[int, ...], out: Path, processor: str | None) -> None:
    """Time layers and write the table of this kind of processor into --out."""
    cpu = TARGETS["cpu"]
    kind = processor or processor_kind()
    stored = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"tables": []}
    for count in threads:
        rows = []
        for label, model in models("mixed_products" in abilities(cpu)):
            for layer_kind, size, ways in layer_costs(model, cpu, threads=count):
                best = min(seconds for seconds, _, _ in ways.values())
                click.echo(f"{label:<40} {layer_kind:<28} {best * 1e3:9.3f} ms {min(ways, key=lambda w: ways[w][0])}")
                rows.append([layer_kind, size, ways])
        others = [each for each in stored["tables"] if (each["processor"], each["threads"]) != (kind, count)]
        stored["tables"] = [*others, {"processor": kind, "threads": count, "rows": rows}]
        out.write_text(_text(stored), encoding="utf-8")


def _text(stored: dict[str, list[dict[str, object]]]) -> str:
    """JSON with a line for each layer."""
    tables = []
    for table in sorted(stored["tables"], key=lambda each: (str(each["processor"]), each["threads"])):
        rows = table["rows"]
        assert isinstance(rows, list)
        lines = ",\n".join(json.dumps(row) for row in rows)
        tables.append(f'{{"processor": "{table["processor"]}", "threads": {table["threads"]}, "rows": [\n{lines}]}}')
    return '{"tables": [\n' + ",\n".join(tables) + "]}\n"


def models(mixed_products: bool) -> Iterator[tuple[str, onnx.ModelProto]]:
    """A name and a canonical graph of one layer each. mixed_products: int8 weights stay so, see `unsigned_weights`."""
    for inputs, outputs, side in CONVOLUTIONS:
        for rounded in (False, True):
            yield f"conv {inputs} {outputs} {side}", _convolution(inputs, outputs, side, False, rounded, mixed_products)
    for inputs, outputs, side in UPSAMPLED:
        for rounded in (False, True):
            yield f"up {inputs} {outputs} {side}", _convolution(inputs, outputs, side, True, rounded, mixed_products)
    for rows, inputs, outputs in PRODUCTS:
        yield f"product {rows} {inputs} {outputs}", _product(rows, inputs, outputs, mixed_products)
    for rows, width in HEADS:
        yield f"qkv {rows} {width}", _heads(rows, width)
    for pixels, channels in AFFINES:
        yield f"affine {pixels} {channels}", _affine(pixels, channels)


def _convolution(
    inputs: int, outputs: int, side: int, upsampled: bool, rounded: bool, mixed_products: bool
) -> onnx.ModelProto:
    from onnx import helper

    random = np.random.default_rng(0)
    weight = (random.standard_normal((outputs, inputs, 3, 3)) / np.sqrt(9 * inputs)).astype(np.float32)
    source = "wide" if upsampled else "x"
    nodes = []
    constants: dict[str, NDArray[Any]] = {}
    if upsampled:
        constants["sizes"] = np.array([1, 1, 2, 2], np.float32)
        nodes.append(
            helper.make_node(
                "Resize",
                ["x", "", "sizes"],
                ["wide"],
                mode="nearest",
                nearest_mode="floor",
                coordinate_transformation_mode="asymmetric",
            )
        )
    pads = [1, 1, 1, 1]
    if not rounded:
        constants |= {"weight": weight, "bias": np.zeros(outputs, np.float32)}
        nodes.append(helper.make_node("Conv", [source, "weight", "bias"], ["y"], name="layer", pads=pads))
    else:
        constants |= _integers(weight.reshape(outputs, -1).T, mixed_products, outputs)
        constants["integers"] = np.ascontiguousarray(constants["integers"].T).reshape(weight.shape)
        constants |= {"step": np.array(8 / 255, np.float32), "middle": np.array(128, np.uint8)}
        nodes += [
            helper.make_node("QuantizeLinear", [source, "step", "middle"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "step", "middle"], ["xd"]),
            helper.make_node("DequantizeLinear", ["integers", "scale", "zero"], ["weight"], axis=0),
            helper.make_node("Conv", ["xd", "weight"], ["c"], name="layer", pads=pads),
            helper.make_node("QuantizeLinear", ["c", "step", "middle"], ["cq"]),
            helper.make_node("DequantizeLinear", ["cq", "step", "middle"], ["y"]),
        ]
    return _model(nodes, {"x": [1, inputs, side, side]}, constants)


def _product(rows: int, inputs: int, outputs: int, mixed_products: bool) -> onnx.ModelProto:
    from onnx import helper

    weight = (np.random.default_rng(0).standard_normal((inputs, outputs)) / np.sqrt(inputs)).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["integers", "scale", "zero"], ["weight"], axis=1),
        helper.make_node("MatMul", ["x", "weight"], ["product"], name="layer"),
        helper.make_node("Add", ["product", "bias"], ["y"]),
    ]
    constants = _integers(weight, mixed_products, outputs) | {"bias": np.zeros(outputs, np.float32)}
    return _model(nodes, {"x": [1, rows, inputs]}, constants)


def _heads(rows: int, width: int) -> onnx.ModelProto:
    from onnx import helper

    random = np.random.default_rng(0)
    nodes, constants = [], {}
    for name in ("query", "key", "value"):
        constants[name] = (random.standard_normal((width, width)) / np.sqrt(width)).astype(np.float32)
        nodes.append(helper.make_node("MatMul", ["x", name], [f"{name}_out"], name=name))
    names = [f"{name}_out" for name in ("query", "key", "value")]
    nodes.append(helper.make_node("MultiHeadAttention", names, ["y"], domain="com.microsoft", num_heads=8))
    return _model(nodes, {"x": [1, rows, width]}, constants, output=[1, rows, width])


def _affine(pixels: int, channels: int) -> onnx.ModelProto:
    from onnx import helper

    constants = {name: np.ones((1, channels, 1, 1), np.float32) for name in ("scale", "shift")}
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["scaled"], name="layer"),
        helper.make_node("Add", ["scaled", "shift"], ["y"]),
    ]
    return _model(nodes, {"x": [1, channels, pixels // 8, 8]}, constants)


def _integers(weight: NDArray[np.float32], mixed_products: bool, outputs: int) -> dict[str, NDArray[Any]]:
    """A weight (inputs, outputs) as 8-bit integers with a scale for each output, as a build has them here."""
    scale = (np.abs(weight).max(axis=0) / 127).astype(np.float32)
    integers = np.rint(weight / scale)
    kind, zero = (np.int8, 0) if mixed_products else (np.uint8, 128)
    return {"integers": (integers + zero).astype(kind), "scale": scale, "zero": np.full(outputs, zero, kind)}


def _model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[int]],
    constants: Mapping[str, NDArray[Any]],
    output: list[int] | None = None,
) -> onnx.ModelProto:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


if __name__ == "__main__":
    sys.exit(main())
