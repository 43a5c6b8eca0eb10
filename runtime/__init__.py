"""Tintype: pictures from words on the machine at hand.

    pipeline = tintype.load("postcard")
    result = pipeline.generate("a red sailboat on a calm sea at sunset", seed=7)
    result.save("postcard.png")

Importing this costs nothing: each name below is loaded when it is first used. It turns off ONNX Runtime's telemetry, in
this process and in those that it starts, whatever the environment said before: no cloud means no cloud.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tintype._version import __version__

if TYPE_CHECKING:
    from tintype.adapters.facts import Lora
    from tintype.bundle import Bundle, Manifest, open_bundle
    from tintype.errors import (
        BlockedError,
        BuildError,
        BundleError,
        CancelledError,
        ExportError,
        InstallError,
        LicenceError,
        LoraError,
        MemoryBudgetError,
        NumericError,
        OutputError,
        ProviderError,
        RecordError,
        RequestError,
        TintypeError,
    )
    from tintype.events import Picture, Step, Timings
    from tintype.pipeline import Pipeline, load
    from tintype.record import Record, read_record
    from tintype.record.latents_file import SavedLatents, read_latents
    from tintype.record.like import like
    from tintype.record.likeness import Likeness
    from tintype.request import Request, ResolvedRequest
    from tintype.run import Result, Run
    from tintype.stages.calibrate import calibrate
    from tintype.trust.verify import Verification, verify

_HOMES = {
    "Bundle": "bundle",
    "Manifest": "bundle",
    "open_bundle": "bundle",
    "BlockedError": "errors",
    "BuildError": "errors",
    "BundleError": "errors",
    "CancelledError": "errors",
    "ExportError": "errors",
    "InstallError": "errors",
    "LicenceError": "errors",
    "LoraError": "errors",
    "MemoryBudgetError": "errors",
    "NumericError": "errors",
    "OutputError": "errors",
    "ProviderError": "errors",
    "RecordError": "errors",
    "RequestError": "errors",
    "TintypeError": "errors",
    "SavedLatents": "record.latents_file",
    "read_latents": "record.latents_file",
    "Pipeline": "pipeline",
    "Run": "run",
    "load": "pipeline",
    "Record": "record",
    "read_record": "record",
    "verify": "trust.verify",
    "Verification": "trust.verify",
    "Likeness": "record.likeness",
    "Lora": "adapters.facts",
    "like": "record.like",
    "calibrate": "stages.calibrate",
    "Request": "request",
    "ResolvedRequest": "request",
    "Picture": "events",
    "Result": "run",
    "Step": "events",
    "Timings": "events",
}

__all__ = [
    "BlockedError",
    "BuildError",
    "Bundle",
    "BundleError",
    "CancelledError",
    "ExportError",
    "InstallError",
    "LicenceError",
    "Likeness",
    "Lora",
    "LoraError",
    "Manifest",
    "MemoryBudgetError",
    "NumericError",
    "OutputError",
    "Picture",
    "Pipeline",
    "ProviderError",
    "Record",
    "RecordError",
    "Request",
    "RequestError",
    "ResolvedRequest",
    "Result",
    "Run",
    "SavedLatents",
    "Step",
    "Timings",
    "TintypeError",
    "Verification",
    "__version__",
    "calibrate",
    "like",
    "load",
    "open_bundle",
    "read_latents",
    "read_record",
    "verify",
]


def _turn_off_telemetry() -> None:
    """ONNX Runtime's library reads the variable when it is loaded, and never again."""
    late = "onnxruntime" in sys.modules and os.environ.get("ORT_DISABLE_TELEMETRY") != "1"
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    if late:
        import warnings

        message = "onnxruntime was imported before tintype, so its telemetry may be on; import tintype first"
        warnings.warn(message, RuntimeWarning, stacklevel=3)


_turn_off_telemetry()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
