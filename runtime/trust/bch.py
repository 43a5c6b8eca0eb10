"""BCH codes of length 127 over GF(2): words that put so many errors of their own right (Bose, Ray-Chaudhuri 1960).

The field is GF(2^7) with x^7 + x^3 + 1. Words are whole numbers whose highest bit is the first one. Decoding is by
syndromes, Berlekamp and Massey's algorithm (Massey 1969) and Chien's search (1964).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

ORDER = 127  # of the field's multiplicative group, and the length of a whole code word
_POLYNOMIAL = 0b10001001


def _powers() -> tuple[list[int], list[int]]:
    """Powers of the field's generator, twice around so that sums of two logarithms need no modulus; and logarithms."""
    powers, logarithms, value = [], [0] * (ORDER + 1), 1
    for exponent in range(ORDER):
        powers.append(value)
        logarithms[value] = exponent
        value <<= 1
        if value > ORDER:
            value ^= _POLYNOMIAL
    return powers * 2, logarithms


_POWERS, _LOGARITHMS = _powers()


def _product(a: int, b: int) -> int:
    return _POWERS[_LOGARITHMS[a] + _LOGARITHMS[b]] if a and b else 0


def _quotient(a: int, b: int) -> int:
    return _POWERS[_LOGARITHMS[a] - _LOGARITHMS[b] + ORDER] if a else 0


@dataclass(frozen=True, slots=True)
class Bch:
    """A code that corrects up to `errors` of its bits. Open it with `bch_code`."""

    errors: int
    generator: int  # a polynomial over GF(2), its coefficients as bits
    parity_bits: int

    def parity(self, message: int) -> int:
        """The parity_bits that follow a message: the remainder of message * x^parity_bits by the generator."""
        rest = message << self.parity_bits
        while rest.bit_length() > self.parity_bits:
            rest ^= self.generator << (rest.bit_length() - self.generator.bit_length())
        return rest

    def corrected(self, word: int, length: int) -> tuple[int, int] | None:
        """A word of so many bits, message then parity, and how many were put right; None beyond what it corrects."""
        places = [place for place in range(word.bit_length()) if word >> place & 1]
        syndromes = [_value_at(places, power) for power in range(1, 2 * self.errors + 1)]
        if not any(syndromes):
            return word, 0
        locator = _locator(syndromes)
        wrong = [place for place in range(length) if _evaluated(locator, (ORDER - place) % ORDER) == 0]
        if len(locator) - 1 > self.errors or len(wrong) != len(locator) - 1:
            return None
        return word ^ sum(1 << place for place in wrong), len(wrong)


@functools.cache
def bch_code(errors: int) -> Bch:
    """The code that corrects so many errors: its generator has the odd powers up to twice as many for roots."""
    generator, conjugates = 1, set[int]()
    for odd in range(1, 2 * errors, 2):
        if odd not in conjugates:
            orbit = [odd * 2**fold % ORDER for fold in range(7)]
            conjugates.update(orbit)
            generator = _carryless(generator, _minimal_polynomial(orbit))
    return Bch(errors, generator, generator.bit_length() - 1)


def _value_at(places: list[int], power: int) -> int:
    """A polynomial over GF(2), by the places of its ones, at a power of the field's generator."""
    value = 0
    for place in places:
        value ^= _POWERS[place * power % ORDER]
    return value


def _minimal_polynomial(orbit: list[int]) -> int:
    """Of a power of the field's generator, by the powers that it shares it with; its coefficients are 0 and 1."""
    coefficients = [1]  # from the lowest on
    for power in orbit:
        times = [_product(each, _POWERS[power]) for each in coefficients]
        coefficients = [low ^ high for low, high in zip([*times, 0], [0, *coefficients], strict=True)]
    return sum(coefficient << place for place, coefficient in enumerate(coefficients))


def _carryless(a: int, b: int) -> int:
    """The product of two polynomials over GF(2)."""
    product = 0
    for place in range(b.bit_length()):
        product ^= (a << place) * (b >> place & 1)
    return product


def _locator(syndromes: list[int]) -> list[int]:
    """The shortest recurrence that gives the syndromes (Massey 1969), from the lowest coefficient on."""
    current, previous, length, gap, last = [1], [1], 0, 1, 1
    for index, syndrome in enumerate(syndromes):
        discrepancy = syndrome
        for back in range(1, length + 1):
            if back < len(current):
                discrepancy ^= _product(current[back], syndromes[index - back])
        if discrepancy == 0:
            gap += 1
            continue
        factor = _quotient(discrepancy, last)
        shifted = [0] * gap + [_product(factor, each) for each in previous]
        size = max(len(current), len(shifted))
        changed = [
            (current[at] if at < len(current) else 0) ^ (shifted[at] if at < len(shifted) else 0) for at in range(size)
        ]
        if 2 * length <= index:
            previous, last, length, gap = current, discrepancy, index + 1 - length, 1
        else:
            gap += 1
        current = changed
    while current[-1] == 0:
        current.pop()
    return current


def _evaluated(coefficients: list[int], power: int) -> int:
    """A polynomial at a power of the field's generator."""
    value = 0
    for place, coefficient in enumerate(coefficients):
        value ^= _product(coefficient, _POWERS[power * place % ORDER])
    return value
