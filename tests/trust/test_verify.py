"""`tintype verify`: found, not found and not readable are told apart, of any file, without a model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tintype.bench.pictures import photograph
from tintype.cli.verify import verify
from tintype.trust.embed import embed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A marked picture as JPEG and PNG, one that isn't, and a file that is no picture."""
    place = tmp_path_factory.mktemp("pictures")
    picture = photograph(11, (300, 300))
    marked = embed(picture, 0xABCDEF)
    assert marked is not None
    Image.fromarray(marked.pixels).save(place / "marked.png")
    Image.fromarray(marked.pixels).save(place / "marked.jpg", quality=70)
    Image.fromarray(picture).save(place / "plain.png")
    return place


def ran(*words: object) -> Result:
    return CliRunner().invoke(verify, [str(word) for word in words])


def test_what_is_found_is_said(folder: Path) -> None:
    for name in ("marked.png", "marked.jpg"):
        done = ran(folder / name)
        assert done.exit_code == 0
        assert "probably made by Tintype" in done.output
        assert "installation abcdef" in done.output
    done = ran(folder / "plain.png")
    assert done.exit_code == 3
    assert "nothing found, which doesn't say that nobody made it" in done.output


def test_json_has_one_object_a_file(folder: Path) -> None:
    done = ran(folder, "--json")
    assert done.exit_code == 0
    told = {Path(each["file"]).name: each for each in map(json.loads, done.output.splitlines())}
    assert set(told) == {"marked.png", "marked.jpg", "plain.png"}
    assert told["marked.jpg"]["watermark"]["found"] is True
    assert told["marked.jpg"]["watermark"]["maker"] == "abcdef"
    assert told["marked.jpg"]["record"] is None
    assert told["plain.png"]["watermark"] == {
        "found": False, "confidence": 0.0, "payload": None, "maker": None, "key": None, "shows_the_same": None,
        "scale": None, "turn_degrees": None, "is_mirrored": None,
    }  # fmt: skip


def test_what_was_done_since_is_said(folder: Path, tmp_path: Path) -> None:
    with Image.open(folder / "marked.png") as picture:
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((240, 240)).save(tmp_path / "x.webp", quality=90)
    done = ran(tmp_path / "x.webp")
    assert done.exit_code == 0
    assert "since then: scaled by 0.8" in done.output
    assert "mirrored" in done.output
    assert "moved" not in done.output


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", bytes(100_000)], ids=len)
def test_what_is_no_picture_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    done = ran(tmp_path / "x.png")
    assert done.exit_code == 1
    assert "x.png" in done.output
    assert "  fix: " in done.output
    assert "Traceback" not in done.output
    told = json.loads(ran(tmp_path / "x.png", "--json").output)
    assert told["error"]["message"]


def test_one_that_cannot_be_read_is_not_hidden_by_others(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes((folder / "marked.png").read_bytes())
    (tmp_path / "b.png").write_bytes(b"no picture")
    done = ran(tmp_path)
    assert done.exit_code == 1
    assert "probably made by Tintype" in done.output


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_no_picture(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    assert ran(tmp_path / "x.png").exit_code == 1


def test_a_picture_cut_short_is_not_made_up(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "marked.png").read_bytes()
    (tmp_path / "x.png").write_bytes(whole[: len(whole) // 2])
    assert ran(tmp_path / "x.png").exit_code == 1


def test_neither_a_model_nor_onnxruntime_is_needed(folder: Path) -> None:
    code = (
        "import sys, tintype\n"
        f"assert tintype.verify({str(folder / 'marked.png')!r}).watermark.found\n"
        "print(sorted({'onnxruntime', 'onnx', 'onnx_ir', 'torch', 'tokenizers', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("option", ["--watermark-key", "--trust"])
def test_a_key_and_certificates_that_are_none_are_told_before_any_picture(folder: Path, option: str) -> None:
    done = ran(folder, option, folder / "nowhere")
    assert done.output == ""
    assert "cannot be read" in str(done.exception)


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    done = CliRunner().invoke(verify, [str(tmp_path)])
    assert "there is no picture in" in str(done.exception)
