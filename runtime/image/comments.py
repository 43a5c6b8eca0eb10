"""What tools wrote about a picture into its file: a PNG's texts, and the EXIF comments of a JPEG or WebP.

No pixel is decoded. Of EXIF a few entries are wanted, so it is found and read here: one block, bounded, and of it no
value but theirs.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

from tintype.bounds import MAX_EXIF_BYTES, MAX_HEADER_READS, MAX_PICTURE_BYTES
from tintype.errors import RecordError
from tintype.files import open_plain
from tintype.image.png import read_texts

PARAMETERS_KEY = "parameters"  # A1111's; in EXIF its user comment
COMFYUI_KEYS = ("prompt", "workflow")  # its graph as it ran, and as it was drawn; in EXIF they begin a maker's text

_MAKER, _MODEL, _DESCRIPTION, _EXIF_IFD, _USER_COMMENT = 0x010F, 0x0110, 0x010E, 0x8769, 0x9286
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 7: 1}  # bytes of a value, by the types that texts and offsets have
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_REMEDY = "give a PNG, JPEG or WebP as the tool wrote it, which nothing has saved again since"


def read_comments(path: str | os.PathLike[str]) -> dict[str, str]:
    """A picture's comments by keyword. Raises RecordError when it is no picture, or can't be read."""
    try:
        with open_plain(path, MAX_PICTURE_BYTES) as file:
            head = file.read(12)
            if head.startswith(_PNG):
                return read_texts(path)
            if head.startswith(_JPEG):
                return exif_comments(_jpeg_exif(file))
            if head[:4] == b"RIFF" and head[8:] == b"WEBP":
                return exif_comments(_webp_exif(file))
    except FileNotFoundError:
        raise RecordError(f"there is no file {path}", fix=_REMEDY) from None
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} cannot be read: {error}", fix=_REMEDY) from None
    raise RecordError(f"{path} is no picture that can be read here", fix=_REMEDY)


def _jpeg_exif(file: BinaryIO) -> bytes:
    """The first block of EXIF in a JPEG's segments; nothing where there is none, or the file is cut short."""
    file.seek(2)
    for _ in range(MAX_HEADER_READS):
        head = file.read(4)
        if len(head) < 4 or head[0] != 0xFF or head[1] == 0xDA:  # from there on come pixels
            break
        size = int.from_bytes(head[2:], "big") - 2
        if head[1] == 0xE1:
            block = file.read(max(0, size))
            if block.startswith(b"Exif\0\0"):
                return block
        else:
            file.seek(max(0, size), os.SEEK_CUR)
    return b""


def _webp_exif(file: BinaryIO) -> bytes:
    """The same of a WebP's chunks."""
    for _ in range(MAX_HEADER_READS):
        head = file.read(8)
        if len(head) < 8:
            break
        size = int.from_bytes(head[4:], "little")
        if head[:4] == b"EXIF":
            return file.read(min(size, MAX_EXIF_BYTES))
        file.seek(size + size % 2, os.SEEK_CUR)
    return b""


def exif_comments(exif: bytes) -> dict[str, str]:
    """The comments in a block of EXIF; none of one that is damaged."""
    data = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None or len(data) < 8:
        return {}
    comments: dict[str, str] = {}
    (first,) = struct.unpack_from(f"{order}I", data, 4)
    for tag, value in _entries(data, order, first):
        if tag == _EXIF_IFD and len(value) == 4:
            (offset,) = struct.unpack(f"{order}I", value)
            for inner, comment in _entries(data, order, offset):
                if inner == _USER_COMMENT:
                    comments.setdefault(PARAMETERS_KEY, _user_comment(comment, order))
        elif tag in (_MAKER, _MODEL, _DESCRIPTION):
            keyword, colon, text = value.decode("utf-8", "replace").rstrip("\0").partition(":")
            if colon and keyword.lower() in COMFYUI_KEYS:
                comments.setdefault(keyword.lower(), text)
    return comments


def _entries(data: bytes, order: str, offset: int) -> Iterator[tuple[int, bytes]]:
    """Tag and value of a directory's entries that are wanted here, each once."""
    if offset + 2 > len(data):
        return
    (count,) = struct.unpack_from(f"{order}H", data, offset)
    wanted = {_MAKER, _MODEL, _DESCRIPTION, _EXIF_IFD, _USER_COMMENT}
    for place in range(offset + 2, min(offset + 2 + 12 * count, len(data) - 11), 12):
        tag, kind, values = struct.unpack_from(f"{order}HHI", data, place)
        size = _SIZES.get(kind, 0) * values
        if tag not in wanted or size == 0:
            continue
        wanted.remove(tag)  # however often a hostile directory has it
        (start,) = (place + 8,) if size <= 4 else struct.unpack_from(f"{order}I", data, place + 8)
        yield tag, data[start : start + size]


def _user_comment(value: bytes, order: str) -> str:
    """The text of a user comment; in which order its UTF-16 is, tools disagree."""
    code, text = value[:8], value[8:]
    if code != b"UNICODE\0":
        return text.decode("utf-8", "replace").strip("\0")
    read = {each: text.decode(each, "replace").strip("\0") for each in ("utf-16-be", "utf-16-le")}
    usual = "utf-16-le" if order == "<" else "utf-16-be"
    return max(read.items(), key=lambda item: ("Steps: " in item[1], item[0] == usual))[1]
