"""A budget in bytes: what a user types, or what the machine has free."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import psutil

from tintype.errors import MemoryBudgetError, RequestError

_UNITS = {
    "": 1, "b": 1, "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9,
    "ki": 2**10, "kib": 2**10, "mi": 2**20, "mib": 2**20, "gi": 2**30, "gib": 2**30,
}  # fmt: skip
_NO_LIMIT = 2**60
AUTO_SHARE = 0.85  # of what is free: the rest is for whoever asks while a picture is made
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# By the version of control groups: the controller's name in /proc/self/cgroup, where its files lie, the limit, what is
# used, and in memory.stat what of that are pages of files, which the system takes back as it needs them.
_VERSIONS = (
    ("", ".", "memory.max", "memory.current", ("active_file", "inactive_file")),
    (
        "memory",
        "memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_active_file", "total_inactive_file"),
    ),
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


def free_bytes(cgroups: Path = CGROUPS, own: Path = OWN_CGROUPS) -> int:
    """Memory that this process could still take: what the system has free, within the limits of its control groups
    (its own and those above it) and of its address space."""
    free = int(psutil.virtual_memory().available)
    names = _own_groups(own)
    for controller, folder, limit_name, used_name, of_files in _VERSIONS:
        top = cgroups / folder
        for place in _upwards(top, names.get(controller, "/")):
            limit, used = _number(place / limit_name), _number(place / used_name)
            if limit is not None and used is not None and limit < _NO_LIMIT:
                free = min(free, limit - used + _sum_of(place / "memory.stat", of_files))
    return min(free, _address_space_left())


def _own_groups(own: Path) -> dict[str, str]:
    """The process's group by controller, as /proc/self/cgroup has it; "" is that of version 2."""
    try:
        rows = [line.split(":", 2) for line in own.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return {}
    return {controller: row[2] for row in rows if len(row) == 3 for controller in row[1].split(",")}


def _upwards(top: Path, group: str) -> Iterator[Path]:
    """The folders of a group and of all above it. A container may see its own group as the top."""
    inner = PurePosixPath("." if ".." in group else group.lstrip("/"))
    yield from (top / each for each in dict.fromkeys((inner, *inner.parents)) if (top / each).is_dir())


def _address_space_left() -> int:
    """What a limit of the address space (ulimit -v) leaves; without one, more than any machine has."""
    if sys.platform == "win32":
        return _NO_LIMIT
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return _NO_LIMIT if limit == resource.RLIM_INFINITY else limit - int(psutil.Process().memory_info().vms)


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
