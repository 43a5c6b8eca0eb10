"""CLIP's tokenizer without transformers gives the ids that transformers' own gives, from either form of its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tintype.errors import ExportError
from tintype.export.plain_tokenizer import read_plain_tokenizer
from tintype.export.tokenizer import read_tokenizer, write_tokenizer

TEXTS = (
    "",
    "a red sailboat on a calm sea at sunset",
    "A  RED\n\tsailboat, at 12 o'clock!!",
    "ein Schäferhund, 犬, \U0001f600 and it's we'll",
    "<|endoftext|> in the middle <|startoftext|>",
    "wide " * 100,
)

pytestmark = pytest.mark.slow


@pytest.fixture(params=["tokenizer", "tokenizer_2"])
def folders(request: pytest.FixtureRequest, xl_checkpoint: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint's tokenizer, and the same as vocab.json and merges.txt, as optimum's transformers saves it."""
    source = xl_checkpoint / request.param
    written = tmp_path / request.param
    write_tokenizer(read_tokenizer(source, 77, 10_000), source, written)
    (written / "tokenizer.json").unlink()
    return source, written


def test_ids_are_those_of_transformers(folders: tuple[Path, Path]) -> None:
    source, words = folders
    theirs = read_tokenizer(source, 77, 10_000)
    for folder in (source, words):
        ours = read_plain_tokenizer(folder, 77, 10_000)
        assert ours.facts == theirs.facts
        for text in TEXTS:
            assert ours.ids(text) == theirs.ids(text), text


def test_what_is_written_of_both_reads_the_same(folders: tuple[Path, Path], tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    found = []
    for number, folder in enumerate(folders):
        place = tmp_path / str(number)
        write_tokenizer(read_plain_tokenizer(folder, 77, 10_000), folder, place)
        tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
        found.append([tokenizer.encode(text).ids for text in TEXTS])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("merges.txt", "#version: 0.2\na b c\n", "a pair of words a line"),
        ("merges.txt", "#version: 0.2\nnot there\n", "can't be read"),
        ("vocab.json", "[]", "no vocabulary"),
        ("vocab.json", json.dumps({"a": -1}), "ids that are none"),
        ("special_tokens_map.json", "[]", "is no object"),
        ("special_tokens_map.json", json.dumps({"bos_token": "gone"}), "no bos token|can't be read"),
    ],
)
def test_a_broken_file_is_one_error(folders: tuple[Path, Path], file: str, content: str, message: str) -> None:
    folder = folders[1]
    (folder / file).write_text(content)
    with pytest.raises(ExportError, match=message):
        read_plain_tokenizer(folder, 77, 10_000)
