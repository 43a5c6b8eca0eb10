"""Sizes by name: which expression over batch, height, width and sequence a number is, seen at several choices of them.

Three choices that share no ratio tell every expression that these models have: a number, a multiple or a fraction of a
name or of a product of names, and such a one with something added (`height + 1`, where a picture is padded).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations

Probe = Mapping[str, int]  # a number for each name

# batch, height, width and sequence; heights and widths in units that the caller keeps to.
_CHOICES = (
    {"batch": 2, "height": 3, "width": 5},
    {"batch": 3, "height": 7, "width": 4},
    {"batch": 5, "height": 6, "width": 11},
)
_SEQUENCES = (7, 11, 13)


@dataclass(frozen=True, slots=True)
class Size:
    """factor * product of names + plus."""

    factor: Fraction
    names: tuple[str, ...]
    plus: int = 0

    def __str__(self) -> str:
        text = "*".join(self.names)
        if self.factor.numerator != 1:
            text = f"{self.factor.numerator}*{text}"
        if self.factor.denominator != 1:
            text = f"{text}/{self.factor.denominator}"
        return text if not self.plus else f"{text}{self.plus:+d}"


Dim = int | Size | None  # None: none of these


def probes(multiple: int) -> tuple[Probe, ...]:
    """Three choices of sizes; heights and widths are multiples of `multiple`."""
    return tuple(
        {name: number * (multiple if name in ("height", "width") else 1) for name, number in choice.items()}
        | {"sequence": sequence}
        for choice, sequence in zip(_CHOICES, _SEQUENCES, strict=True)
    )


def dim_of(seen: Sequence[int], chosen: Sequence[Probe]) -> Dim:
    """What a number is that was seen at each choice of sizes."""
    if len(set(seen)) == 1:
        return seen[0]
    names = tuple(chosen[0])
    for count in (1, 2, 3):
        for some in combinations(names, count):
            factors = {Fraction(number, _product(probe, some)) for number, probe in zip(seen, chosen, strict=True)}
            if len(factors) == 1:
                return Size(factors.pop(), some)
    for name in names:
        step = Fraction(seen[1] - seen[0], chosen[1][name] - chosen[0][name])
        rests = {number - step * probe[name] for number, probe in zip(seen, chosen, strict=True)}
        if len(rests) == 1 and (rest := rests.pop()).denominator == 1 and step != 0:
            return Size(step, (name,), int(rest))
    return None


def _product(probe: Probe, names: Sequence[str]) -> int:
    total = 1
    for name in names:
        total *= probe[name]
    return total
