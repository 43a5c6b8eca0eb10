"""Which graphics cards this machine has, as its system tells: for people, and so that a build isn't used on another.

Reads files and asks nvidia-smi; opens no device.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

DRM = Path("/sys/class/drm")
VENDORS = {0x1002: "AMD", 0x10DE: "NVIDIA", 0x8086: "Intel", 0x106B: "Apple", 0x5143: "Qualcomm", 0x1414: "Microsoft"}
ASK_SECONDS = 10


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
    """What nvidia-smi lists; none where it is missing, fails or hangs."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=ASK_SECONDS).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in told.splitlines():
        name, memory, driver = ([part.strip() for part in line.split(",")] + ["", "", ""])[:3]
        if name:
            found.append(Gpu("NVIDIA", name, int(memory) * 2**20 if memory.isdigit() else None, driver or None))
    return found


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
    """The cards' PCI ids and kernel drivers in one line, empty without any; costs no process."""
    return " ".join(f"{gpu.name} {gpu.driver}" for gpu in drm_gpus(DRM))


def _number(file: Path, base: int) -> int | None:
    try:
        return int(file.read_text(encoding="ascii").strip(), base)
    except (OSError, ValueError):
        return None
