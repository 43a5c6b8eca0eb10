"""A session with some of its inputs kept over many runs: the same prompt, step after step.

On the processor they are kept as arrays. On a device everything that goes in and out lies in tensors that are made once
and written in place, so that a step is: write what changed, one run, read what came out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tintype.engine.device.providers import Target
from tintype.engine.run.binding import Tensor, TensorBinding

Answer = TypeVar("Answer")


class Runnable(Protocol):
    """What runs with kept inputs need of their session; see `Session` for each."""

    @property
    def inner(self) -> Any: ...
    @property
    def target(self) -> Target: ...
    @property
    def input_shapes(self) -> Mapping[str, tuple[int | str | None, ...]]: ...
    @property
    def output_names(self) -> tuple[str, ...]: ...
    @property
    def output_shapes(self) -> Mapping[str, tuple[int | str | None, ...]]: ...
    @property
    def output_types(self) -> Mapping[str, type]: ...
    def step_feed(self, inputs: Mapping[str, NDArray[Any]], held: Mapping[str, Any]) -> dict[str, NDArray[Any]]: ...
    def execute(self, run: Callable[[], Answer]) -> Answer: ...
    def told(self, call: Callable[[], Answer]) -> Answer: ...


class BoundRun:
    """Runs of one session with some inputs given. It lives no longer than the session.

    device_bytes: what its inputs and outputs take in a device's memory, once it has run.
    """

    device_bytes = 0

    def __init__(
        self, session: Runnable, names: frozenset[str], given: Mapping[str, Any], *, on_device: bool = False
    ) -> None:
        """names: of the inputs that are kept. given: what is kept, by the name that `session.inner` has for it.

        on_device: in tensors there, made once; other shapes than the last run's make new ones.
        """
        self.names = names
        self._session = session
        self._given = given
        self._on_device = on_device
        self._tensors: TensorBinding | None = None
        self._shapes: Mapping[str, tuple[int, ...]] | None = None

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Every output by name, for the remaining inputs. Raises as `Session.run` does."""
        session = self._session
        feed = session.step_feed(inputs, self._given)
        if not self._on_device:
            whole = {**feed, **self._given}
            outputs = session.execute(lambda: session.inner.run(None, whole))
            return dict(zip(session.output_names, outputs, strict=True))
        tensors = self._tensors_for(feed)
        session.told(lambda: tensors.write_all(feed))

        def run() -> dict[str, NDArray[Any]]:
            tensors.run()  # a device may only have been told to; reading waits for it
            return {name: tensors.read(name) for name in session.output_names}

        return session.execute(run)

    def close(self) -> None:
        """Give back what is kept; the session does it when it closes."""
        self._given = {}
        if self._tensors is not None:
            self._tensors.close()
        self._tensors, self.device_bytes = None, 0

    def _tensors_for(self, feed: Mapping[str, NDArray[Any]]) -> TensorBinding:
        shapes = {name: array.shape for name, array in feed.items()}
        if self._tensors is None or shapes != self._shapes:
            self._tensors = self._session.told(lambda: self._bind(feed))
            self._shapes = shapes
            self.device_bytes = self._tensors.device_bytes
        return self._tensors

    def _bind(self, feed: Mapping[str, NDArray[Any]]) -> TensorBinding:
        arrays = {name: value for name, value in self._given.items() if isinstance(value, np.ndarray)}
        there = {name: value for name, value in self._given.items() if name not in arrays}
        inputs: dict[str, Tensor] = {name: (a.shape, a.dtype.type) for name, a in {**arrays, **feed}.items()}
        outputs = self._outputs({**arrays, **feed})
        tensors = TensorBinding(self._session.inner, self._session.target, inputs, outputs, adopted=there)
        tensors.write_all(arrays)
        return tensors

    def _outputs(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, Tensor | None]:
        """Shape and type of each output; None where it has a dim that none of these inputs has."""
        session = self._session
        dims = {
            dim: size
            for name, array in feed.items()
            for dim, size in zip(session.input_shapes.get(name, array.shape), array.shape, strict=True)
        }
        tensors: dict[str, Tensor | None] = {}
        for name, shape in session.output_shapes.items():
            sizes = tuple(dims.get(dim, dim) for dim in shape)
            fixed = tuple(size for size in sizes if isinstance(size, int))
            tensors[name] = (fixed, session.output_types[name]) if len(fixed) == len(sizes) else None
        return tensors
