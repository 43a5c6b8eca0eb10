"""What measuring said about reckoning, kept from one plan to the next: one small JSON file a machine."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

from tintype import strict_json
from tintype.files import read_cached, write_cached
from tintype.memory.reckoning import Correction

_SIDE = 768  # of the product that tells how fast this machine multiplies


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    rate: float
    factors: Mapping[str, Mapping[str, Correction]]


@dataclass(slots=True)
class Corrections:
    """Factors by place and kind of mode, and the machine's rate. A place is all else that a factor depends on.

    A file that can't be read or written is no obstacle.
    """

    path: Path
    factors: dict[str, dict[str, Correction]] = field(default_factory=dict)  # by place, then by kind
    rate: float = 0.0  # multiply-adds a second

    @classmethod
    def read(cls, path: Path) -> Corrections:
        try:
            stored = strict_json.read(_Stored, strict_json.parse(read_cached(path)))
            return cls(path, {place: dict(known) for place, known in stored.factors.items()}, stored.rate)
        except (OSError, ValueError):
            return cls(path)

    def machine_rate(self) -> float:
        """Multiply-adds a second; measured the first time, in some milliseconds."""
        if self.rate <= 0.0:
            self.rate = measured_rate()
            self._write()
        return self.rate

    def factor(self, place: str, kind: str) -> Correction | None:
        """What is known; of a kind that nothing is known of, that it takes as much longer as the others there do."""
        known = self.factors.get(place, {})
        if kind in known or not known:
            return known.get(kind)
        return Correction(seconds=median(each.seconds for each in known.values()))

    def learn(self, place: str, kind: str, correction: Correction) -> None:
        self.factors.setdefault(place, {})[kind] = correction
        self._write()

    def _write(self) -> None:
        factors = {
            place: {kind: asdict(value) for kind, value in known.items()} for place, known in self.factors.items()
        }
        stored = {"rate": self.rate, "factors": factors}
        write_cached(self.path, json.dumps(stored))


def measured_rate() -> float:
    """Multiply-adds a second of a product in numpy, the best of three."""
    square = np.ones((_SIDE, _SIDE), np.float32)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        square @ square
        best = min(best, time.perf_counter() - started)
    return float(_SIDE**3 / best)
