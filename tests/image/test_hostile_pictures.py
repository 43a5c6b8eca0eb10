"""Pictures that are small files and much work are refused at once, also where only their record is wanted."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from deadline import deadline

from tintype.errors import RecordError, RequestError
from tintype.image.source import open_picture
from tintype.record import read_record


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(*chunks: bytes) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + _chunk(b"IEND", b"")


@pytest.mark.parametrize("chunk", [_chunk(b"IDAT", b""), _chunk(b"tEXt", b"k\0v"), _chunk(b"teSt", b"")])
def test_a_png_of_very_many_chunks_is_refused_at_once(chunk: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(_png(chunk * 3_000_000))
    for door, error in ((read_record, RecordError), (open_picture, RequestError)):
        with deadline(), pytest.raises(error):
            door(tmp_path / "x.png")


MANY_PARTS: dict[str, Callable[[], bytes]] = {  # 10 to 50 MB each
    "jpeg": lambda: b"\xff\xd8" + b"\xff\xe5\x00\x02" * 10_000_000,
    "jpeg of filling": lambda: b"\xff\xd8" + b"\xff" * 50_000_000,
    "gif comments": lambda: b"GIF89a\x01\x00\x01\x00\x00\x00\x00" + b"!\xfe\x01a\x00" * 5_000_000,
    "gif comment": lambda: b"GIF89a\x01\x00\x01\x00\x00\x00\x00!\xfe" + (b"\xff" + b"a" * 255) * 200_000,
    "ppm": lambda: b"P5 " + b"#\n" * 20_000_000,
    "eps": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n" + b"%%a\n" * 10_000_000,
}


@pytest.mark.parametrize("kind", MANY_PARTS)
def test_a_picture_with_a_header_of_very_many_parts_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(MANY_PARTS[kind]())
    with deadline(), pytest.raises(RequestError):
        open_picture(tmp_path / "x")


def test_a_record_in_a_png_of_many_frames_is_not_looked_for_in_each(tmp_path: Path) -> None:
    from PIL import Image

    frames = [Image.new("L", (2000, 2000), shade) for shade in range(8)]
    frames[0].save(tmp_path / "x.png", save_all=True, append_images=frames[1:])
    with deadline(), pytest.raises(RecordError, match="frame"):
        read_record(tmp_path / "x.png")


def test_a_picture_as_pillow_writes_it_has_few_chunks(tmp_path: Path) -> None:
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.png")
    assert open_picture(tmp_path / "x.png").size == (512, 512)
