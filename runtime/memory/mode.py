"""How a role's graph is held in memory while it is used: one of five kinds, and their words in plans and records."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from tintype.uses import GraphUse

MIB = 2**20
_WORDS = re.compile(
    r"packed|(mapped)|segments of ([1-9]\d{0,5}) MiB(, open)?|strips of ([1-9]\d{0,5}) MiB"
    r"|tiles of ([1-9]\d{0,3}) cells, (\d{1,4}) shared(, mapped)?"
)


class _Mode:
    """What the kinds have in common; `str` of one is for people and for records, and `parse_mode` reads it."""

    __slots__ = ()

    @property
    def kind(self) -> str:
        """Modes of one kind cost alike."""
        return type(self).__name__.lower()

    @property
    def is_cut(self) -> bool:
        """Whether the graph itself runs in parts."""
        return False

    def options(self) -> dict[str, Any]:
        """As fields of BuildOptions."""
        return {"mapped": True}

    def cut(self, use: GraphUse) -> GraphUse:
        """A use of the whole image as the graph is called."""
        return use

    def __str__(self) -> str:
        return self.kind


@dataclass(frozen=True, slots=True, order=True)
class Packed(_Mode):
    """The fastest weights, copied where that helps."""

    def options(self) -> dict[str, Any]:
        return {"mapped": False}


@dataclass(frozen=True, slots=True, order=True)
class Mapped(_Mode):
    """Weights stay in their file."""


@dataclass(frozen=True, slots=True, order=True)
class Segments(_Mode):
    """Cut into segments with no more weights than that, mapped, one in memory at a time.

    standing: they stay open and only their weights come and go; otherwise each is opened when it runs.
    """

    mib: int
    standing: bool = False

    @property
    def kind(self) -> str:
        return "open segments" if self.standing else "segments"

    @property
    def is_cut(self) -> bool:
        return True

    def options(self) -> dict[str, Any]:
        return {"mapped": True, "segment_bytes": self.mib * MIB, "standing": self.standing}

    def __str__(self) -> str:
        return f"segments of {self.mib} MiB{', open' * self.standing}"


@dataclass(frozen=True, slots=True, order=True)
class Strips(_Mode):
    """Run in strips of the image whose feature maps are no larger than that; mapped. They give the whole's picture."""

    mib: int

    @property
    def is_cut(self) -> bool:
        return True

    def options(self) -> dict[str, Any]:
        return {"mapped": True, "strip_bytes": self.mib * MIB}

    def __str__(self) -> str:
        return f"strips of {self.mib} MiB"


@dataclass(frozen=True, slots=True, order=True)
class Tiles(_Mode):
    """The whole graph, called for one square of the image after another; nearly the whole's picture.

    cells: a side of one, in latent cells. overlap: what neighbours share. mapped: its weights stay in their file.
    """

    cells: int
    overlap: int
    mapped: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.cells:
            raise ValueError(f"tiles of {self.cells} cells that share {self.overlap} cover nothing")

    def options(self) -> dict[str, Any]:
        return {"mapped": self.mapped}

    def cut(self, use: GraphUse) -> GraphUse:
        sides = {name: min(use.dims[name], self.cells) for name in ("height", "width")}
        return replace(use, dims={**use.dims, **sides})

    def __str__(self) -> str:
        return f"tiles of {self.cells} cells, {self.overlap} shared{', mapped' * self.mapped}"


Mode: TypeAlias = Packed | Mapped | Segments | Strips | Tiles
PACKED, MAPPED = Packed(), Mapped()


def parse_mode(words: str) -> Mode:
    """What `str` of a mode wrote. Raises ValueError for anything else, and for sizes that no graph has."""
    match = _WORDS.fullmatch(words)
    if match is None:
        raise ValueError(f"{words[:60]!r} is no way to hold a graph")
    mapped, segment, standing, strip, cells, overlap, mapped_tiles = match.groups()
    if segment:
        return Segments(int(segment), standing is not None)
    if strip:
        return Strips(int(strip))
    if cells:
        return Tiles(int(cells), int(overlap), mapped_tiles is not None)
    return MAPPED if mapped else PACKED
