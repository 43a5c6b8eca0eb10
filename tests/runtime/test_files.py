"""A file appears whole or not at all, whoever else writes it at the same time."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from tintype.errors import OutputError
from tintype.files import write_output, write_text, write_whole


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("end", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
@pytest.mark.parametrize("durable", [False, True])
def test_a_write_that_breaks_off_leaves_what_was_there_and_nothing_beside(tmp_path, end, durable):
    path = write_text(tmp_path / "x.json", "old")

    def half(file: BinaryIO) -> None:
        file.write(b"ha")
        raise end

    with pytest.raises(type(end)):
        write_whole(path, half, durable=durable)
    assert path.read_text() == "old"
    assert files_in(tmp_path) == ["x.json"]


def test_two_writers_of_one_file_at_the_same_time_each_write_it_whole(tmp_path):
    path, seen = tmp_path / "x.json", []

    def slow(file: BinaryIO) -> None:
        file.write(b"first, ")
        seen.append(write_text(path, "second").read_text())
        file.write(b"whole")

    write_whole(path, slow)
    assert (seen, path.read_text()) == (["second"], "first, whole")
    assert files_in(tmp_path) == ["x.json"]


def test_a_text_is_written_as_it_is_into_a_folder_that_is_made(tmp_path):
    path = write_text(tmp_path / "a" / "b" / "x.json", "Zürich\n雪\n")
    assert path.read_bytes() == "Zürich\n雪\n".encode()


def test_what_a_user_asked_for_is_on_the_disk_before_it_is_there(tmp_path, monkeypatch):
    path, synced = tmp_path / "x.bin", []

    def sync(number: int) -> None:
        synced.append((os.fstat(number).st_size, path.exists()))

    monkeypatch.setattr(os, "fsync", sync)
    write_output(path, lambda file: file.write(b"12345"))
    assert synced == [(5, False)]
    with pytest.raises(OutputError):
        write_output(tmp_path / "none" / "x.bin", lambda file: file.write(b"12345"))
