"""Medians, because a shared machine makes outliers in one direction only."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def summary(seconds: Sequence[float]) -> dict[str, float | int]:
    """Median, smallest and largest of the runs, in the unit they came in, and how many there were."""
    return {
        "median": round(statistics.median(seconds), 4),
        "smallest": round(min(seconds), 4),
        "largest": round(max(seconds), 4),
        "runs": len(seconds),
    }
