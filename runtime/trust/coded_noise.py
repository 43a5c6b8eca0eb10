"""Starting noise whose signs are a key's, and say which installation drew it to whoever finds the noise again.

As Gaussian Shading (Yang et al. 2024, CVPR, section 4): magnitudes are those that the noise has anyway, signs are those
of a stream that a key hides. A fair stream's signs are fair, so the noise is distributed as it was, and so are the
pictures. Whoever has the model that drew one can find its noise again, roughly, and look for the stream.

There a word is repeated until it fills the signs, and read bit by bit. Postcard's latents have 4,096 numbers, of whose
signs six in ten come back: a word of 40 bits was found in every second picture after JPEG. Here the whole of the signs
is one word of many: a key has STREAMS of them, and each may be turned around as far as there are numbers. Which stream
it is says who drew it (WHO_BITS of the installation's number); the rest of its number, and how far it is turned, are
the nonce of the picture, without which all pictures would resemble one another.

The nonce follows from the key and the picture's seed alone, as magnitudes follow from the seed: a request gives the
same bytes again, and a seed keeps its composition when words or steps change. Who checks a picture has neither its seed
nor its record, so everything is tried, all turns of a stream by one Fourier transform. Two pictures of one installation
have their signs in common, and noises that correlate by 0.64, with a chance of 1 in 65,536 at 128 pixels (4,096
numbers) and of 1 in 262,144 at 512. A nonce within the noise itself would need signs that all pictures share.

Where the key's streams weren't used, they are independent of what is found, so that their sum with it is one of numbers
with random signs. Whatever the numbers are, such a sum's tail is at most 3.18 times a Gaussian's (Bentkus and
Dzindzalieta 2015), which over all that is tried bounds how often chance gives as much.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tintype.arrays import Latents
from tintype.errors import RecordError
from tintype.record.record import CodedNoise
from tintype.request.code_noise import LEAST_CODED_CELLS
from tintype.trust.keys import key_name
from tintype.trust.pattern import PUBLIC_KEY

WHO_BITS, NONCE_BITS = 8, 4  # of a stream's number: the lowest of the installation's, and the first of the nonce
STREAMS = 1 << WHO_BITS + NONCE_BITS
MOST_FALSE_ALARMS = 1e-6  # of pictures that were drawn without, over all that is tried
CLIP = 2.0  # standard deviations: what is found beyond is no surer
TAIL = 3.18  # times a Gaussian's
TOGETHER = 64  # streams that are transformed in one go
_TAG = b"tintype coded noise 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class CodedNoiseReading:
    """What the noise says that a picture seems to begin with.

    confidence: 1 less the share of pictures drawn without, for which this much would be found.
    """

    found: bool
    confidence: float
    payload: str | None = None  # the last two hexadecimal digits of the installation's number
    key: str | None = None  # public, or an operator's


NOT_FOUND = CodedNoiseReading(found=False, confidence=0.0)


@dataclass(frozen=True, slots=True)
class NoiseCoder:
    """Who codes. maker: the number of an installation, of which the lowest WHO_BITS count."""

    maker: int
    key: bytes = PUBLIC_KEY

    def coded(self, noise: Latents, seeds: Sequence[int]) -> Latents:
        """Noise, (pictures, channels, height, width), with its signs; a seed for each picture."""
        signs = np.stack([self._signs(seed, noise[0].size) for seed in seeds])
        return np.abs(noise) * signs.reshape(noise.shape)

    def facts(self, seed: int, cells: int) -> CodedNoise:
        """What a record says of a picture's. cells: numbers of its latents."""
        return CodedNoise(payload=_hex(self._who), key=key_name(self.key), nonce=nonce_of(self.key, seed, cells))

    def as_in(self, coded: CodedNoise | None) -> NoiseCoder:
        """The one who coded the noise of a record, with the key that is here. RecordError where it doesn't say."""
        digits = "" if coded is None else coded.payload
        if len(digits) != WHO_BITS // 4 or set(digits) - set("0123456789abcdef"):
            raise RecordError(
                "the record's coded noise has no payload that is one", fix="give a file as tintype wrote it"
            )
        return NoiseCoder(int(digits, 16), self.key)

    @property
    def _who(self) -> int:
        return self.maker & (1 << WHO_BITS) - 1

    def _signs(self, seed: int, cells: int) -> NDArray[np.float32]:
        part, turn = divmod(nonce_of(self.key, seed, cells), cells)
        return np.roll(_stream(self.key, self._who << NONCE_BITS | part, cells), turn)


def nonce_of(key: bytes, seed: int, cells: int) -> int:
    """Of a picture's seed: which of an installation's streams, times `cells`, and how far it is turned."""
    digest = hashlib.sha256(b"%b nonce|%b|%d" % (_TAG, key, seed)).digest()
    return int.from_bytes(digest, "big") % (cells << NONCE_BITS)


def read(noise: Latents, keys: Sequence[bytes]) -> CodedNoiseReading:
    """Look for a key's streams in the noise that a picture, (1, channels, height, width), seems to begin with.

    keys: that are tried. What chance would give is counted over all of them.
    """
    cells = noise.size
    if cells < LEAST_CODED_CELLS:
        return NOT_FOUND
    score, stream, key = max((*match, key) for key in keys for match in _matches(noise.reshape(-1), key))
    false_alarms = min(1.0, len(keys) * STREAMS * cells * chance_of(score))
    if false_alarms > MOST_FALSE_ALARMS:
        return NOT_FOUND
    who = _hex(stream >> NONCE_BITS)
    return CodedNoiseReading(found=True, confidence=1.0 - false_alarms, payload=who, key=key_name(key))


def chance_of(score: float) -> float:
    """A bound of how often one stream at one turn scores as much where it wasn't used. score: standard deviations."""
    return min(1.0, TAIL * 0.5 * math.erfc(score / math.sqrt(2)))


def _matches(noise: NDArray[np.float32], key: bytes) -> Iterator[tuple[float, int]]:
    """Of each lot of streams the highest score, over all turns, and whose it is."""
    cells = len(noise)
    spread = math.sqrt(float(np.mean(np.square(noise, dtype=np.float64)))) or 1.0
    values = np.clip(noise / spread, -CLIP, CLIP).astype(np.float32)
    length = float(np.linalg.norm(values)) or 1.0
    spectrum = np.fft.rfft(values)
    for first in range(0, STREAMS, TOGETHER):
        known = np.stack([_stream(key, stream, cells) for stream in range(first, first + TOGETHER)])
        sums = np.fft.irfft(spectrum * np.fft.rfft(known, axis=1).conj(), cells, axis=1)
        highest = sums.max(axis=1)
        best = int(np.argmax(highest))
        yield float(highest[best]) / length, first + best


def _stream(key: bytes, stream: int, cells: int) -> NDArray[np.float32]:
    """(cells,) fair signs of a key."""
    drawn = hashlib.shake_256(b"%b stream|%b|%d|%d" % (_TAG, key, stream, cells)).digest(-(-cells // 8))
    return 1 - 2 * np.unpackbits(np.frombuffer(drawn, np.uint8))[:cells].astype(np.float32)


def _hex(who: int) -> str:
    return f"{who:0{WHO_BITS // 4}x}"
