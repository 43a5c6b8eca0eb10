"""What this machine can run Tintype on, and for everything else what is missing and the command that installs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psutil

from tintype.engine.device import plugins
from tintype.engine.device.hardware import Gpu, gpu_identity, gpus
from tintype.engine.device.installation import check_installation, load_onnxruntime
from tintype.engine.device.machine import cpu_identity, cpu_name, processor_kind
from tintype.engine.device.native import kernel_sets, native_problem
from tintype.engine.device.providers import TARGETS, Target, is_software, problem_of

VENDOR_OF_TARGET = {"cuda": "NVIDIA", "tensorrt-rtx": "NVIDIA", "qnn": "Qualcomm"}


@dataclass(frozen=True, slots=True)
class Device:
    """A target as it is here. `problem` and `fix` are None when it can be used; None elsewhere is not known."""

    target: str  # what --provider takes
    provider: str  # what ONNX Runtime calls it
    version: str | None  # of what would run it
    name: str | None
    memory_bytes: int | None
    driver: str | None
    problem: str | None
    fix: str | None
    kind: str | None = None  # of a processor, by `processor_kind`
    native_problem: str | None = None  # of a processor: why no kernel of our own runs on it; None where they do
    native_set: str | None = None  # the set of instructions that they use, by its name in the library

    @property
    def usable(self) -> bool:
        return self.problem is None


def list_devices() -> list[Device]:
    """Every target, usable or not, each asked to run one node. InstallError when onnxruntime itself is not in order."""
    cards = gpus()
    return [_device(target, cards) for target in TARGETS.values()]


def device_identity(target: Target) -> str:
    """What a build depends on besides its graph: the processor, and for another device that one too."""
    if target.is_host:
        return cpu_identity()
    return " ".join(part for part in (cpu_identity(), gpu_identity(), _own_identity(target)) if part)


def _device(target: Target, cards: list[Gpu]) -> Device:
    problem, fix = problem_of(target) or (None, None)
    version = None if problem is not None else _version(target)
    if target.is_host:
        memory = psutil.virtual_memory().total
        kind = processor_kind()
        facts = (target.name, target.provider, version, cpu_name(), memory, None, problem, fix, kind)
        return Device(*facts, native_problem(), next(reversed(kernel_sets()), None))
    vendor = VENDOR_OF_TARGET.get(target.name)
    card = next((card for card in cards if vendor in (None, card.vendor)), None) if target.name != "openvino" else None
    named = _described(target) if problem is None else None
    return Device(
        target=target.name,
        provider=target.provider,
        version=version,
        name=named or (card.name if card is not None else None),
        memory_bytes=card.memory_bytes if card is not None else None,
        driver=card.driver if card is not None else None,
        problem=problem,
        fix=fix,
    )


def _version(target: Target) -> str:
    own = f"{check_installation()} {load_onnxruntime().__version__}"
    facts = _facts(target)
    return f"{own}, {target.plugin} {facts.ep_metadata.get('version', '')}".strip() if facts is not None else own


def _facts(target: Target) -> Any | None:
    """ONNX Runtime's device of a provider that is a library of its own and is registered; else None."""
    if not plugins.is_registered(target.plugin):
        return None
    return next(iter(plugins.devices(load_onnxruntime(), target.provider)), None)


def _described(target: Target) -> str | None:
    """The device's name as ONNX Runtime's device API has it: Windows gives a description, others a vendor."""
    facts = _facts(target)
    if facts is None:
        return None
    if is_software(target):
        return "a software adapter, on the processor"
    return facts.device.metadata.get("Description")


def _own_identity(target: Target) -> str:
    facts = _facts(target)
    if facts is None:
        return ""
    device = facts.device
    kind = str(device.type).rpartition(".")[2]
    return f"{kind} {device.vendor_id:04x}:{device.device_id:04x} {facts.ep_metadata.get('version', '')}"
