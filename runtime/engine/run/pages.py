"""Pages of files that are mapped into this process, given back while the files stay mapped.

ONNX Runtime maps a graph's weights and reads them as it runs. A page that is given back is no longer this process's
memory; it stays in the system's cache, and comes back when it is read, which costs next to nothing: 3.6 GB in 35 parts
gone and back in 0.02 s of a 3.6 s call. Linux alone can be asked so.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_GIVE_BACK = 4  # MADV_DONTNEED
_MAPS = Path("/proc/self/maps")


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Addresses from start up to end."""

    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


def can_give_back() -> bool:
    """Whether this system can be asked."""
    return _libc() is not None and _MAPS.is_file()


def demand_mappable(files: Iterable[Path]) -> None:
    """Map files together as ONNX Runtime is about to, and let go of them: no page is read. Raises MemoryError.

    Where there is no room for them it mostly raises, and at times ends the process: what it freed was not all its own.
    """
    with contextlib.ExitStack() as mapped:
        for path in files:
            file = mapped.enter_context(path.open("rb"))
            if not path.stat().st_size:
                continue
            try:
                mapped.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            except OSError as error:
                raise MemoryError(f"{path.name} cannot be mapped: {error.strerror}") from error


def mapped_spans(files: Iterable[Path]) -> list[Span]:
    """Where files are mapped, in order; they are known by device and inode, whatever their names."""
    wanted = {(_device(facts.st_dev), facts.st_ino) for facts in (path.stat() for path in files)}
    found = []
    for line in _MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
        addresses, _, _, device, inode, *_ = line.split(None, 5)
        if (device, int(inode)) in wanted:
            start, end = (int(text, 16) for text in addresses.split("-"))
            found.append(Span(start, end))
    return sorted(found)


def beyond(spans: Iterable[Span], known: Iterable[Span]) -> list[Span]:
    """What of spans lies in none that was known; both in order. The system makes one span of neighbours."""
    before, left = list(known), []
    for span in spans:
        start = span.start
        for old in before:
            if old.end <= start or old.start >= span.end:
                continue
            if old.start > start:
                left.append(Span(start, old.start))
            start = max(start, old.end)
        if start < span.end:
            left.append(Span(start, span.end))
    return left


def give_back(spans: Iterable[Span]) -> bool:
    """Take pages out of this process's memory, which must not have written to them; whether the system did."""
    libc = _libc()
    if libc is None:
        return False
    failed = 0
    for span in spans:
        failed += libc.madvise(ctypes.c_void_p(span.start), ctypes.c_size_t(span.size), _GIVE_BACK) != 0
    return failed == 0


def _device(number: int) -> str:
    """A device as the system's table of mappings writes it."""
    return f"{os.major(number):02x}:{os.minor(number):02x}"


@functools.cache
def _libc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "madvise") else None
