"""Adapters merged into a graph's weights, in a child process, where onnx may be imported: what changed, and only that.

The child process is `python -m tintype.engine.build.merge`.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tintype.engine.build.child import DISK, GRAPH_SECONDS, MEMORY, ChildError, answer_parent, run_child
from tintype.engine.build.late import import_late
from tintype.errors import BuildError

if TYPE_CHECKING:
    import onnx_ir as ir

# The products are of a few ranks each: threads that share one wait for each other longer than they compute.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True)
class MergeFacts:
    """layers: how many changed. snr_db: of the merged weights as they are stored, to the same in float; infinite where
    they are floats."""

    layers: int
    snr_db: float


def merge_weights(source: Path, changes: Path, place: Path) -> MergeFacts:
    """Write the initializers of a graph that change, as .safetensors, by their names.

    changes: a .safetensors file of, for each layer and each adapter, LAYER|NUMBER|down (rank, inputs * kernel) and up
    (outputs, rank), or delta; weight (1,); and magnitudes, see `kernels.graph.merge.Change`. Raises BuildError.
    """
    job = {"source": str(source.resolve()), "changes": str(changes.resolve()), "place": str(place.resolve())}
    try:
        answer = run_child("tintype.engine.build.merge", json.dumps(job), GRAPH_SECONDS, ONE_THREAD)
    except ChildError as error:
        fixes = {DISK: "free some disk space", MEMORY: "close other programs"}
        fix = fixes.get(error.kind or "", "export the bundle again: tintype export")
        raise BuildError(f"{source} cannot be merged with: {error.message}", fix=fix, kind=error.kind) from None
    error_squares = answer["error_squares"]
    snr_db = 10 * math.log10(answer["squares"] / error_squares) if error_squares > 0 else math.inf
    return MergeFacts(answer["layers"], snr_db)


def changed_weights(path: Path) -> Mapping[str, ir.TensorProtocol]:
    """Initializers that `merge_weights` wrote, read when they are needed. Imports onnx."""
    import onnx_ir as ir
    from safetensors import safe_open

    file = safe_open(path, framework="numpy")
    kinds = {"F32": ir.DataType.FLOAT, "F16": ir.DataType.FLOAT16, "I8": ir.DataType.INT8, "I32": ir.DataType.INT32}
    kinds |= {"U8": ir.DataType.UINT8}  # packed four bits

    def lazy(name: str) -> ir.TensorProtocol:
        part = file.get_slice(name)
        shape, kind = ir.Shape(part.get_shape()), kinds[part.get_dtype()]
        return ir.LazyTensor(lambda: ir.tensor(file.get_tensor(name), name=name), kind, shape, name=name)

    return {name: lazy(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping


def main() -> int:
    """Do the job on stdin."""
    import_late()
    return answer_parent(_answer)


def _answer(text: str) -> dict[str, Any]:
    import onnx_ir as ir
    from safetensors import safe_open
    from safetensors.numpy import save_file

    from tintype.kernels.graph.low_rank import adaptable_layers
    from tintype.kernels.graph.merge import merge_layer

    job = json.loads(text)
    layers = adaptable_layers(ir.load(Path(job["source"])).graph)
    with safe_open(job["changes"], framework="numpy") as file:
        by_layer: dict[str, dict[str, dict[str, str]]] = {}
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            layer, number, part = name.split("|")
            by_layer.setdefault(layer, {}).setdefault(number, {})[part] = name
        made: dict[str, Any] = {}
        squares = error_squares = 0.0
        for name, numbers in by_layer.items():
            merged = merge_layer(layers[name], [_change(file, parts) for parts in numbers.values()])
            made |= merged.initializers
            squares, error_squares = squares + merged.squares, error_squares + merged.error_squares
    save_file(made, job["place"])
    return {"layers": len(by_layer), "squares": squares, "error_squares": error_squares}


def _change(file: Any, parts: Mapping[str, str]) -> Any:
    from tintype.kernels.graph.merge import Change

    arrays = {part: file.get_tensor(name) for part, name in parts.items()}
    factors = (arrays["delta"],) if "delta" in arrays else (arrays["up"], arrays["down"])
    return Change(float(arrays["weight"][0]), factors, arrays.get("magnitudes"))


if __name__ == "__main__":
    sys.exit(main())
