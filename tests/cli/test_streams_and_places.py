"""Where the command's words and pictures go: streams that are full or closed, names, links, modes, homes."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
from PIL import Image

from tintype.engine.build import cache as caching
from tintype.errors import BuildError, OutputError
from tintype.files import write_output
from tintype.image.png import check_writable, write_png

pytestmark = pytest.mark.skipif(os.name != "posix", reason="streams, links and modes of POSIX")
ARGUMENTS = ("--num-inference-steps", "1", "--seed", "1", "--provider", "cpu", "--threads", "1")


def shell(tintype_command: list[str], redirection: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    words = [*tintype_command, *map(str, arguments)]
    script = f'"$@" {redirection}'
    return subprocess.run(["sh", "-c", script, "sh", *words], capture_output=True, text=True, check=False)


@pytest.fixture
def asked(tiny_bundle: Path, tmp_path: Path) -> list[object]:
    return ["generate", "a house", "--model", tiny_bundle, "-o", tmp_path / "x.png", *ARGUMENTS]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device there")
@pytest.mark.parametrize("words", [(), ("--json",)], ids=["lines", "json"])
def test_a_full_disk_behind_stdout_is_one_error_and_the_picture_stays(tintype_command, asked, words, tmp_path) -> None:
    done = shell(tintype_command, ">/dev/full", *asked, *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == ["error: No space left on device", "  fix: free some space, or write elsewhere"]
    with Image.open(tmp_path / "x.png") as image:
        image.load()


@pytest.mark.parametrize("closed", [">&-", "<&-", ">&- 2>&- <&-"])
def test_a_closed_stream_is_no_obstacle(tintype_command, asked, closed, tmp_path) -> None:
    done = shell(tintype_command, closed, *asked)
    assert (done.returncode, done.stderr) == (0, "")
    with Image.open(tmp_path / "x.png") as image:
        image.load()


@pytest.mark.parametrize("length", [100, 240, 255])
def test_a_name_as_long_as_a_file_may_have_is_written(tmp_path, length) -> None:
    for stem in ("x" * (length - 4), "\N{SNOWMAN}" * ((length - 4) // 3)):
        path = tmp_path / f"{stem}.png"
        check_writable(path)
        assert write_png(path, Image.new("RGB", (2, 2)), {}) == path
        assert path.is_file()
    with pytest.raises(OutputError, match="too long"):
        check_writable(tmp_path / f"{'x' * 252}.png")


def test_a_link_stays_and_what_it_points_to_is_written(tmp_path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for target in ("elsewhere/there.png", "elsewhere/new.png"):
        place = tmp_path / target
        if "there" in target:
            place.write_bytes(b"old")
        link = tmp_path / f"to-{place.name}"
        link.symlink_to(target)
        check_writable(link)
        write_png(link, Image.new("RGB", (2, 2)), {})
        assert link.is_symlink()
        assert place.read_bytes().startswith(b"\x89PNG")
    (tmp_path / "a.png").symlink_to("b.png")
    (tmp_path / "b.png").symlink_to("a.png")
    with pytest.raises(OutputError):
        check_writable(tmp_path / "a.png")
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == ["new.png", "there.png"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_a_file_that_was_there_keeps_its_mode(tmp_path, mode) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"old")
    path.chmod(mode)
    write_output(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another user")
def test_a_file_of_another_user_in_a_shared_folder_is_refused_before_the_work() -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o1777)
        (place / "x.png").write_bytes(b"theirs")
        os.seteuid(54321)
        try:
            with pytest.raises(OutputError, match="another user"):
                check_writable(place / "x.png")
            check_writable(place / "new.png")
        finally:
            os.seteuid(0)
        assert (place / "x.png").read_bytes() == b"theirs"


def test_a_pipe_in_the_place_of_a_picture_is_refused(tmp_path) -> None:
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(OutputError):
        check_writable(tmp_path / "x.png")


def test_a_user_without_a_home_has_a_cache_of_its_own(monkeypatch, tmp_path) -> None:
    def homeless(*_: object) -> Path:
        raise RuntimeError("could not determine the home directory")

    monkeypatch.delenv("TINTYPE_CACHE")
    monkeypatch.setattr(caching.platformdirs, "user_cache_path", homeless)
    monkeypatch.setattr(caching.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = caching.cache_folder()
    assert folder == tmp_path / f"tintype-cache-{os.geteuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    with pytest.raises(BuildError, match="everybody"):
        caching.cache_folder()


def test_json_is_whole_when_a_stream_is_closed(tintype_command, asked) -> None:
    done = shell(tintype_command, "2>&-", *asked, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["pictures"]
