"""What this process takes of a device's memory, and what the device has free, as its driver tells.

ONNX Runtime tells nobody. Where no driver does either (WebGPU and DirectML on Windows, macOS, NVIDIA's from within a
container), the answer is None, and a plan reckons.

The drivers of AMD and Intel on Linux tell by the kernel's documentation (DRM client usage stats), NVIDIA's by NVML.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tintype.engine.device.providers import Target, computes_on_processor

Answer = TypeVar("Answer")

FDINFO = Path("/proc/self/fdinfo")
_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20}


def device_bytes(target: Target) -> int | None:
    """Bytes of the device's memory that this process has; 0 where the device computes in the process's own."""
    if computes_on_processor(target):
        return 0
    told = [count for count in (nvidia_bytes(os.getpid()), drm_bytes(FDINFO)) if count is not None]
    return sum(told) if told else None


def free_device_bytes(target: Target) -> int | None:
    """What the device has free; None where nobody tells, or several cards might be meant."""
    if computes_on_processor(target):
        return None

    def free(nvml: Any) -> int | None:
        if nvml.nvmlDeviceGetCount() != 1:
            return None
        return int(nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByIndex(0)).free)

    return _ask_nvml(free)


def nvidia_bytes(process: int) -> int | None:
    """Of a process by its number, on all NVIDIA cards; None where their driver doesn't list it."""

    def taken(nvml: Any) -> int | None:
        found = []
        for index in range(nvml.nvmlDeviceGetCount()):
            card = nvml.nvmlDeviceGetHandleByIndex(index)
            # One that also draws is in both lists, with the same number.
            listed = [*nvml.nvmlDeviceGetComputeRunningProcesses(card)]
            listed += nvml.nvmlDeviceGetGraphicsRunningProcesses(card)
            mine = [int(row.usedGpuMemory) for row in listed if row.pid == process and row.usedGpuMemory is not None]
            found += [max(mine)] if mine else []
        return sum(found) if found else None

    return _ask_nvml(taken)


def drm_bytes(folder: Path) -> int | None:
    """Of a process by its /proc/PID/fdinfo, in every region of every card: one that shares the system's memory has a
    region there, which doesn't count as resident. None where no driver tells.
    """
    clients: dict[tuple[str, str], int] = {}
    for told in _fdinfos(folder):
        regions: dict[str, int] = {}
        for kind in ("drm-memory-", "drm-resident-"):  # the older name and the newer one; some drivers give both
            for key, value in told.items():
                if key.startswith(kind):
                    regions[key.removeprefix(kind)] = _size(value)
        if regions:  # file descriptors of one client all tell the same
            clients[told.get("drm-pdev", ""), told.get("drm-client-id", "")] = sum(regions.values())
    return sum(clients.values()) if clients else None


def _fdinfos(folder: Path) -> Iterator[dict[str, str]]:
    try:
        files = sorted(folder.iterdir())
    except OSError:
        return
    for file in files:
        try:
            lines = file.read_text(encoding="ascii", errors="replace").splitlines()
        except OSError:  # closed meanwhile
            continue
        told = dict(line.split(":", 1) for line in lines if line.startswith("drm-") and ":" in line)
        if told:
            yield {key: value.strip() for key, value in told.items()}


def _size(text: str) -> int:
    number, _, unit = text.partition(" ")
    return int(number) * _UNITS.get(unit.strip(), 0) if number.isdigit() else 0


def _ask_nvml(question: Callable[[Any], Answer | None]) -> Answer | None:
    """What NVIDIA's management library answers; None where it is missing, there is no card, or it refuses."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        try:
            return question(pynvml)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None
