"""How much of the machine's processors others took while something was timed: what makes a time worth little."""

from __future__ import annotations

import functools
import os
import time
from dataclasses import dataclass
from pathlib import Path

DISTURBED = 0.1  # a share of the processors; where others take more, what was timed is timed again
LEAST_SECONDS = 0.1  # the system counts in hundredths of a second: of less, nothing can be told
LOOK_SECONDS = 0.3
_STAT = Path("/proc/stat")
_IDLE = (3, 4)  # idle and waiting for a disk, among the numbers of a processor's line
_COUNTED = 8  # user, nice, system, idle, iowait, irq, softirq, steal; the guests' are within these


@dataclass(frozen=True, slots=True)
class Reading:
    """A moment: wall clock, and processor seconds that everybody and this process have used."""

    wall_seconds: float
    busy_seconds: float | None  # of all processors together; None where the system doesn't tell
    own_seconds: float

    @classmethod
    def now(cls) -> Reading:
        return cls(time.perf_counter(), _busy_seconds(), time.process_time())


def others_share(before: Reading, after: Reading) -> float | None:
    """The share of all processors' time between two readings that went to others; None where it can't be told."""
    if before.busy_seconds is None or after.busy_seconds is None:
        return None
    wall = after.wall_seconds - before.wall_seconds
    others = after.busy_seconds - before.busy_seconds - (after.own_seconds - before.own_seconds)
    return max(0.0, others / (wall * (os.cpu_count() or 1))) if wall >= LEAST_SECONDS else None


@functools.cache
def is_calm() -> bool:
    """Whether other programs leave the processors to this one; looked at once, for a moment. False where none tells."""
    before = Reading.now()
    time.sleep(LOOK_SECONDS)
    share = others_share(before, Reading.now())
    return share is not None and share <= DISTURBED


def _busy_seconds() -> float | None:
    try:
        numbers = [int(text) for text in _STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:]]
    except (OSError, ValueError):
        return None
    ticks = sum(number for index, number in enumerate(numbers[:_COUNTED]) if index not in _IDLE)
    return ticks / os.sysconf("SC_CLK_TCK")
