"""Large weights that kernels make for a build: on disk as soon as they are made, past ONNX Runtime's optimizer.

Runs in the child process that makes a build.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.engine.build.weights import put

PRODUCTS = {"MatMul", "FusedMatMul"}  # of which ONNX Runtime changes no weight while it optimizes
SPILLED_BYTES = 2**20  # larger weights that a kernel made go to disk at once


class Spill:
    """Large weights that kernels make, moved to files: those of a whole UNet would not fit into memory.

    Where products alone read them, on the processor, to where the build will have them: see `take_final`.
    """

    def __init__(self, path: Path, folder: Path | None, store: Path | None) -> None:
        """path: of the file. folder: the build's of weights, where products' go, shared with `store`; None for none."""
        self._path, self._folder, self._store = path, folder, store
        self._seen: set[ir.Value] = set()

    def weights_of(self, graph: ir.Graph) -> None:
        """Move every large weight of the graph that is in memory."""
        for value in graph.initializers.values():
            if value in self._seen:
                continue
            self._seen.add(value)
            tensor = value.const_value
            if tensor is None or isinstance(tensor, ir.ExternalTensor) or tensor.nbytes < SPILLED_BYTES:
                continue
            place, offset = self._put(value, tensor.numpy())
            value.const_value = ir.ExternalTensor(
                place.name,
                offset,
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=str(value.name),
                base_dir=place.parent,
            )

    def _put(self, value: ir.Value, weight: NDArray[Any]) -> tuple[Path, int]:
        """Where a weight is then, and from which byte on."""
        if self._folder is not None and all(use.node.op_type in PRODUCTS for use in value.uses()):
            return put(np.ascontiguousarray(weight).data.cast("B"), self._folder, self._store), 0
        with self._path.open("ab") as file:
            file.write(b"\0" * (-file.tell() % 4096))
            offset = file.tell()
            file.write(weight.tobytes())
        return self._path, offset


def take_final(model: ir.Model, folder: Path) -> dict[str, ir.ExternalTensor]:
    """Weights that lie where the build will have them, by name, taken out of a graph, which has inputs in their place.

    There is nothing for ONNX Runtime to optimize in them, and its reading and writing gigabytes is half of a build.
    """
    final = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and Path(tensor.base_dir) == folder:
            final[name] = tensor
            del model.graph.initializers[name]
            value.const_value = None
            value.type, value.shape = ir.TensorType(tensor.dtype), tensor.shape
            model.graph.inputs.append(value)
    return final
