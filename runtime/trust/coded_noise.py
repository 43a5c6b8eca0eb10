"""Starting noise whose signs say who drew it; which of its numbers say what, a key says.

As Gaussian Shading (Yang et al. 2024, CVPR, section 4): magnitudes are those that the noise has anyway, signs are a
word, repeated until it fills the latents, exclusive or a stream of a key. A fair stream makes fair signs of any word,
so that the noise is distributed as it was, and so are the pictures. Whoever finds the noise again, by way of the model
that drew it, can look for the word.

Were the stream the same for all pictures, they would resemble one another, so each has a nonce. It follows from the key
and the picture's seed alone, as magnitudes follow from the seed: a request gives the same bytes again, and a seed keeps
its composition when words or steps change. Who checks a picture has neither its seed nor its record, so all nonces are
tried. A nonce is one of a few streams, and how far it is turned around: all turns of a stream together take a Fourier
transform for each bit of the word. There are NONCES of them, or one for each number of larger latents: two pictures of
one size have their signs in common with a chance of 1 in 262,144, and never their magnitudes. More would cost time and
evidence; a nonce that stood within the noise itself would need signs that are the same in all pictures.

Where there is no word of the key, its stream is independent of what is found, and each bit's sum is one of numbers with
random signs. The sum of their squares has, whatever the numbers are, no larger exponential moments than a chi-squared
(the moments of such sums are at most a Gaussian's: Khintchine), which bounds what chance can give (Chernoff).
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
from tintype.request.request import LEAST_CODED_CELLS
from tintype.trust.keys import key_name
from tintype.trust.pattern import PUBLIC_KEY
from tintype.trust.payload import CHECK_BITS, MAKER_BITS, VERSION, check_of, tried_both_ways

WORD_BITS = 2 + MAKER_BITS + CHECK_BITS  # a version, the installation, a check
NONCES = 2**18
MOST_FALSE_ALARMS = 1e-6  # of pictures that were drawn without, over all nonces and keys
CLIP = 2.0  # standard deviations: what is found beyond is no surer
_TAG = b"tintype coded noise 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class CodedNoiseReading:
    """What the noise says that a picture seems to begin with.

    confidence: 1 less the share of pictures drawn without, for which this much would be found.
    """

    found: bool
    confidence: float
    payload: str | None = None  # 10 hexadecimal digits
    maker: str | None = None  # of these the installation's, 6
    key: str | None = None  # public, or an operator's


NOT_FOUND = CodedNoiseReading(found=False, confidence=0.0)


@dataclass(frozen=True, slots=True)
class NoiseCoder:
    """Who codes. maker: the number of an installation, MAKER_BITS bits."""

    maker: int
    key: bytes = PUBLIC_KEY

    def coded(self, noise: Latents, seeds: Sequence[int]) -> Latents:
        """Noise, (pictures, channels, height, width), with its signs; a seed for each picture."""
        signs = np.stack([self._signs(seed, noise[0].size) for seed in seeds]).reshape(noise.shape)
        return np.where(signs == 0, noise, np.abs(noise) * signs).astype(np.float32)

    def facts(self, seed: int, cells: int) -> CodedNoise:
        """What a record says of a picture's."""
        return CodedNoise(payload=_hex(self._word), key=key_name(self.key), nonce=nonce_of(self.key, seed, cells))

    def as_in(self, coded: CodedNoise | None) -> NoiseCoder:
        """The one who coded the noise of a record, with the key that is here. RecordError where it doesn't say."""
        maker = None if coded is None else _maker(_number(coded.payload))
        if maker is None:
            raise RecordError(
                "the record's coded noise has no payload that is one", fix="give a file as it was written"
            )
        return NoiseCoder(maker, self.key)

    @property
    def _word(self) -> int:
        return _with_check(VERSION << MAKER_BITS | self.maker)

    def _signs(self, seed: int, cells: int) -> NDArray[np.float32]:
        """(cells,), 1 and -1, and 0 for the few that are left over when the word was repeated as often as it goes."""
        stream, turn = divmod(nonce_of(self.key, seed, cells), cells)
        word = np.array([1 - 2 * (self._word >> place & 1) for place in range(WORD_BITS)], np.float32)
        whole = cells // WORD_BITS * WORD_BITS
        signs = np.zeros(cells, np.float32)
        signs[:whole] = np.tile(word, cells // WORD_BITS) * _stream(self.key, stream, cells)[:whole]
        return np.roll(signs, turn)


def streams_for(cells: int) -> int:
    """How many streams a key has for latents of that many numbers."""
    return -(-NONCES // cells)


def nonce_of(key: bytes, seed: int, cells: int) -> int:
    """0 to streams_for(cells) * cells - 1: the stream, times the numbers, and how far it is turned."""
    digest = hashlib.sha256(b"%b nonce|%b|%d" % (_TAG, key, seed)).digest()
    return int.from_bytes(digest, "big") % (streams_for(cells) * cells)


def read(noise: Latents, keys: Sequence[bytes]) -> CodedNoiseReading:
    """Look for a word in the noise that a picture, (1, channels, height, width), seems to begin with.

    keys: that are tried. What chance would give is counted over all of them.
    """
    cells = noise.size
    if cells < LEAST_CODED_CELLS:
        return NOT_FOUND
    best = max((match for key in keys for match in _matches(noise.reshape(-1), key)), key=lambda match: match.energy)
    tried = len(keys) * streams_for(cells) * cells
    false_alarms = min(1.0, tried * chance_of(best.energy))
    if false_alarms > MOST_FALSE_ALARMS:
        return NOT_FOUND
    word = next((each for each in tried_both_ways(best.soft) if _maker(each) is not None), None)
    maker = None if word is None else _maker(word)
    return CodedNoiseReading(
        found=True,
        confidence=1.0 - false_alarms,
        payload=None if word is None else _hex(word),
        maker=None if maker is None else f"{maker:06x}",
        key=key_name(best.key),
    )


def chance_of(energy: float) -> float:
    """An upper bound of how often chance gives as much at one nonce: Chernoff's, of a chi-squared of WORD_BITS."""
    half = WORD_BITS / 2
    return 1.0 if energy <= WORD_BITS else math.exp(half - energy / 2 + half * math.log(energy / WORD_BITS))


@dataclass(frozen=True, slots=True, eq=False)
class _Match:
    energy: float  # the sum of the bits' squares
    soft: NDArray[np.float32]  # (WORD_BITS,) standard deviations above 0 for a bit that is 1; highest first
    key: bytes


def _matches(noise: NDArray[np.float32], key: bytes) -> Iterator[_Match]:
    """The best turn of each stream."""
    cells = len(noise)
    scale = math.sqrt(float(np.mean(np.square(noise, dtype=np.float64)))) or 1.0
    values = np.clip(noise / scale, -CLIP, CLIP).astype(np.float32)
    spectrum = np.fft.rfft(values)
    ones = np.fft.rfft(_by_bit(np.ones(cells, np.float32)), axis=1)
    squares = np.fft.irfft(np.fft.rfft(values**2) * ones.conj(), cells, axis=1)
    per_spread = 1 / np.sqrt(np.maximum(squares, np.float32(1e-3)))
    for stream in range(streams_for(cells)):
        known = np.fft.rfft(_by_bit(_stream(key, stream, cells)), axis=1)
        sums = np.fft.irfft(spectrum * known.conj(), cells, axis=1) * per_spread
        energies = np.einsum("bt,bt->t", sums, sums)
        turn = int(np.argmax(energies))
        yield _Match(float(energies[turn]), -sums[::-1, turn], key)


def _by_bit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(WORD_BITS, cells): a stream's numbers that carry each bit, from the lowest on; the others are 0."""
    apart = np.zeros((WORD_BITS, len(values)), np.float32)
    places = np.arange(len(values) // WORD_BITS * WORD_BITS)
    apart[places % WORD_BITS, places] = values[places]
    return apart


def _stream(key: bytes, stream: int, cells: int) -> NDArray[np.float32]:
    """(cells,) fair signs of a key."""
    drawn = hashlib.shake_256(b"%b stream|%b|%d|%d" % (_TAG, key, stream, cells)).digest(-(-cells // 8))
    return 1 - 2 * np.unpackbits(np.frombuffer(drawn, np.uint8))[:cells].astype(np.float32)


def _with_check(number: int) -> int:
    return number << CHECK_BITS | check_of(number)


def _maker(word: int) -> int | None:
    """Of a word; None where it is none."""
    number = word >> CHECK_BITS
    is_one = number >> MAKER_BITS == VERSION and _with_check(number) == word
    return number & (1 << MAKER_BITS) - 1 if is_one else None


def _hex(word: int) -> str:
    return f"{word:0{WORD_BITS // 4}x}"


def _number(text: str) -> int:
    try:
        return int(text, 16) if len(text) == WORD_BITS // 4 else 0
    except ValueError:
        return 0
