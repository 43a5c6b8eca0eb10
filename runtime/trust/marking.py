"""The mark of a picture that is being finished, and what its record says of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tintype.arrays import Pixels
from tintype.errors import RecordError
from tintype.record.record import TrustMarkFacts, Watermark
from tintype.trust.embed import embed
from tintype.trust.keys import key_name
from tintype.trust.pattern import PUBLIC_KEY
from tintype.trust.payload import Payload, content_of, payload_of_hex


@dataclass(frozen=True, slots=True)
class Marker:
    """Who marks. maker: the number of an installation."""

    maker: int
    key: bytes = PUBLIC_KEY

    def mark(self, pixels: Pixels, where: NDArray[np.float32] | None = None) -> tuple[Pixels, Watermark | None]:
        """A picture, (height, width, 3), with its mark; None for one that is too small, or may not change.

        where: (height, width), 0 to 1, where it may change; None is everywhere.
        """
        marked = embed(pixels, self.maker, key=self.key, where=where)
        if marked is None:
            return pixels, None
        facts = Watermark(
            payload=marked.payload.hex,
            key=key_name(self.key),
            psnr_db=round(marked.psnr_db, 2),
            is_read=marked.is_read,
        )
        return marked.pixels, facts

    def payload(self, pixels: Pixels) -> Payload:
        """What a mark of a picture, (height, width, 3), says."""
        return Payload(self.maker, content_of(pixels))

    def as_in(self, watermark: Watermark | None, trustmark: TrustMarkFacts | None = None) -> Marker:
        """The one who made the marks of a record, with the key that is here. Raises RecordError for no payload."""
        if watermark is None and (trustmark is None or trustmark.kept):
            return self
        payload = _of_trustmark(trustmark) if watermark is None else payload_of_hex(watermark.payload)
        if payload is None:
            raise RecordError(
                "the record's watermark has no payload that is one", fix="give a file as tintype wrote it"
            )
        return Marker(payload.maker, self.key)


def _of_trustmark(facts: TrustMarkFacts | None) -> Payload | None:
    from tintype.trust.trustmark_bits import OURS, own_payload  # few records have one

    version, _, data = ("" if facts is None else facts.payload).partition("*")
    is_ours = version == str(OURS.version) and len(data) == OURS.data_bits and not set(data) - set("01")
    return own_payload(data) if is_ours else None
