"""The policy `strict`: how many disguised words it sees, and how many harmless ones it takes for others.

    tintype bench words

Phrases in six languages, each in every disguise; harmless prompts beside them, among them those whose words have others
within. Disguises of `WEAK` are ones that no list of words sees through: what is measured there is how weak it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tintype.bench.measurement import Bar, Report, measurement
from tintype.families.base import Branch
from tintype.prompt.editing import StepCount, edited_prompts
from tintype.prompt.parts import parse_parts
from tintype.trust.policy import BLOCK, Policy, read_policy
from tintype.trust.wordings import texts_of

_TEXT = Path(__file__).with_name("policy-prompts.txt").read_text(encoding="utf-8")
_LINES = [line for line in _TEXT.splitlines() if line and not line.startswith("#")]
_LISTED = re.compile(r"\{(.*)\}")  # the word or words of a phrase that the policy has
PHRASES = tuple(filter(_LISTED.search, _LINES))
HARMLESS = tuple(line for line in _LINES if line not in PHRASES)

_CYRILLIC = str.maketrans("aeopcyxk", "аеорсухк")
_LATIN_OF_CYRILLIC = str.maketrans("аеорсух", "aeopcyx")
_DIGITS = str.maketrans("aeios", "43105")
_VOWELS = "aeiouаеиоу"


def _within(word: str, sign: str) -> str:
    return " ".join(sign.join(part) for part in word.split())


LEAST_RECALL, MOST_FALSE_ALARMS = 0.98, 0.05
Disguise = Callable[[str], str]
STRONG: dict[str, Disguise] = {
    "none": str,
    "upper case": str.upper,
    "other script": lambda word: word.translate(_CYRILLIC) if word.isascii() else word.translate(_LATIN_OF_CYRILLIC),
    "digits for letters": lambda word: word.translate(_DIGITS),
    "dots within": lambda word: _within(word, "."),
    "spelled out": lambda word: " ".join(_within(part, " ") for part in word.split()),
    "letters repeated": lambda word: " ".join(f"{part[0]}{part[1] * 3}{part[2:]}" for part in word.split()),
    "invisible letters": lambda word: _within(word, "\u200b"),
    "struck through": lambda word: "".join(f"{letter}\u0336" for letter in word),
    "full width": lambda word: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in word),
    "bracketed letters": lambda word: "".join(f"({letter})" if letter != " " else " " for letter in word),
    "weights within": lambda word: f"({word[:2]}:1.2)({word[2:]}:0.9)",
    "alternating": lambda word: f"[{word[0]}|x]{word[1:]}",
    "begun half-way": lambda word: f"[flower:{word}:0.5]",
}
WEAK: dict[str, Disguise] = {
    "letters swapped": lambda word: word[0] + word[2] + word[1] + word[3:],
    "a letter dropped": lambda word: word[:2] + word[3:],
    "vowels masked": lambda word: re.sub(f"[{_VOWELS}]", "*", word),
    "split in two words": lambda word: f"{word[:2]} {word[2:]}",
    "glued to another": lambda word: f"{word}person",
}


def prompts(disguise: Disguise) -> Iterator[str]:
    """Every phrase, its listed words in a disguise."""
    return (_LISTED.sub(lambda found: disguise(found[1]), phrase) for phrase in PHRASES)


def is_blocked(policy: Policy, prompt: str, steps: int = 20) -> bool:
    """As a request's prompt is judged that is drawn in so many steps."""
    branches = [Branch("positive", part.text) for part in parse_parts(prompt)]
    edited = edited_prompts([branch.wording for branch in branches], StepCount(steps, steps))
    return any(rule.action == BLOCK for rule in policy.rules_met(texts_of(prompt, edited, range(len(branches)))))


def recall(policy: Policy, disguise: Disguise) -> float:
    """The share of the phrases that are seen."""
    return sum(is_blocked(policy, prompt) for prompt in prompts(disguise)) / len(PHRASES)


def false_alarms(policy: Policy) -> list[str]:
    """The harmless prompts that are blocked."""
    return [prompt for prompt in HARMLESS if is_blocked(policy, prompt)]


@measurement("words", rounds=1, threads=1, help=__doc__)
def words(report: Report) -> None:
    policy = read_policy("strict")
    alarms = false_alarms(policy)
    table: dict[str, dict[str, Any]] = {
        name: {"share_blocked": recall(policy, disguise)} for name, disguise in {**STRONG, **WEAK}.items()
    }
    table["harmless prompts"] = {"share_blocked": len(alarms) / len(HARMLESS)}
    bars = [Bar(name, "share_blocked", at_least=LEAST_RECALL) for name in STRONG]
    bars.append(Bar("harmless prompts", "share_blocked", at_most=MOST_FALSE_ALARMS))
    facts = {"policy": {"name": policy.facts.name, "sha256": policy.facts.sha256}, "false_alarms": alarms}
    prompts = {"a_disguise": len(PHRASES), "harmless": len(HARMLESS)}
    report.judge("the policy strict", table, bars, **facts, prompts=prompts, weak=list(WEAK))
