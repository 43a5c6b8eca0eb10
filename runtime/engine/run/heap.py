"""The C library's heap, told to give memory back: what a stage no longer needs must not count in the next one."""

from __future__ import annotations

import ctypes
import functools
import sys

_M_MMAP_THRESHOLD = -3  # of glibc's mallopt
LARGE_BYTES = 2**20


@functools.cache
def return_large_blocks() -> bool:
    """From now on blocks of 1 MiB and more come from the system and go back to it when they are freed.

    glibc by itself raises that bound to 32 MiB as blocks are freed, and then keeps freed ones between others: a graph
    in 45 parts held 200 MB of them. Returns whether the C library is one that can be told; elsewhere nothing is done.
    """
    library = _glibc()
    return library is not None and library.mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES) == 1


def trim() -> bool:
    """Give back what is free in it at present; whether anything was."""
    library = _glibc()
    return library is not None and library.malloc_trim(0) == 1


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
