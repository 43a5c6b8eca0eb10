"""How a role's graph is held in memory while it is used."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

MIB = 2**20
_WORDS = re.compile(r"(?:(packed)|(mapped)|segments of (\d+) MiB(, open)?|strips of (\d+) MiB)")


@dataclass(frozen=True, slots=True, order=True)
class Mode:
    """packed: the fastest weights, copied where that helps. mapped: weights stay in their file.

    segment_mib: cut into segments with no more weights than that, one in memory at a time. standing: the segments
    stay open and only their weights come and go; otherwise each is opened when it runs. strip_mib: run in strips of the
    image whose feature maps are no larger than that. All of them are mapped.
    """

    mapped: bool = False
    segment_mib: int | None = None
    strip_mib: int | None = None
    standing: bool = False

    @property
    def kind(self) -> str:
        if self.strip_mib is not None:
            return "strips"
        if self.segment_mib is not None:
            return "open segments" if self.standing else "segments"
        return "mapped" if self.mapped else "packed"

    @property
    def is_cut(self) -> bool:
        """Whether the graph runs in parts."""
        return self.segment_mib is not None or self.strip_mib is not None

    @property
    def words(self) -> str:
        """For people and for records; `parse_mode` reads it."""
        if self.segment_mib is not None:
            return f"segments of {self.segment_mib} MiB{', open' * self.standing}"
        return self.kind if self.strip_mib is None else f"strips of {self.strip_mib} MiB"

    def options(self) -> dict[str, Any]:
        """As fields of BuildOptions."""
        sizes = {"segment_bytes": self.segment_mib, "strip_bytes": self.strip_mib}
        standing = {"standing": True} if self.standing else {}
        return {
            "mapped": self.mapped,
            **standing,
            **{name: mib * MIB for name, mib in sizes.items() if mib is not None},
        }


PACKED = Mode()
MAPPED = Mode(mapped=True)


def segments(mib: int, *, standing: bool = False) -> Mode:
    return Mode(mapped=True, segment_mib=mib, standing=standing)


def strips(mib: int) -> Mode:
    return Mode(mapped=True, strip_mib=mib)


def parse_mode(words: str) -> Mode:
    """What `Mode.words` wrote. Raises ValueError for anything else."""
    found = _WORDS.fullmatch(words)
    if found is None:
        raise ValueError(f"{words[:60]!r} is no way to hold a graph")
    _, mapped, segment, standing, strip = found.groups()
    if segment:
        return segments(int(segment), standing=standing is not None)
    if strip:
        return strips(int(strip))
    return MAPPED if mapped else PACKED
