"""A picture's file as Pillow may read it: so many times and no more.

Pillow reads headers in Python, part by part, a microsecond or more each: a file of very many parts takes it minutes.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from tintype.bounds import MAX_HEADER_READS, MAX_PICTURE_BYTES, MAX_PICTURE_READS
from tintype.files import open_plain

if TYPE_CHECKING:
    from PIL.Image import Image


@contextlib.contextmanager
def open_image(path: str | os.PathLike[str], formats: list[str] | None = None) -> Iterator[Image]:
    """`Image.open` of a plain file. Raises what that does, OSError, and ValueError for too many parts."""
    from PIL import Image

    _keep_from_stderr()
    with open_plain(path, MAX_PICTURE_BYTES) as file:
        counted: Any = _CountedReads(file)
        with Image.open(counted, formats=formats) as image:
            counted.left = MAX_PICTURE_READS
            yield image


def _keep_from_stderr() -> None:
    """Pillow logs some errors that it raises too: they reach who has set logging up, and no terminal beside."""
    pillow = logging.getLogger("PIL")
    if not pillow.handlers:
        pillow.addHandler(logging.NullHandler())


class _CountedReads:
    """A file, of which only what moves on in it is counted."""

    def __init__(self, file: BinaryIO) -> None:
        self.left = MAX_HEADER_READS
        self._file = file

    def read(self, size: int = -1) -> bytes:
        self._count()
        return self._file.read(size)

    def readline(self, size: int = -1) -> bytes:
        self._count()
        return self._file.readline(size)

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise ValueError("it has too many parts")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
