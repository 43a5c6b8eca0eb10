"""Medians, because a shared machine makes outliers in one direction only; and how near pictures are."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def summary(seconds: Sequence[float]) -> dict[str, float | int]:
    """Median, smallest and largest of the runs, in the unit they came in, and how many there were."""
    return {
        "median": round(statistics.median(seconds), 4),
        "smallest": round(min(seconds), 4),
        "largest": round(max(seconds), 4),
        "runs": len(seconds),
    }


def picture_psnr_db(reference: NDArray[np.uint8], picture: NDArray[np.uint8]) -> float:
    """How near a picture is to another, of 0..255; 200 where they are the same."""
    error = float(np.mean((reference.astype(np.float64) - picture) ** 2))
    return 200.0 if error == 0 else float(10 * np.log10(255**2 / error))
