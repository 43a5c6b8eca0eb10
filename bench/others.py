"""How much of the machine's processors others took while something was measured: what makes a time worth nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QUIET_SHARE = 0.05  # of the processors' time, that others may take while a call is timed
LEAST_SECONDS = 0.1  # the system counts in hundredths of a second: of less, nothing can be told
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


def quiet_answer(measure: Callable[[], dict[str, Any]], patience_seconds: float) -> dict[str, Any]:
    """A worker's answer, asked for again and again while other processes disturb it, as long as patience lasts.

    When it is over, the quietest so far is taken. What others took stays in its `others_share`; where that can't be
    told, the first answer is taken.
    """
    ends = time.perf_counter() + patience_seconds
    quietest = measure()
    while (quietest.get("others_share") or 0.0) > QUIET_SHARE and time.perf_counter() < ends:
        quietest = min(quietest, measure(), key=lambda answer: float(answer["others_share"]))
    return quietest


def _busy_seconds() -> float | None:
    try:
        numbers = [int(text) for text in _STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:]]
    except (OSError, ValueError):
        return None
    ticks = sum(number for index, number in enumerate(numbers[:_COUNTED]) if index not in _IDLE)
    return ticks / os.sysconf("SC_CLK_TCK")
