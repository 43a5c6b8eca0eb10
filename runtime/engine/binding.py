"""A session whose tensors stay on its device: inputs and outputs in OrtValues that are made once and used at every run.

What does not change from one run to the next (embeddings, ControlNet's residuals) is written once. An output can be the
input of another session on the same device without coming back to the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tintype.engine.providers import Target, load_onnxruntime
from tintype.errors import BuildError, MemoryBudgetError

# How ONNX Runtime names a target's own memory.
MEMORY_NAMES = {"cuda": "cuda", "directml": "dml", "webgpu": "webgpu"}


class Bound:
    """One session's inputs and outputs as preallocated tensors. Not from two threads at once; `close` frees them.

    device_bytes: what its tensors take in the device's memory. host_bytes: what they take here.
    """

    def __init__(
        self,
        inner: Any,
        target: Target,
        inputs: Mapping[str, tuple[tuple[int, ...], type]],
        outputs: Mapping[str, tuple[tuple[int, ...], type]],
    ) -> None:
        """inner: ONNX Runtime's session. inputs, outputs: shape and element type by name, all fixed.

        Raises MemoryBudgetError when the device has no room for them.
        """
        self.target = target
        self._inner = inner
        self._binding = inner.io_binding()
        self._values: dict[str, Any] = {}
        told = {**inputs, **outputs}
        self._told = {name: (tuple(shape), np.dtype(kind)) for name, (shape, kind) in told.items()}
        self.device_bytes = self.host_bytes = 0
        for name, (shape, kind) in inputs.items():
            self.adopt(name, self._new(name, shape, kind))
        for name, (shape, kind) in outputs.items():
            self._values[name] = self._new(name, shape, kind)
            self._binding.bind_ortvalue_output(name, self._values[name])

    def write(self, name: str, array: NDArray[Any]) -> None:
        """Copy an array into an input's tensor, in place; its address stays, as CUDA graphs want it.

        Raises BuildError for another shape or element type than the tensor has.
        """
        value, wanted = self._value(name), self._told[name]
        if (array.shape, array.dtype) != wanted:
            raise BuildError(
                f"{name} is {array.dtype} {array.shape}, its tensor {wanted[1]} {wanted[0]}",
                fix="open a binding for this shape and type",
            )
        value.update_inplace(np.asarray(array, order="C"))

    def adopt(self, name: str, value: Any) -> None:
        """Read an input from this OrtValue from now on: another session's output, say, that lies on the device."""
        if tuple(value.shape()) != self._told[name][0]:
            raise BuildError(
                f"{name} is {self._told[name][0]}, the tensor {tuple(value.shape())}",
                fix="open a binding for this shape",
            )
        self._values[name] = value
        self._binding.bind_ortvalue_input(name, value)

    def value(self, name: str) -> Any:
        """The OrtValue of an input or output, where it lies; a run writes into it again."""
        return self._value(name)

    def run(self, options: Any = None) -> None:
        """One run on what the inputs hold; returns when the outputs are there. options: ONNX Runtime's RunOptions."""
        if self._inner is None:
            raise BuildError("the binding is closed", fix="open it again")
        self._inner.run_with_iobinding(self._binding, options)

    def read(self, name: str) -> NDArray[Any]:
        """A copy of a tensor on the host; it belongs to the caller."""
        return np.array(self._value(name).numpy())

    def close(self) -> None:
        """Free the tensors. Closing twice is fine."""
        self._inner = self._binding = None
        self._values.clear()
        self.device_bytes = self.host_bytes = 0

    def __enter__(self) -> Bound:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _value(self, name: str) -> Any:
        if name not in self._values:
            raise BuildError(f"nothing called {name!r} is bound", fix=f"bound are {', '.join(self._values)}")
        return self._values[name]

    def _new(self, name: str, shape: tuple[int, ...], kind: type) -> Any:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize
        try:
            value = empty_tensor(self.target, shape, kind)
        except Exception as error:  # ORT raises its own unrelated classes, one a status code
            raise MemoryBudgetError(
                f"{self.target.name} has no room for {name}, {size:,} bytes: {str(error).splitlines()[0]}",
                fix="ask for a smaller picture, or fewer at once",
            ) from error
        if value.device_name() == "cpu":
            self.host_bytes += size
        else:
            self.device_bytes += size
        return value


def empty_tensor(target: Target, shape: tuple[int, ...], kind: type) -> Any:
    """An OrtValue of a fixed shape in the target's own memory, its content undefined.

    A provider that is not in MEMORY_NAMES copies for itself; its tensors are made on the host. So are integers of
    WebGPU: it has none of 64 bits, and a graph reads others than were written, without an error.
    """
    ort_value = load_onnxruntime().OrtValue
    device = MEMORY_NAMES.get(target.name, "cpu")
    if target.name == "webgpu" and np.dtype(kind).kind in "iu":
        device = "cpu"
    return ort_value.ortvalue_from_shape_and_type(list(shape), kind, device, 0)
