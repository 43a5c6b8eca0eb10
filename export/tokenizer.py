"""The bundle's tokenizer: tokenizer.json for the runtime, vocab.json and merges.txt for other tools.

The file neither pads nor cuts: the runtime makes chunks of its own. Start and end marks are added by its
post-processor, so `encode(text).ids` is what the text encoder was trained on, without the padding.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tintype import strict_json
from tintype.bounds import MAX_TOKENIZER_BYTES
from tintype.bundle import TokenizerFacts
from tintype.errors import ExportError
from tintype.files import read_plain
from tintype.prompt.tokenizer import is_panic
from tintype.prompt.tokenizer_check import check_tokenizer
from tintype.strict_json import Misfit

COPIED = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt")


@dataclass(frozen=True, slots=True)
class BundleTokenizer:
    """A CLIP tokenizer as transformers reads it, and the facts that the manifest tells of it."""

    inner: Any  # transformers', or a `PlainTokenizer`
    facts: TokenizerFacts
    pad_token: str | None = None  # where it isn't what the files say

    def ids(self, text: str) -> list[int]:
        """Exactly `max_length` token ids, cut or padded, as diffusers feeds the text encoder."""
        encoded = self.inner(text, padding="max_length", max_length=self.facts.max_length, truncation=True)
        return [int(token) for token in encoded.input_ids]


def read_tokenizer(
    folder: Path, positions: int, vocabulary: int, *, place: str | None = None, pad_token: str | None = None
) -> BundleTokenizer:
    """Read a checkpoint's tokenizer folder. The text encoder takes `positions` tokens and knows `vocabulary` of them.

    place: its folder in the bundle; None is the folder's own name. pad_token: what fills a text up; None is as its
    files say.

    Raises ExportError when it can't be read, has no start, end or padding token, or knows more tokens.
    """
    from transformers import CLIPTokenizer

    there = {path.name for path in folder.iterdir()}
    if "tokenizer.json" not in there and not {"vocab.json", "merges.txt"} <= there:
        raise ExportError(
            f"{folder} has neither tokenizer.json nor vocab.json and merges.txt",
            fix="copy the checkpoint's tokenizer/ again",
        )
    demand_harmless(folder)
    try:
        marks = {} if pad_token is None else {"pad_token": pad_token}
        inner = CLIPTokenizer.from_pretrained(folder, local_files_only=True, **marks)
    except BaseException as error:  # transformers raises OSError, ValueError, TypeError, KeyError and Rust's own
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ExportError(
            f"the tokenizer in {folder} can't be read: {told}", fix="copy the checkpoint's tokenizer/ again"
        ) from None
    return checked(inner, folder, positions, vocabulary, place=place, pad_token=pad_token)


def checked(
    inner: Any, folder: Path, positions: int, vocabulary: int, *, place: str | None, pad_token: str | None
) -> BundleTokenizer:
    """A tokenizer that was read, with the facts of it. Raises ExportError as `read_tokenizer` does."""
    ids = {"bos": inner.bos_token_id, "eos": inner.eos_token_id, "pad": inner.pad_token_id}
    for mark, token in ids.items():
        if not isinstance(token, int):
            raise ExportError(
                f"the tokenizer in {folder} has no {mark} token", fix="copy the checkpoint's tokenizer/ again"
            )
    if len(inner) > vocabulary:
        raise ExportError(
            f"the tokenizer in {folder} has {len(inner):,} tokens, the text encoder knows {vocabulary:,}",
            fix="copy the tokenizer/ that belongs to this text encoder",
        )
    facts = TokenizerFacts(
        file=f"{place or folder.name}/tokenizer.json",
        max_length=positions,
        bos_token_id=ids["bos"],
        eos_token_id=ids["eos"],
        pad_token_id=ids["pad"],
    )
    return BundleTokenizer(inner, facts, pad_token)


def demand_harmless(folder: Path) -> None:
    """ExportError unless a checkpoint's files are files, and its tokenizer.json has nothing but what real ones have."""
    for name in ("tokenizer.json", *COPIED):
        try:
            text = read_plain(folder / name, MAX_TOKENIZER_BYTES)
            if name == "tokenizer.json":
                check_tokenizer(strict_json.parse(text))
        except FileNotFoundError:
            continue
        except (OSError, Misfit) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ExportError(
                f"{folder / name} can't be read: {reason}", fix="copy the checkpoint's tokenizer/ again"
            ) from None


def write_tokenizer(tokenizer: BundleTokenizer, source: Path, folder: Path) -> None:
    """Write the bundle's tokenizer folder; `source` is the checkpoint's."""
    from tokenizers import Tokenizer

    folder.mkdir(parents=True)
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if tokenizer.pad_token is not None:
        _write_pad_token(tokenizer, folder)
    # A copy, because padding and truncation set by a call stay in the tokenizer.
    plain = Tokenizer.from_str(_backend(tokenizer, source).to_str())
    plain.no_padding()
    plain.no_truncation()
    plain.save(str(folder / "tokenizer.json"))
    _write_old_form(json.loads(plain.to_str())["model"], folder)


def _backend(tokenizer: BundleTokenizer, source: Path) -> Any:
    """The tokenizer as the library of that name has it; transformers 4 has none of CLIP's plain class."""
    from tintype.export.plain_tokenizer import clip_tokenizer

    backend = getattr(tokenizer.inner, "backend_tokenizer", None)
    if backend is not None:
        return backend
    marks = {} if tokenizer.pad_token is None else {"pad_token": tokenizer.pad_token}
    return clip_tokenizer(source, marks).backend_tokenizer


def _write_pad_token(tokenizer: BundleTokenizer, folder: Path) -> None:
    """Both places where other tools look for it, in the config and among the special tokens."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if name == "tokenizer_config.json":
            value = {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokenizer.facts.max_length, **value}
        elif not value:
            continue
        path.write_text(json.dumps({**value, "pad_token": tokenizer.pad_token}, indent=2) + "\n", encoding="utf-8")


def _write_old_form(model: dict[str, Any], folder: Path) -> None:
    """vocab.json and merges.txt, which transformers 4 reads, where the checkpoint had only tokenizer.json."""
    if not (folder / "vocab.json").is_file():
        (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    if not (folder / "merges.txt").is_file():
        pairs = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]), encoding="utf-8")
