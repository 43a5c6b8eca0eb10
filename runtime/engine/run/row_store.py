"""Feature maps that are written and read a few rows at a time: in memory, or in a file that has no name."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tintype.errors import NO_ROOM, BuildError


class RowStore:
    """One map, (batch, channels, height, width), of one type."""

    def __init__(self, shape: Sequence[int], dtype: np.dtype[Any], held: NDArray[Any] | BinaryIO) -> None:
        """held: the array, or an unbuffered file whose first bytes are the same."""
        self.shape: tuple[int, ...] = tuple(shape)
        self.dtype = dtype
        self.held = held

    @classmethod
    def of(cls, array: NDArray[Any]) -> RowStore:
        """A map that is in memory."""
        return cls(array.shape, array.dtype, array)

    def read(self, first: int, last: int, into: NDArray[Any] | None = None) -> NDArray[Any]:
        """Rows from first up to last in one block, which is not to be written to.

        into: a block of that size that may be used.
        """
        batch, channels, height, width = self.shape
        if isinstance(self.held, np.ndarray) and (first, last) == (0, height):
            return np.ascontiguousarray(self.held)
        rows = np.empty((batch, channels, last - first, width), self.dtype) if into is None else into
        if isinstance(self.held, np.ndarray):
            rows[...] = self.held[:, :, first:last]
            return rows
        for index, plane in enumerate(rows.reshape(batch * channels, -1)):
            self.held.seek(self._offset(index, first))
            _read_into(self.held, plane.data.cast("B"))
        return rows

    def write(self, first: int, rows: NDArray[Any]) -> None:
        """Put rows in their place, from the row `first` on. Raises BuildError when the disk is full."""
        if isinstance(self.held, np.ndarray):
            self.held[:, :, first : first + rows.shape[2]] = rows
            return
        batch, channels = self.shape[:2]
        try:
            for index in range(batch * channels):
                plane = np.ascontiguousarray(rows[divmod(index, channels)])
                self.held.seek(self._offset(index, first))
                _write_all(self.held, plane.data.cast("B"))
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            size = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
            raise BuildError(
                f"no space left on disk for a feature map of {size:,} bytes",
                fix="free some disk space, set TINTYPE_CACHE to a larger disk, or allow more memory",
            ) from error

    def whole(self) -> NDArray[Any]:
        """All of it, in memory."""
        return self.read(0, self.shape[2])

    def _offset(self, plane: int, row: int) -> int:
        height, width = self.shape[2:]
        return (plane * height + row) * width * self.dtype.itemsize


class RowStores:
    """Where the maps of one run lie. A file that is given back is written over: its pages are there already."""

    def __init__(self, folder: Path, held_bytes: int) -> None:
        """Maps of more than held_bytes lie in files in the folder; in the system's own where it can't be written to."""
        self._folder = folder if os.access(folder, os.W_OK) else None
        self._held_bytes = held_bytes
        self._spare: list[BinaryIO] = []
        self._opened: list[BinaryIO] = []

    def empty(self, shape: Sequence[int], dtype: np.dtype[Any], *, in_memory: bool = False) -> RowStore:
        """A map to be written."""
        if in_memory or not self.is_large(shape, dtype):
            return RowStore(shape, dtype, np.empty(shape, dtype))
        if not self._spare:
            file: Any = tempfile.TemporaryFile(dir=self._folder, prefix=".maps-", buffering=0)  # noqa: SIM115  # closed by files_closed
            self._opened.append(file)
            self._spare.append(file)
        return RowStore(shape, dtype, self._spare.pop())

    def is_large(self, shape: Sequence[int], dtype: np.dtype[Any]) -> bool:
        """Whether a map is too large for memory."""
        return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize > self._held_bytes

    def give_back(self, store: RowStore) -> None:
        """A map that nobody reads any more."""
        if not isinstance(store.held, np.ndarray):
            self._spare.append(store.held)

    @contextlib.contextmanager
    def files_closed(self) -> Iterator[None]:
        """At the end, whatever happened, the files are closed, and gone."""
        try:
            yield
        finally:
            for file in self._opened:
                file.close()


def _read_into(file: BinaryIO, view: memoryview) -> None:
    while view:
        count = file.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError("a feature map was read before it was written")
        view = view[count:]


def _write_all(file: BinaryIO, view: memoryview) -> None:
    while view:
        view = view[file.write(view) :]
