"""A picture's record: everything needed to make it again, and to say how it was made. It holds no clock and no path.

In a PNG it stands whole as JSON under `tintype`, as A1111's `parameters` text, which other tools read, and as XMP,
which says to everybody that a model made the picture.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tintype import strict_json
from tintype.bounds import MAX_RECORD_BYTES
from tintype.bundle.manifest import DECODER
from tintype.errors import RecordError, RequestError
from tintype.image.png import RECORD_KEY
from tintype.memory.mode import PACKED, Tiles
from tintype.record.a1111 import A1111_KEY, parameters_text
from tintype.record.private import Withheld, with_gaps_filled, without_words
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
class CodedNoise:
    """What the signs of a picture's starting noise say, which `tintype verify --model` reads."""

    payload: str  # the last two hexadecimal digits of the installation's number
    key: str  # whose streams the signs are: public, or the name of an operator's
    nonce: int  # which of them, and how far it was turned; of the key and the picture's seed


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustMarkFacts:
    """The TrustMark in a picture's pixels, by an operator's files."""

    variant: str
    sha256: str  # of its encoder's file
    payload: str  # as C2PA's soft bindings have it: the schema's number, *, zeros and ones
    psnr_db: float | None  # of the picture to what it was without; None: nothing was changed
    is_read: bool  # whether the picture as it was given out still tells it
    kept: bool = False  # it was there already, and nothing was written
    parent: str | None = None  # the payload of the mark in the picture that this one began with, if it had one


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
class DealWord:
    """A word that was put beside a noun of a prompt."""

    group: str  # of the deck
    noun: str  # as the deck has it
    word: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DealFacts:
    """What an operator's deck put into the prompt; the request has that as it was drawn."""

    name: str  # of the deck
    sha256: str  # of its file
    prompt: str  # as it was typed
    words: tuple[DealWord, ...]

    @classmethod
    def of(cls, name: str, sha256: str, prompt: str, words: Mapping[tuple[str, str], str]) -> DealFacts:
        """words: by group and noun."""
        dealt = tuple(DealWord(group=group, noun=noun, word=word) for (group, noun), word in words.items())
        return cls(name=name, sha256=sha256, prompt=prompt, words=dealt)


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
    coded_noise: CodedNoise | None = None  # None: it wasn't asked for
    trustmark: TrustMarkFacts | None = None  # None: nobody's files were given, or no watermark was asked for
    credentials: str | None = None  # whose certificate signs its file: local, or operator; None: nobody's
    policy: PolicyFacts | None = None  # None: there was none
    safety: SafetyFacts | None = None  # None: nothing judged it
    memorisation: Memorisation | None = None  # None: it was drawn without guidance, which tells nothing
    deal: DealFacts | None = None  # None: the prompt is as it was typed
    withheld: Withheld | None = None  # what a private picture's file leaves out, hashed; None: it leaves nothing out
    notes: tuple[str, ...] = field(default=())  # what the device made differently, such as a graph run again in fp32

    @property
    def seed(self) -> int:
        return self.request.seed + self.picture

    @property
    def typed_request(self) -> ResolvedRequest:
        """The request as it was typed, which all pictures of a run have in common."""
        return self.request if self.deal is None else replace(self.request, prompt=self.deal.prompt)

    def as_written(self) -> dict[str, Any]:
        """Plain JSON values as they stand in the picture's file: a private one says None for its words and its seed."""
        known: dict[str, Any] = strict_json.plain(self)
        return known if self.withheld is None else without_words(known)

    def texts(self) -> dict[str, str]:
        """The PNG's texts by keyword."""
        whole = json.dumps(self.as_written())
        others = {} if self.withheld else {A1111_KEY: parameters_text(self.request, self.made_with, self.seed)}
        return {**others, RECORD_KEY: whole, XMP_KEY: xmp_text(self.request, self.made_with, whole)}

    def revealed(self, prompt: str, seed: int, negative_prompt: str = "") -> Record:
        """The whole record of a private picture, for whoever knows its words and its seed. RecordError for others."""
        if self.withheld is not None and not self.withheld.are(prompt, negative_prompt, seed):
            raise RecordError(
                "these are not the words and the seed that the private record was made with",
                fix="give the prompt, the negative prompt and the picture's own seed, letter by letter",
            )
        request = replace(self.request, prompt=prompt, negative_prompt=negative_prompt, seed=seed - self.picture)
        return self if self.withheld is None else replace(self, request=request)

    def demand_whole(self) -> None:
        """Raises RecordError for a private picture's record as its file has it."""
        known = self.request
        if self.withheld is not None and not self.withheld.are(known.prompt, known.negative_prompt, self.seed):
            raise RecordError(
                "the record is private: it leaves its words and its seed out",
                fix="give PROMPT --seed N, and --negative-prompt where there was one; from Python: record.revealed()",
            )


def parse_record(text: str) -> Record:
    """The record in a PNG's `tintype` text. Raises RecordError when it is none, or a newer one."""
    try:
        if len(text) > MAX_RECORD_BYTES:
            raise strict_json.Misfit(f"it has more than {MAX_RECORD_BYTES:,} bytes")
        value = strict_json.parse(text)
        version = value.get("record_version") if isinstance(value, dict) else None
        if isinstance(version, int) and version > RECORD_VERSION:
            raise RecordError(f"the record is of format {version}, newer than this tintype", fix="upgrade tintype")
        if isinstance(value, dict) and value.get("withheld") is not None:
            value = with_gaps_filled(value)
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
