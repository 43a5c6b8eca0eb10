"""What memory the machine has free for this process, as the system and its control groups tell it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

_NO_LIMIT = 2**60
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
