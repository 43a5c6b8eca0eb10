"""A file of an IP-Adapter (Ye et al. 2023) as it is published: a projection of what an image encoder says of a picture,
and for each cross-attention the two matrices that make keys and values of it.

An `IPAdapterFile` that `open_ip_adapter` returned has all of one kind's tensors, no others, and their shapes fit each
other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tintype.adapters.tensor_file import (
    Identity,
    TensorFile,
    check_numbers,
    download,
    identity_of,
    no_such,
    sound_header,
)
from tintype.bounds import MAX_CROSS_ATTENTIONS, MAX_IMAGE_TOKENS, MAX_PROJECTION_DEPTH, MAX_PROJECTION_WIDTH
from tintype.errors import RequestError
from tintype.recent import Recent
from tintype.sources.header import PICKLES, Header

BASE, PLUS, FULL = "IP-Adapter", "IP-Adapter Plus", "IP-Adapter Full"
HEAD = 64  # numbers of one of Plus's heads, whatever its width
PROJECTION, LAYERS = "image_proj.", "ip_adapter."

_OF_BASE = ("proj.weight", "proj.bias", "norm.weight", "norm.bias")
_OF_FULL = tuple(f"proj.{number}.{part}" for number in (0, 2, 3) for part in ("weight", "bias"))
_OF_PLUS = (
    "latents",
    *(f"{name}.{part}" for name in ("proj_in", "proj_out", "norm_out") for part in ("weight", "bias")),
)
OF_DEPTH = (
    "0.norm1.weight", "0.norm1.bias", "0.norm2.weight", "0.norm2.bias", "0.to_q.weight", "0.to_kv.weight",
    "0.to_out.weight", "1.0.weight", "1.0.bias", "1.1.weight", "1.3.weight",
)  # fmt: skip
_PAIR = re.compile(r"(\d{1,4})\.to_[kv]_ip\.weight", re.ASCII)
_DEPTH = re.compile(r"layers\.(\d{1,3})\.(.+)", re.ASCII)
_CONVERT = (
    "import torch, safetensors.torch as s; w = torch.load('IN', map_location='cpu', weights_only=True); "
    "s.save_file({f'{p}.{k}': v.clone() for p in ('image_proj', 'ip_adapter') for k, v in w[p].items()}, "
    "'OUT.safetensors')"
)


@dataclass(frozen=True, slots=True, eq=False)
class IPAdapterFile(TensorFile):
    """kind: BASE, PLUS or FULL. pairs: the matrices' numbers in the file, in the order of a model's cross-attentions.

    words: numbers of a token, as cross-attentions take them. encoder: numbers that it takes of the image encoder, of a
    picture as a whole for BASE, else of each of its tokens. tokens: that it makes of a picture; None: as many as there
    are. depth: layers of Plus's projection.
    """

    what: ClassVar[str] = "IP-Adapter"
    error: ClassVar[type[RequestError]] = RequestError

    kind: str
    pairs: tuple[int, ...]
    words: int
    encoder: int
    tokens: int | None
    depth: int = 0

    @property
    def takes_states(self) -> bool:
        """Whether it looks at a picture's tokens, and not at what the encoder says of it as a whole."""
        return self.kind != BASE

    def width(self, pair: int) -> int:
        """Channels of a cross-attention, the first of which is number 0."""
        return self.shape(self.key_name(pair))[0]

    def key_name(self, pair: int) -> str:
        return f"{LAYERS}{self.pairs[pair]}.to_k_ip.weight"

    def value_name(self, pair: int) -> str:
        return f"{LAYERS}{self.pairs[pair]}.to_v_ip.weight"


_opened: Recent[Identity, IPAdapterFile] = Recent(8)


def open_ip_adapter(path: str | os.PathLike[str]) -> IPAdapterFile:
    """Read and check a file; one that was read before and is as it was isn't read again. Raises RequestError."""
    path = Path(path)
    if path.suffix.lower() in PICKLES and path.is_file():
        raise RequestError(
            f"{path} is a pickle, which may run code when it is opened; it isn't opened here",
            fix=f'download the .safetensors form; or, if you trust who made it, convert it: python -c "{_CONVERT}"',
        )
    identity = identity_of(IPAdapterFile, path)
    return _opened.get(identity) or _opened.put(identity, _open(path, identity))


def _open(path: Path, identity: Identity) -> IPAdapterFile:
    header = sound_header(IPAdapterFile, path)
    projection, layers = header.under(PROJECTION), header.under(LAYERS)
    kind = _kind(path, header, projection)
    depth = 0
    expected = {BASE: _OF_BASE, FULL: _OF_FULL, PLUS: _OF_PLUS}[kind]
    if kind == PLUS:
        depth = _count(path, (_DEPTH.match(name) for name in projection), MAX_PROJECTION_DEPTH, "layers")
        expected = (*expected, *(f"layers.{number}.{part}" for number in range(depth) for part in OF_DEPTH))
    pairs = sorted({int(found[1]) for name in layers if (found := _PAIR.fullmatch(name))})
    if len(pairs) > MAX_CROSS_ATTENTIONS:
        raise RequestError(f"{path} has {len(pairs):,} cross-attentions, which no model has", fix=_another())
    names = [f"{PROJECTION}{name}" for name in expected]
    names += [f"{LAYERS}{number}.to_{part}_ip.weight" for number in pairs for part in "kv"]
    _demand_names(path, header, names, bool(pairs))
    words, encoder, tokens = _widths(path, header, kind, depth)
    for number in pairs:
        for part in "kv":
            name = f"{LAYERS}{number}.to_{part}_ip.weight"
            _demand_shape(path, header, name, (*header.tensors[f"{LAYERS}{number}.to_k_ip.weight"].shape[:1], words))
    digest = check_numbers(IPAdapterFile, path, header)
    return IPAdapterFile(path, digest, header, identity, kind, tuple(pairs), words, encoder, tokens, depth)


def _kind(path: Path, header: Header, projection: Mapping[str, object]) -> str:
    """RequestError for what is none of those that are known, FaceID's by name."""
    face = any(name.startswith("perceiver_resampler.") for name in projection) or (
        "proj.0.weight" in projection and "norm.weight" in projection
    )
    if face or any(name.startswith(LAYERS) and "_lora." in name for name in header.tensors):
        raise RequestError(
            f"{path} is an IP-Adapter FaceID, which looks at what a model for faces (InsightFace) says, and that isn't "
            "done here",
            fix="give an IP-Adapter, Plus, Plus Face or Full Face, which look at the picture itself",
        )
    if "latents" in projection:
        return PLUS
    if "proj.3.weight" in projection:
        return FULL
    if "proj.weight" in projection:
        return BASE
    why = f"nothing in it projects pictures, and it has {_listed(header.tensors)}"
    raise no_such(IPAdapterFile, path, header, why, fix=_another())


def _demand_names(path: Path, header: Header, names: Iterable[str], has_pairs: bool) -> None:
    expected = dict.fromkeys(names)
    unknown = [name for name in header.tensors if name not in expected]
    if unknown:
        raise RequestError(f"{path} holds what isn't known here: {_listed(unknown)}", fix=_another())
    missing = [name for name in expected if name not in header.tensors]
    if missing or not has_pairs:
        raise RequestError(
            f"{path} is incomplete: it lacks {_listed(missing or [f'{LAYERS}1.to_k_ip.weight'])}",
            fix=download(IPAdapterFile),
        )


def _widths(path: Path, header: Header, kind: str, depth: int) -> tuple[int, int, int | None]:
    """Numbers of a token for cross-attentions, numbers that it takes of the encoder, tokens; all shapes are checked."""

    def size(name: str, axis: int, rank: int) -> int:
        shape = header.tensors[PROJECTION + name].shape
        if len(shape) != rank or 0 in shape:
            raise _misshapen(path, PROJECTION + name, shape)
        return shape[axis]

    def demand(shapes: Mapping[str, tuple[int, ...]]) -> None:
        for name, shape in shapes.items():
            _demand_shape(path, header, PROJECTION + name, shape)

    if kind == BASE:
        words, (rows, encoder) = size("norm.weight", 0, 1), (size("proj.weight", axis, 2) for axis in (0, 1))
        if rows % words or rows // words > MAX_IMAGE_TOKENS:
            raise _misshapen(path, f"{PROJECTION}proj.weight", (rows, encoder))
        demand({"norm.bias": (words,), "proj.bias": (rows,)})
        return words, encoder, rows // words
    if kind == FULL:
        inner, encoder, words = size("proj.0.weight", 0, 2), size("proj.0.weight", 1, 2), size("proj.2.weight", 0, 2)
        demand({"proj.0.bias": (inner,), "proj.2.weight": (words, inner), "proj.2.bias": (words,)})
        demand({"proj.3.weight": (words,), "proj.3.bias": (words,)})
        return words, encoder, None
    tokens, width = (size("latents", axis, 3) for axis in (1, 2))
    if tokens > MAX_IMAGE_TOKENS or width > MAX_PROJECTION_WIDTH:
        raise _misshapen(path, f"{PROJECTION}latents", (1, tokens, width))
    encoder, words = size("proj_in.weight", 1, 2), size("proj_out.weight", 0, 2)
    demand({"latents": (1, tokens, width), "proj_in.weight": (width, encoder), "proj_in.bias": (width,)})
    demand({"proj_out.weight": (words, width), "proj_out.bias": (words,), "norm_out.weight": (words,)})
    demand({"norm_out.bias": (words,)})
    for number in range(depth):
        inner, wide = size(f"layers.{number}.0.to_q.weight", 0, 2), size(f"layers.{number}.1.1.weight", 0, 2)
        if inner % HEAD or inner > MAX_PROJECTION_WIDTH or wide > 4 * MAX_PROJECTION_WIDTH:
            raise _misshapen(path, f"{PROJECTION}layers.{number}.0.to_q.weight", (inner, width))
        norm, out = (width,), (width, inner)
        shapes = (*(norm,) * 4, (inner, width), (2 * inner, width), out, norm, norm, (wide, width), (width, wide))
        demand({f"layers.{number}.{part}": shape for part, shape in zip(OF_DEPTH, shapes, strict=True)})
    return words, encoder, tokens


def _count(path: Path, found: Iterable[re.Match[str] | None], most: int, what: str) -> int:
    """How many of a row there are, of which the highest number tells."""
    count = max((int(each[1]) + 1 for each in found if each is not None), default=0)
    if count > most:
        raise RequestError(f"{path} has {count:,} {what}; {most} are the most", fix=_another())
    return count


def _demand_shape(path: Path, header: Header, name: str, shape: tuple[int, ...]) -> None:
    if header.tensors[name].shape != shape or 0 in shape:
        raise _misshapen(path, name, header.tensors[name].shape)


def _misshapen(path: Path, name: str, shape: tuple[int, ...]) -> RequestError:
    return RequestError(
        f"{name} of {path} has the shape {list(shape)}, which doesn't fit the rest", fix=download(IPAdapterFile)
    )


def _listed(names: Iterable[str]) -> str:
    known = [repr(name[:100]) for name in names]
    more = f" and {len(known) - 5:,} more" if len(known) > 5 else ""
    return ", ".join(known[:5]) + more if known else "nothing"


def _another() -> str:
    return "give an IP-Adapter, Plus, Plus Face or Full Face for Stable Diffusion 1.x, 2.x or XL as .safetensors"
