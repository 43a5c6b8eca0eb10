"""Which device runs the graphs. A provider that is named is used, or it is an error; `auto` says what it took."""

from __future__ import annotations

import base64
import functools
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from tintype.errors import InstallError, ProviderError, near_names

# Distributions that all install the one folder `onnxruntime`: two of them overwrite one another's files.
ORT_DISTRIBUTIONS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-webgpu",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-silicon",
)


@dataclass(frozen=True, slots=True)
class Target:
    """A device kind: what ONNX Runtime calls it, what it is told, and the extra that installs it."""

    name: str
    provider: str
    extra: str
    options: tuple[tuple[str, str], ...] = ()

    @property
    def is_host(self) -> bool:
        """Whether tensors live in the process's own memory."""
        return self.provider == "CPUExecutionProvider"


TARGETS = {
    "cpu": Target("cpu", "CPUExecutionProvider", "cpu"),
    "cuda": Target("cuda", "CUDAExecutionProvider", "cuda", (("cudnn_conv_algo_search", "HEURISTIC"),)),
    "directml": Target("directml", "DmlExecutionProvider", "directml"),
    "webgpu": Target("webgpu", "WebGpuExecutionProvider", "webgpu"),
}
PREFERENCE = ("cuda", "webgpu", "directml")  # what `auto` tries before the processor

# One Relu on a float[1]; a device that cannot run it cannot run anything. (ONNX protobuf, IR 8, opset 17.)
_PROBE_GRAPH = base64.b64decode("CAg6MwoMCgF4EgF5IgRSZWx1EgFwWg8KAXgSCgoICAESBAoCCAFiDwoBeRIKCggIARIECgIIAUIECgAQEQ==")


def resolve_provider(name: str = "auto") -> Target:
    """The target for `auto`, `cpu`, `cuda`, `directml` or `webgpu`.

    Raises InstallError when no onnxruntime is installed, or two; ProviderError when the name is unknown or the
    device cannot be used here.
    """
    if name != "auto" and name not in TARGETS:
        raise ProviderError(f"no provider is called {name!r}", fix=near_names(name, ["auto", *TARGETS]))
    check_installation()
    if name != "auto":
        target = TARGETS[name]
        reason = unusable_reason(target)
        if reason is not None:
            raise ProviderError(f"provider {name} cannot be used: {reason}", fix=_remedy(target))
        return target
    for candidate in PREFERENCE:
        if unusable_reason(TARGETS[candidate]) is None:
            return TARGETS[candidate]
    return TARGETS["cpu"]


def installed_distributions() -> dict[str, str]:
    """Distributions of ONNX Runtime that are installed, with their versions."""
    found: dict[str, str] = {}
    for name in ORT_DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def check_installation() -> str:
    """The one installed distribution's name; InstallError when there is none, or more than one."""
    found = installed_distributions()
    if not found:
        raise InstallError(
            "ONNX Runtime is not installed", fix="pip install 'tintype[cpu]'  (or cuda, directml, webgpu)"
        )
    if len(found) > 1:
        names = " ".join(found)
        raise InstallError(
            f"{len(found)} distributions of ONNX Runtime are installed and overwrite one another: {', '.join(found)}",
            fix=f"pip uninstall -y {names} && pip install 'tintype[{_extra_of(found)}]'",
        )
    return next(iter(found))


def ort_version() -> str:
    """The version of the ONNX Runtime that would run, e.g. `1.31.1`."""
    return str(load_onnxruntime().__version__)


@functools.cache
def load_onnxruntime() -> Any:
    """The onnxruntime module, imported when it is first needed; InstallError when it cannot be."""
    check_installation()
    try:
        import onnxruntime
    except ImportError as error:
        raise InstallError(
            f"ONNX Runtime is installed but cannot be loaded: {error}",
            fix=f"pip install --force-reinstall {' '.join(installed_distributions())}",
        ) from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise InstallError(
            "the installed ONNX Runtime is incomplete (another distribution of it was removed over it)",
            fix=f"pip install --force-reinstall {' '.join(installed_distributions())}",
        )
    onnxruntime.set_default_logger_severity(3)  # errors; what we must know comes as exceptions and reports
    return onnxruntime


@functools.cache
def unusable_reason(target: Target) -> str | None:
    """Why this target cannot run here, or None. A device is asked to run one node, not merely to be listed."""
    runtime = load_onnxruntime()
    if target.provider not in runtime.get_available_providers():
        return f"the installed {check_installation()} was built without it"
    if target.is_host:
        return None
    if target.name == "cuda" and hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = runtime.InferenceSession(
            _PROBE_GRAPH, options, providers=[(target.provider, dict(target.options))], enable_fallback=0
        )
    except Exception as error:  # ORT raises its own unrelated classes, one a status code
        return str(error).strip().splitlines()[0]
    if target.provider not in session.get_providers():
        return "ONNX Runtime found no such device"
    return None


def _extra_of(distributions: dict[str, str]) -> str:
    extras = {"onnxruntime-gpu": "cuda", "onnxruntime-directml": "directml", "onnxruntime-webgpu": "webgpu"}
    return next((extras[name] for name in distributions if name in extras), "cpu")


def _remedy(target: Target) -> str:
    installed = check_installation()
    return (
        f"pip uninstall -y {installed} && pip install 'tintype[{target.extra}]', and see that the device's driver "
        "is installed; or choose provider cpu"
    )
