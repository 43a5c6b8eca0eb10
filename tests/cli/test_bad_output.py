"""A picture is written whole or not at all, and what stops it is told in one sentence."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

LONG_PROMPT = "a house by the sea, " * 100  # it stands in the PNG twice, which is more than the small disk holds


def test_a_missing_folder_is_told_before_any_work(generate, tmp_path: Path) -> None:
    generate("a house", "-o", tmp_path / "nowhere" / "x.png").assert_one_clear_error(1, "nowhere", "mkdir")


def test_a_folder_is_no_file(generate, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    generate("a house", "-o", tmp_path / "folder.png").assert_one_clear_error(1, "is a folder")


def test_a_file_is_no_folder(generate, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    generate("a house", "-o", tmp_path / "file" / "x.png").assert_one_clear_error(1, "file")


def test_only_png_is_written(generate, tmp_path: Path) -> None:
    generate("a house", "-o", tmp_path / "x.jpg").assert_one_clear_error(1, "x.jpg", "x.png")


def test_a_name_that_is_too_long_is_told(generate, tmp_path: Path) -> None:
    generate("a house", "-o", tmp_path / f"{'x' * 300}.png").assert_one_clear_error(1, "too long")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that nobody may write to")
def test_an_unwritable_folder_is_told(generate) -> None:
    generate("a house", "-o", "/proc/x.png").assert_one_clear_error(1, "/proc/x.png")


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one page, so that a picture's first bytes fit and its last don't."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small disk takes root on Linux; the test of the file-size limit covers the rest")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_nothing_half_written(generate, full_disk: Path) -> None:
    generate(LONG_PROMPT, "-o", full_disk / "x.png").assert_one_clear_error(1, "the disk is full", "free some space")
    assert list(full_disk.iterdir()) == []


def test_a_full_disk_leaves_the_old_picture(generate, full_disk: Path) -> None:
    (full_disk / "x.png").write_bytes(b"old")
    generate(LONG_PROMPT, "-o", full_disk / "x.png").assert_one_clear_error(1, "the disk is full")
    assert (full_disk / "x.png").read_bytes() == b"old"
    assert len(list(full_disk.iterdir())) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="file-size limits are POSIX")
def test_a_write_that_breaks_off_leaves_nothing(spawn, generate, tiny_bundle: Path, tmp_path: Path) -> None:
    import resource

    assert generate(LONG_PROMPT).code == 0  # the builds must not be what meets the limit
    (tmp_path / "x.png").unlink()

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    arguments = ["generate", LONG_PROMPT, "--model", tiny_bundle, "--num-inference-steps", 1, "-o", tmp_path / "x.png"]
    spawn(*arguments, preexec_fn=limit_files).assert_one_clear_error(1, "x.png", "cannot be written")
    assert list(tmp_path.iterdir()) == []
