"""What whole calls of the denoiser gave of its inner values, kept for those that take them over."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tintype.arrays import Arrays

UNCONDITIONAL = 0  # the branch that guidance goes away from


class KeptValues:
    """Of one batch, by branch: the values of the last whole call, (pictures, ...) each."""

    def __init__(self, *, blends: bool) -> None:
        """blends: see `sampling.reuse.Reuse`."""
        self._blends = blends
        self._values: dict[int, Arrays] = {}

    def clear(self) -> None:
        """Before a whole call: what it gives comes in their place, and never beside them."""
        self._values.clear()

    def keep(self, branches: tuple[int, ...], values: Arrays) -> None:
        """values: of one call, (branches * pictures, ...) each."""
        parts = {name: np.split(array, len(branches)) for name, array in values.items()}
        for place, branch in enumerate(branches):
            self._values[branch] = {name: rows[place] for name, rows in parts.items()}

    def given(self, branches: tuple[int, ...], active: tuple[int, ...]) -> Arrays:
        """The same for one call, of some of the branches that are active: all of them, where guidance isn't split."""
        blends = self._blends and UNCONDITIONAL in self._values and UNCONDITIONAL not in active
        return {
            name: np.concatenate([self._of(branch, name, blends=blends) for branch in branches])
            for name in self._values[branches[0]]
        }

    def _of(self, branch: int, name: str, *, blends: bool) -> NDArray[Any]:
        values = self._values[branch][name]
        return np.asarray((values + self._values[UNCONDITIONAL][name]) * np.float32(0.5)) if blends else values
