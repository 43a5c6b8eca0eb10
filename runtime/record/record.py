"""A picture's record: everything needed to make it again, and to say how it was made. It holds no clock and no path.

In a PNG it stands whole as JSON under `tintype`, as A1111's `parameters` text, which other tools read, and as XMP,
which says to everybody that a model made the picture.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tintype import strict_json
from tintype.bounds import MAX_RECORD_BYTES
from tintype.bundle.manifest import DECODER
from tintype.errors import RecordError, RequestError
from tintype.image.png import RECORD_KEY
from tintype.memory.mode import PACKED, Tiles
from tintype.record.a1111 import A1111_KEY, parameters_text
from tintype.record.provenance import Provenance
from tintype.record.xmp import XMP_KEY, xmp_text
from tintype.request import ResolvedRequest

RECORD_VERSION = 2  # 1: without inputs; tiles stood apart from how graphs were held


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFacts:
    """Of a picture that was made within a budget."""

    budget_bytes: int
    planned_peak_bytes: int
    peak_rss_bytes: int  # the most that the process had, over its life
    device_bytes: int = 0  # the most that was seen in a device's memory, beside it


@dataclass(frozen=True, slots=True, kw_only=True)
class Watermark:
    """The mark in a picture's pixels, which `tintype verify` reads."""

    payload: str  # 12 hexadecimal digits: version, installation, what the picture roughly shows, and a check
    key: str  # that carries the payload: public, or the name of an operator's
    psnr_db: float  # of the picture to what it was without
    is_read: bool  # whether a JPEG copy still tells it


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFacts:
    """The policy on words that the request was held against."""

    name: str
    sha256: str  # of its file


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetyFacts:
    """What the operator's safety checker made of the picture, before it was marked."""

    sha256: str  # of its file
    score: float
    threshold: float  # from which on a picture is blocked


@dataclass(frozen=True, slots=True, kw_only=True)
class Memorisation:
    """How strongly the words drew the picture, which tells those that a model has by heart (`trust.memorisation`)."""

    score: float
    threshold: float | None = None  # that one in a hundred ordinary prompts is above
    is_likely: bool | None = None  # whether the score is above it; None: it isn't judged
    not_judged: str | None = None  # and why


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One picture: the request without gaps, which of its pictures this is, and the circumstances."""

    record_version: int = RECORD_VERSION
    request: ResolvedRequest
    picture: int  # index within the request's count
    made_with: Provenance
    memory: MemoryFacts | None = None  # None: there was no budget
    watermark: Watermark | None = None  # None: none was asked for, or the picture is under 128 pixels
    credentials: str | None = None  # whose certificate signs its file: local, or operator; None: nobody's
    policy: PolicyFacts | None = None  # None: there was none
    safety: SafetyFacts | None = None  # None: nothing judged it
    memorisation: Memorisation | None = None  # None: it was drawn without guidance, which tells nothing
    notes: tuple[str, ...] = field(default=())  # what the device made differently, such as a graph run again in fp32

    @property
    def seed(self) -> int:
        return self.request.seed + self.picture

    def texts(self) -> dict[str, str]:
        """The PNG's texts by keyword."""
        whole = json.dumps(strict_json.plain(self))
        return {
            A1111_KEY: parameters_text(self.request, self.made_with, self.seed),
            RECORD_KEY: whole,
            XMP_KEY: xmp_text(self.request, self.made_with, whole),
        }


def parse_record(text: str) -> Record:
    """The record in a PNG's `tintype` text. Raises RecordError when it is none, or a newer one."""
    try:
        if len(text) > MAX_RECORD_BYTES:
            raise strict_json.Misfit(f"it has more than {MAX_RECORD_BYTES:,} bytes")
        value = strict_json.parse(text)
        version = value.get("record_version") if isinstance(value, dict) else None
        if isinstance(version, int) and version > RECORD_VERSION:
            raise RecordError(f"the record is of format {version}, newer than this tintype", fix="upgrade tintype")
        record = strict_json.read(Record, _upgraded(value) if version == 1 else value)
        if not 0 <= record.picture < record.request.count:
            raise strict_json.Misfit(f"it has no picture {record.picture}")
    except (strict_json.Misfit, RequestError) as misfit:
        raise RecordError(f"the record cannot be read: {misfit}", fix="give a picture as tintype wrote it") from None
    return record


def _upgraded(value: dict[str, Any]) -> dict[str, Any]:
    """A record of version 1 as one of version 2."""
    made_with, tiling = value.get("made_with"), value.get("tiling")
    if not isinstance(made_with, dict):
        return value
    modes = strict_json.read(_FirstModes, made_with).holdings
    if tiling is not None:
        tiles = strict_json.read(_FirstTiling, tiling, "tiling")
        try:
            mode = Tiles(tiles.tile, tiles.overlap, mapped=modes.get(DECODER, str(PACKED)) != str(PACKED))
        except ValueError as error:
            raise strict_json.Misfit(str(error)) from None
        modes = {**modes, DECODER: str(mode)}
    return {**value, "made_with": {**made_with, "modes": modes}}


@dataclass(frozen=True, slots=True)
class _FirstModes:
    holdings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _FirstTiling:
    tile: int
    overlap: int


def read_record(path: str | os.PathLike[str]) -> Record:
    """The record of a picture file. Raises RecordError when there is no file, or no record in it."""
    from tintype.image.png import read_texts

    texts = read_texts(path)
    if RECORD_KEY not in texts:
        told = "only A1111's parameters" if A1111_KEY in texts else "no record"
        raise RecordError(f"{path} holds {told}", fix="give a PNG that tintype wrote and nothing has saved again since")
    return parse_record(texts[RECORD_KEY])
