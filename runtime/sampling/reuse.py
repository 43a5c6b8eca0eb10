"""Which of a sampler's calls take inner values of the denoiser over from an earlier one. Pure: no graphs, no arrays.

Each object counts the calls of one batch, in their order: a sampler that calls the model more than once a step is
counted call by call.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


class Reuse(Protocol):
    """One way to choose those calls."""

    @property
    def blends(self) -> bool:
        """Whether what a prompt's branch takes over is the mean with the unconditional one, where that has ended."""
        ...

    def takes(self, active: tuple[int, ...], progress: float) -> bool:
        """Whether the next call takes them over; else it is a whole one, which gives them anew.

        active: its branches. progress: of the way, before its step: 0 to below 1.
        """
        ...


@dataclass(slots=True)
class DeepCache:
    """Every `interval`-th call is a whole one, and so is one for a branch that the last whole one left out.

    Ma et al. 2023, with uniform steps: the others compute the outermost part of the UNet alone.
    """

    interval: int
    blends: bool = field(default=False, init=False)
    _since: int = 0  # the last whole call, which counts
    _given: frozenset[int] = frozenset()  # branches of that

    def takes(self, active: tuple[int, ...], progress: float) -> bool:
        taken = 0 < self._since < self.interval and self._given.issuperset(active)
        if taken:
            self._since += 1
        else:
            self._since, self._given = 1, frozenset(active)
        return taken


@dataclass(slots=True)
class Gate:
    """From `start` on, a share of the way, every call but the first of all takes over what cross-attentions gave.

    Zhang et al. 2024 (T-GATE): by then the words have laid the picture out. Guidance ends there too, and what is kept
    is the mean of both predictions' values.
    """

    start: float
    blends: bool = field(default=True, init=False)
    _given: frozenset[int] = frozenset()

    def takes(self, active: tuple[int, ...], progress: float) -> bool:
        if progress >= self.start and self._given.issuperset(active):
            return bool(self._given)
        self._given = frozenset(active)
        return False
