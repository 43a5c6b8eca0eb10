"""Files that appear whole, and files that are read without believing that they are files.

Each is written beside its place and moved there in one step: no reader ever sees half of one, two writers of one file
don't meet, and neither a crash nor a full disk harms the file that was there before. What is read is a plain file of
bounded size: a pipe, a device or a folder in its place is an error at once, never a wait.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from tintype.bounds import MAX_CACHE_BYTES, MAX_FILE_BYTES
from tintype.errors import NO_ROOM, OutputError, RequestError

SCRATCH_BYTES = 100  # of a file's name, in that of the one that is written beside it


def open_plain(path: str | os.PathLike[str], most_bytes: int) -> io.BufferedReader:
    """A plain file, opened to be read. Raises OSError, for what isn't one (EINVAL) or has more bytes (EFBIG) too.

    Also ValueError, for a name that no file can have, and for what is no name.
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"{path!r} is no file's name")
    _demand_plain(Path(path).stat(), most_bytes)  # so that no device is opened, which may do something

    def open_at_once(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))

    file = open(path, "rb", opener=open_at_once)  # noqa: SIM115
    try:
        _demand_plain(os.fstat(file.fileno()), most_bytes)  # it may be another one since
    except OSError:
        file.close()
        raise
    return file


def read_plain(path: str | os.PathLike[str], most_bytes: int) -> bytes:
    """The bytes of a plain file. Raises what `open_plain` does."""
    with open_plain(path, most_bytes) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(size + 1)  # not most_bytes: so much would be allocated at once
    if len(content) > size:  # it grows
        raise _too_large(size)
    return content


def read_given(path: str | os.PathLike[str], most_bytes: int, *, what: str, fix: str) -> bytes:
    """The bytes of a plain file that a user named. Raises RequestError, which calls it `what`."""
    try:
        return read_plain(path, most_bytes)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"the {what} {path} cannot be read: {reason}", fix=fix) from None


def read_given_text(path: str | os.PathLike[str], most_bytes: int, *, what: str, fix: str) -> str:
    """The same of a text in UTF-8."""
    try:
        return read_given(path, most_bytes, what=what, fix=fix).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise RequestError(f"the {what} {path} are no text in UTF-8", fix=fix) from None


def others_can_read(path: str | os.PathLike[str]) -> bool:
    """Whether a file is for more than its owner. Who may read what is not asked on Windows. Raises OSError."""
    return os.name == "posix" and bool(stat.S_IMODE(Path(path).stat().st_mode) & 0o077)


def sha256_of(path: Path) -> str:
    """Of a plain file's bytes, in hexadecimal digits. Raises OSError."""
    with open_plain(path, MAX_FILE_BYTES) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_there(path: Path) -> bool:
    """Whether a name that a user gave has anything behind it; one that no system takes has nothing."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, a NUL inside
        return False


def read_cached(path: Path) -> bytes:
    """The bytes of a JSON file in the cache. Raises OSError."""
    return read_plain(path, MAX_CACHE_BYTES)


def _demand_plain(status: os.stat_result, most_bytes: int) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no plain file")
    if status.st_size > most_bytes:
        raise _too_large(most_bytes)


def _too_large(most_bytes: int) -> OSError:
    return OSError(errno.EFBIG, f"it has more than {most_bytes:,} bytes")


def write_whole(
    path: Path, write: Callable[[BinaryIO], object], *, durable: bool = False, mode: int | None = None
) -> Path:
    """What `write` writes, at `path`. durable: its bytes are on the disk before it is there. Raises OSError.

    mode: who may read and write it; None is as the system makes new files.
    """
    scratch = scratch_path(path)
    try:
        with scratch.open("xb") as file:
            if mode is not None:
                scratch.chmod(mode)
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


def write_cached(path: Path, text: str) -> None:
    """A JSON file in the cache. One that can't be written costs time later, and is no obstacle now."""
    with contextlib.suppress(OSError):
        write_text(path, text)


def write_output(path: Path, write: Callable[[BinaryIO], object]) -> Path:
    """A file that a user asked for, on the disk before it is there. Raises OutputError.

    As when a shell writes it: a link stays, and what it points to is written; one that was there keeps its mode.
    """
    try:
        place = linked_path(path)
        mode = stat.S_IMODE(place.stat().st_mode) if place.exists() else None
        write_whole(place, write, durable=True, mode=mode)
    except OSError as error:
        raise output_error(path, error) from None
    return path


def linked_path(path: Path) -> Path:
    """Where a file lies that may be a link. Raises OSError for links that go in a circle."""
    if not path.is_symlink():
        return path
    try:
        return path.resolve()
    except RuntimeError:  # before Python 3.13
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None


def demand_replaceable(path: Path) -> None:
    """Raises OSError where a file surely can't be put at a place, or in the place of what is there."""
    path = linked_path(path)
    if path.exists():
        _demand_plain(path.stat(), sys.maxsize)
        folder = path.parent.stat()
        shared = hasattr(os, "geteuid") and folder.st_mode & stat.S_ISVTX  # as /tmp is: only what is one's own
        if shared and os.geteuid() not in (0, path.stat().st_uid, folder.st_uid):
            raise PermissionError(errno.EPERM, "it belongs to another user, in a folder where that counts")
    scratch = scratch_path(path)
    scratch.open("xb").close()
    scratch.unlink()


def scratch_path(path: Path) -> Path:
    """A new name beside a file, hidden, no longer than a file's own may be."""
    start = path.name.encode(errors="surrogateescape")[:SCRATCH_BYTES].decode(errors="ignore")
    return path.with_name(f".{start}.{os.urandom(4).hex()}.part")


def output_error(path: Path, error: OSError | ValueError) -> OutputError:
    """Why a file that a user asked for cannot be written."""
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        fix = "raise the limit (ulimit -f), or write elsewhere"
        return OutputError(f"{path} cannot be written: no file may be that large here", fix=fix)
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return OutputError(f"{path} cannot be written: the disk is full", fix="free some space, or write elsewhere")
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return OutputError(f"{path.name[:60]}... cannot be written: the name is too long", fix="choose a shorter name")
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return OutputError(f"{path} cannot be written: {reason}", fix="write to a folder that you may write to")
