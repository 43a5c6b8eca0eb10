"""A checkpoint is a stranger's too: nothing in it makes the exporter wait, or reaches a library that it can break."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from deadline import deadline

from tintype.errors import ExportError
from tintype.export.checkpoint import open_checkpoint
from tintype.export.tokenizer import read_tokenizer
from tintype.sources.licence import UNKNOWN_LICENCE, read_licence

POSTCARD = Path(__file__).parents[2] / "models/postcard/checkpoint"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copytree(POSTCARD, tmp_path / "checkpoint"))


def test_a_tokenizer_with_a_compiled_map_never_reaches_transformers(checkpoint: Path) -> None:
    path = checkpoint / "tokenizer/tokenizer.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    value["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAAAAAAAA=="}
    path.write_text(json.dumps(value))
    with deadline(60), pytest.raises(ExportError, match="Precompiled"):  # transformers takes a while to import
        read_tokenizer(checkpoint / "tokenizer", 77, 49408)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("file", ["tokenizer/tokenizer.json", "tokenizer/merges.txt"])
def test_a_pipe_in_a_tokenizers_folder(file: str, checkpoint: Path) -> None:
    (checkpoint / file).unlink(missing_ok=True)
    os.mkfifo(checkpoint / file)
    with deadline(60), pytest.raises(ExportError, match="no plain file"):
        read_tokenizer(checkpoint / "tokenizer", 77, 49408)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("text", [None, "[" * 100_000, '{"a": 1, "a": 2}', "{" + '"a":{' * 5000])
def test_a_config_that_is_a_pipe_or_nests_without_end(file: str, text: str | None, checkpoint: Path) -> None:
    (checkpoint / file).unlink()
    if text is None:
        os.mkfifo(checkpoint / file)
    else:
        (checkpoint / file).write_text(text)
    with deadline(), pytest.raises(ExportError):
        open_checkpoint(checkpoint)


def test_a_model_card_of_empty_lines_is_read_at_once(checkpoint: Path) -> None:
    (checkpoint / "README.md").write_text("---" + "\n" * 10**6)
    with deadline():
        assert read_licence(checkpoint) == UNKNOWN_LICENCE
    (checkpoint / "README.md").write_text("--- \nlicense: mit\n---\n")
    assert read_licence(checkpoint) == "mit"
