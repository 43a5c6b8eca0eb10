"""Windows ML: providers that Windows itself fetches and keeps current, offered to ONNX Runtime when a device is sought.

Takes the package `windowsml` (pip install 'windowsml[with-ort]'). Only what is on the machine is offered: nothing is
downloaded here; Windows' own settings and `EpCatalog` do that. Not run on Windows yet.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

from tintype.engine.device import plugins

MODULE = "windowsml"
ABSENT = "NotPresent"  # Windows knows the provider and has not fetched it


@functools.cache
def register(runtime: Any) -> frozenset[str]:
    """Register every provider that Windows has; their names as ONNX Runtime has them. Empty where there is none.

    A provider that cannot be registered is left out: it is then reported missing like any other.
    """
    if not plugins.is_installed(MODULE) or not hasattr(runtime, "register_execution_provider_library"):
        return frozenset()
    found = set()
    try:
        with importlib.import_module(MODULE).EpCatalog() as catalog:
            for provider in catalog.find_all_providers():
                if provider.ready_state.name != ABSENT and _registered(runtime, provider):
                    found.add(str(provider.name))
    except Exception:  # of a library that is not for this Windows: then it offers nothing
        return frozenset(found)
    return frozenset(found)


def _registered(runtime: Any, provider: Any) -> bool:
    try:
        provider.ensure_ready()
        runtime.register_execution_provider_library(provider.name, provider.library_path)
    except Exception:  # of Windows, or one of ORT's own unrelated classes
        return False
    return True
