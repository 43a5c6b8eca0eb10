"""Measuring in quiet: what other processes disturbed is measured again, as long as patience lasts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

QUIET_SHARE = 0.05  # of the processors' time, that others may take while a call is timed


def quiet_answer(measure: Callable[[], dict[str, Any]], patience_seconds: float) -> dict[str, Any]:
    """A worker's answer, asked for again and again while other processes disturb it, as long as patience lasts.

    When it is over, the quietest so far is taken. What others took stays in its `others_share`; where that can't be
    told, the first answer is taken.
    """
    ends = time.perf_counter() + patience_seconds
    quietest = measure()
    while (quietest.get("others_share") or 0.0) > QUIET_SHARE and time.perf_counter() < ends:
        quietest = min(quietest, measure(), key=_share)
    return quietest


def _share(answer: dict[str, Any]) -> float:
    return float(answer["others_share"] or 0.0)
