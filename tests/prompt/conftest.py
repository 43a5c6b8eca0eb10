"""A tokenizer of whole words, small enough to read."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from tintype.prompt import PromptTokenizer

WORDS = ["<start>", "<end>", "<pad>", "?", "a", "red", "house", ",</w>"]


@pytest.fixture
def tokenizer(tmp_path: Path) -> PromptTokenizer:
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.enable_padding(length=20)
    inner.enable_truncation(5)
    inner.save(str(tmp_path / "tokenizer.json"))
    return PromptTokenizer.open(
        tmp_path / "tokenizer.json", max_length=12, bos_token_id=0, eos_token_id=1, pad_token_id=2
    )
