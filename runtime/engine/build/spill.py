"""Large weights that kernels make for a build: on disk as soon as they are made, past ONNX Runtime's optimizer.

Runs in the child process that makes a build.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from tintype.engine.build.weights import put, share
from tintype.kernels.base import OWN

PRODUCTS = {"MatMul", "FusedMatMul", "MatMulNBits"}  # of which ONNX Runtime changes no weight while it optimizes
SPILLED_BYTES = 2**20  # larger weights that a kernel made go to disk at once


class Spill:
    """Large weights that kernels make, moved to files: those of a whole UNet would not fit into memory.

    Where on the processor only operators of our own read them, to where the build will have them, see `take_final`;
    those of products too, once no kernel may take these any more.
    """

    def __init__(self, path: Path, folder: Path | None, store: Path | None) -> None:
        """path: of the file. folder: where the build has its weights, which it shares with `store`; None for none."""
        self._path, self._folder, self._store = path, folder, store
        self._seen: set[ir.Value] = set()
        self._movable: list[ir.Value] = []
        self._placed: list[Path] = []

    def weights_of(self, graph: ir.Graph) -> None:
        """Move every large weight of the graph that is in memory."""
        new = [value for value in graph.initializers.data.values() if value not in self._seen]
        self._seen.update(new)
        for value in new:
            tensor = value.const_value
            if tensor is None or isinstance(tensor, ir.ExternalTensor) or tensor.nbytes < SPILLED_BYTES:
                continue
            if self._folder is not None and all(use.node.domain == OWN for use in value.uses()):
                self._put(value, self._folder, None)  # a build that fails leaves nothing with others
            else:
                self._append(value)
                self._movable.append(value)

    def settle(self, graph: ir.Graph) -> None:
        """Move those of products to where the build will have them, and share all there: every kernel is chosen."""
        if self._store is not None:
            for place in self._placed:
                share(place, self._store)
        for value in self._movable:
            uses = value.uses() if graph.initializers.get(str(value.name)) is value else ()
            if uses and self._folder is not None and all(use.node.op_type in PRODUCTS for use in uses):
                self._put(value, self._folder, self._store)

    def _put(self, value: ir.Value, folder: Path, store: Path | None) -> None:
        """Into a file of its own, which other builds may share."""
        place = put(np.ascontiguousarray(_data(value).numpy()).data.cast("B"), folder, store)
        if store is None:
            self._placed.append(place)
        self._point(value, place, 0)

    def _append(self, value: ir.Value) -> None:
        with self._path.open("ab") as file:
            file.write(b"\0" * (-file.tell() % 4096))
            offset = file.tell()
            file.write(_data(value).tobytes())
        self._point(value, self._path, offset)

    @staticmethod
    def _point(value: ir.Value, place: Path, offset: int) -> None:
        tensor = _data(value)
        value.const_value = ir.ExternalTensor(
            place.name,
            offset,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=str(value.name),
            base_dir=place.parent,
        )


def _data(value: ir.Value) -> ir.TensorProtocol:
    if value.const_value is None:
        raise ValueError(f"{value.name} is not fixed")
    return value.const_value


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
