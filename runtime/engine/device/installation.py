"""The ONNX Runtime that is installed: exactly one distribution, loaded when it is first needed, telling nobody."""

from __future__ import annotations

import contextlib
import functools
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tintype.engine.device import machine
from tintype.errors import InstallError

# Distributions that all install the one folder `onnxruntime`: two of them overwrite one another's files. And our extra
# that brings each.
ORT_DISTRIBUTIONS = {
    "onnxruntime": "cpu",
    "onnxruntime-gpu": "cuda",
    "onnxruntime-directml": "directml",
    "onnxruntime-webgpu": "webgpu",
    "onnxruntime-openvino": "openvino",
    "onnxruntime-silicon": "cpu",
    "onnxruntime-trt-rtx": "tensorrt-rtx",
    "onnxruntime-windowsml": "cpu",
}


def installed_distributions() -> dict[str, str]:
    """Distributions of ONNX Runtime that are installed, with their versions.

    By the names of the folders that pip leaves beside them: importlib.metadata would cost every process 3 MB.
    """
    found: dict[str, str] = {}
    for place in sys.path:
        for folder in Path(place).glob("*-*.dist-info"):
            name, version = folder.name.removesuffix(".dist-info").split("-", 1)
            name = re.sub(r"[_.]+", "-", name).lower()
            if name in ORT_DISTRIBUTIONS:
                found.setdefault(name, version)
    return {name: found[name] for name in ORT_DISTRIBUTIONS if name in found} or distributions_by_metadata()


def distributions_by_metadata() -> dict[str, str]:
    """The same by Python's own means, for what is installed in another way than pip's."""
    from importlib import metadata

    found: dict[str, str] = {}
    for name in ORT_DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
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
        extra = next((ORT_DISTRIBUTIONS[name] for name in found if ORT_DISTRIBUTIONS[name] != "cpu"), "cpu")
        raise InstallError(
            f"{len(found)} distributions of ONNX Runtime are installed and overwrite one another: {', '.join(found)}",
            fix=f"pip uninstall -y {names} && pip install 'tintype[{extra}]'",
        )
    return next(iter(found))


def ort_version() -> str:
    """The version of the ONNX Runtime that would run, e.g. `1.31.1`."""
    return str(load_onnxruntime().__version__)


@functools.cache
def load_onnxruntime() -> Any:
    """The onnxruntime module, imported when it is first needed; InstallError when it cannot be.

    Its telemetry is off: `tintype/__init__.py` said so before its library is loaded.
    """
    check_installation()
    check_cpuinfo()
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
    onnxruntime.disable_telemetry_events()  # Windows' events, which are on in every version
    onnxruntime.set_default_logger_severity(3)  # errors; what we must know comes as exceptions and reports
    return onnxruntime


def check_cpuinfo() -> None:
    """InstallError where loading ONNX Runtime would end this process by a signal.

    On Linux on arm64 its library reads /proc/cpuinfo, and follows a null pointer where that is hidden or is another
    processor's, as in some sandboxes and emulators. There a child process loads it first.
    """
    if platform.system() != "Linux" or platform.machine().lower() not in machine.ARM64:
        return
    if {"Features", "CPU part"} <= machine.cpuinfo().keys():
        return
    command = [sys.executable, "-P", "-m", "onnxruntime"]  # imports the package, and then finds nothing to run in it
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode < 0 or done.returncode > 128:  # by a shell in between, a signal comes as 128 and its number
        raise InstallError(
            f"ONNX Runtime cannot be loaded here: it crashes where {machine.CPUINFO} does not describe this processor",
            fix="let the process read the machine's own /proc/cpuinfo, or pip install 'onnxruntime<1.28'",
        )
