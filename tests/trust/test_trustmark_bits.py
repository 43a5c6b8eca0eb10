"""TrustMark's 100 bits: others read what is written, errors are put right, and chance is no mark."""

from __future__ import annotations

import numpy as np
import pytest

from tintype.trust.bch import ORDER, bch_code
from tintype.trust.payload import Payload
from tintype.trust.trustmark_bits import (
    BCH_5,
    LENGTH,
    OURS,
    PROTECTED,
    SCHEMAS,
    SUPER,
    Schema,
    own_data,
    own_payload,
    read_bits,
    written,
)

# A word of BCH_5 that the tests of Adobe's own Rust reader have (adobe/trustmark, rust/src/bits.rs).
DATA = "1011011110011000111111000000011111011111011100000110110110111"
WORD = f"{DATA}000110010101101111010011011000010000001"
PAYLOAD = Payload(0xBADCAB, 0x5A)


def bits(text: str) -> np.ndarray:
    return np.array([bit == "1" for bit in text])


def turned(word: np.ndarray, places: np.ndarray) -> np.ndarray:
    changed = word.copy()
    changed[places] ^= True
    return changed


def random_data(schema: Schema, random: np.random.Generator) -> str:
    return "".join(random.choice(["0", "1"], schema.data_bits))


def test_what_is_written_is_what_others_write() -> None:
    assert np.array_equal(written(DATA, BCH_5), bits(WORD))


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.name)
def test_so_many_errors_are_put_right_and_no_more(schema: Schema) -> None:
    random = np.random.default_rng(schema.version)
    for _ in range(12):
        data = random_data(schema, random)
        word = written(data, schema)
        assert len(word) == LENGTH
        for count in range(schema.errors + 1):
            found = read_bits(turned(word, random.permutation(PROTECTED)[:count]))
            assert found is not None
            assert (found.schema, found.data, found.turned) == (schema, data, count)
        beyond = read_bits(turned(word, random.permutation(PROTECTED)[: schema.errors + 1]))
        assert beyond is None or beyond.data != data or beyond.schema != schema


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.name)
def test_the_generator_divides_every_word(schema: Schema) -> None:
    code = bch_code(schema.errors)
    assert code.parity_bits == 7 * schema.errors == PROTECTED - schema.data_bits
    word = (1 << ORDER) | 1  # x^127 - 1 has every element of the field for a root, so that the generator divides it
    while word.bit_length() >= code.generator.bit_length():
        word ^= code.generator << (word.bit_length() - code.generator.bit_length())
    assert word == 0


def test_two_words_are_far_apart() -> None:
    """A code that corrects so many errors has words that differ in twice as many bits and one."""
    random = np.random.default_rng(0)
    for schema in SCHEMAS:
        words = [written(random_data(schema, random), schema)[:PROTECTED] for _ in range(60)]
        one_apart = written("0" * (schema.data_bits - 1) + "1", schema)[:PROTECTED]
        assert one_apart.sum() >= 2 * schema.errors + 1
        apart = [np.sum(one != other) for i, one in enumerate(words) for other in words[:i]]
        assert min(apart) >= 2 * schema.errors + 1


def test_a_turned_version_is_put_right_too() -> None:
    word = bits(WORD)
    for place in range(PROTECTED, LENGTH):
        found = read_bits(turned(word, np.array([place])))
        assert found is not None
        assert (found.schema, found.data, found.turned, found.is_found) == (BCH_5, DATA, 1, True)


def test_what_chance_gives_is_no_mark() -> None:
    """Random words can often be corrected to something, of BCH_3 one in 14; as marks none is taken."""
    random = np.random.default_rng(3)
    read = [read_bits(random.random(LENGTH) < 0.5) for _ in range(800)]
    corrected = [each for each in read if each is not None]
    assert 0.05 < len(corrected) / len(read) < 0.15
    assert not any(each.is_found for each in corrected)
    for uniform in (np.zeros(LENGTH, bool), np.ones(LENGTH, bool)):
        found = read_bits(uniform)
        assert found is None or found.payload is None


def test_doubt_grows_with_what_had_to_be_turned() -> None:
    word, places = bits(WORD), np.arange(5)
    chances = []
    for count in range(6):
        found = read_bits(turned(word, places[:count]))
        assert found is not None
        chances.append(found.false_alarms)
    assert chances == sorted(chances)
    assert chances[0] < 1e-10
    assert chances[2] < 1e-6 < chances[4]  # somebody else's, whose data have no check


def test_our_own_are_known_whatever_had_to_be_turned() -> None:
    word = written(own_data(PAYLOAD))
    for count in range(OURS.errors + 1):
        found = read_bits(turned(word, np.arange(count) * 7))
        assert found is not None
        assert found.is_found
        assert found.payload == PAYLOAD
        assert found.binding == f"1*{own_data(PAYLOAD)}"
    assert own_payload(DATA) is None
    assert own_payload(own_data(PAYLOAD)[:-1] + "01"[own_data(PAYLOAD)[-1] == "0"]) is None


@pytest.mark.parametrize("data", ["1" * 62, "12", "x"])
def test_what_is_no_data_is_not_written(data: str) -> None:
    with pytest.raises(ValueError, match="zeros and ones"):
        written(data)


def test_short_data_are_filled_up() -> None:
    found = read_bits(written("101", SUPER))
    assert found is not None
    assert found.data == "101" + "0" * 37
