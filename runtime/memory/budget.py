"""A budget in bytes: what a user types, or what the machine has free."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tintype.errors import MemoryBudgetError, RequestError

_UNITS = {
    "": 1, "b": 1, "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9,
    "ki": 2**10, "kib": 2**10, "mi": 2**20, "mib": 2**20, "gi": 2**30, "gib": 2**30,
}  # fmt: skip
AUTO_SHARE = 0.85  # of what is free: the rest is for whoever asks while a picture is made
CGROUPS = Path("/sys/fs/cgroup")
# By the version of control groups: where the files lie, the limit, what is used, and in memory.stat what of that are
# pages of files, which the system takes back as it needs them.
_VERSIONS = (
    (".", "memory.max", "memory.current", ("active_file", "inactive_file")),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")),
)


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
    if isinstance(memory, bool):
        raise wrong
    if isinstance(memory, int):
        count = float(memory)
    else:
        if memory.strip().lower() == "auto":
            return "auto"
        found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([a-zA-Z]{0,3})\s*", memory)
        if found is None or found[2].lower() not in _UNITS:
            raise wrong
        count = float(found[1]) * _UNITS[found[2].lower()]
    if count < 1:
        raise wrong
    return int(count)


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


def free_bytes(cgroups: Path = CGROUPS) -> int:
    """Memory that this process could still take: what the system has free, within its control group's limit."""
    free = int(psutil.virtual_memory().available)
    for folder, limit_name, used_name, of_files in _VERSIONS:
        limit, used = _number(cgroups / folder / limit_name), _number(cgroups / folder / used_name)
        if limit is not None and used is not None and limit < 2**60:
            free = min(free, limit - used + _sum_of(cgroups / folder / "memory.stat", of_files))
    return free


def _sum_of(path: Path, names: tuple[str, ...]) -> int:
    """The numbers of these names in a file of lines such as `inactive_file 4096`; 0 where there is none."""
    try:
        rows = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
    except (OSError, ValueError):
        return 0
    return sum(int(row[1]) for row in rows if len(row) == 2 and row[0] in names and row[1].isdigit())


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
