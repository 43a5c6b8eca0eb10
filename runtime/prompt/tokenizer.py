"""Text -> token ids, exactly as the checkpoint's own tokenizer does it, without start, end or padding.

A tokenizer.json that comes here was looked at before, when its bundle was opened; see `tokenizer_check`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tintype.bounds import MAX_TOKENIZER_BYTES
from tintype.errors import BundleError, RequestError
from tintype.files import read_plain
from tintype.prompt.added_words import pieces


@dataclass(frozen=True, slots=True)
class PromptTokenizer:
    """A tokenizer and the marks that its text encoder wants around a prompt."""

    tokenizer: Any  # tokenizers.Tokenizer
    max_length: int  # tokens the text encoder takes at once, both marks included
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    comma_token_id: int | None  # where a long prompt is best cut
    added: Mapping[str, range] = field(default_factory=dict)  # the ids of words that it has not itself

    @classmethod
    def open(
        cls, file: Path, *, max_length: int, bos_token_id: int, eos_token_id: int, pad_token_id: int
    ) -> PromptTokenizer:
        """Read tokenizer.json. Raises BundleError when it isn't one."""
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_str(read_plain(file, MAX_TOKENIZER_BYTES).decode())
            tokenizer.no_truncation()
            tokenizer.no_padding()
        except BaseException as error:
            raise _refusal(error, f"{file} is not a tokenizer") from None
        return cls(
            tokenizer=tokenizer,
            max_length=max_length,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            comma_token_id=tokenizer.token_to_id(",</w>"),
        )

    @property
    def capacity(self) -> int:
        """Tokens of a prompt that one chunk holds."""
        return self.max_length - 2

    def with_added(self, words: Mapping[str, range]) -> PromptTokenizer:
        """The same with words of these ids beside its own."""
        return replace(self, added=words) if words else self

    def units(self, text: str) -> Iterator[tuple[int, ...]]:
        """The ids of `text`, those together that belong to one word which was added. Raises what `ids` does."""
        for piece, word in pieces(text, tuple(self.added)):
            if word is None:
                yield from ((token,) for token in self.ids(piece))
            else:
                yield tuple(self.added[word])

    def ids(self, text: str) -> list[int]:
        """The ids of `text`, by its own words.

        Raises RequestError for characters that are no Unicode text, and BundleError where the tokenizer fails.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RequestError(
                f"the prompt holds {text[error.start]!r}, half of a character", fix="type that character again"
            ) from None
        try:
            return list(self.tokenizer.encode(text, add_special_tokens=False).ids)
        except BaseException as error:
            raise _refusal(error, "the bundle's tokenizer cannot read the prompt") from None


def _refusal(error: BaseException, what: str) -> BaseException:
    """What to raise for an exception of the library: plain Exception, or a panic."""
    if isinstance(error, Exception) or is_panic(error):
        return BundleError(f"{what}: {error}", fix="export the checkpoint again")
    return error  # Ctrl-C


def is_panic(error: BaseException) -> bool:
    """Whether a library in Rust broke down; that is no Exception, and has no name to import."""
    return type(error).__name__ == "PanicException"
