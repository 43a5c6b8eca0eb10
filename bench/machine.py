"""Where a figure was measured: without these facts a number means nothing."""

from __future__ import annotations

import datetime
import os
import platform
from importlib import metadata
from typing import Any

import psutil

from tintype.engine.device.machine import cpu_name, instruction_sets, processor_kind

DISTRIBUTIONS = (
    "tintype",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-webgpu",
    "torch",
    "diffusers",
    "transformers",
    "triton",
    "nvidia-cudnn-cu13",
    "openvino",
    "nncf",
    "stable-diffusion-cpp-python",
)


def machine_facts(threads: int | None) -> dict[str, Any]:
    """The machine, its load when the run began, versions, thread count and date, ready for JSON."""
    return {
        "machine": platform.node(),
        "system": platform.platform(),
        "cpu": cpu_name(),
        "processor_kind": processor_kind(),
        "instruction_sets": sorted(instruction_sets()),
        "cores": {"logical": os.cpu_count(), "physical": psutil.cpu_count(logical=False)},
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": load_average(),
        "threads": threads,
        "python": platform.python_version(),
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def load_average() -> list[float] | None:
    """Work that waited for a core over 1, 5 and 15 minutes; a quiet machine shows well under one."""
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except (AttributeError, OSError):
        return None


def versions() -> dict[str, str]:
    """Of what is installed among the distributions that decide a figure."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
