"""Which device runs the graphs. A provider that is named is used, or it is an error; `auto` says what it took."""

from __future__ import annotations

import base64
import functools
import platform
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from tintype.engine.device import plugins, windows_ml
from tintype.engine.device.installation import check_installation
from tintype.engine.device.installation import load_onnxruntime as load_onnxruntime
from tintype.engine.device.remedies import SYSTEM_NAMES, driver_fix, missing_driver, package_fix, system_fix
from tintype.errors import ProviderError, near_names


@dataclass(frozen=True, slots=True)
class Target:
    """A device kind: what ONNX Runtime calls it, what it is told, and the extra that installs it.

    plugin: the Python module that brings the provider as a library of its own, beside any onnxruntime.
    """

    name: str
    provider: str
    extra: str
    options: tuple[tuple[str, str], ...] = ()
    plugin: str = ""
    system: str = ""  # the one system that it exists on, as `platform.system` says it; empty for any

    @property
    def is_host(self) -> bool:
        """Whether tensors live in the process's own memory."""
        return self.provider == "CPUExecutionProvider"


TARGETS = {
    "cpu": Target("cpu", "CPUExecutionProvider", "cpu"),
    "cuda": Target("cuda", "CUDAExecutionProvider", "cuda"),  # a session's options: `cuda.for_session`
    # The compatibility path. Named by what it is, not by number: with a device_id these two settings go unread.
    "directml": Target(
        "directml",
        "DmlExecutionProvider",
        "directml",
        (("performance_preference", "high_performance"), ("device_filter", "gpu")),
        system="Windows",
    ),
    "webgpu": Target("webgpu", "WebGpuExecutionProvider", "webgpu", plugin="onnxruntime_ep_webgpu"),
    # Named only: plain operators, the same contract.
    "openvino": Target("openvino", "OpenVINOExecutionProvider", "openvino", plugin="onnxruntime_ep_openvino"),
    "coreml": Target("coreml", "CoreMLExecutionProvider", "cpu", system="Darwin"),
    "qnn": Target("qnn", "QNNExecutionProvider", "qnn", plugin="onnxruntime_qnn"),
    "tensorrt-rtx": Target(
        "tensorrt-rtx", "NvTensorRTRTXExecutionProvider", "tensorrt-rtx", plugin="onnxruntime_ep_nv_tensorrt_rtx"
    ),
}
CLOSE_ALL = "close every pipeline on it, or start the program again; a driver that was updated may want a restart"
# What `auto` tries before the processor; after the first of these, what Windows ML offers.
PREFERENCE = ("cuda", "webgpu", "directml")

# One Relu on a float[1]; a device that cannot run it cannot run anything. (ONNX protobuf, IR 8, opset 17.)
_PROBE_GRAPH = base64.b64decode("CAg6MwoMCgF4EgF5IgRSZWx1EgFwWg8KAXgSCgoICAESBAoCCAFiDwoBeRIKCggIARIECgIIAUIECgAQEQ==")


def resolve_provider(name: str = "auto") -> Target:
    """The target for `auto` or a name of TARGETS.

    Raises InstallError when no onnxruntime is installed, or two; ProviderError when the name is unknown or the
    device cannot be used here.
    """
    if not isinstance(name, str) or (name != "auto" and name not in TARGETS):
        raise ProviderError(f"no provider is called {name!r}"[:80], fix=near_names(str(name)[:40], ["auto", *TARGETS]))
    check_installation()
    if name != "auto":
        target = TARGETS[name]
        problem = problem_of(target)
        if problem is not None:
            raise ProviderError(f"provider {name} cannot be used: {problem[0]}", fix=problem[1], reason=problem[0])
        return target
    for candidate in _preferred():
        if unusable_reason(TARGETS[candidate]) is None and not is_software(TARGETS[candidate]):
            return TARGETS[candidate]
    return TARGETS["cpu"]


@functools.cache
def unusable_reason(target: Target) -> str | None:
    """Why this target cannot run here, or None. A device is asked to run one node, not merely to be listed."""
    problem = problem_of(target)
    return problem[0] if problem is not None else None


@functools.cache
def problem_of(target: Target) -> tuple[str, str] | None:
    """Why this target cannot run here, and what to do about it; None when it can."""
    runtime = load_onnxruntime()
    if target.is_host:
        return None
    if target.system and target.system != platform.system():
        return f"it exists on {SYSTEM_NAMES.get(target.system, target.system)} only", system_fix(target.system)
    if not (_is_built_in(target) or _is_windows_mls(target) or plugins.is_installed(target.plugin)):
        installed = check_installation()
        beside = bool(target.plugin) and installed == "onnxruntime"
        reason = f"the installed {installed} {runtime.__version__} has no {target.provider}"
        fix, missing = package_fix(target.extra, installed, beside=beside), missing_driver(target.name)
        return (reason, fix) if missing is None else (f"{reason}, and {missing}", f"{driver_fix(target.name)}; {fix}")
    refusal = _refusal(target)
    return None if refusal is None else (refusal, f"{driver_fix(target.name)}; or choose provider cpu")


def new_session(model: str | bytes, options: Any, target: Target) -> Any:
    """ONNX Runtime's own session of a model on a target; it never goes on with another provider by itself.

    Raises ProviderError when there is no device for it, else what ONNX Runtime raises.
    """
    runtime = load_onnxruntime()
    if target.is_host or _is_built_in(target):
        # The processor joins by itself, for shape arithmetic: where nodes went is checked after opening.
        providers = [(target.provider, dict(target.options))]
        return runtime.InferenceSession(model, options, providers=providers, enable_fallback=0)
    session = session_of_devices(model, options, [device_of(target)], dict(target.options))
    plugins.opened(target.plugin, session)
    return session


def session_of_devices(model: str | bytes, options: Any, devices: list[Any], settings: dict[str, str]) -> Any:
    """ONNX Runtime's own session on devices of one provider, as its device API lists them."""
    options.add_provider_for_devices(devices, settings)
    return load_onnxruntime().InferenceSession(model, options, enable_fallback=0)


def device_of(target: Target) -> Any:
    """The device of a provider that is a library of its own, as ONNX Runtime's device API gives it."""
    runtime = load_onnxruntime()
    lost = plugins.is_lost(target.plugin)
    if _is_windows_mls(target):
        problem = None
    else:
        problem = plugins.renew(runtime, target.plugin) if lost else plugins.register(runtime, target.plugin)
    found = plugins.devices(runtime, target.provider)
    if problem is not None or not found:
        reason = problem or missing_driver(target.name) or "no device was found that it runs on"
        fix = CLOSE_ALL if lost else driver_fix(target.name)
        raise ProviderError(f"provider {target.name} cannot be used: {reason}", fix=fix, reason=reason)
    return found[0]


def computes_on_processor(target: Target) -> bool:
    """Whether tensors lie in the process's own memory: also OpenVINO's there, and a software GPU's."""
    if target.is_host:
        return True
    if not (plugins.is_registered(target.plugin) or _is_windows_mls(target)):
        return target.name == "openvino"  # built in, it takes the processor unless it is told otherwise
    found = plugins.devices(load_onnxruntime(), target.provider)
    return bool(found) and str(found[0].device.type).endswith("CPU")


def is_software(target: Target) -> bool:
    """Whether a GPU's provider runs on the processor, as WebGPU may in tests: right, and hundreds of times slower."""
    return target.name == "webgpu" and computes_on_processor(target)


def plain_reason(error: Exception) -> str:
    """What ONNX Runtime says, without its codes and places in C++."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    return text.rpartition(" was false. ")[2].strip() or text


def _is_built_in(target: Target) -> bool:
    """Whether the installed onnxruntime itself has the provider; libraries join its list once they are registered."""
    registered = plugins.is_registered(target.plugin) or _is_windows_mls(target)
    return target.provider in load_onnxruntime().get_available_providers() and not registered


def _is_windows_mls(target: Target) -> bool:
    return target.provider in windows_ml.register(load_onnxruntime())


def _preferred() -> tuple[str, ...]:
    """What `auto` tries, best first: a GPU maker's own provider where Windows brings it, then what runs anywhere."""
    first, *rest = PREFERENCE
    offered = [name for name, target in TARGETS.items() if name not in PREFERENCE and _is_windows_mls(target)]
    return (first, *offered, *rest)


def _refusal(target: Target) -> str | None:
    """What a device says to one node, None when it runs it."""
    runtime = load_onnxruntime()
    if target.name == "cuda" and hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = new_session(_PROBE_GRAPH, options, target)
        (answer,) = session.run(None, {"x": np.array([-1.0], np.float32)})
    except ProviderError as error:
        return error.reason or error.message
    except Exception as error:  # ORT raises its own unrelated classes, one a status code
        return missing_driver(target.name) or plain_reason(error)
    if target.provider not in session.get_providers():
        return missing_driver(target.name) or "ONNX Runtime found no such device"
    return None if answer.tolist() == [0.0] else f"it takes the larger of 0 and -1 to be {answer[0]:g}"
