"""A private picture's record: it leaves out its words and its seed, and keeps what shows them to whoever knows them."""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass
from typing import Any

from tintype import strict_json

# What is left out, and what stands there where it is read back.
OF_REQUEST = {"prompt": "", "negative_prompt": "", "seed": 0}
OF_DEAL = {"prompt": "", "words": []}
OF_CODED_NOISE = {"nonce": 0}  # which follows from the seed
_PARTS: dict[str, dict[str, Any]] = {"request": OF_REQUEST, "deal": OF_DEAL, "coded_noise": OF_CODED_NOISE}
ROUNDS = 200_000  # 50 ms of a processor for each guess (AMD EPYC, Zen 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Withheld:
    """PBKDF2 (HMAC-SHA-256, ROUNDS) of the words, and of the words and the seed, so that no seed is searched for alone.

    Who knows them can show that they are these; who guesses them exactly can see it too.
    """

    salt: str  # 32 hexadecimal digits, drawn for the picture
    words: str  # 64
    seed: str  # 64

    def __post_init__(self) -> None:
        for name, digits in (("salt", 32), ("words", 64), ("seed", 64)):
            value = getattr(self, name)
            if len(value) != digits or not set(value) <= set("0123456789abcdef"):
                raise strict_json.Misfit(f"withheld.{name} is not {digits} hexadecimal digits")

    @classmethod
    def of(cls, prompt: str, negative_prompt: str, seed: int) -> Withheld:
        """seed: the picture's own."""
        salt = secrets.token_hex(16)
        words = _hash(salt, prompt, negative_prompt)
        return cls(salt=salt, words=words, seed=_hash(salt, prompt, negative_prompt, seed))

    def are(self, prompt: str, negative_prompt: str, seed: int | None = None) -> bool:
        """Whether these are the words that were left out; with a seed, whether they and it are."""
        known = self.words if seed is None else self.seed
        more = () if seed is None else (seed,)
        return secrets.compare_digest(_hash(self.salt, prompt, negative_prompt, *more), known)


def without_words(record: dict[str, Any]) -> dict[str, Any]:
    """A record's plain values as they stand in a private picture's file."""
    parts = {name: {**record[name], **dict.fromkeys(gaps)} for name, gaps in _PARTS.items() if record[name] is not None}
    return {**record, **parts}


def with_gaps_filled(record: dict[str, Any]) -> dict[str, Any]:
    """What was read of such a file, in a form that fits a record."""
    filled = dict(record)
    for part, gaps in _PARTS.items():
        known = record.get(part)
        if isinstance(known, dict) and all(known.get(name, "") is None for name in gaps):
            filled[part] = {**known, **gaps}
    return filled


def _hash(salt: str, *values: str | int) -> str:
    return hashlib.pbkdf2_hmac("sha256", json.dumps(values).encode(), bytes.fromhex(salt), ROUNDS).hex()
