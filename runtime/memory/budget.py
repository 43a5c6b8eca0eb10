"""A budget in bytes: what a user types, or what the machine has free."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import psutil

from tintype.errors import MemoryBudgetError, RequestError
from tintype.free_memory import free_bytes

_UNITS = {
    "": 1, "b": 1, "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9,
    "ki": 2**10, "kib": 2**10, "mi": 2**20, "mib": 2**20, "gi": 2**30, "gib": 2**30,
}  # fmt: skip
_NO_LIMIT = 2**60
AUTO_SHARE = 0.85  # of what is free: the rest is for whoever asks while a picture is made


@dataclass(frozen=True, slots=True)
class MemoryLimits:
    """What there is beside a budget, in bytes: for the process itself, and in a device's memory. None is not known."""

    host: int | None = None
    device: int | None = None


def parse_memory(memory: str | int) -> int | str:
    """Bytes of a budget: a number of them, a text such as 2GiB, 1.5 GB or 800M, or `auto`, which stays as it is.

    Raises RequestError for anything else.
    """
    wrong = RequestError(
        f"the memory budget {str(memory)[:40]!r} is no size", fix="give it as in 2GiB or 800MB, or auto"
    )
    if isinstance(memory, bool) or not isinstance(memory, int | str):
        raise wrong
    if isinstance(memory, int):
        count = memory
    else:
        if memory.strip().lower() == "auto":
            return "auto"
        found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([a-zA-Z]{0,3})\s*", memory)
        if found is None or found[2].lower() not in _UNITS:
            raise wrong
        count = int(float(found[1]) * _UNITS[found[2].lower()])
    if not 1 <= count < _NO_LIMIT:
        raise wrong
    return count


def budget_bytes(memory: str | int, room: MemoryLimits | None = None) -> int:
    """The budget that a parsed one stands for now: `auto` is all the room that there is.

    room: None is this machine's.
    """
    if isinstance(memory, int):
        return memory
    room = room or free_limits(None)
    return (room.host or 0) + (room.device or 0)


def free_limits(device_free: int | None) -> MemoryLimits:
    """What is free and what this process has already, less a margin; and of what a device has free."""
    info: Any = psutil.Process().memory_info()
    # Mapped files that are in memory count as free already: the system could take them back.
    free = free_bytes() + int(info.rss - getattr(info, "shared", 0))
    if free <= 0:
        raise MemoryBudgetError("this machine has no memory free", fix="close other programs")
    return MemoryLimits(int(free * AUTO_SHARE), None if device_free is None else int(device_free * AUTO_SHARE))
