"""A run that another thread can end: ONNX Runtime looks at a flag between two nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tintype.engine.device.providers import load_onnxruntime


class Switch:
    """Of the runs of one session, which are one at a time."""

    def __init__(self) -> None:
        self._options: Any = None
        self.is_off = False  # the run in progress, or the last one, was ended by it

    def begin(self) -> None:
        """A run begins."""
        self._options, self.is_off = load_onnxruntime().RunOptions(), False

    def end(self) -> None:
        self._options = None

    def terminate(self) -> None:
        """End the run in progress, if there is one; it raises."""
        options = self._options
        if options is not None:
            self.is_off = True
            options.terminate = True

    @property
    def options(self) -> Any:
        """RunOptions of the run in progress; None outside of one."""
        return self._options


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
