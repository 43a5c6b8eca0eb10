"""The 100 bits of a TrustMark: data, their BCH parity, and which of four schemas it is (Bui et al. 2023).

A schema's data are filled up with zeros to whole bytes before the parity is taken, and the zeros are not written. Its
number stands in the last 4 bits, which nothing protects, so a reader tries all schemas.

TrustMark's own readers take for a mark whatever can be corrected: of random bits that is 1 word in 14 (by BCH_3). Here
chance must give it less often than MOST_FALSE_ALARMS, by how many bits had to be turned; our own data have 29 bits of
version and checks, and are known however many that were. That a decoder's bits are random where there is no mark, its
makers have to know.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tintype.trust.bch import bch_code
from tintype.trust.pattern import BITS
from tintype.trust.payload import Payload, payload_of_hex

LENGTH, VERSION_BITS = 100, 4
PROTECTED = LENGTH - VERSION_BITS  # data and parity
MOST_FALSE_ALARMS = 1e-6


@dataclass(frozen=True, slots=True)
class Schema:
    """How the bits are shared out. version: its number. errors: how many can be put right."""

    name: str
    version: int
    data_bits: int
    errors: int

    @property
    def filling(self) -> int:
        """Zeros between data and parity that are not written."""
        return -self.data_bits % 8


SUPER, BCH_5, BCH_4, BCH_3 = SCHEMAS = (
    Schema("BCH_SUPER", 0, 40, 8),
    Schema("BCH_5", 1, 61, 5),
    Schema("BCH_4", 2, 68, 4),
    Schema("BCH_3", 3, 75, 3),
)
OURS = BCH_5  # what is advised for an id; BCH_SUPER is for pointing at another kind of watermark
_OWN_CHECK_BITS = OURS.data_bits - BITS


@dataclass(frozen=True, slots=True)
class TrustMarkBits:
    """What 100 bits say. data: zeros and ones. turned: how many bits were put right, the version's among them."""

    schema: Schema
    data: str
    turned: int
    is_of_another: bool  # schema than the bits name
    false_alarms: float  # the share of random words that would be taken for a mark as good as this one

    @property
    def is_found(self) -> bool:
        return self.false_alarms <= MOST_FALSE_ALARMS

    @property
    def binding(self) -> str:
        """As C2PA's soft bindings of TrustMark have it."""
        return f"{self.schema.version}*{self.data}"

    @property
    def payload(self) -> Payload | None:
        """What we wrote; None where somebody else did."""
        return own_payload(self.data) if self.schema == OURS else None


def written(data: str, schema: Schema = OURS) -> NDArray[np.bool_]:
    """(100,): data, zeros and ones, with parity and version. ValueError where there are too many, or others."""
    if len(data) > schema.data_bits or set(data) - set("01"):
        raise ValueError(f"{schema.name} has room for {schema.data_bits} zeros and ones")
    code, data = bch_code(schema.errors), data.ljust(schema.data_bits, "0")
    parity = code.parity(int(data, 2) << schema.filling)
    text = f"{data}{parity:0{code.parity_bits}b}{schema.version:0{VERSION_BITS}b}"
    return np.array([bit == "1" for bit in text])


def read_bits(bits: NDArray[np.bool_]) -> TrustMarkBits | None:
    """The likeliest meaning of (100,) bits; None where they can be corrected to nothing.

    One that is found comes first, then that of the schema that they name.
    """

    def doubt(each: TrustMarkBits) -> tuple[bool, bool, float]:
        return not each.is_found, each.is_of_another, each.false_alarms

    return min(_meanings(bits), key=doubt, default=None)


def _meanings(bits: NDArray[np.bool_]) -> Iterator[TrustMarkBits]:
    text = "".join("01"[int(bit)] for bit in bits)
    stated = int(text[PROTECTED:], 2)
    for schema in SCHEMAS:
        code = bch_code(schema.errors)
        filled = text[: schema.data_bits] + "0" * schema.filling + text[schema.data_bits : PROTECTED]
        corrected = code.corrected(int(filled, 2), len(filled))
        if corrected is None:
            continue
        word, turned = f"{corrected[0]:0{len(filled)}b}", corrected[1]
        if "1" in word[schema.data_bits : schema.data_bits + schema.filling]:
            continue  # a zero that was never written can't have been turned
        data, wrong = word[: schema.data_bits], (stated ^ schema.version).bit_count()
        chance = _chance(schema, turned, wrong)
        if schema == OURS and own_payload(data) is not None:
            chance *= 2.0 ** -(_OWN_CHECK_BITS + 16)  # the check and the version of its payload
        yield TrustMarkBits(schema, data, turned + wrong, wrong > 0, chance)


def _chance(schema: Schema, turned: int, wrong: int) -> float:
    """How many of random words are as near to a word of a schema, its version included; over all schemas."""
    near = sum(math.comb(PROTECTED, count) for count in range(turned + 1))
    alike = sum(math.comb(VERSION_BITS, count) for count in range(wrong + 1))
    share = near * 2.0 ** (schema.data_bits - PROTECTED) * alike / 2**VERSION_BITS
    return min(1.0, len(SCHEMAS) * share)


def own_data(payload: Payload) -> str:
    """What we write: the 48 bits of our watermark's payload, and a further check."""
    word = int(payload.hex, 16)
    return f"{word:0{BITS}b}{_own_check(word):0{_OWN_CHECK_BITS}b}"


def own_payload(data: str) -> Payload | None:
    """The payload of data that `own_data` gave; None where it is none."""
    word, check = int(data[:BITS], 2), int(data[BITS:], 2)
    return payload_of_hex(f"{word:0{BITS // 4}x}") if check == _own_check(word) else None


def _own_check(word: int) -> int:
    return zlib.crc32(b"tintype" + word.to_bytes(BITS // 8, "big")) & (1 << _OWN_CHECK_BITS) - 1
