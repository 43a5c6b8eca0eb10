"""What this machine is, as far as a build or a thread pool depends on it. Reads only; changes nothing."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from pathlib import Path

import psutil


def default_threads() -> int:
    """Physical cores that this process may use: ONNX Runtime gains nothing from a core's second thread."""
    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        physical = min(physical, len(os.sched_getaffinity(0)))
    return max(1, physical)


@functools.cache
def cpu_identity() -> str:
    """The processor's name and a digest of its instruction sets: an optimized graph is good for these alone."""
    name, features = _cpu()
    digest = hashlib.sha256(" ".join(sorted(features)).encode()).hexdigest()[:8]
    return f"{platform.system()} {platform.machine()} {name} {digest}"


def cpu_name() -> str:
    """The processor as its maker calls it."""
    return _cpu()[0]


def products_saturate() -> bool:
    """Whether sums of uint8 x int8 products may saturate: x86 without VNNI, which adds pairs in 16 bits.

    Where the instruction sets cannot be read (not Linux), x86 is taken to have none.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i686", "x86"):
        return False
    return not _cpu()[1] & {"avx512_vnni", "avx_vnni", "avx512vnni", "avxvnni"}


@functools.cache
def _cpu() -> tuple[str, frozenset[str]]:
    """Name and instruction sets of the processor, as far as the system tells."""
    name, features = platform.processor() or platform.machine(), frozenset[str]()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return name, features
    for line in lines:
        field, _, value = line.partition(":")
        if field.strip() == "model name":
            name = value.strip()
        elif field.strip() in ("flags", "Features"):
            return name, frozenset(value.split())
    return name, features
