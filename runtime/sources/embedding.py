"""A file of textual inversion: a word and its vectors, in the forms of A1111 and of diffusers.

A1111's has `emb_params`, or for XL `clip_l` and `clip_g`, (vectors, width) each, and its word is the file's name.
diffusers' has one tensor, (vectors, width) or (width,), whose name is the word. Nothing of it is run, and no more is
read than a file of that kind has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tintype.bounds import MAX_EMBEDDING_BYTES, MAX_EMBEDDING_VECTORS, MAX_EMBEDDING_WIDTH, MAX_EMBEDDING_WORD_CHARS
from tintype.errors import ExportError, RequestError
from tintype.files import read_given
from tintype.sources.header import PICKLES, Header, TensorFacts, read_header
from tintype.sources.looks import adapter_look
from tintype.sources.numbers import READABLE, floats_of

A1111, CLIP_L, CLIP_G = "emb_params", "clip_l", "clip_g"
ANY = ""  # which text encoder the vectors are for, only their width tells

_CONVERT = (
    "import torch, safetensors.torch as s; w = torch.load('IN', map_location='cpu', weights_only=True); "
    "w = {'emb_params': w['string_to_param']['*']} if 'string_to_param' in w else w; "
    "s.save_file({k: v.detach().contiguous() for k, v in w.items()}, 'OUT.safetensors')"
)


@dataclass(frozen=True, slots=True)
class Embedding:
    """word: as prompts write it. vectors: (count, width) by whom they are for: ANY, or CLIP_L and CLIP_G."""

    word: str
    sha256: str  # of the file
    vectors: Mapping[str, NDArray[np.float32]]

    @property
    def count(self) -> int:
        return len(next(iter(self.vectors.values())))


def read_embedding(path: Path) -> Embedding:
    """Read a file of textual inversion. Raises RequestError, for a pickle with the command that converts it."""
    fix = "give a .safetensors file of textual inversion"
    if path.suffix.lower() in PICKLES:
        raise RequestError(
            f"the embedding {path} is a pickle, which may run code when it is opened; it isn't opened here",
            fix=f'download its .safetensors form; or, if you trust who made it, convert it: python -c "{_CONVERT}"',
        )
    content = read_given(path, MAX_EMBEDDING_BYTES, what="embedding", fix=fix)
    try:
        header = read_header(path)
    except ExportError as error:
        again = error.fix.replace("download the checkpoint again", "download the embedding again")
        raise RequestError(f"the embedding {path} is refused: {error.message}", fix=again) from None
    word, tensors = _told(path, header)
    if not 0 < len(word) <= MAX_EMBEDDING_WORD_CHARS or not word.isprintable() or word != word.strip():
        raise RequestError(
            f"{path} calls its word {word[:80]!r}, which no prompt can hold",
            fix="name it in letters, without spaces around",
        )
    found = {
        key: _vectors(path, content[8 + header.header_bytes :], name, facts) for key, (name, facts) in tensors.items()
    }
    counts = {len(vectors) for vectors in found.values()}
    if len(counts) > 1:
        told = " and ".join(f"{len(vectors)} of {key}" for key, vectors in found.items())
        raise RequestError(f"the embedding {path} has {told}, and one word has as many of both", fix=fix)
    return Embedding(word, hashlib.sha256(content).hexdigest(), found)


def _told(path: Path, header: Header) -> tuple[str, dict[str, tuple[str, TensorFacts]]]:
    """A file's word, and its tensors by whom they are for."""
    names = set(header.tensors)
    if names == {CLIP_L, CLIP_G}:
        return path.stem, {name: (name, header.tensors[name]) for name in (CLIP_L, CLIP_G)}
    if len(names) == 1:
        ((name, facts),) = header.tensors.items()
        if name in (CLIP_L, CLIP_G):
            return path.stem, {name: (name, facts)}
        return (path.stem if name == A1111 else name), {ANY: (name, facts)}
    look = adapter_look(names)
    if look is not None and "inversion" not in look.name:
        raise RequestError(f"{path} is {look.name}, and no file of textual inversion", fix=look.need)
    shown = ", ".join(sorted(names)[:4])
    raise RequestError(
        f"{path} holds {len(names):,} tensors ({shown}), and is no file of textual inversion",
        fix="give one with emb_params, with clip_l and clip_g, or with one tensor named after its word",
    )


def _vectors(path: Path, data: bytes, name: str, facts: TensorFacts) -> NDArray[np.float32]:
    """(count, width), finite."""
    shape = (1, *facts.shape) if len(facts.shape) == 1 else facts.shape
    if facts.dtype not in READABLE or len(shape) != 2 or facts.start + facts.bytes > len(data):
        raise RequestError(
            f"{name} in {path} is {facts.dtype} of the shape {facts.shape}, and no vectors of a word",
            fix="give floats of the shape (vectors, width)",
        )
    if not (0 < shape[0] <= MAX_EMBEDDING_VECTORS and 0 < shape[1] <= MAX_EMBEDDING_WIDTH):
        raise RequestError(
            f"{name} in {path} is {shape[0]:,} vectors of {shape[1]:,} numbers; "
            f"1 to {MAX_EMBEDDING_VECTORS} of up to {MAX_EMBEDDING_WIDTH:,} make a word",
            fix="give a file of textual inversion",
        )
    whole = floats_of(data[facts.start : facts.start + facts.bytes], facts.dtype)
    if not np.isfinite(whole).all():
        raise RequestError(f"{name} in {path} holds NaN or infinity", fix="train it again, or download it again")
    return whole.reshape(shape)
