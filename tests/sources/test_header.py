"""A header of .safetensors that lies is refused by name, at once; what it says is otherwise taken as it stands."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deadline import deadline
from safetensors.numpy import save_file

from tintype import strict_json
from tintype.bounds import MAX_WEIGHTS_HEADER_BYTES
from tintype.errors import ExportError
from tintype.sources.header import read_header

Entries = dict[str, Any]


def write(path: Path, header: Entries | bytes, data: bytes = bytes(16), length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(start: int, end: int, *shape: int, dtype: str = "F32") -> Entries:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def test_a_sound_header_is_read_as_the_library_writes_it(tmp_path: Path) -> None:
    arrays = {"a": np.zeros((2, 3), np.float16), "b": np.zeros((), np.int64), "empty": np.zeros(0, np.float32)}
    save_file(arrays, tmp_path / "x.safetensors", {"format": "pt"})
    header = read_header(tmp_path / "x.safetensors")
    assert {name: (facts.shape, facts.bytes) for name, facts in header.tensors.items()} == {
        name: (array.shape, array.nbytes) for name, array in arrays.items()
    }
    assert header.metadata == {"format": "pt"}


LIES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "10^15 bytes of header": (lambda path: write(path, {}, length=10**15), "1,000,000,000,000,000"),
    "a header beyond the bound": (
        lambda path: write(path, b"{}" + b" " * MAX_WEIGHTS_HEADER_BYTES),
        f"{MAX_WEIGHTS_HEADER_BYTES:,} are the most",
    ),
    "overlap": (lambda path: write(path, {"a": entry(0, 8, 2), "b": entry(4, 12, 2)}), "b overlaps a"),
    "a gap": (lambda path: write(path, {"a": entry(0, 4, 1), "b": entry(8, 16, 2)}), "b leaves a gap behind a"),
    "an end outside the file": (lambda path: write(path, {"a": entry(0, 400, 100)}), "should have 400 bytes"),
    "bytes that nothing has": (lambda path: write(path, {"a": entry(0, 8, 2)}), "should have 8 bytes"),
    "a size that isn't the shape's": (lambda path: write(path, {"a": entry(0, 16, 3)}), "(3,)|[3]"),
    "a shape of 10^30 numbers": (lambda path: write(path, {"a": entry(0, 16, *[10**6] * 5)}), "needs 4,000,000,000"),
    "a shape below zero": (lambda path: write(path, {"a": entry(0, 16, -4)}), "no sound shape"),
    "too many dimensions": (lambda path: write(path, {"a": entry(0, 16, 4, *[1] * 9)}), "10 dimensions"),
    "an unknown type": (lambda path: write(path, {"a": entry(0, 16, 4, dtype="F4")}), "F4"),
    "a name twice": (
        lambda path: write(path, b'{"a":%s,"a":%s}' % ((json.dumps(entry(0, 16, 4)).encode(),) * 2)),
        "comes twice",
    ),
    "metadata that is no text": (lambda path: write(path, {"__metadata__": {"a": 1}, "b": entry(0, 16, 4)}), "metad"),
    "a list": (lambda path: write(path, b"[1]"), "no object"),
    "no JSON": (lambda path: write(path, b"{"), "not JSON"),
    "depth without end": (lambda path: write(path, b'{"a":' * 60_000), "nests too deep"),
    "a page of HTML": (lambda path: _bytes(path, b"<!DOCTYPE html><html>404</html>"), "HTML"),
    "a pointer of Git LFS": (lambda path: _bytes(path, b"version https://git-lfs.github.com/spec/v1\n"), "Git LFS"),
    "GGUF": (lambda path: _bytes(path, b"GGUF\x03\0\0\0" + bytes(40)), "GGUF"),
    "nothing": (lambda path: _bytes(path, b""), "0 bytes"),
}


def _bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_header_of_one_tensor_again_and_again_is_refused_before_it_is_parsed(tmp_path: Path, monkeypatch) -> None:
    again = b'"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},' * 150_000
    path = write(tmp_path / "again.safetensors", b"{" + again + b'"b":{}}')

    def parse(text: bytes) -> Any:
        raise AssertionError("it is parsed")

    monkeypatch.setattr(strict_json, "parse", parse)
    with pytest.raises(ExportError, match="more than 32,768 tensors"):
        read_header(path)


@pytest.mark.parametrize("name", LIES)
def test_a_header_that_lies_is_refused_with_its_lie(name: str, tmp_path: Path) -> None:
    make, told = LIES[name]
    path = make(tmp_path / "x.safetensors")
    with deadline(), pytest.raises(ExportError) as caught:
        read_header(path)
    assert str(path) in caught.value.message
    assert any(text in caught.value.message for text in told.split("|"))
    assert caught.value.fix


@pytest.mark.parametrize("name", ["x.ckpt", "x.pt", "x.bin", "x.safetensors"])
def test_a_pickle_is_never_opened(name: str, tmp_path: Path) -> None:
    """By its ending, without a look inside; or by its first bytes, where it says that it is something else."""
    path = _bytes(tmp_path / name, pickle.dumps({"weights": [0.0] * 100}, protocol=2))
    if name != "x.safetensors":
        path.unlink()  # so that opening it would be another error
    with pytest.raises(ExportError, match="pickle") as caught:
        read_header(path)
    assert "safetensors" in caught.value.fix


def test_a_file_of_another_kind_is_not_called_a_broken_download(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text("name = 'a file that somebody typed by mistake'\n")
    with pytest.raises(ExportError, match=r"no \.safetensors file") as caught:
        read_header(tmp_path / "settings.toml")
    assert "diffusers folder" in caught.value.fix
