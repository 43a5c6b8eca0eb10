"""Is a tokenizer.json one that real text encoders have? Asked before the library sees it, as the file is a program.

A regular expression, a chain of replacements or a compiled map can take hours and all memory, or end the process. So
only steps that are known by name pass, with the keys that they have; expressions stand in a list, verbatim; texts are
short, and what a prompt may grow to is bounded. Words are counted and measured; that they fit together is the library's
business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tintype.bounds import MAX_TOKENIZER_GROWTH, MAX_TOKENIZER_STEPS, MAX_TOKENIZER_TEXT_CHARS, MAX_TOKENS
from tintype.strict_json import Misfit

Check = Callable[[Any], bool]

REGEXES = (
    r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",  # CLIP's words
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    r"\s+",
    r" {2,}",  # T5's
)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool) or value is None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TOKENIZER_TEXT_CHARS


def _is_text_or_none(value: Any) -> bool:
    return value is None or _is_text(value)


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_TOKENS


def _is_id_or_none(value: Any) -> bool:
    return value is None or _is_id(value)


def _is_nothing(value: Any) -> bool:
    return value in (None, "", 0) and value is not False


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_pattern(value: Any) -> bool:
    if not isinstance(value, Mapping) or len(value) != 1:
        return False
    text = value.get("String")
    return value.get("Regex") in REGEXES if text is None else _is_text(text) and text != ""


def _is_behaviour(value: Any) -> bool:
    return value in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")


def _is_small(value: Any) -> bool:
    """Short texts, numbers and flags, few of them."""
    values = list(_leaves(value))
    return len(values) <= MAX_TOKENIZER_STEPS**2 and all(
        _is_text_or_none(one) or isinstance(one, bool | int | float) for one in values
    )


_BYTE_LEVEL: dict[str, Check] = {"add_prefix_space": _is_flag, "trim_offsets": _is_flag, "use_regex": _is_flag}
_METASPACE: dict[str, Check] = {
    "replacement": lambda value: isinstance(value, str) and len(value) == 1,
    "str_rep": _is_text,
    "add_prefix_space": _is_flag,
    "prepend_scheme": lambda value: value in ("first", "never", "always"),
    "split": _is_flag,
}

# By place: what a step there may be, and what each of its keys may hold.
_STEPS: dict[str, dict[str, dict[str, Check]]] = {
    "normalizer": {
        "Sequence": {"normalizers": _is_list},
        **{kind: {} for kind in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents")},
        "Strip": {"strip_left": _is_flag, "strip_right": _is_flag},
        "Replace": {"pattern": _is_pattern, "content": _is_text},
        "Prepend": {"prepend": _is_text},
    },
    "pre_tokenizer": {
        "Sequence": {"pretokenizers": _is_list},
        **{kind: {} for kind in ("Whitespace", "WhitespaceSplit")},
        "ByteLevel": _BYTE_LEVEL,
        "Metaspace": _METASPACE,
        "Split": {"pattern": _is_pattern, "behavior": _is_behaviour, "invert": _is_flag},
    },
    "post_processor": {
        "Sequence": {"processors": _is_list},
        "ByteLevel": _BYTE_LEVEL,
        "RobertaProcessing": {
            "sep": _is_small,
            "cls": _is_small,
            "trim_offsets": _is_flag,
            "add_prefix_space": _is_flag,
        },
        "BertProcessing": {"sep": _is_small, "cls": _is_small},
        "TemplateProcessing": {"single": _is_small, "pair": _is_small, "special_tokens": _is_small},
    },
    "decoder": {
        "Sequence": {"decoders": _is_list},
        **{kind: {} for kind in ("ByteFallback", "Fuse")},
        "ByteLevel": _BYTE_LEVEL,
        "Metaspace": _METASPACE,
        "BPEDecoder": {"suffix": _is_text},
        "Replace": {"pattern": _is_pattern, "content": _is_text},
        "Strip": {"content": _is_text, "start": _is_id, "stop": _is_id},
    },
}


def _is_vocabulary(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and 0 < len(value) <= MAX_TOKENS
        and all(map(_is_id, value.values()))
        and len(max(value, key=len)) <= MAX_TOKENIZER_TEXT_CHARS
    )


def _is_score(value: Any) -> bool:
    return type(value) in (int, float) and -math.inf < value < math.inf


def _is_scored_vocabulary(value: Any) -> bool:
    return (
        isinstance(value, list)
        and 0 < len(value) <= MAX_TOKENS
        and all(
            isinstance(one, list) and len(one) == 2 and _is_text(one[0]) and type(one[1]) in (int, float)
            for one in value
        )
        and all(abs(one[1]) < math.inf for one in value)
    )


def _are_merges(value: Any) -> bool:
    """Pairs of words: each a list of two, or one text with a blank between them."""
    return (
        isinstance(value, list)
        and len(value) <= MAX_TOKENS
        and all(
            one.count(" ") == 1 and len(one) <= MAX_TOKENIZER_TEXT_CHARS
            if type(one) is str
            else type(one) is list and len(one) == 2 and all(map(_is_text, one))
            for one in value
        )
    )


_MODELS: dict[str, dict[str, Check]] = {
    "BPE": {
        "vocab": _is_vocabulary,
        "merges": _are_merges,
        "dropout": _is_nothing,  # what it drops is chance
        "unk_token": _is_text_or_none,
        "continuing_subword_prefix": _is_nothing,
        "end_of_word_suffix": _is_text_or_none,
        "fuse_unk": _is_flag,
        "byte_fallback": _is_flag,
        "ignore_merges": _is_flag,
    },
    "Unigram": {"vocab": _is_scored_vocabulary, "unk_id": _is_id_or_none, "byte_fallback": _is_flag},
    "WordLevel": {"vocab": _is_vocabulary, "unk_token": _is_text},
}
_ADDED_TOKEN: dict[str, Check] = {
    "id": _is_id,
    "content": lambda value: _is_text(value) and value != "",
    **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), _is_flag),
}
_UNUSED = ("version", "truncation", "padding")  # prompts are cut and padded by us


def check_tokenizer(value: Any) -> None:
    """Misfit, naming the place, unless `value`, tokenizer.json as parsed, holds nothing but what real ones do."""
    if not isinstance(value, Mapping):
        raise Misfit("it is no object")
    for place in value:
        if place not in _STEPS and place not in ("model", "added_tokens", *_UNUSED):
            raise Misfit(f"{place!r} is no part of a tokenizer")
    for place in _UNUSED:
        _demand(_is_small(value.get(place)), place)
    for place, kinds in _STEPS.items():
        _check_steps(place, value.get(place), kinds)
    model = value.get("model")
    if not isinstance(model, Mapping):
        raise Misfit("it has no model")
    usual = "BPE" if "merges" in model else None  # as files without a type were
    _check_keys("model", {"type": usual, **model}, _MODELS)
    added = value.get("added_tokens") or []
    _demand(isinstance(added, list) and len(added) <= MAX_TOKENS, "added_tokens")
    for token in added:
        _demand(isinstance(token, Mapping) and "id" in token and "content" in token, "added_tokens")
        _check_keys("added_tokens", {"type": "token", **token}, {"token": _ADDED_TOKEN})


def _check_steps(place: str, step: Any, kinds: Mapping[str, Mapping[str, Check]]) -> None:
    """A step, and all within it if it is a sequence, in any depth."""
    waiting, growth = [] if step is None else [step], 1.0
    for count in range(MAX_TOKENIZER_STEPS + 1):
        if not waiting:
            break
        _demand(count < MAX_TOKENIZER_STEPS, f"{place}: more than {MAX_TOKENIZER_STEPS} steps")
        step = waiting.pop()
        _demand(isinstance(step, Mapping), place)
        _check_keys(place, step, kinds)
        growth *= _growth(step)
        _demand(growth <= MAX_TOKENIZER_GROWTH, f"{place}: replacements that let a text grow {growth:g} times")
        if step["type"] == "Sequence":
            (inner,) = kinds["Sequence"]
            waiting += step.get(inner, ())[: MAX_TOKENIZER_STEPS + 1]


def _check_keys(place: str, step: Mapping[str, Any], kinds: Mapping[str, Mapping[str, Check]]) -> None:
    kind = step.get("type")
    if not isinstance(kind, str) or kind not in kinds:
        raise Misfit(f"{place} has a {kind!r}, which is none of {', '.join(kinds)}")
    for key, value in step.items():
        if key != "type":
            _demand(key in kinds[kind] and kinds[kind][key](value), f"{place}: {kind}.{key}")


def _growth(step: Mapping[str, Any]) -> float:
    """How many times longer a step may make a text, in bytes; Unicode's forms aside, which make it 18 times at most."""
    if step["type"] == "Replace":
        pattern = step["pattern"].get("String", " ")
        return max(1.0, len(step["content"].encode()) / len(pattern.encode()))
    return 1.0 + len(step["prepend"].encode()) if step["type"] == "Prepend" else 1.0


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _demand(sound: bool, place: str) -> None:
    if not sound:
        raise Misfit(f"{place[:200]} is not as tokenizers have it")
