"""Captions from a small grammar: synonyms, free word order, articles and omissions.

No synonym is shared by two values, so that a caption says exactly which values it states.
British and American spellings are both used.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .scene import ATTRIBUTES, Scene

# Prepositional phrases: they may follow a noun or stand after a comma.
TIMES: dict[str, tuple[str, ...]] = {
    "dawn": ("at dawn", "at sunrise", "at daybreak", "in the early morning", "at first light"),
    "noon": ("at noon", "at midday", "in broad daylight", "in the daytime", "by day"),
    "sunset": ("at sunset", "at sundown", "at dusk", "in the evening glow", "as the sun sets"),
    "night": ("at night", "after dark", "under the moon", "by moonlight", "in the dark of night"),
}
# Adjectives, before the landscape or alone.
TIME_ADJECTIVES: dict[str, tuple[str, ...]] = {
    "dawn": ("dawn", "sunrise", "early-morning"),
    "noon": ("midday", "noonday", "daytime"),
    "sunset": ("sunset", "dusky", "sunset-lit"),
    "night": ("moonlit", "night-time", "nighttime"),
}
# Nouns, before "over the dunes".
TIME_NOUNS: dict[str, tuple[str, ...]] = {
    "dawn": ("dawn", "sunrise", "daybreak"),
    "noon": ("noon", "midday"),
    "sunset": ("sunset", "sundown", "dusk"),
    "night": ("night", "moonlight"),
}
WEATHERS: dict[str, tuple[str, ...]] = {
    "clear": ("under a clear sky", "clear sky", "in clear weather", "under cloudless skies", "with a clear sky"),
    "cloudy": ("under a cloudy sky", "cloudy sky", "with clouds overhead", "on a cloudy day", "overcast"),
    "rain": ("in the rain", "light rain", "raining", "on a rainy day", "in a shower of rain", "rainy weather"),
    "snow": ("snowing", "in falling snow", "while snow falls", "in a snowfall", "with snowflakes in the air"),
}  # fmt: skip
WEATHER_SENTENCES: dict[str, tuple[str, ...]] = {
    "clear": ("the sky is clear", "not a cloud in the sky"),
    "cloudy": ("the sky is cloudy", "clouds fill the sky"),
    "rain": ("it is raining", "rain is falling"),
    "snow": ("it is snowing", "snow is falling"),
}
# (preposition, article and noun): the noun may take a time's adjective.
LANDSCAPES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "calm sea": (
        ("on", "a ", "calm sea"), ("on", "the ", "calm sea"), ("on", "a ", "quiet ocean"),
        ("at", "", "sea"), ("on", "the ", "open sea"), ("by", "the ", "ocean"),
    ),
    "mountains": (
        ("in", "the ", "mountains"), ("below", "", "mountain peaks"), ("among", "", "mountains"),
        ("before", "", "snow-capped peaks"), ("in", "the ", "alps"),
    ),
    "desert dunes": (
        ("in", "the ", "desert"), ("among", "", "desert dunes"), ("in", "the ", "dunes"),
        ("among", "", "sand dunes"), ("in", "a ", "sandy desert"),
    ),
    "forest": (
        ("in", "a ", "forest"), ("in", "the ", "forest"), ("in", "the ", "woods"),
        ("by", "a ", "wood"), ("in", "a ", "woodland"),
    ),
    "green hills": (
        ("in", "", "green hills"), ("among", "", "rolling hills"), ("in", "the ", "hills"),
        ("among", "", "green hills"), ("in", "the ", "rolling countryside"),
    ),
    "city skyline": (
        ("before", "a ", "city skyline"), ("in", "the ", "city"), ("in", "front of a ", "skyline"),
        ("in", "a ", "busy city"), ("in", "", "town"), ("before", "the ", "skyline"),
    ),
    "lake": (
        ("on", "a ", "lake"), ("at", "a ", "lake"), ("by", "the ", "lake"),
        ("on", "a ", "lakeshore"), ("at", "the ", "lakeside"),
    ),
    "snowy plain": (
        ("on", "a ", "snowy plain"), ("on", "a ", "snow-covered plain"), ("in", "a ", "snowy field"),
        ("on", "a ", "wide plain of snow"), ("in", "the ", "arctic"),
    ),
}  # fmt: skip
SUBJECTS: dict[str, tuple[str, ...]] = {
    "sailboat": ("sailboat", "sailing boat", "yacht", "boat", "sailing ship"),
    "lighthouse": ("lighthouse", "old lighthouse", "lighthouse tower"),
    "house": ("house", "cottage", "home", "cabin"),
    "windmill": ("windmill", "wind mill", "old mill", "mill"),
    "hot air balloon": ("hot air balloon", "hot-air balloon", "balloon"),
    "tent": ("tent", "camping tent", "camp tent"),
    "pine tree": ("pine tree", "fir tree", "conifer", "pine", "fir", "spruce"),
    "castle": ("castle", "fortress", "medieval castle", "fairy-tale castle"),
    "car": ("car", "automobile", "motor car", "motorcar"),
    "bridge": ("bridge", "stone bridge", "arched bridge", "footbridge"),
}
COLOURS: dict[str, tuple[str, ...]] = {
    "red": ("red", "bright red", "crimson", "scarlet"),
    "orange": ("orange", "bright orange", "tangerine"),
    "yellow": ("yellow", "bright yellow", "lemon yellow"),
    "green": ("green", "emerald", "emerald green"),
    "blue": ("blue", "royal blue", "bright blue"),
    "purple": ("purple", "violet", "deep purple"),
    "pink": ("pink", "rose pink", "bright pink"),
    "white": ("white", "snow-white", "pure white"),
}
POSITIONS: dict[str, tuple[str, ...]] = {
    "left": ("on the left", "to the left", "at left", "on the left-hand side", "on the left side"),
    "middle": ("in the middle", "in the centre", "in the center", "centred", "centered"),
    "right": ("on the right", "to the right", "at right", "on the right-hand side", "on the right side"),
}  # fmt: skip
SIZES: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny", "distant"),
    "large": ("large", "big", "huge", "giant"),
}

# How often a caption states each attribute.
STATED = {
    "time": 0.72, "weather": 0.55, "landscape": 0.88, "subject": 0.96,
    "colour": 0.85, "position": 0.42, "size": 0.42,
}  # fmt: skip


class _Dice:
    """The few random choices that the grammar makes."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def chance(self, probability: float) -> bool:
        return bool(self._rng.random() < probability)

    def favouring_first(self, options: tuple[str, ...]) -> str:
        """The plainest word about as often as all the others together."""
        if self.chance(0.4):
            return options[0]
        return options[int(self._rng.integers(len(options)))]

    def any(self, count: int) -> int:
        return int(self._rng.integers(count))

    def shuffled(self, items: list[str]) -> list[str]:
        return [items[i] for i in self._rng.permutation(len(items))]


@dataclass(slots=True)
class _Phrases:
    """The chosen words; an empty string is not stated."""

    time: str
    time_noun: str  # "sunset", empty where an adjective says the time
    weather: str
    weather_sentence: str
    place: str  # "on a calm sea"
    bare_place: str  # "a calm sea"
    thing: str  # "small red sailboat"
    bare_thing: str  # "sailboat"
    colour: str
    size: str
    position: str


def caption(
    scene: Scene,
    rng: np.random.Generator,
    *,
    complete: bool = False,
    subjects: Mapping[str, tuple[str, ...]] = SUBJECTS,
) -> tuple[str, frozenset[str]]:
    """A caption of at most 45 words, and the names of the attributes that it states.

    complete=True states all seven. The colour and the size are only stated with the subject. subjects: what the
    subjects are called.
    """
    dice = _Dice(rng)
    stated = set(ATTRIBUTES) if complete else _choose_stated(dice)
    words = _choose_words(scene, stated, dice, subjects)
    templates = (_plain, _plain, _plain, _place_first, _listed, _sentences)
    text = templates[dice.any(len(templates))](words, dice)
    return _dress(text, dice), frozenset(stated)


def _choose_stated(dice: _Dice) -> set[str]:
    stated = {name for name, probability in STATED.items() if dice.chance(probability)}
    if "subject" not in stated:
        stated -= {"colour", "size", "position"}
        stated.add("landscape")
    return stated


def _choose_words(scene: Scene, stated: set[str], dice: _Dice, subjects: Mapping[str, tuple[str, ...]]) -> _Phrases:
    def word(name: str, table: Mapping[str, tuple[str, ...]], value: str) -> str:
        choice = dice.favouring_first(table[value])
        return choice if name in stated else ""

    subject = word("subject", subjects, scene.subject)
    colour = word("colour", COLOURS, scene.colour)
    size = word("size", SIZES, scene.size)
    time = word("time", TIMES, scene.time)
    time_noun = word("time", TIME_NOUNS, scene.time)
    options = LANDSCAPES[scene.landscape]
    preposition, article, noun = options[0 if dice.chance(0.4) else dice.any(len(options))]
    place = bare = ""
    if "landscape" in stated:
        if time and article and dice.chance(0.15):  # "on a moonlit lake"
            adjective = dice.favouring_first(TIME_ADJECTIVES[scene.time])
            noun, time, time_noun = f"{adjective} {noun}", "", ""
        bare = f"{article.removeprefix('front of ')}{noun}"
        place = f"{preposition} {article}{noun}"
        if scene.subject == "hot air balloon" and subject and dice.chance(0.75):
            place = f"{('over', 'above')[dice.any(2)]} {bare}"
    return _Phrases(
        time=time,
        time_noun=time_noun,
        weather=word("weather", WEATHERS, scene.weather),
        weather_sentence=word("weather", WEATHER_SENTENCES, scene.weather),
        place=_articles(place),
        bare_place=_articles(bare),
        thing=" ".join(part for part in (size, colour, subject) if part),
        bare_thing=subject,
        colour=colour,
        size=size,
        position=word("position", POSITIONS, scene.position),
    )


def _articles(text: str) -> str:
    """Mend "a early" to "an early"."""
    words = text.split(" ")
    for i, (word, following) in enumerate(itertools.pairwise(words)):
        if word == "a" and following[:1].lower() in "aeiou":
            words[i] = "an"
    return " ".join(words)


def _noun_phrase(thing: str, dice: _Dice) -> str:
    """The thing with "a" mostly, else "the" or nothing."""
    if not thing:
        return ""
    article = ("a ", "a ", "a ", "the ", "")[dice.any(5)]
    return _articles(article + thing)


def _join(parts: list[str], glue: str) -> str:
    return glue.join(part for part in parts if part)


def _plain(words: _Phrases, dice: _Dice) -> str:
    """a red sailboat on a calm sea at sunset, light rain, on the left"""
    thing = _noun_phrase(words.thing, dice)
    if not thing:
        thing, words.place = words.bare_place, ""
    order = [words.place, words.time]
    if dice.chance(0.2):
        order.reverse()
    text = _join([thing, *order], " ")
    rest = dice.shuffled([part for part in (words.weather, words.position) if part])
    return _join([text, *rest], ", " if dice.chance(0.8) else " ")


def _place_first(words: _Phrases, dice: _Dice) -> str:
    """sunset over the dunes: a small blue tent to the left, light rain"""
    if words.time_noun and words.bare_place and dice.chance(0.5):
        head = f"{words.time_noun} over {words.bare_place}"
    else:
        head = _join([words.bare_place, words.time], " ")
    tail = _join([_noun_phrase(words.thing, dice), words.position], " ")
    glue = (": ", ", ", " with ")[dice.any(3)] if head and tail else ""
    return _join([head + glue + tail, words.weather], ", ")


def _listed(words: _Phrases, dice: _Dice) -> str:
    """castle, purple, huge, in a forest at night, snowing, on the right"""
    if words.bare_thing and dice.chance(0.5):
        thing = [words.bare_thing, *dice.shuffled([words.colour, words.size])]
    else:
        thing = [words.thing]
    rest = dice.shuffled([words.place, words.time, words.weather, words.position])
    return _join([*thing, *rest], ", ")


def _sentences(words: _Phrases, dice: _Dice) -> str:
    """a picture of a big red car on the left in the city at noon. it is raining"""
    lead = ("a picture of ", "a postcard of ", "an illustration of ", "there is ", "")[dice.any(5)]
    thing = _articles(f"a {words.thing}") if words.thing else words.bare_place
    place = words.place if words.thing else ""
    first = lead + _join([thing, *dice.shuffled([words.position, place]), words.time], " ")
    return _join([first, words.weather_sentence], ". ")


def _dress(text: str, dice: _Dice) -> str:
    """Capitals and a full stop, now and then."""
    style = dice.any(10)
    if style == 0:
        return text.upper()
    if style <= 3:
        text = ". ".join(part[:1].upper() + part[1:] for part in text.split(". "))
        return text + "." if style <= 2 else text
    return text
