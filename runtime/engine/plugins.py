"""Providers that are libraries of their own, beside any onnxruntime: registered once a process, when one is asked for.

Such a library comes as a Python module with `get_library_path`. What it can run on is told by ONNX Runtime's device
API, `get_ep_devices`.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

_registered: set[str] = set()


def is_installed(module: str) -> bool:
    return bool(module) and importlib.util.find_spec(module) is not None


def is_registered(module: str) -> bool:
    return module in _registered


@functools.cache
def register(runtime: Any, module: str) -> str | None:
    """Load a provider's library into this process; what went wrong, or None. It stays until the process ends."""
    if not hasattr(runtime, "register_execution_provider_library"):
        return f"onnxruntime {runtime.__version__} takes no provider libraries; 1.23 and newer do"
    try:
        library = importlib.import_module(module).get_library_path()
        runtime.register_execution_provider_library(module, library)
    except Exception as error:  # of the module, or one of ORT's own unrelated classes
        return f"{module} cannot be loaded: {str(error).strip().splitlines()[0]}"
    _registered.add(module)
    return None


def devices(runtime: Any, provider: str) -> list[Any]:
    """What ONNX Runtime can use `provider` on, the one that it would take first."""
    if not hasattr(runtime, "get_ep_devices"):
        return []
    return [device for device in runtime.get_ep_devices() if device.ep_name == provider]
