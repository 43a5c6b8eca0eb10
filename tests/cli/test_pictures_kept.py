"""Each picture of --count is on disk when it is decoded: what ends the command later doesn't take it away."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tintype import read_latents, read_record
from tintype.engine import Session
from tintype.errors import BuildError, OutputError


def broken() -> BuildError:
    return BuildError("the decoder failed", fix="mend it")


@pytest.fixture
def fail_decode(monkeypatch: pytest.MonkeyPatch):
    """The decode with that number, from 0, fails with an error, and those after it."""

    def fail(number: int, error: BaseException) -> None:
        run, done = Session.run, 0

        def limited(self: Session, inputs):  # type: ignore[no-untyped-def]
            nonlocal done
            if "latent_sample" in inputs:
                done += 1
                if done > number:
                    raise error
            return run(self, inputs)

        monkeypatch.setattr(Session, "run", limited)

    return fail


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_first_of_three_stays_when_the_second_cannot_be_decoded(
    batch_size: int, generate, command, fail_decode, monkeypatch, tiny_bundle: Path, tmp_path: Path
) -> None:
    three = ["a red house", "--count", 3, "--batch-size", batch_size]
    assert generate(*three).code == 0
    expected = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    for name in expected:
        (tmp_path / name).unlink()
    with monkeypatch.context():
        fail_decode(1, broken())
        outcome = generate(*three)
    monkeypatch.undo()
    assert outcome.code == 1
    written, error, fix = outcome.stderr.splitlines()
    assert written == f"written: {tmp_path / 'x-1.png'}"
    assert error == "error: the decoder failed"
    kept = tmp_path / "x.latents.safetensors"
    assert f"--from-latents {kept}" in fix
    assert names(tmp_path) == ["x-1.png", kept.name]
    assert (tmp_path / "x-1.png").read_bytes() == expected["x-1.png"]
    denoised = len(read_latents(kept).latents)
    assert denoised == (2 if batch_size == 1 else 3)
    again = command("generate", "--from-latents", kept, "-o", tmp_path / "x.png", "--model", tiny_bundle)
    assert again.code == 0, again.stderr
    assert {name: (tmp_path / name).read_bytes() for name in expected if (tmp_path / name).exists()} == {
        name: expected[name] for name in sorted(expected)[:denoised]
    }


def test_json_says_which_are_written_and_is_one_object_still(generate, fail_decode, tmp_path: Path) -> None:
    fail_decode(2, broken())
    answer = json.loads(generate("a red house", "--count", 3, "--json").stdout)
    assert answer["error"]["notes"] == [f"written: {tmp_path / 'x-1.png'}, {tmp_path / 'x-2.png'}"]
    assert answer["exit_code"] == 1


def test_an_interruption_says_which_are_written(generate, fail_decode, tmp_path: Path) -> None:
    fail_decode(1, KeyboardInterrupt())
    outcome = generate("a red house", "--count", 2)
    assert outcome.code == 130
    assert outcome.stderr.split("\n") == ["", f"written: {tmp_path / 'x-1.png'}", "error: interrupted", ""]
    assert names(tmp_path) == ["x-1.png"]
    assert read_record(tmp_path / "x-1.png").picture == 0


def test_before_the_first_picture_there_is_nothing_to_say(generate, fail_decode, tmp_path: Path) -> None:
    fail_decode(0, KeyboardInterrupt())
    assert generate("a red house", "--count", 2).stderr == "\nerror: interrupted\n"
    assert names(tmp_path) == []


def test_a_disk_that_fills_leaves_the_pictures_before(generate, monkeypatch, tmp_path: Path) -> None:
    from tintype.image import png

    whole = png.write_output

    def full(path: Path, write):  # type: ignore[no-untyped-def]
        if path.name == "x-2.png":
            raise OutputError(f"{path} cannot be written: the disk is full", fix="free some space")
        return whole(path, write)

    monkeypatch.setattr(png, "write_output", full)
    outcome = generate("a red house", "--count", 3)
    assert outcome.code == 1
    assert outcome.stderr.splitlines()[0] == f"written: {tmp_path / 'x-1.png'}"
    assert names(tmp_path) == ["x-1.png"]


def test_latents_give_their_pictures_one_by_one(
    generate, command, fail_decode, monkeypatch, tiny_bundle: Path, tmp_path: Path
) -> None:
    with monkeypatch.context():
        fail_decode(0, broken())
        assert generate("a red house", "--count", 2, "--batch-size", 2).code == 1
    monkeypatch.undo()
    fail_decode(1, broken())
    kept = tmp_path / "x.latents.safetensors"
    outcome = command("generate", "--from-latents", kept, "-o", tmp_path / "x.png", "--model", tiny_bundle)
    assert outcome.code == 1
    assert outcome.stderr.splitlines()[0] == f"written: {tmp_path / 'x-1.png'}"
    assert names(tmp_path) == ["x-1.png", kept.name]


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_what_is_done_and_says_so(
    sent: signal.Signals, code: int, tintype_command: list[str], tiny_bundle: Path, tmp_path: Path
) -> None:
    command = [*tintype_command, "generate", "a house", "--model", tiny_bundle, "--count", "10000"]
    command += ["--num-inference-steps", "2", "-o", tmp_path / "x.png"]
    process = subprocess.Popen(
        list(map(str, command)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "x-00002.png").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(sent)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code
    assert stdout == b""
    written = [line for line in os.fsdecode(stderr).splitlines() if line.startswith("written: ")]
    assert [line.removeprefix("written: ").split(", ") for line in written] == [
        sorted(str(path) for path in tmp_path.iterdir())
    ]
    for path in tmp_path.iterdir():
        assert read_record(path).request.count == 10_000
