"""The compiled library: where it is, why it isn't, and which one it is. Loads nothing, and imports nothing heavy."""

from __future__ import annotations

import functools
import hashlib
import sys
from pathlib import Path

ABILITY = "native"  # what a processor has shown where they work
BFLOAT16 = "native_bfloat16"  # and where those with products of bfloat16 do
INTEGERS = "native_integers"  # and those with products of 8-bit integers
FOUR_BITS = "native_four_bits"  # and those of 4-bit weights and rounded inputs
FOLDER = Path(__file__).parent  # the only place that it is ever loaded from
MISSING = "missing.txt"  # written where it could not be compiled, and says why
_NAMES = {"win32": "tintype.dll", "darwin": "libtintype.dylib"}


def library() -> Path | None:
    """The library's file, None where it isn't there."""
    path = FOLDER / _NAMES.get(sys.platform, "libtintype.so")
    return path if path.is_file() else None


def reason_missing() -> str:
    """Why it isn't there."""
    try:
        lines = (FOLDER / MISSING).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[0] if lines else "they were not compiled when Tintype was installed"


@functools.cache
def digest(path: Path) -> str:
    """16 hexadecimal digits of a library's bytes: one that has others computes other last bits, or crashes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
