"""Pictures with something where content credentials lie, made by hand."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from tintype.bench.pictures import photograph
from tintype.trust.certificates import is_installed

needs_extra = pytest.mark.skipif(not is_installed(), reason="the extra c2pa isn't installed")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def box(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data) + 8) + kind + data


# The description that C2PA's outermost box begins with.
ABOUT = box(b"jumd", b"c2pa\x00\x11\x00\x10\x80\x00\x00\xaa\x00\x38\x9b\x71\x03c2pa\x00")


def nested(levels: int) -> bytes:
    sizes = range((8 + len(ABOUT)) * levels, 0, -8 - len(ABOUT))
    return b"".join(struct.pack(">I", size) + b"jumb" + ABOUT for size in sizes)


def encoded(form: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(photograph(3, (64, 64))).save(file, format=form)
    return file.getvalue()


def png_with(*chunks: bytes) -> bytes:
    plain = encoded("PNG")
    return plain[:33] + b"".join(chunks) + plain[33:]


def jpeg_with(manifest: bytes, *, piece: int = 60_000) -> bytes:
    plain, segments = encoded("JPEG"), b""
    for number, start in enumerate(range(0, len(manifest), piece), start=1):
        data = manifest[start : start + piece] if number == 1 else manifest[:8] + manifest[start : start + piece]
        payload = b"JP\x02\x11" + struct.pack(">I", number) + data
        segments += b"\xff\xeb" + struct.pack(">H", len(payload) + 2) + payload
    return plain[:2] + segments + plain[2:]


def webp_with(manifest: bytes) -> bytes:
    plain = encoded("WEBP")
    body = plain[8:] + b"C2PA" + struct.pack("<I", len(manifest)) + manifest + b"\0" * (len(manifest) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def written(folder: Path, content: bytes, name: str = "x.png") -> Path:
    (folder / name).write_bytes(content)
    return folder / name
