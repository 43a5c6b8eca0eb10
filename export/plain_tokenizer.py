"""CLIP's tokenizer without transformers, from tokenizer.json or from vocab.json and merges.txt.

The steps are those of transformers' own conversion of CLIP's slow tokenizer to a fast one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tintype import strict_json
from tintype.bounds import MAX_TOKENIZER_BYTES, MAX_TOKENS
from tintype.errors import ExportError
from tintype.export.tokenizer import BundleTokenizer, checked, demand_harmless
from tintype.files import read_plain
from tintype.prompt.tokenizer import is_panic
from tintype.prompt.tokenizer_check import REGEXES
from tintype.strict_json import Misfit

MARKS = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
WORD_END = "</w>"
_AGAIN = "copy the checkpoint's tokenizer/ again"


@dataclass(frozen=True, slots=True)
class PlainTokenizer:
    """A tokenizer of the library `tokenizers` and the ids of its marks; None where it has none of one."""

    backend_tokenizer: Any
    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size())

    def __call__(self, text: str, *, max_length: int, padding: str, truncation: bool) -> SimpleNamespace:
        """`input_ids` of exactly max_length tokens, cut or padded; the other options are always these."""
        assert padding == "max_length"
        assert truncation
        ids = self.backend_tokenizer.encode(text, add_special_tokens=False).ids[: max_length - 2]
        whole = [self.bos_token_id, *ids, self.eos_token_id]
        return SimpleNamespace(input_ids=whole + [self.pad_token_id] * (max_length - len(whole)))


def read_plain_tokenizer(folder: Path, positions: int, vocabulary: int) -> BundleTokenizer:
    """As `read_tokenizer` does, without transformers. Raises ExportError."""
    there = {path.name for path in folder.iterdir()}
    if "tokenizer.json" not in there and not {"vocab.json", "merges.txt"} <= there:
        raise ExportError(f"{folder} has neither tokenizer.json nor vocab.json and merges.txt", fix=_AGAIN)
    demand_harmless(folder)
    return checked(clip_tokenizer(folder, {}), folder, positions, vocabulary, place=None, pad_token=None)


def clip_tokenizer(folder: Path, marks: Mapping[str, str]) -> PlainTokenizer:
    """The tokenizer of a folder whose files are harmless. marks: in place of what its configs say.

    Raises ExportError for one that can't be read.
    """
    from tokenizers import Tokenizer

    try:
        stated = _marks_of(folder) | {key: {"content": text} for key, text in marks.items()}
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_str(read_plain(folder / "tokenizer.json", MAX_TOKENIZER_BYTES).decode())
        else:
            tokenizer = _of_words(folder, stated)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        ids = {key: tokenizer.token_to_id(mark["content"]) for key, mark in stated.items()}
    except BaseException as error:  # the library raises plain Exception, and Rust's own
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ExportError(f"the tokenizer in {folder} can't be read: {told}", fix=_AGAIN) from None
    return PlainTokenizer(tokenizer, ids["bos_token"], ids["eos_token"], ids["pad_token"])


def _of_words(folder: Path, marks: Mapping[str, Mapping[str, Any]]) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    vocabulary = _vocabulary(folder / "vocab.json")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(folder / "merges.txt"),
            continuing_subword_prefix="",
            end_of_word_suffix=WORD_END,
            fuse_unk=False,
            unk_token=marks["unk_token"]["content"],
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(REGEXES[0]), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(mark["content"], special=True, **{name: bool(mark.get(name, False)) for name in _OF_TOKEN})
            for mark in marks.values()
        ]
    )
    first, last = (marks[key]["content"] for key in ("bos_token", "eos_token"))
    begin, end = ((mark, vocabulary[mark]) for mark in (first, last))
    tokenizer.post_processor = processors.RobertaProcessing(end, begin, trim_offsets=False, add_prefix_space=False)
    return tokenizer


_OF_TOKEN = ("single_word", "lstrip", "rstrip", "normalized")


def _vocabulary(path: Path) -> dict[str, int]:
    value = strict_json.parse(read_plain(path, MAX_TOKENIZER_BYTES))
    if not isinstance(value, dict) or not 0 < len(value) <= MAX_TOKENS:
        raise Misfit("vocab.json is no vocabulary")
    if not all(type(token) is int and 0 <= token < MAX_TOKENS for token in value.values()):
        raise Misfit("vocab.json has ids that are none")
    return value


def _merges(path: Path) -> list[tuple[str, str]]:
    lines = read_plain(path, MAX_TOKENIZER_BYTES).decode("utf-8").split("\n")
    pairs = [tuple(line.split(" ")) for line in lines if line.strip() and not line.startswith("#version")]
    if len(pairs) > MAX_TOKENS or any(len(pair) != 2 for pair in pairs):
        raise Misfit("merges.txt isn't a pair of words a line")
    return pairs  # type: ignore[return-value]


def _marks_of(folder: Path) -> dict[str, Mapping[str, Any]]:
    """By key the marks that the configs state, CLIP's where they are mute; the padding is the end's by default."""
    stated: dict[str, Mapping[str, Any]] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        try:
            value = strict_json.parse(read_plain(folder / name, MAX_TOKENIZER_BYTES))
        except FileNotFoundError:
            continue
        if not isinstance(value, dict):
            raise Misfit(f"{name} is no object")
        for key in (*MARKS, "pad_token"):
            mark = value.get(key)
            if isinstance(mark, str):
                stated.setdefault(key, {"content": mark})
            elif isinstance(mark, dict) and isinstance(mark.get("content"), str):
                stated.setdefault(key, mark)
    whole = {key: stated.get(key, {"content": text}) for key, text in MARKS.items()}
    return {**whole, "pad_token": stated.get("pad_token", whole["eos_token"])}
