"""Whose marks they are: a key that an operator keeps, and a number that an installation draws once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from pathlib import Path

from tintype.errors import RequestError
from tintype.files import others_can_read, read_plain, write_whole
from tintype.trust.pattern import PUBLIC_KEY
from tintype.trust.payload import MAKER_BITS

LEAST_KEY_BYTES, MOST_KEY_BYTES = 16, 4096
MAKER_NAME = "maker"  # in the cache folder
PUBLIC = "public"
NOBODY = 0  # of an installation that can't keep a number


def read_key(path: str | os.PathLike[str]) -> bytes:
    """An operator's key: any bytes, for nobody else to read. Raises RequestError."""
    fresh = "make one: (umask 077; head -c 32 /dev/urandom > FILE)"
    try:
        key = read_plain(path, MOST_KEY_BYTES)
        is_shared = others_can_read(path)
    except (OSError, ValueError) as error:
        raise RequestError(f"the watermark key {path} cannot be read: {error}", fix=fresh) from None
    if len(key) < LEAST_KEY_BYTES:
        raise RequestError(f"the watermark key {path} has {len(key)} bytes; {LEAST_KEY_BYTES} are the least", fix=fresh)
    if is_shared:
        raise RequestError(f"others can read the watermark key {path}", fix=f"chmod 600 {path}")
    return key


def key_name(key: bytes) -> str:
    """What a record calls a key, which does not tell it: public, or 16 digits."""
    return PUBLIC if key == PUBLIC_KEY else hashlib.sha256(b"name of " + key).hexdigest()[:16]


def maker_of(folder: Path) -> int:
    """The number of this installation, MAKER_BITS bits, kept in a folder; drawn the first time.

    It says that pictures come from one place, and nothing of who or where that is.
    """
    path = folder / MAKER_NAME
    for _ in range(2):
        with contextlib.suppress(OSError, ValueError):
            number = int(read_plain(path, 64), 16)
            if 0 < number < 1 << MAKER_BITS:
                return number
        drawn = f"{1 + secrets.randbelow((1 << MAKER_BITS) - 1):06x}\n".encode()
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_whole(path, lambda file, drawn=drawn: file.write(drawn))  # type: ignore[misc]
    return NOBODY
