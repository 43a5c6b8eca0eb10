"""Providers that are libraries of their own, beside any onnxruntime: registered once a process, when one is asked for.

Such a library comes as a Python module with `get_library_path`. What it can run on is told by ONNX Runtime's device
API, `get_ep_devices`.

A library keeps its device for as long as it is registered, also one that was lost (a driver's reset, an update): every
session on it fails from then on. So such a library is registered anew, once no session of it is left.
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import weakref
from typing import Any

_registered: set[str] = set()
_lost: set[str] = set()
_sessions: dict[str, weakref.WeakSet[Any]] = {}


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


def opened(module: str, session: Any) -> None:
    """Tell that ONNX Runtime's session uses the library."""
    _sessions.setdefault(module, weakref.WeakSet()).add(session)


def mark_lost(module: str) -> None:
    """Tell that the library's device was lost: `renew` has to come before the next session."""
    if module in _registered:
        _lost.add(module)


def is_lost(module: str) -> bool:
    return module in _lost


def renew(runtime: Any, module: str) -> str | None:
    """Register a library anew after its device was lost; what went wrong, or None."""
    if _sessions.get(module):
        gc.collect()  # an exception may have kept one
    if _sessions.get(module):
        return "its device was lost, and other sessions still hold it"
    try:
        runtime.unregister_execution_provider_library(module)
    except Exception as error:  # one of ORT's own unrelated classes
        return f"{module} cannot be given up: {str(error).strip().splitlines()[0]}"
    _registered.discard(module)
    _lost.discard(module)
    register.cache_clear()
    return register(runtime, module)


def devices(runtime: Any, provider: str) -> list[Any]:
    """What ONNX Runtime can use `provider` on, the one that it would take first."""
    if not hasattr(runtime, "get_ep_devices"):
        return []
    return [device for device in runtime.get_ep_devices() if device.ep_name == provider]
