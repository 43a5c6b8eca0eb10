"""Bars: what a figure must reach, said as data, judged in one place and kept beside the figure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RatioBar:
    """Seconds of one peer over those of another, at most so much."""

    peer: str
    reference: str
    at_most: float

    def judge(self, medians: Mapping[str, float]) -> dict[str, Any] | None:
        """None when one of the two wasn't measured."""
        if self.peer not in medians or self.reference not in medians:
            return None
        ratio = medians[self.peer] / medians[self.reference]
        return verdict(f"{self.peer} over {self.reference}", ratio, at_most=self.at_most)


def verdict(
    what: str, value: float | None, *, at_most: float | None = None, at_least: float | None = None
) -> dict[str, Any]:
    """One line of a report; a value that isn't there, or isn't a number, meets no bar."""
    value = None if value is None or not math.isfinite(value) else value
    found: dict[str, Any] = {"what": what, "value": None if value is None else round(value, 4)}
    met = value is not None
    if at_most is not None:
        found["at_most"] = at_most
        met = met and value is not None and value <= at_most
    if at_least is not None:
        found["at_least"] = at_least
        met = met and value is not None and value >= at_least
    return {**found, "met": met}


def lines(verdicts: list[dict[str, Any]]) -> list[str]:
    """Bars as people read them, one a line."""
    said = []
    for entry in verdicts:
        bar = f"<= {entry['at_most']}" if "at_most" in entry else f">= {entry['at_least']}"
        value = "not measured" if entry["value"] is None else f"{entry['value']:.3g}"
        said.append(f"{'met   ' if entry['met'] else 'MISSED'} {entry['what']:<44} {value} (bar {bar})")
    return said
