"""Files that appear whole: each is written beside its place and moved there in one step.

No reader ever sees half of one, two writers of one file don't meet, and neither a crash nor a full disk harms the file
that was there before.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from tintype.errors import OutputError


def write_whole(path: Path, write: Callable[[BinaryIO], object], *, durable: bool = False) -> Path:
    """What `write` writes, at `path`. durable: its bytes are on the disk before it is there. Raises OSError."""
    scratch = scratch_path(path)
    try:
        with scratch.open("xb") as file:
            write(file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    """A text in UTF-8, its lines as they are; the folder is made when it is missing. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_whole(path, lambda file: file.write(text.encode()))


def write_output(path: Path, write: Callable[[BinaryIO], object]) -> Path:
    """A file that a user asked for, on the disk before it is there. Raises OutputError."""
    try:
        return write_whole(path, write, durable=True)
    except OSError as error:
        raise output_error(path, error) from None


def scratch_path(path: Path) -> Path:
    """A new name beside a file, hidden."""
    return path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")


def output_error(path: Path, error: OSError | ValueError) -> OutputError:
    """Why a file that a user asked for cannot be written."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"{path} cannot be written: the disk is full", fix="free some space, or write elsewhere")
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return OutputError(f"{path.name[:60]}... cannot be written: the name is too long", fix="choose a shorter name")
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return OutputError(f"{path} cannot be written: {reason}", fix="write to a folder that you may write to")
