"""Runs that another thread can end: ONNX Runtime looks at a flag between two nodes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tintype.engine.device.providers import load_onnxruntime


class Stop:
    """Of one request: once it is set, the run in progress under it ends, and each that begins later."""

    def __init__(self) -> None:
        self.is_set = False
        self._lock = threading.Lock()
        self._options: Any = None  # RunOptions of the run in progress

    def set(self) -> None:
        with self._lock:
            self.is_set = True
            if self._options is not None:
                self._options.terminate = True

    @contextlib.contextmanager
    def over(self, options: Any) -> Iterator[None]:
        """A run with these RunOptions, which raises when this is or becomes set."""
        with self._lock:
            options.terminate = self.is_set
            self._options = options
        try:
            yield
        finally:
            with self._lock:
                self._options = None


_running: set[Switch] = set()


def end_runs() -> None:
    """End every run in progress in this process, as it is about to leave. From any thread."""
    for switch in tuple(_running):
        switch.end_run()


class Switch:
    """The stop that the runs of one session are under, if any; they are one at a time."""

    def __init__(self) -> None:
        self.stop: Stop | None = None
        self.options: Any = None  # RunOptions of the run in progress
        self._ended = False

    @property
    def is_off(self) -> bool:
        return self._ended or (self.stop is not None and self.stop.is_set)

    def end_run(self) -> None:
        options, self._ended = self.options, True
        if options is not None:
            options.terminate = True

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """One run of the session, of as many graphs as it has."""
        self.options, self._ended = load_onnxruntime().RunOptions(), False
        _running.add(self)
        try:
            with self.stop.over(self.options) if self.stop is not None else contextlib.nullcontext():
                yield
        finally:
            _running.discard(self)
            self.options = None


class Switched:
    """ONNX Runtime's session under a switch. A run that brings options of its own can't be ended."""

    def __init__(self, inner: Any, switch: Switch) -> None:
        self._inner, self._switch = inner, switch

    def run(self, names: Sequence[str] | None, feed: Mapping[str, Any], options: Any = None) -> Any:
        return self._inner.run(names, feed, options or self._switch.options)

    def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
        self._inner.run_with_iobinding(binding, options or self._switch.options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
