"""A session whose tensors stay on its device: inputs and outputs in OrtValues that are made once and used at every run.

What does not change from one run to the next (embeddings, ControlNet's residuals) is written once. An output can be the
input of another session on the same device without coming back to the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tintype.engine.device.providers import Target, load_onnxruntime
from tintype.errors import BuildError, MemoryBudgetError

Tensor = tuple[tuple[int, ...], type]  # shape and element type

# How ONNX Runtime names a target's own memory.
MEMORY_NAMES = {"cuda": "cuda", "directml": "dml", "webgpu": "webgpu"}


class TensorBinding:
    """One session's inputs and outputs as preallocated tensors. Not from two threads at once; `close` frees them.

    device_bytes: what its tensors take in the device's memory. host_bytes: what they take here.
    """

    def __init__(
        self,
        inner: Any,
        target: Target,
        inputs: Mapping[str, Tensor],
        outputs: Mapping[str, Tensor | None],
        *,
        adopted: Mapping[str, Any] | None = None,
    ) -> None:
        """inner: ONNX Runtime's session. inputs, outputs: shape and element type by name, all fixed; an output that is
        None has a shape that only the run knows, and a new tensor each time.

        adopted: further inputs as OrtValues that are there already, such as what another session gave.

        Raises MemoryBudgetError when the device has no room for them.
        """
        self.target = target
        self._inner = inner
        self._binding = inner.io_binding()
        self._values: dict[str, Any] = {}
        told = {**inputs, **{name: tensor for name, tensor in outputs.items() if tensor is not None}}
        self._outputs = tuple(outputs)
        self._unknown = tuple(name for name, tensor in outputs.items() if tensor is None)
        self._told = {name: (tuple(shape), np.dtype(kind)) for name, (shape, kind) in told.items()}
        self.device_bytes = self.host_bytes = 0
        for name, (shape, kind) in inputs.items():
            self.adopt(name, self._new(name, shape, kind))
        for name, value in (adopted or {}).items():
            self._count(value)
            self._bind(name, value)
        for name, tensor in outputs.items():
            if tensor is None:
                self._binding.bind_output(name, MEMORY_NAMES.get(target.name, "cpu"))
            else:
                self._values[name] = self._new(name, *tensor)
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

    def write_all(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """`write` of each input by name."""
        for name, array in arrays.items():
            self.write(name, array)

    def adopt(self, name: str, value: Any) -> None:
        """Read an input from this OrtValue from now on: another session's output, say, that lies on the device."""
        if tuple(value.shape()) != self._told[name][0]:
            raise BuildError(
                f"{name} is {self._told[name][0]}, the tensor {tuple(value.shape())}",
                fix="open a binding for this shape",
            )
        self._bind(name, value)

    def value(self, name: str) -> Any:
        """The OrtValue of an input or output, where it lies; a run writes into it again."""
        return self._value(name)

    def run(self, options: Any = None) -> None:
        """One run on what the inputs hold; returns when the outputs are there. options: ONNX Runtime's RunOptions."""
        if self._inner is None:
            raise BuildError("the binding is closed", fix="open it again")
        self._inner.run_with_iobinding(self._binding, options)
        if self._unknown:
            made = dict(zip(self._outputs, self._binding.get_outputs(), strict=True))
            self._values |= {name: made[name] for name in self._unknown}

    def read(self, name: str) -> NDArray[Any]:
        """A copy of a tensor on the host; it belongs to the caller."""
        return np.array(self._value(name).numpy())

    def close(self) -> None:
        """Free the tensors. Closing twice is fine."""
        self._inner = self._binding = None
        self._values.clear()
        self.device_bytes = self.host_bytes = 0

    def __enter__(self) -> TensorBinding:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _value(self, name: str) -> Any:
        if name not in self._values:
            raise BuildError(f"nothing called {name!r} is bound", fix=f"bound are {', '.join(self._values)}")
        return self._values[name]

    def _new(self, name: str, shape: tuple[int, ...], kind: type) -> Any:
        try:
            value = empty_tensor(self.target, shape, kind)
        except Exception as error:  # ORT raises its own unrelated classes, one a status code
            size = int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize
            raise MemoryBudgetError(
                f"{self.target.name} has no room for {name}, {size:,} bytes: {str(error).splitlines()[0]}",
                fix="ask for a smaller picture, or fewer at once",
            ) from error
        self._count(value)
        return value

    def _count(self, value: Any) -> None:
        if value.device_name() == "cpu":
            self.host_bytes += value.tensor_size_in_bytes()
        else:
            self.device_bytes += value.tensor_size_in_bytes()

    def _bind(self, name: str, value: Any) -> None:
        self._values[name] = value
        self._binding.bind_ortvalue_input(name, value)


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


def run_to_device(inner: Any, target: Target, feed: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """One run whose outputs stay where the target computes, as OrtValues by name: for another session to adopt."""
    binding = inner.io_binding()
    for name, array in feed.items():
        binding.bind_cpu_input(name, array)
    names = [port.name for port in inner.get_outputs()]
    for name in names:
        binding.bind_output(name, MEMORY_NAMES.get(target.name, "cpu"))
    inner.run_with_iobinding(binding)
    return dict(zip(names, binding.get_outputs(), strict=True))
