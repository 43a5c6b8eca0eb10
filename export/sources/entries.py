"""Where each tensor of a module lies, and what is done to it on its way there; told by headers, before any is read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tintype.sources.header import DTYPE_BYTES, FLOATS, Header, broken

Entries = Mapping[str, "Entry"]  # by the name that a module has for it


@dataclass(frozen=True, slots=True)
class Product:
    """Two factors in one file: `up` of (rows, rank) numbers and `down` of (rank, columns), in whatever shapes."""

    path: Path
    up: str
    down: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a module: `name` in the file `path`, of it `rows`, transposed, in the shape `shape`."""

    path: Path
    name: str
    dtype: str  # in the file, as safetensors names it
    shape: tuple[int, ...]  # that the module has
    rows: tuple[int, int] | None = None  # of the first axis, where several tensors are stored as one
    transposed: bool = False
    scale: str | None = None  # the tensor of the file, one number, that it is multiplied by
    added: Product | None = None  # what is added to it then

    @classmethod
    def of(cls, header: Header, name: str) -> Entry:
        """A tensor as it stands."""
        facts = header.tensors[name]
        return cls(header.path, name, facts.dtype, facts.shape)

    def third(self, number: int) -> Entry:
        """One of the three equal parts of a tensor that holds queries, keys and values one after another."""
        if not self.shape or self.shape[0] % 3:
            raise broken(self.path, f"{self.name} is {self.shape}, which isn't three equal parts")
        length = self.shape[0] // 3
        return replace(self, rows=(number * length, (number + 1) * length), shape=(length, *self.shape[1:]))

    def transpose(self) -> Entry:
        """A matrix that is stored the other way round."""
        return replace(self, shape=self.shape[::-1], transposed=True)

    def squeezed(self) -> Entry:
        """The matrix of a linear layer that is stored as a convolution of one pixel; anything else as it is."""
        is_pixel = len(self.shape) == 4 and self.shape[2:] == (1, 1)
        return replace(self, shape=self.shape[:2]) if is_pixel else self

    @property
    def size(self) -> int:
        """How many numbers the module gets of it."""
        return math.prod(self.shape)

    @property
    def stored_bytes(self) -> int:
        """What those numbers take in the file."""
        return self.size * DTYPE_BYTES[self.dtype]

    @property
    def is_float(self) -> bool:
        return self.dtype in FLOATS


def some(names: Iterable[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    listed = sorted(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most:,} more" if len(listed) > most else "")
