"""Whose weights they are: what a model card, or the metadata of one file, says of licence and origin.

Both are a stranger's text. What is kept of it is short and printable.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tintype.bounds import MAX_CONFIG_BYTES
from tintype.errors import printable
from tintype.files import read_plain

UNKNOWN_LICENCE = "unknown"
LICENCE_CHARS = 200  # as a manifest bounds it
ORIGIN_CHARS = 1000  # of each text that is kept of a file's metadata

# Of ModelSpec (https://github.com/Stability-AI/ModelSpec), what says where a model comes from and how it is used.
_ORIGIN_KEYS = (
    "title", "author", "date", "license", "architecture", "prediction_type", "resolution", "hash_sha256",
    "merged_from", "tags", "trigger_phrase", "usage_hint",
)  # fmt: skip


def read_licence(folder: Path) -> str:
    """What the model card's front matter says (`license: …` in README.md), else "unknown"."""
    try:
        card = read_plain(folder / "README.md", MAX_CONFIG_BYTES).decode(errors="replace")
    except OSError:
        return UNKNOWN_LICENCE
    front = re.match(r"---[ \t\r]*\n(.*?)\n---", card, re.DOTALL)
    line = re.search(r"^license:\s*(\S+)\s*$", front.group(1), re.MULTILINE) if front else None
    return line.group(1).strip("\"'") if line else UNKNOWN_LICENCE


def licence_of(metadata: Mapping[str, str]) -> str:
    """What one file's metadata says (`modelspec.license`), shortened, else "unknown"."""
    text = printable(metadata.get("modelspec.license", "").strip(), LICENCE_CHARS)
    return text if text and text.isprintable() else UNKNOWN_LICENCE


def origin_of(metadata: Mapping[str, str]) -> dict[str, str]:
    """By key of ModelSpec, what one file's metadata says of where the model comes from."""
    found = {key: metadata.get(f"modelspec.{key}", "") for key in _ORIGIN_KEYS}
    return {key: printable(text, ORIGIN_CHARS) for key, text in found.items() if text.strip()}
