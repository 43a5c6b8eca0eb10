"""A .safetensors file beside a model, whatever is in it: read and checked whole, and a tensor at a time from then on.

A `TensorFile` has a sound header, and its numbers were all finite when it was opened.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tintype.bounds import MAX_ADAPTER_BYTES, MAX_ADAPTER_TENSOR_BYTES
from tintype.errors import ExportError, RequestError
from tintype.files import open_plain
from tintype.sources.header import Header, read_header
from tintype.sources.looks import adapter_look
from tintype.sources.mistaken import file_from_hub
from tintype.sources.numbers import READABLE, floats_of

Identity: TypeAlias = tuple[str, int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class TensorFile:
    """sha256: of the whole file. what, error: what messages call it, and what is raised."""

    what: ClassVar[str]
    error: ClassVar[type[RequestError]]

    path: Path
    sha256: str
    header: Header
    identity: Identity = field(repr=False)

    @property
    def name(self) -> str:
        return self.path.stem

    def shape(self, tensor: str) -> tuple[int, ...]:
        return self.header.tensors[tensor].shape

    def read(self, *tensors: str) -> Iterator[NDArray[np.float32]]:
        """Tensors as floats. Raises its error where the file isn't what it was when it was opened."""
        try:
            with open_plain(self.path, MAX_ADAPTER_BYTES) as file:
                if _identity(self.path, os.fstat(file.fileno())) != self.identity:
                    raise self.error(f"{self.path} changed while it was used", fix="draw again")
                for tensor in tensors:
                    facts = self.header.tensors[tensor]
                    file.seek(8 + self.header.header_bytes + facts.start)
                    yield floats_of(file.read(facts.bytes), facts.dtype).reshape(facts.shape)
        except self.error:
            raise  # a ValueError too
        except (OSError, ValueError) as error:
            raise unreadable(type(self), self.path, error) from None


def identity_of(kind: type[TensorFile], path: Path) -> Identity:
    """What tells a file from another one, and from itself once it changed. Raises the kind's error."""
    try:
        return _identity(path, path.stat())
    except (OSError, ValueError) as error:
        raise unreadable(kind, path, error) from None


def sound_header(kind: type[TensorFile], path: Path, is_part: Callable[[str], object] = lambda name: True) -> Header:
    """The header of a file of a kind, whose tensors can be read. is_part: of those that have to be floats.

    Raises the kind's error.
    """
    try:
        header = read_header(path)
    except ExportError as error:
        raise kind.error(error.message, fix=error.fix.replace("the checkpoint", f"the {kind.what}")) from None
    odd = [name for name, facts in header.tensors.items() if facts.dtype not in READABLE and is_part(name)]
    if odd:
        raise kind.error(
            f"{odd[0]} of {path} is of the type {header.tensors[odd[0]].dtype}", fix="save it as F16 or F32"
        )
    large = [name for name, facts in header.tensors.items() if facts.bytes > MAX_ADAPTER_TENSOR_BYTES]
    if large:
        raise kind.error(
            f"{large[0]} of {path} has {header.tensors[large[0]].bytes:,} bytes, which no {kind.what} has",
            fix=download(kind),
        )
    return header


def check_numbers(
    kind: type[TensorFile],
    path: Path,
    header: Header,
    look: Callable[[str, NDArray[np.float32]], None] = lambda name, numbers: None,
) -> str:
    """The sha256 of a file, whose numbers are all finite. look: is shown each tensor. Raises the kind's error."""
    digest = hashlib.sha256()
    try:
        with open_plain(path, MAX_ADAPTER_BYTES) as file:
            digest.update(file.read(8 + header.header_bytes))
            for name, facts in sorted(header.tensors.items(), key=lambda item: (item[1].start, item[1].bytes)):
                data = file.read(facts.bytes)
                digest.update(data)
                if facts.dtype not in READABLE:
                    continue
                numbers = floats_of(data, facts.dtype)
                if not np.isfinite(numbers).all():
                    raise kind.error(
                        f"{name} of {path} holds NaN or infinity: the {kind.what} is broken", fix=download(kind)
                    )
                look(name, numbers)
    except kind.error:
        raise  # a ValueError too
    except (OSError, ValueError) as error:
        raise unreadable(kind, path, error) from None
    return digest.hexdigest()


def no_such(kind: type[TensorFile], path: Path, header: Header, why: str, *, fix: str) -> RequestError:
    """The kind's error for a file that isn't of it: with what it is instead, where that stands beside a model too."""
    look = adapter_look(header.tensors)
    if look is not None and kind.what not in look.name:
        return kind.error(f"{path} is {look.name}, and no {kind.what}", fix=look.need)
    return kind.error(f"{path} is no {kind.what}: {why}", fix=fix)


def download(kind: type[TensorFile]) -> str:
    return f"download the file again, or take another {kind.what}"


def unreadable(kind: type[TensorFile], path: Path, error: OSError | ValueError) -> RequestError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    fix = f"check its name, and that it may be read{file_from_hub(path)}"
    return kind.error(f"the {kind.what} {path} cannot be read: {reason}", fix=fix)


def _identity(path: Path, facts: os.stat_result) -> Identity:
    return str(path.absolute()), facts.st_size, facts.st_mtime_ns, facts.st_ino
