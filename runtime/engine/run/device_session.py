"""A session of ONNX Runtime whose tensors lie on the device: inputs and outputs are allocated once for each shape.

It is called as ONNX Runtime's own session is, `run(None, feed)`, so that whoever holds it need not know. What is kept
over many runs (embeddings) is handed over as `Constant` and written once; CUDA graphs need the addresses to stay.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from tintype.engine.device.providers import Target, load_onnxruntime
from tintype.engine.run.binding import TensorBinding
from tintype.engine.run.cuda import GraphIds

MOST_BOUND = 4  # shapes whose tensors stay allocated

Shapes = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """An input that stays the same over many runs; another `Constant` is another value."""

    array: NDArray[Any]


@dataclass(slots=True)
class _Tensors:
    bound: TensorBinding
    written: dict[str, Constant]
    options: Any


class DeviceSession:
    """Runs one graph on tensors that stay where they are. Not from two threads at once."""

    def __init__(
        self,
        inner: Any,
        target: Target,
        *,
        types: Mapping[str, type],
        graph_ids: GraphIds | None = None,
        most_bound: int = MOST_BOUND,
    ) -> None:
        """inner: ONNX Runtime's session. types: numpy's element types by ONNX Runtime's names.

        graph_ids: which shapes are captured as CUDA graphs; None captures nothing.
        """
        self._inner, self._target, self._types = inner, target, types
        # Tensors of captured shapes are never freed, so there has to be room for one more.
        self._graph_ids, self._most = graph_ids, max(most_bound, 1 + (graph_ids.most if graph_ids is not None else 0))
        self._tensors: OrderedDict[Shapes, _Tensors] = OrderedDict()
        self._output_shapes: dict[Shapes, dict[str, tuple[int, ...]]] = {}
        self.get_inputs, self.get_outputs, self.get_providers = (
            inner.get_inputs, inner.get_outputs, inner.get_providers,
        )  # fmt: skip
        self.get_provider_graph_assignment_info = inner.get_provider_graph_assignment_info
        self.get_modelmeta = inner.get_modelmeta

    @property
    def device_bytes(self) -> int:
        """What the tensors of inputs and outputs take on the device."""
        return sum(tensors.bound.device_bytes for tensors in self._tensors.values())

    def run(self, _names: None, feed: Mapping[str, NDArray[Any] | Constant]) -> list[NDArray[Any]]:
        """Every output, in order, copied to the host; the arrays are the caller's."""
        arrays = {name: value.array if isinstance(value, Constant) else value for name, value in feed.items()}
        key = tuple((name, array.shape) for name, array in sorted(arrays.items()))
        if key not in self._output_shapes:
            fixed = self._fixed_outputs()
            if fixed is None:  # the first run of a shape tells what it gives
                outputs = list(self._inner.run(None, arrays))
                names = [output.name for output in self.get_outputs()]
                self._output_shapes[key] = {n: array.shape for n, array in zip(names, outputs, strict=True)}
                return outputs
            self._output_shapes[key] = fixed
        tensors = self._tensors_for(key, arrays)
        for name, value in feed.items():
            if not isinstance(value, Constant):
                tensors.bound.write(name, value)
            elif tensors.written.get(name) is not value:
                tensors.bound.write(name, value.array)
                tensors.written[name] = value
        tensors.bound.run(tensors.options)
        return [tensors.bound.read(output.name) for output in self.get_outputs()]

    def _fixed_outputs(self) -> dict[str, tuple[int, ...]] | None:
        shapes = {output.name: tuple(output.shape) for output in self.get_outputs()}
        return shapes if all(isinstance(dim, int) for shape in shapes.values() for dim in shape) else None

    def _tensors_for(self, key: Shapes, arrays: Mapping[str, NDArray[Any]]) -> _Tensors:
        if key in self._tensors:
            self._tensors.move_to_end(key)
            return self._tensors[key]
        graph_id = self._graph_ids.id_of(key) if self._graph_ids is not None else None
        while len(self._tensors) >= self._most:
            self._drop_one()
        kinds = {output.name: self._types[output.type] for output in self.get_outputs()}
        bound = TensorBinding(
            self._inner,
            self._target,
            {name: (array.shape, array.dtype.type) for name, array in arrays.items()},
            {name: (shape, kinds[name]) for name, shape in self._output_shapes[key].items()},
        )
        self._tensors[key] = _Tensors(bound, {}, _run_options(graph_id))
        return self._tensors[key]

    def _drop_one(self) -> None:
        """Free the tensors that were not used for longest, but never those that a captured graph writes to."""
        captured = self._graph_ids
        for key in list(self._tensors):
            if captured is None or not captured.holds(key):
                self._tensors.pop(key).bound.close()
                return


def stays_on_device(target: Target) -> bool:
    """Whether a session keeps its tensors itself, for CUDA graphs; other devices' lie with what holds a prompt."""
    return target.name == "cuda"


def _run_options(graph_id: str | None) -> Any:
    if graph_id is None:
        return None
    options = load_onnxruntime().RunOptions()
    options.add_run_config_entry("gpu_graph_id", graph_id)
    return options
