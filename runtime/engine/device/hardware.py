"""Which graphics cards this machine has, as its system tells: for people, and so that a build isn't used on another.

Reads files and asks NVIDIA's library; opens no device and runs no program.
"""

from __future__ import annotations

import ctypes
import functools
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DRM = Path("/sys/class/drm")
VENDORS = {0x1002: "AMD", 0x10DE: "NVIDIA", 0x8086: "Intel", 0x106B: "Apple", 0x5143: "Qualcomm", 0x1414: "Microsoft"}


@dataclass(frozen=True, slots=True)
class Gpu:
    """A graphics card. What the system doesn't tell is None."""

    vendor: str
    name: str
    memory_bytes: int | None = None
    driver: str | None = None


def gpus() -> list[Gpu]:
    """Every card, NVIDIA's as its driver names them, others as Linux does. Elsewhere ONNX Runtime names the devices."""
    nvidia = nvidia_gpus()
    others = [gpu for gpu in drm_gpus(DRM) if not (nvidia and gpu.vendor == "NVIDIA")]
    return [*nvidia, *others]


def nvidia_gpus() -> list[Gpu]:
    """What NVIDIA's management library (NVML) lists; none where it is missing or refuses."""
    nvml: Any = system_library({"Linux": "libnvidia-ml.so.1", "Windows": "nvml.dll"})
    if nvml is None or nvml.nvmlInit_v2() != 0:
        return []
    count, driver = ctypes.c_uint(0), ctypes.create_string_buffer(96)
    nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
    nvml.nvmlSystemGetDriverVersion(driver, ctypes.c_uint(len(driver)))
    found = []
    for index in range(count.value):
        card, name, memory = ctypes.c_void_p(), ctypes.create_string_buffer(96), (ctypes.c_ulonglong * 3)()
        if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(card)) == 0:
            nvml.nvmlDeviceGetName(card, name, ctypes.c_uint(len(name)))
            nvml.nvmlDeviceGetMemoryInfo(card, memory)  # total, free, used
            found.append(Gpu("NVIDIA", _plain(name) or "NVIDIA", memory[0] or None, _plain(driver) or None))
    nvml.nvmlShutdown()
    return found


def system_library(names: Mapping[str, str]) -> ctypes.CDLL | None:
    """A library of the system's by the name of its file on each system; None where there is none.

    It is loaded by that name, since `ctypes.util.find_library` would run gcc, ld and ldconfig.
    """
    try:
        return ctypes.CDLL(names[platform.system()])
    except (KeyError, OSError):
        return None


def drm_gpus(folder: Path) -> list[Gpu]:
    """Cards of Linux's direct rendering manager: PCI ids, the kernel's driver, and AMD's memory."""
    found = []
    for card in sorted(folder.glob("card[0-9]*")):
        vendor, device = _number(card / "device/vendor", 16), _number(card / "device/device", 16)
        if vendor is None or "-" in card.name:  # card0-HDMI-A-1 is a plug
            continue
        link = card / "device/driver"
        driver = link.resolve().name if link.exists() else None
        memory = _number(card / "device/mem_info_vram_total", 10)
        maker = VENDORS.get(vendor, f"vendor {vendor:#06x}")
        found.append(Gpu(maker, f"{maker} {vendor:04x}:{device or 0:04x}", memory, driver))
    return found


@functools.cache
def gpu_identity() -> str:
    """The cards' PCI ids and kernel drivers in one line, empty without any; loads no library."""
    return " ".join(f"{gpu.name} {gpu.driver}" for gpu in drm_gpus(DRM))


def _plain(text: ctypes.Array[ctypes.c_char]) -> str:
    return text.value.decode("ascii", "ignore")


def _number(file: Path, base: int) -> int | None:
    try:
        return int(file.read_text(encoding="ascii").strip(), base)
    except (OSError, ValueError):
        return None
