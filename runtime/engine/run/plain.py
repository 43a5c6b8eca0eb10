"""A graph of an operator's own, as ONNX Runtime alone runs it on the processor: no lowering, no build, no plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tintype.engine.device.providers import new_session, resolve_provider
from tintype.engine.run.session_options import NUMPY_TYPES, session_options


@dataclass(frozen=True, slots=True)
class PlainPort:
    """An input or output: its numpy type, None for one that numpy has not, and its dimensions, names for open ones."""

    name: str
    dtype: type | None
    shape: tuple[int | str | None, ...]


class PlainGraph:
    """One open graph. Raises what ONNX Runtime raises; whoever opens it knows whose file it is."""

    def __init__(self, path: Path, threads: int) -> None:
        target = resolve_provider("cpu")
        self._session: Any = new_session(str(path), session_options(target, threads=threads, optimize=True), target)
        self.inputs, self.outputs = (
            tuple(PlainPort(port.name, NUMPY_TYPES.get(port.type), tuple(port.shape)) for port in ports)
            for ports in (self._session.get_inputs(), self._session.get_outputs())
        )

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name."""
        names = [port.name for port in self.outputs]
        return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))
