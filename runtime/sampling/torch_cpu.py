"""torch.randn on CPU, bit for bit, without torch.

The words are MT19937's. From 16 values on torch computes Box-Muller in blocks of 16 with single-precision polynomials
(Cephes; Moshier 1989) whose products and sums its compiler fuses, so each fused multiply-add is rounded once here as
well: without that, about one value in a hundred differs in its last bit. Shorter draws are computed in double
precision and share a spare value from draw to draw. This is what torch does on x86-64 with AVX2 or better (every PC
since about 2015); its builds for other processors differ from it in last bits.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tintype.arrays import Latents

_BLOCK = 16
_WORD = 0xFFFFFFFF
_STATE_WORDS = 624

_LOG_POLYNOMIAL = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
_LN2_LOW, _LN2_HIGH = np.float32(-2.12194440e-4), np.float32(0.693359375)
_SQRT_HALF = np.float32(0.707106781186547524)
_FOUR_OVER_PI = np.float32(1.27323954473516)
_QUARTER_PI_PARTS = (0.78515625, 2.4187564849853515625e-4, 3.77489497744594108e-8)
_COS_POLYNOMIAL = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
_SIN_POLYNOMIAL = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)


def fused_multiply_add(a: Latents, b: Latents | np.float32, c: Latents | np.float32) -> Latents:
    """a * b + c in float32 with one rounding.

    The product is exact in double precision; the sum is rounded to odd there, which makes the second rounding, to
    float32, come out as if it were the only one (Boldo & Melquiond 2008).
    """
    product = np.multiply(a, b, dtype=np.float64)
    addend = np.broadcast_to(np.asarray(c, dtype=np.float64), product.shape)
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)
    bits = total.view(np.int64)
    towards_error = np.where((error > 0) == (total > 0), 1, -1)
    odd = np.where((error != 0) & (bits & 1 == 0), bits + towards_error, bits)
    return odd.view(np.float64).astype(np.float32)


def _horner(coefficients: tuple[float, ...], x: Latents) -> Latents:
    total = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total = fused_multiply_add(total, x, np.float32(coefficient))
    return total


def _log(x: Latents) -> Latents:
    """Natural logarithm of values in (0, 1]."""
    mantissa, power = np.frexp(x)
    below = mantissa < _SQRT_HALF
    exponent = (power - below).astype(np.float32)
    x = np.where(below, mantissa - np.float32(1) + mantissa, mantissa - np.float32(1))
    square = x * x
    tail = fused_multiply_add(_horner(_LOG_POLYNOMIAL, x) * x, square, exponent * _LN2_LOW)
    tail = fused_multiply_add(square, np.float32(-0.5), tail)
    return fused_multiply_add(exponent, _LN2_HIGH, x + tail)


def _sin_cos(x: Latents) -> tuple[Latents, Latents]:
    """Sine and cosine of angles in [0, 2 pi]."""
    octant = ((x * _FOUR_OVER_PI).astype(np.int32) + 1) & ~1
    turns = octant.astype(np.float32)
    for part in _QUARTER_PI_PARTS:
        x = fused_multiply_add(turns, np.float32(-part), x)
    square = x * x
    cosine = fused_multiply_add(_horner(_COS_POLYNOMIAL, square) * square, square, square * np.float32(-0.5))
    cosine = cosine + np.float32(1)
    sine = fused_multiply_add(_horner(_SIN_POLYNOMIAL, square) * square, x, x)
    straight = octant & 2 == 0
    sign_of_sine = np.where(octant & 4, np.float32(-1), np.float32(1))
    sign_of_cosine = np.where((octant - 2) & 4, np.float32(1), np.float32(-1))
    return np.where(straight, sine, cosine) * sign_of_sine, np.where(straight, cosine, sine) * sign_of_cosine


def _box_muller_blocks(uniforms: Latents) -> Latents:
    """Normals from uniforms, both flat and a multiple of 16 long: a block's first 8 give radii, its last 8 angles."""
    blocks = uniforms.reshape(-1, 2, _BLOCK // 2)
    radius = np.sqrt(np.float32(-2) * _log(np.float32(1) - blocks[:, 0]))
    sine, cosine = _sin_cos(np.float32(2 * math.pi) * blocks[:, 1])
    return (np.stack([radius * cosine, radius * sine], axis=1) + np.float32(0)).reshape(-1)


def _mersenne_twister(seed: int) -> np.random.MT19937:
    """MT19937 (Matsumoto & Nishimura 1998), seeded as its authors do from the low 32 bits of the seed."""
    key = [seed & _WORD]
    for index in range(1, _STATE_WORDS):
        key.append((1812433253 * (key[-1] ^ (key[-1] >> 30)) + index) & _WORD)
    generator = np.random.MT19937()
    generator.state = {
        "bit_generator": "MT19937",
        "state": {"key": np.array(key, dtype=np.uint32), "pos": _STATE_WORDS},
    }
    return generator


class TorchCpuStream:
    """One picture's normals: torch.randn(count, generator=torch.Generator().manual_seed(seed)), draw after draw."""

    def __init__(self, seed: int) -> None:
        self._words = _mersenne_twister(seed)
        self._spare: float | None = None

    def draw(self, count: int) -> Latents:
        """`count` standard normals, flat."""
        if count < _BLOCK:
            return np.array([self._one() for _ in range(count)], dtype=np.float32)
        uniforms = self._uniforms(count)
        whole = count - count % _BLOCK
        values = np.concatenate([_box_muller_blocks(uniforms[:whole]), uniforms[whole:]])
        if whole < count:  # torch draws the last 16 values anew, over the end of the last whole block
            values[-_BLOCK:] = _box_muller_blocks(self._uniforms(_BLOCK))
        return values

    def _uniforms(self, count: int) -> Latents:
        words: NDArray[np.uint64] = self._words.random_raw(count)
        return (words & np.uint64(2**24 - 1)).astype(np.float32) * np.float32(2.0**-24)

    def _one(self) -> float:
        if self._spare is not None:
            value, self._spare = self._spare, None
            return value
        turn, depth = self._double(), self._double()
        radius = math.sqrt(-2.0 * math.log1p(-depth))
        self._spare = radius * math.sin(2.0 * math.pi * turn)
        return radius * math.cos(2.0 * math.pi * turn)

    def _double(self) -> float:
        high, low = (int(word) for word in self._words.random_raw(2))
        return ((high << 32 | low) & (2**53 - 1)) * 2.0**-53
