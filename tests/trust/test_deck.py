"""An operator's deck: cards to the quota and by the seed, beside the nouns of a prompt, and files that are none."""

from __future__ import annotations

import collections
import itertools
import json
import random
import re
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from decks import KIOSK, deck_of, prompts

import tintype
from tintype.bounds import MAX_DECK_BYTES, MAX_DECK_GROUPS, MAX_DECK_WORDS, MAX_PROMPT_BYTES
from tintype.trust.deck import Deck, deal_cards, parse_deck, read_deck


@pytest.fixture(scope="module")
def deck() -> Deck:
    return parse_deck(json.dumps(KIOSK).encode(), "x")


@pytest.fixture(scope="module")
def postcard() -> Iterator[tintype.Pipeline]:
    with tintype.load("postcard", provider="cpu") as pipeline:
        yield pipeline


def test_cards_come_as_often_as_their_shares_of_any_number_say() -> None:
    chance = random.Random(0)
    for _ in range(300):
        weights = [chance.randint(1, 9) for _ in range(chance.randint(2, 12))]
        shares = [Fraction(weight, sum(weights)) for weight in weights]
        count = chance.randint(1, 80)
        cards = collections.Counter(deal_cards(shares, count, str(chance.random())))
        assert cards.total() == count
        for card, share in enumerate(shares):
            assert abs(cards[card] - share * count) < 1
            if (share * count).denominator == 1:
                assert cards[card] == share * count


def test_what_a_share_leaves_over_is_met_over_many_runs() -> None:
    shares = [Fraction(1, 2), Fraction(1, 3), Fraction(1, 6)]
    for count in (1, 4):
        cards = collections.Counter(card for seed in range(1500) for card in deal_cards(shares, count, str(seed)))
        for card, share in enumerate(shares):
            assert cards[card] / cards.total() == pytest.approx(float(share), abs=0.04)


def test_cards_follow_the_seed_alone_and_lie_in_no_order() -> None:
    shares = [Fraction(1, 8)] * 8
    hands = [tuple(deal_cards(shares, 8, str(seed))) for seed in range(50)]
    assert hands == [tuple(deal_cards(shares, 8, str(seed))) for seed in range(50)]
    assert len(set(hands)) == 50
    assert all(sorted(hand) == list(range(8)) for hand in hands)
    assert deal_cards(shares, 8, "7") == [3, 2, 1, 7, 5, 0, 6, 4]  # so that another numpy deals the same


def test_decimals_are_the_shares_that_they_say() -> None:
    deck = deck_of(deck={"red": 0.7, "orange": 0.2, "blue": 0.1})
    assert deck.groups["colour"].shares == (Fraction(7, 10), Fraction(1, 5), Fraction(1, 10))


@pytest.mark.parametrize("count", [4, 8, 12])
def test_a_run_meets_its_quotas(postcard: tintype.Pipeline, count: int) -> None:
    words = collections.Counter(prompt.split()[1] for prompt in prompts(deck_of(), postcard, "a car", count=count))
    assert words == {"red": count / 2, "orange": count / 4, "blue": count / 4}
    assert len(set(map(tuple, (prompts(deck_of(), postcard, "a car", count=8, seed=s) for s in range(20))))) > 10


@pytest.mark.parametrize(
    "prompt",
    ["a red car", "a CAR, Silver", "an óränge car", "a vіolet-ish car", "a car AND the blue sky:0.5",
     "[red:a car:0.5]", "a house", "", "a scar", "a cart", "a car-park", "a caar", "oscar", "BREAK"],
)  # fmt: skip
def test_a_prompt_that_says_it_or_names_no_noun_is_left_alone(postcard: tintype.Pipeline, prompt: str) -> None:
    assert prompts(deck_of(), postcard, prompt, count=3) == []


def test_what_is_unwanted_is_named_as_well(postcard: tintype.Pipeline) -> None:
    assert prompts(deck_of(), postcard, "a car", negative_prompt="red") == []
    assert len(prompts(deck_of(), postcard, "a car", negative_prompt="rain")) == 1


@pytest.mark.parametrize(
    ("prompt", "drawn"),
    [
        ("a car", "a WORD car"), ("Car!", "WORD Car!"), ("two cars.", "two WORD cars."), ("lorries", "WORD lorries"),
        ("a cаr", "a WORD cаr"), ("a ｃａｒ", "a WORD ｃａｒ"), ("a cár", "a WORD cár"), ("a c4r", "a WORD c4r"),
        ("a car's door", "a WORD car's door"), ("a caaaar", "a WORD caaaar"), ("a c-a-r", "a WORD c-a-r"),
        ("a (car:1.2)", "a (WORD car:1.2)"), ("(a car:1.2)", "(a WORD car:1.2)"), ("((car))", "((WORD car))"),
        ("a [car]", "a [WORD car]"), ("[car:boat:0.5]", "[WORD car:boat:0.5]"), ("[a|car]", "[a|WORD car]"),
        ("[boat:car:12]", "[boat:WORD car:12]"), ("[car::0.5]", "[WORD car::0.5]"),
        ("[a [car]:b:3]", "[a [WORD car]:b:3]"),
        ("a car AND a car:0.7", "a WORD car AND a WORD car:0.7"), ("a tree BREAK car", "a tree BREAK WORD car"),
        ("a hot-air balloon", "a WORD hot-air balloon"), ("hot air balloons", "WORD hot air balloons"),
        ("hot (air balloon:1.1)", "WORD hot (air balloon:1.1)"), (r"\(car\)", r"\(WORD car\)"),
        ("a\n car", "a\n WORD car"), ("car,car", "WORD car,WORD car"),
    ],
)  # fmt: skip
def test_a_word_stands_beside_the_noun_and_the_notation_stays(
    postcard: tintype.Pipeline, prompt: str, drawn: str
) -> None:
    deck = deck_of(deck={"red": 1, "blue": 1})
    (found,) = prompts(deck, postcard, prompt)
    word = "red" if "red" in found else "blue"
    assert found == drawn.replace("WORD", word)


def test_an_article_is_that_of_the_word_after_it(postcard: tintype.Pipeline) -> None:
    deck = deck_of(deck={"orange": 1, "amber": 1})
    both = {"orange", "amber"}
    for prompt, article in (("a car", "an"), ("A (car:1.2)", "An"), ("an automobile", "an"), ("an old car", None)):
        (found,) = prompts(deck, postcard, prompt)
        assert both & set(re.findall(r"\w+", found))
        assert found.startswith(f"{article} " if article else "an old ")
    european = deck_of(deck={"European": 1, "Japanese": 1})
    (found,) = prompts(european, postcard, "an automobile")
    assert found.startswith("a ")
    (found,) = prompts(deck_of(place="after", deck={"at sea": 1, "ashore": 1}), postcard, "a car, still")
    assert re.fullmatch("a car (at sea|ashore), still", found)


def test_each_noun_has_a_deck_of_its_own_and_one_word_in_a_picture(postcard: tintype.Pipeline) -> None:
    pairs = []
    for found in prompts(deck_of(), postcard, "a car, a lorry, the cars", count=16):
        first, second, third = re.fullmatch(r"an? (\w+) car, an? (\w+) lorry, the (\w+) cars", found).groups()  # type: ignore[union-attr]
        assert first == third
        pairs.append((first, second))
    for side in zip(*pairs, strict=True):
        assert collections.Counter(side) == {"red": 8, "orange": 4, "blue": 4}
    assert len(set(pairs)) > 3


def test_several_groups_deal_in_the_order_of_the_file(postcard: tintype.Pipeline, deck: Deck) -> None:
    found = prompts(deck, postcard, "a car by a house", count=8)
    shape = r"an? (red|orange|blue) (small|large) car by a (small|large) house"
    assert all(re.fullmatch(shape, each) for each in found)
    (found_one,) = prompts(deck, postcard, "a small car by a house")
    assert re.fullmatch("a small (red|orange|blue) car by a house", found_one)
    (found_one,) = prompts(deck, postcard, "a small car")
    assert re.fullmatch("a small (red|orange|blue) car", found_one)


@pytest.mark.parametrize("text", ["car ", "hot air ", "c4r ", "саr ", "(car:1.1)", "h%x "])
def test_no_prompt_takes_it_long(deck: Deck, text: str) -> None:
    words = (text % number if "%" in text else text for number in range(MAX_PROMPT_BYTES))
    prompt = "".join(itertools.islice(words, MAX_PROMPT_BYTES // len(text.encode())))[:MAX_PROMPT_BYTES]
    begun = time.process_time()
    deck.nouns.places_in(prompt, prompt)
    assert time.process_time() - begun < 2


BAD: list[tuple[dict[str, Any], str]] = [
    ({"nouns": []}, "no nouns"), ({"nouns": ["--"]}, "1 to 60 letters"), ({"nouns": ["ca*"]}, r"\* has no meaning"),
    ({"nouns": ["a b c d e"]}, "more than 4 words"), ({"nouns": "car"}, "should be a list"),
    ({"deck": {"red": 1}}, "2 are the least"), ({"deck": {"red": 1, "bl(ue": 1}}, "can't be put"),
    ({"deck": {"red": 1, "a AND b": 1}}, "can't be put"), ({"deck": {"red": 1, " blue": 1}}, "can't be put"),
    ({"deck": {"red": 1, "blue\n": 1}}, "can't be put"), ({"deck": {"red": 1, "12": 1}}, "can't be put"),
    ({"deck": {"red": 1, "x" * 61: 1}}, "can't be put"), ({"deck": {"red": 1, "blue": 0}}, "share of 'blue'"),
    ({"deck": {"red": 1, "blue": -1}}, "share of 'blue'"), ({"deck": {"red": 1, "blue": 1e300}}, "share of 'blue'"),
    ({"deck": {"red": 1, "blue": "1"}}, "should be a number"), ({"named": ["a*b"]}, "at the end"),
    ({"place": "under"}, "before or after"), ({"name": ""}, "no name"), ({"colour": 1}, "'colour' is none of name"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "problem"), BAD, ids=[json.dumps(changes)[:40] for changes, _ in BAD])
def test_a_deck_that_is_none_is_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(tintype.RequestError, match=problem) as refused:
        deck_of(**changes)
    assert refused.value.fix == "mend it; runtime/DEAL.md has the form"


def test_a_deck_is_bounded(tmp_path: Path) -> None:
    group = KIOSK["groups"][0]
    many = [{**group, "name": f"g{number}"} for number in range(MAX_DECK_GROUPS + 1)]
    words = [f"w{number}" for number in range(MAX_DECK_WORDS + 1)]
    for value, problem in (
        ({"groups": many}, "33 groups"), ({"groups": []}, "0 groups"), ({"groups": [group, group]}, "one name"),
        ({"groups": [{**group, "named": words}]}, "10,000 are the most"),
        ({"name": "\u202e", "groups": [group]}, "no name of a deck"),
        ({}, "groups is missing"), ([], "should be an object"), ({"grops": []}, "none of name, groups"),
    ):  # fmt: skip
        with pytest.raises(tintype.RequestError, match=problem):
            parse_deck(json.dumps(value).encode(), "x")
    long = tmp_path / "long.json"
    long.write_bytes(b" " * (MAX_DECK_BYTES + 1))
    for file, problem in ((long, "more than"), (tmp_path, "folder"), (tmp_path / "none", "No such file")):
        with pytest.raises(tintype.RequestError, match=problem):
            read_deck(file)


def test_no_bytes_make_a_deck_do_anything_but_refuse() -> None:
    """As `make fuzz` has it for strangers' files."""
    chance, whole = random.Random(1), json.dumps(KIOSK).encode()
    refused = 0
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 6)):
            place = chance.randrange(len(content))
            content[place : place + chance.randint(0, 3)] = bytes(
                chance.choices(b'{}[]",:019-eE\\u\xff\x00ax', k=chance.randint(0, 3))
            )
        try:
            parse_deck(bytes(content), "x").nouns.places_in("a car by a house, hot air balloon")
        except tintype.RequestError:
            refused += 1
    assert 200 < refused < 400


def test_the_example_of_the_guide_is_a_deck(postcard: tintype.Pipeline) -> None:
    guide = (Path(__file__).parents[2] / "runtime/DEAL.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```json\n(.*?)```", guide, flags=re.DOTALL)
    deck = parse_deck(example.encode(), "guide")
    found = prompts(deck, postcard, "a photo of a firefighter", count=10)
    assert sum(" female " in each for each in found) == 5
    assert sum(" middle-aged " in each for each in found) == 4
    assert not any("male" in each for each in prompts(deck, postcard, "a woman reading", count=4))
