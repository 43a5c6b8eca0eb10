"""TAESD as its authors publish it: taesd_encoder.safetensors and taesd_decoder.safetensors, layers by number.

diffusers' AutoencoderTiny has the same layers in one module, but for what the decoder begins with, which has no weights
there and no number. A file may also hold both halves, each behind its name.
"""

from __future__ import annotations

import re
from pathlib import Path

from tintype.errors import ExportError
from tintype.export.sources.entries import Entries, Entry
from tintype.sources.header import Header, broken, read_header

HALVES = ("encoder", "decoder")
_LAYER = re.compile(r"(?:(?:taesd_)?(encoder|decoder)\.)?(\d{1,2})\.((?:conv\.\d|skip)\.)?(weight|bias)", re.ASCII)
_FIRST = {"encoder": 0, "decoder": 1}  # the number of a half's first layer with weights


def has_numbered_layers(header: Header) -> bool:
    """Whether a file's tensors bear the authors' names."""
    return bool(header.tensors) and all(_LAYER.fullmatch(name) for name in header.tensors)


def numbered_entries(header: Header) -> tuple[Entries, tuple[Path, ...]]:
    """By diffusers' names, the tensors of both halves, and their files: that one, and the other half's beside it.

    Raises ExportError where the other half isn't there.
    """
    half = _only_half(header)
    headers = {} if half is None else {half: header}
    if half is not None:
        other = HALVES[1 - HALVES.index(half)]
        place = header.path.with_name(header.path.name.replace(half, other))
        if half not in header.path.name or not place.is_file():
            raise ExportError(
                f"{header.path} is the {half} of a tiny autoencoder alone",
                fix=f"put its {other} beside it, named as it is: {place.name if half in header.path.name else other}",
            )
        headers[other] = read_header(place)
        if not has_numbered_layers(headers[other]) or _only_half(headers[other]) != other:
            raise broken(place, f"it isn't the {other} that belongs to {header.path.name}")
    found: dict[str, Entry] = {}
    for name, each in headers.items():
        found |= _of_half(each, name)
    if half is None:
        found = _of_half(header, None)
        headers = {"both": header}
    return found, tuple(each.path for each in headers.values())


def _only_half(header: Header) -> str | None:
    """Which half a file is, by the layer that it begins with; None where its names say both."""
    named = {match[1] for match in map(_LAYER.fullmatch, header.tensors) if match}
    if named != {None}:
        if not set(HALVES) <= named:
            raise broken(header.path, "it has one half of a tiny autoencoder")
        return None
    return "encoder" if "0.weight" in header.tensors else "decoder"


def _of_half(header: Header, half: str | None) -> dict[str, Entry]:
    """half: of all tensors; None is the one that each name says."""
    found = {}
    for name in header.tensors:
        match = _LAYER.fullmatch(name)
        assert match is not None  # `has_numbered_layers`
        which = half or match[1]
        number = int(match[2]) - _FIRST[which]
        found[f"{which}.layers.{number}.{match[3] or ''}{match[4]}"] = Entry.of(header, name)
    return found
