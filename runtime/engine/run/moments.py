"""Mean and variance of a feature map that is seen a few rows at a time, in float64.

Sums of squared differences from the mean are merged (Chan, Golub and LeVeque 1983), never sums of squares, so that a
mean that is many deviations away from zero costs no digits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tintype.engine.run.row_store import RowStore

_PIECE_NUMBERS = 2**18


class Moments:
    """By picture and channel: how many numbers, their mean, and the sum of their squared differences from it."""

    def __init__(self) -> None:
        self._count = 0
        self._mean: Any = 0.0  # (batch, channels) once there is anything
        self._squares: Any = 0.0

    @classmethod
    def of_map(cls, store: RowStore) -> Moments:
        """Those of a whole map that is there already."""
        moments = cls()
        batch, channels, height, width = store.shape
        step = max(1, _PIECE_NUMBERS // (batch * channels * width))
        for start in range(0, height, step):
            rows = store.read(start, min(start + step, height)).astype(np.float64)
            means = rows.mean(axis=3)
            moments.add(means, np.square(rows - means[..., np.newaxis]).sum(axis=3), width)
        return moments

    def add(self, means: NDArray[Any], squares: NDArray[Any], width: int) -> None:
        """Rows of `width` numbers each: their means and sums of squared differences, both (batch, channels, rows)."""
        means, count = means.astype(np.float64), width * means.shape[2]
        mean = means.mean(axis=2)
        spread = np.square(means - mean[..., np.newaxis]).sum(axis=2) * width
        self._merge(count, mean, squares.sum(axis=2, dtype=np.float64) + spread)

    def normal(self, groups: int, epsilon: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and 1 / sqrt(variance + epsilon) of each channel's group, both (batch, channels, 1, 1)."""
        batch, channels = self._mean.shape
        by_group = self._mean.reshape(batch, groups, -1)
        mean = by_group.mean(axis=2, keepdims=True)
        spread = np.square(by_group - mean).mean(axis=2, keepdims=True)
        within = self._squares.reshape(batch, groups, -1).mean(axis=2, keepdims=True) / self._count
        inverse = 1 / np.sqrt(within + spread + epsilon)
        whole = (batch, channels, 1, 1)
        mean, inverse = (np.broadcast_to(each, by_group.shape).reshape(whole) for each in (mean, inverse))
        return mean.astype(np.float32), inverse.astype(np.float32)

    def _merge(self, count: int, mean: NDArray[np.float64], squares: NDArray[np.float64]) -> None:
        total = self._count + count
        apart = mean - self._mean
        self._squares = self._squares + squares + np.square(apart) * (self._count * count / total)
        self._mean = self._mean + apart * (count / total)
        self._count = total
