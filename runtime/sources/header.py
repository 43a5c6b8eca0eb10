"""The header of a .safetensors file: which tensors it holds, of which type and shape, and where each one lies.

A `Header` that `read_header` returned is sound: tensors lie behind one another without gap or overlap, each has the
bytes that its type and shape need, and together they fill the file. Tensors themselves are never read here. The format
is that of https://github.com/huggingface/safetensors, which the library itself holds less strictly.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tintype import strict_json
from tintype.bounds import MAX_FILE_BYTES, MAX_WEIGHTS_HEADER_BYTES
from tintype.errors import ExportError
from tintype.files import open_plain
from tintype.strict_json import Misfit

MAX_WEIGHT_RANK = 8  # dimensions of one weight; a convolution over video has 5
MAX_TENSORS = 2**15  # of one file; XL with its averages has 4,200
MAX_BRACES = 2 * MAX_TENSORS  # of its header: one a tensor, and those in what trainers noted

# Bytes of one number of each type, as the format names them.
DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
# What a float type is called where precision is said, the widest first.
FLOATS = {
    "F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16", "F8_E4M3": "fp8 (e4m3fn)", "F8_E5M2": "fp8 (e5m2)",
}  # fmt: skip

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
# How other files begin that bear the name of this one, and what they are.
_MAGIC = (
    (b"PK\x03\x04", "it is a zip archive, as torch.save writes them: a pickle, which may run code"),
    (b"\x80\x02", "it is a pickle, which may run code"),
    (b"GGUF", "it is a GGUF file, of stable-diffusion.cpp or llama.cpp"),
    (b"version https://git-lfs", "it is what Git LFS leaves in a file's place until the file itself is fetched"),
    (b"<", "it is a page of HTML or XML; a download went wrong"),
)


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """One tensor of a file, without its numbers. bytes: how many it takes there, from `start` behind the header on."""

    dtype: str  # as the format names it: F32, BF16, F8_E4M3, ...
    shape: tuple[int, ...]
    bytes: int
    start: int = 0

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """What a .safetensors file says it holds; see this module's invariant."""

    path: Path
    tensors: Mapping[str, TensorFacts]
    metadata: Mapping[str, str]
    header_bytes: int

    def under(self, prefix: str) -> dict[str, TensorFacts]:
        """The tensors whose name starts with `prefix`, by the rest of their name."""
        start = len(prefix)
        return {name[start:]: facts for name, facts in self.tensors.items() if name.startswith(prefix)}


def read_header(path: Path) -> Header:
    """Read and check the header of a .safetensors file. Raises ExportError, also for pickles, which aren't opened."""
    if path.suffix.lower() in PICKLES:
        raise pickle_error(path)
    try:
        with open_plain(path, MAX_FILE_BYTES) as file:
            size = os.fstat(file.fileno()).st_size
            text = _header_text(path, file, size)
    except FileNotFoundError:
        raise ExportError(f"{path} is missing", fix="download the checkpoint again; it is incomplete") from None
    except (OSError, ValueError) as error:
        raise broken(path, (error.strerror if isinstance(error, OSError) else None) or str(error)) from None
    if text.count(b"{") > MAX_BRACES:  # to make objects of them all would take a second and more
        raise broken(path, f"its header describes more than {MAX_TENSORS:,} tensors")
    try:
        value = strict_json.parse(text)
        if not isinstance(value, dict):
            raise Misfit("it is no object")
        metadata = _metadata(value.pop("__metadata__", {}))
        tensors = _tensors(value, size - len(text) - 8)
    except Misfit as misfit:
        raise broken(path, f"in its header, {misfit}") from None
    return Header(path, tensors, metadata, len(text))


def broken(path: Path, why: str) -> ExportError:
    return ExportError(f"the weights in {path} are broken: {why}", fix="download the checkpoint again")


def pickle_error(path: Path) -> ExportError:
    """A pickle is a program. It is never opened here, whatever is in it."""
    script = (
        "import torch, safetensors.torch as s; "
        "w = torch.load('IN', map_location='cpu', weights_only=True); w = w.get('state_dict', w); "
        "s.save_file({k: v.clone() for k, v in w.items() if hasattr(v, 'clone')}, 'OUT.safetensors')"
    )
    return ExportError(
        f"{path} is a pickle, which may run code when it is opened; it isn't opened here",
        fix=f'download the .safetensors form; or, if you trust who made it, convert it: python -c "{script}"',
    )


def _header_text(path: Path, file: BinaryIO, size: int) -> bytes:
    start = file.read(32)
    for magic, what in _MAGIC:
        if start.startswith(magic) and _length_of(start) > size - 8:
            if "pickle" in what:
                raise pickle_error(path)
            raise broken(path, what)
    if len(start) < 8:
        raise broken(path, f"it has {size:,} bytes, too few for a header")
    length = _length_of(start)
    if length > size - 8:
        if path.suffix.lower() != ".safetensors":
            raise ExportError(
                f"{path} is no .safetensors file", fix="give one, a diffusers folder, or the folder of a bundle"
            )
        raise broken(path, f"its header should have {length:,} bytes, and the file has {size:,}: it was cut short")
    if length > MAX_WEIGHTS_HEADER_BYTES:
        raise broken(path, f"its header has {length:,} bytes; {MAX_WEIGHTS_HEADER_BYTES:,} are the most")
    file.seek(8)
    return file.read(length)


def _length_of(start: bytes) -> int:
    return int.from_bytes(start[:8], "little")


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise Misfit("__metadata__ isn't texts by name")
    return value


def _tensors(value: Mapping[str, Any], data_bytes: int) -> dict[str, TensorFacts]:
    if len(value) > MAX_TENSORS:
        raise Misfit(f"it lists {len(value):,} tensors; {MAX_TENSORS:,} are the most")
    found: dict[str, TensorFacts] = {}
    places: list[tuple[int, int, str]] = []
    for name, entry in value.items():
        start, end, facts = _tensor(name, entry)
        found[name] = facts
        places.append((start, end, name))
    position, before = 0, "the header"
    for start, end, name in sorted(places):
        if start != position:
            fault = "overlaps" if start < position else "leaves a gap behind"
            raise Misfit(f"{name} {fault} {before}: it starts at byte {start:,}, {before} ends at {position:,}")
        position, before = end, name
    if position != data_bytes:
        raise Misfit(f"the tensors should have {position:,} bytes, and the file has {data_bytes:,} for them")
    return found


def _tensor(name: str, entry: Any) -> tuple[int, int, TensorFacts]:
    """Where one tensor starts and ends behind the header, and its facts."""
    facts: Mapping[str, Any] = entry if isinstance(entry, dict) else {}
    shape, offsets = (_whole_numbers(name, facts.get(key)) for key in ("shape", "data_offsets"))
    if len(offsets) != 2:
        raise Misfit(f"{name} has {len(offsets)} data_offsets, and not 2")
    dtype = facts.get("dtype")
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise Misfit(f"{name} is of the type {str(dtype)[:20]}, which isn't read here")
    if len(shape) > MAX_WEIGHT_RANK:
        raise Misfit(f"{name} has {len(shape)} dimensions; {MAX_WEIGHT_RANK} are the most")
    start, end = offsets
    needed = math.prod(shape) * DTYPE_BYTES[dtype]
    if end - start != needed:
        raise Misfit(f"{name} has {end - start:,} bytes, and {dtype} of the shape {shape} needs {needed:,}")
    return start, end, TensorFacts(dtype, tuple(shape), needed, start)


def _whole_numbers(name: str, value: Any) -> list[int]:
    """A list of whole numbers that a file's bytes could be counted with."""
    if isinstance(value, list) and all(type(item) is int and 0 <= item <= MAX_FILE_BYTES for item in value):
        return value
    raise Misfit(f"{name} has no sound shape and data_offsets")
