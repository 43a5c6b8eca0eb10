"""What whole calls of the denoiser gave of its inner values, kept for those that take them over."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tintype.arrays import Arrays

UNCONDITIONAL = 0  # the branch that guidance goes away from


class KeptValues:
    """The values that the last whole call gave for one batch, (branches * pictures, ...) each, and once in memory."""

    def __init__(self, *, blends: bool) -> None:
        """blends: see `sampling.reuse.Reuse`."""
        self._blends = blends
        self._values: dict[tuple[int, ...], Arrays] = {}  # by the branches of the call that gave them

    def clear(self) -> None:
        """Before a whole call: what it gives comes in their place, and never beside them."""
        self._values.clear()

    def keep(self, branches: tuple[int, ...], values: Arrays) -> None:
        self._values[branches] = values

    def given(self, branches: tuple[int, ...], active: tuple[int, ...]) -> Arrays:
        """The values for one call, of some of the branches that are active: all of them, where guidance isn't split."""
        if self._blends and UNCONDITIONAL not in active and any(UNCONDITIONAL in each for each in self._values):
            self._blend(active)
        if branches in self._values:
            return self._values[branches]
        if len(branches) == 1:
            return self._rows(branches[0])
        rows = [self._rows(branch) for branch in branches]
        return {name: np.concatenate([each[name] for each in rows]) for name in rows[0]}

    def _rows(self, branch: int) -> Arrays:
        given, values = next((given, values) for given, values in self._values.items() if branch in given)
        place = given.index(branch)
        return {name: np.split(array, len(given))[place] for name, array in values.items()}

    def _blend(self, active: tuple[int, ...]) -> None:
        """Put the mean of each branch's values and the unconditional ones in their place."""
        unconditional = self._rows(UNCONDITIONAL)
        self._values = {
            (branch,): {name: _mean(values, unconditional[name]) for name, values in self._rows(branch).items()}
            for branch in active
        }


def _mean(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    return np.asarray((one + other) * np.float32(0.5))
