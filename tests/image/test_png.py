"""A picture file appears whole or not at all, with its texts; the same picture gives the same bytes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tintype.errors import OutputError, RecordError
from tintype.image.png import check_writable, read_texts, write_png


@pytest.fixture
def image():
    return Image.fromarray(np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3))


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("text", ["plain", "", "Zürich é", "雪 👍\nnew line", "x" * 100_000])
def test_texts_and_pixels_survive(image, tmp_path, text):
    path = write_png(tmp_path / "x.png", image, {"parameters": text, "tintype": "{}"})
    assert read_texts(path) == {"parameters": text, "tintype": "{}"}
    with Image.open(path) as read:
        assert read.tobytes() == image.tobytes()
    assert files_in(tmp_path) == ["x.png"]


def test_the_same_picture_gives_the_same_bytes(image, tmp_path):
    write_png(tmp_path / "a.png", image, {"k": "v"})
    write_png(tmp_path / "b.png", image, {"k": "v"})
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_drawn_picture_takes_no_more_bytes_than_by_zlibs_default(tmp_path):
    cells = np.random.default_rng(0).normal(128, 40, (32, 32, 3)).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(cells).resize((256, 256), Image.Resampling.BICUBIC)
    image.save(tmp_path / "default.png")
    written = write_png(tmp_path / "x.png", image, {})
    assert written.stat().st_size <= 1.01 * (tmp_path / "default.png").stat().st_size


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_disk_that_fills_up_leaves_what_was_there(image, tmp_path, monkeypatch, number):
    (tmp_path / "x.png").write_bytes(b"old")

    def fail(self: Image.Image, file: object, *_: object, **__: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OutputError) as caught:
        write_png(tmp_path / "x.png", image, {})
    assert ("disk is full" in caught.value.message) == (number != errno.EIO)
    assert (tmp_path / "x.png").read_bytes() == b"old"
    assert files_in(tmp_path) == ["x.png"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_that_is_really_full_is_told_as_such():
    with pytest.raises(OSError) as caught, Path("/dev/full").open("wb", buffering=0) as file:
        file.write(b"x")
    assert caught.value.errno == errno.ENOSPC


def test_an_interruption_leaves_nothing(image, tmp_path, monkeypatch):
    def interrupt(self: Image.Image, file: object, *_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_png(tmp_path / "x.png", image, {})
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("name", ["x.jpg", "x", "x.png.txt", ".png"])
def test_only_png_names_are_taken(image, tmp_path, name):
    with pytest.raises(OutputError) as caught:
        write_png(tmp_path / name, image, {})
    assert ".png" in caught.value.fix
    assert files_in(tmp_path) == []


def test_places_that_cannot_be_written(tmp_path, image):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    for place, word in [
        (tmp_path / "folder.png", "folder"),
        (tmp_path / "missing/x.png", "no folder"),
        (tmp_path / "file/x.png", "no folder"),
        (tmp_path / ("x" * 300 + ".png"), "too long"),
        (tmp_path / "a\0b.png", "cannot be written"),
    ]:
        for attempt in (lambda place=place: check_writable(place), lambda place=place: write_png(place, image, {})):
            with pytest.raises(OutputError, match=word):
                attempt()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path, image):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="ermission"):
        write_png(tmp_path / "x.png", image, {})
    tmp_path.chmod(0o700)


def test_asking_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "x.png")
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("damage", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", np.random.default_rng(0).bytes(100)])
def test_what_is_no_png_is_refused(tmp_path, damage):
    (tmp_path / "x.png").write_bytes(damage)
    with pytest.raises(RecordError, match="PNG"):
        read_texts(tmp_path / "x.png")


def test_a_png_cut_short_anywhere_is_refused_or_read(tmp_path, image):
    whole = write_png(tmp_path / "x.png", image, {"tintype": "{}"}).read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "x.png").write_bytes(whole[:length])
        try:
            texts = read_texts(tmp_path / "x.png")
        except RecordError:
            continue
        assert texts in ({}, {"tintype": "{}"})
