"""Feature maps that are written and read a few rows at a time: in memory, or in a file that has no name."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tintype.errors import BuildError


class RowStore:
    """One map, (batch, channels, height, width). `close` gives its place back; the file goes with the process too."""

    def __init__(self, shape: Sequence[int], dtype: np.dtype[Any], held: NDArray[Any] | BinaryIO) -> None:
        """held: the array, or an unbuffered file where the same bytes are to lie."""
        self.shape: tuple[int, ...] = tuple(shape)
        self.dtype = dtype
        self._held = held

    @classmethod
    def of(cls, array: NDArray[Any]) -> RowStore:
        """A map that is in memory."""
        return cls(array.shape, array.dtype, array)

    @classmethod
    def empty(cls, shape: Sequence[int], dtype: np.dtype[Any], folder: Path | None) -> RowStore:
        """A map to be written, in memory or in a file in a folder that may be written to."""
        if folder is None:
            return cls(shape, dtype, np.empty(shape, dtype))
        return cls(shape, dtype, tempfile.TemporaryFile(dir=folder, buffering=0))

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def read(self, first: int, last: int) -> NDArray[Any]:
        """Rows from first up to last, in one block; not to be written to."""
        if isinstance(self._held, np.ndarray):
            return np.ascontiguousarray(self._held[:, :, first:last])
        batch, channels, _, width = self.shape
        rows = np.empty((batch, channels, last - first, width), self.dtype)
        for index, plane in enumerate(rows.reshape(batch * channels, -1)):
            self._held.seek(self._offset(index, first))
            _read_into(self._held, memoryview(plane).cast("B"))
        return rows

    def write(self, first: int, rows: NDArray[Any]) -> None:
        """Put rows in their place, from the row `first` on. Raises BuildError when the disk is full."""
        if isinstance(self._held, np.ndarray):
            self._held[:, :, first : first + rows.shape[2]] = rows
            return
        batch, channels = self.shape[:2]
        try:
            for index in range(batch * channels):
                plane = rows[divmod(index, channels)]
                self._held.seek(self._offset(index, first))
                _write_all(self._held, memoryview(np.ascontiguousarray(plane)).cast("B"))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise BuildError(
                f"no space left on disk for a feature map of {self.nbytes:,} bytes",
                fix="free some disk space, set TINTYPE_CACHE to a larger disk, or allow more memory",
            ) from error

    def whole(self) -> NDArray[Any]:
        """All of it, in memory."""
        return self._held if isinstance(self._held, np.ndarray) else self.read(0, self.shape[2])

    def close(self) -> None:
        if not isinstance(self._held, np.ndarray):
            self._held.close()

    def _offset(self, plane: int, row: int) -> int:
        height, width = self.shape[2:]
        return (plane * height + row) * width * self.dtype.itemsize


def _read_into(file: BinaryIO, view: memoryview) -> None:
    while view:
        count = file.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError("a feature map was read before it was written")
        view = view[count:]


def _write_all(file: BinaryIO, view: memoryview) -> None:
    while view:
        view = view[file.write(view) :]
