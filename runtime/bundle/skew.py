"""What a model's pictures of a prompt showed that it leaves open, counted: a statement that a bundle may carry."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from tintype import strict_json
from tintype.bounds import MAX_CONFIG_BYTES, MAX_SKEW_LABELS, MAX_SKEWS
from tintype.errors import RequestError
from tintype.files import read_plain

MAX_SKEW_CHARS = 500  # of each of its texts


@dataclass(frozen=True, slots=True, kw_only=True)
class Skew:
    """Of one prompt."""

    prompt: str
    judge: str  # what counted
    bundle_hash: str  # of the bundle that drew
    counts: Mapping[str, int]  # pictures by label, in the judge's order, those with none too

    def __post_init__(self) -> None:
        strict_json.require(2 <= len(self.counts) <= MAX_SKEW_LABELS, f"skew counts {len(self.counts):,} labels")
        for text in (self.prompt, self.judge, *self.counts):
            sane = 0 < len(text) <= MAX_SKEW_CHARS and text.isprintable()
            strict_json.require(sane, f"skew has a text of {len(text):,} characters, or one that can't be shown")
        hexadecimal = re.fullmatch("[0-9a-f]{64}", self.bundle_hash) is not None
        strict_json.require(hexadecimal, "skew.bundle_hash should be 64 hexadecimal digits")
        counted = self.counts.values()
        strict_json.require(min(counted) >= 0 < sum(counted) <= 10**9, "skew counts no pictures, or absurdly many")

    @property
    def pictures(self) -> int:
        return sum(self.counts.values())

    @property
    def most_first(self) -> list[tuple[str, int]]:
        """Labels with their counts."""
        return Counter(self.counts).most_common()

    def total_variation(self, shares: Mapping[str, float] | None = None) -> float:
        """How far the counts are from shares with a sum of 1, 0 to 1: of the pictures that share which would have to
        show something else. None: from even ones."""
        even = 1 / len(self.counts)
        wanted = {label: even if shares is None else shares.get(label, 0.0) for label in self.counts}
        return sum(abs(count / self.pictures - wanted[label]) for label, count in self.counts.items()) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Result:
    skew: tuple[Skew, ...]


def check_skews(skews: tuple[Skew, ...]) -> None:
    """Misfit for more statements than a bundle may carry."""
    strict_json.require(len(skews) <= MAX_SKEWS, f"skew states {len(skews):,} prompts; {MAX_SKEWS} are the most")


def read_skews(file: str | os.PathLike[str]) -> tuple[Skew, ...]:
    """Of a result of `tintype bench skew`. Raises RequestError."""
    try:
        found = strict_json.read(_Result, strict_json.parse(read_plain(file, MAX_CONFIG_BYTES))).skew
        check_skews(found)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RequestError(
            f"{file} holds no measured skew: {reason}", fix="give what tintype bench skew wrote"
        ) from None
    return found
