"""Whether a picture's file holds content credentials, told by its headers alone: no library, no pixel, bounded.

A PNG has them in a chunk caBX, a JPEG in segments APP11, a WebP in a chunk C2PA. What c2pa reads takes it some 0.1 ms a
part of the file, so that its parts are counted before it is given one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from tintype.bounds import MAX_CREDENTIALS_BYTES, MAX_LISTED_PARTS, MAX_SIGNED_BYTES, MAX_SIGNED_PARTS
from tintype.files import open_plain

PNG, JPEG, WEBP = "image/png", "image/jpeg", "image/webp"


@dataclass(frozen=True, slots=True)
class Container:
    """A picture's file, as far as its credentials go."""

    kind: str | None  # PNG, JPEG, WEBP; None: another one, in which they are not looked for
    manifest_bytes: int = 0  # 0: it holds none
    parts: int = 0
    file_bytes: int = 0
    is_whole: bool = True  # no: it has more parts than were looked through

    @property
    def excess(self) -> str | None:
        """Why it is not given to c2pa; None where it may be."""
        if not self.is_whole or self.parts > MAX_SIGNED_PARTS:
            return f"the file has more than {MAX_SIGNED_PARTS if self.is_whole else MAX_LISTED_PARTS:,} parts"
        if self.file_bytes > MAX_SIGNED_BYTES:
            return f"the file has more than {MAX_SIGNED_BYTES:,} bytes"
        if self.manifest_bytes > MAX_CREDENTIALS_BYTES:
            return f"they have more than {MAX_CREDENTIALS_BYTES:,} bytes"
        return None


def scan(path: str | os.PathLike[str]) -> Container:
    """Raises OSError for what is no plain file, ValueError for what is no name."""
    from tintype.bounds import MAX_PICTURE_BYTES

    with open_plain(path, MAX_PICTURE_BYTES) as file:
        size, head = os.fstat(file.fileno()).st_size, file.read(12)
        if head.startswith(b"\x89PNG\r\n\x1a\n"):
            kind, parts = PNG, _png_parts(file)
        elif head.startswith(b"\xff\xd8\xff"):
            kind, parts = JPEG, _jpeg_parts(file)
        elif head[:4] == b"RIFF" and head[8:] == b"WEBP":
            kind, parts = WEBP, _webp_parts(file)
        else:
            return Container(None, file_bytes=size)
        count = manifest = 0
        for manifest_bytes in parts:
            count += 1
            manifest += manifest_bytes
            if count > MAX_LISTED_PARTS:
                return Container(kind, manifest, count, size, is_whole=False)
    return Container(kind, manifest, count, size)


def _png_parts(file: BinaryIO) -> Iterator[int]:
    """For each chunk the bytes of a manifest in it, however long it says it is."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        size = int.from_bytes(head[:4], "big")
        yield size if head[4:] == b"caBX" else 0
        if head[4:] == b"IEND":
            return
        file.seek(size + 4, os.SEEK_CUR)


def _jpeg_parts(file: BinaryIO) -> Iterator[int]:
    """The same of segments up to the pixels. A manifest goes on in segments of the same number."""
    file.seek(2)
    numbers = set[bytes]()
    while len(head := file.read(4)) == 4 and head[0] == 0xFF and head[1] != 0xDA:
        if head[1] == 0xFF:  # a filler
            file.seek(-3, os.SEEK_CUR)
            yield 0
            continue
        size = max(0, int.from_bytes(head[2:], "big") - 2)
        start = file.read(min(size, 28)) if head[1] == 0xEB else b""
        if start[:2] == b"JP":  # then its number (2), the segment's (4), and boxes: jumb, jumd and whose they are
            if start[12:16] == b"jumb" and start[24:28] == b"c2pa":
                numbers.add(start[2:4])
            yield size if start[2:4] in numbers else 0
        else:
            yield 0
        file.seek(size - len(start), os.SEEK_CUR)


def _webp_parts(file: BinaryIO) -> Iterator[int]:
    """The same of chunks."""
    file.seek(12)
    while len(head := file.read(8)) == 8:
        size = int.from_bytes(head[4:], "little")
        yield size if head[:4] == b"C2PA" else 0
        file.seek(size + size % 2, os.SEEK_CUR)
