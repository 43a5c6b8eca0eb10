"""What a picture says of how it was made, each layer read on its own; needs neither onnxruntime nor a model.

Two further layers do, and are read where whoever asks brings what they are read by: a TrustMark, by its own files, and
what the starting noise says, by the model that may have drawn the picture.

A watermark that is found says that a picture was probably made so: whoever has a marked picture can put its mark on
another. What it was made for is compared with what the picture roughly shows, which tells most of those.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from tintype.arrays import Pixels
from tintype.errors import RecordError
from tintype.record.record import Record, read_record
from tintype.trust.credential_reading import (
    NO_CREDENTIALS,
    UNTRUSTED,
    VALID,
    Credentials,
    read_anchors,
    read_credentials,
)
from tintype.trust.detect import THRESHOLD, Match, detect, soft_bits
from tintype.trust.keys import key_name, read_key
from tintype.trust.pattern import PUBLIC_KEY, pattern_of
from tintype.trust.payload import Payload, read_payload, shows_the_same
from tintype.trust.search import THRESHOLD as SEARCH_THRESHOLD
from tintype.trust.search import Geometry, search

if TYPE_CHECKING:
    from PIL.Image import Image

    from tintype.trust.coded_noise import CodedNoiseReading
    from tintype.trust.trustmark import TrustMark, TrustMarkReading

ANOTHER = "another key, or too little is left"


@dataclass(frozen=True, slots=True, kw_only=True)
class WatermarkReading:
    """What the pixels say. confidence: 1 less the share of unmarked pictures that would look so marked."""

    found: bool
    confidence: float
    payload: str | None = None  # 12 hexadecimal digits
    maker: str | None = None  # of these the installation's, 6
    key: str | None = None  # that the payload was read with: public, an operator's, or why there is none
    shows_the_same: bool | None = None  # as what was marked; no: it was cut, or the mark comes from another picture
    scale: float | None = None  # of its sides, beside the marked picture's
    turn_degrees: float | None = None
    is_mirrored: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Each layer that says that a picture was made, and how; None for one that wasn't looked for, or isn't there."""

    watermark: WatermarkReading
    record: Record | None  # that lies in the file beside the pixels, and that anybody can write
    credentials: Credentials = NO_CREDENTIALS  # that are signed
    trustmark: TrustMarkReading | None = None  # of the pixels too
    coded_noise: CodedNoiseReading | None = None  # of the noise that it seems to begin with

    @property
    def found(self) -> bool:
        signed = self.credentials.state in (VALID, UNTRUSTED)
        read = any(each is not None and each.found for each in (self.trustmark, self.coded_noise))
        return self.watermark.found or self.record is not None or signed or read


class NoiseReader(Protocol):
    """A pipeline of the model that may have drawn a picture."""

    def read_coded_noise(self, picture: Image, keys: Sequence[bytes] = ...) -> CodedNoiseReading: ...


def verify(
    path: str | os.PathLike[str],
    *,
    watermark_key: str | os.PathLike[str] | None = None,
    trust: str | os.PathLike[str] | None = None,
    trustmark: str | os.PathLike[str] | None = None,
    pipeline: NoiseReader | None = None,
) -> Verification:
    """Read a picture's layers: any format that Pillow opens. watermark_key: an operator's, to read its payloads too.

    trust: a file of certificates (PEM) of the authorities that may vouch for who signed; without one nobody does.
    trustmark: the folder of TrustMark's own ONNX files. pipeline: of the model that may have drawn the picture.
    Raises RequestError for what can't be read as a picture, and for a key, certificates or files that are none.
    """
    return Reader.of(watermark_key, trust, trustmark, pipeline).read(path)


@dataclass(frozen=True, slots=True)
class Reader:
    """What pictures are read with. keys: that a payload is tried with; anchors: see `read_anchors`."""

    keys: list[bytes]
    anchors: str | None
    trustmark: TrustMark | None = None
    pipeline: NoiseReader | None = None

    @classmethod
    def of(
        cls,
        watermark_key: str | os.PathLike[str] | None,
        trust: str | os.PathLike[str] | None,
        trustmark: str | os.PathLike[str] | None = None,
        pipeline: NoiseReader | None = None,
    ) -> Reader:
        """Of what `verify` takes. Raises RequestError."""
        keys = [PUBLIC_KEY] if watermark_key is None else [read_key(watermark_key), PUBLIC_KEY]
        anchors = None if trust is None else read_anchors(trust)
        return cls(keys, anchors, None if trustmark is None else _opened(trustmark), pipeline)

    def read(self, path: str | os.PathLike[str]) -> Verification:
        """One picture's layers. Raises RequestError."""
        from tintype.image.source import open_picture

        picture = open_picture(path, what="picture")
        pixels = np.asarray(picture)
        mark = read_watermark(pixels, self.keys)
        payload = mark.payload if mark.found else ""
        credentials = read_credentials(path, payload, anchors=self.anchors)
        return Verification(
            watermark=mark,
            record=_record_in(path),
            credentials=credentials,
            trustmark=None if self.trustmark is None else self.trustmark.reading(pixels),
            coded_noise=None if self.pipeline is None else self.pipeline.read_coded_noise(picture, self.keys),
        )


def _opened(folder: str | os.PathLike[str]) -> TrustMark:
    from tintype.trust.trustmark import open_trustmark  # needs onnxruntime

    return open_trustmark(folder, writes=False)


def read_watermark(pixels: Pixels, keys: list[bytes]) -> WatermarkReading:
    """Of a picture, (height, width, 3): as it lies, and then whatever was done to its geometry."""
    match, geometry = detect(pixels), Geometry()
    if match.score < THRESHOLD:
        match, geometry = search(pixels)
        if match.score < SEARCH_THRESHOLD:
            return WatermarkReading(found=False, confidence=0.0)
    payload, key = _payload_in(match, keys)
    upright = pixels[:, ::-1] if geometry.is_mirrored else pixels
    return WatermarkReading(
        found=True,
        confidence=1.0 - match.false_alarms,
        payload=None if payload is None else payload.hex,
        maker=None if payload is None else f"{payload.maker:06x}",
        key=ANOTHER if payload is None else key,
        shows_the_same=None if payload is None else shows_the_same(payload, upright),
        scale=round(geometry.scale, 2),
        turn_degrees=round(float(np.degrees(geometry.turn)), 1),
        is_mirrored=geometry.is_mirrored,
    )


def _payload_in(match: Match, keys: list[bytes]) -> tuple[Payload | None, str]:
    for key in keys:
        payload = read_payload(soft_bits(match, pattern_of(key)))
        if payload is not None:
            return payload, key_name(key)
    return None, ""


def _record_in(path: str | os.PathLike[str]) -> Record | None:
    try:
        return read_record(Path(path))
    except RecordError:
        return None
