"""A tokenizer.json is a program: only steps that real tokenizers have reach the library that runs it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deadline import deadline
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tintype.bounds import MAX_TOKENIZER_GROWTH, MAX_TOKENIZER_STEPS, MAX_TOKENS
from tintype.errors import BundleError
from tintype.prompt import PromptTokenizer
from tintype.prompt.tokenizer_check import REGEXES, check_tokenizer
from tintype.strict_json import Misfit, parse

POSTCARD = Path(__file__).parents[2] / "models/postcard/bundle/tokenizer/tokenizer.json"


@pytest.fixture
def clip() -> dict[str, Any]:
    """A tokenizer of CLIP's shape, as parsed."""
    value: dict[str, Any] = parse(POSTCARD.read_bytes())
    return value


def test_tokenizers_of_clip_pass_in_every_form_that_is_published(clip: dict[str, Any]) -> None:
    check_tokenizer(clip)
    older = copy.deepcopy(clip)
    older["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = REGEXES[0]
    older["model"]["merges"] = [pair if isinstance(pair, str) else " ".join(pair) for pair in older["model"]["merges"]]
    for key in ("ignore_merges", "type"):
        older["model"].pop(key, None)
    check_tokenizer(older)


def test_what_the_library_writes_of_a_t5_passes_but_for_its_compiled_map() -> None:
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("\u2581a", -1.5)], 0, False))
    unigram.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(), normalizers.Replace("a", "b")])
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    unigram.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    unigram.add_special_tokens(["</s>"])
    check_tokenizer(parse(unigram.to_str()))


def nested(step: dict[str, Any], depth: int) -> dict[str, Any]:
    for _ in range(depth):
        step = {"type": "Sequence", "normalizers": [step]}
    return step


def replace(pattern: object, content: str = " ") -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(steps)}


DOUBLE = replace({"String": "a"}, "aa")
BOMB = r"(a+)+$"

ATTACKS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "regex bomb": lambda value: value.update(normalizer=replace({"Regex": BOMB})),
    "regex bomb as a split": lambda value: value["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": BOMB}),
    "regex bomb as a decoder": lambda value: value.update(decoder=replace({"Regex": BOMB})),
    "compiled map": lambda value: value.update(
        normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAAAAAAAA=="}
    ),
    "nested replace": lambda value: value.update(normalizer=sequence(*[DOUBLE] * 10)),
    "more nested replace": lambda value: value.update(normalizer=sequence(*[sequence(DOUBLE)] * 10)),
    "one long replace": lambda value: value.update(normalizer=replace({"String": "a"}, "b" * 10_000)),
    "prepend": lambda value: value.update(normalizer={"type": "Prepend", "prepend": "b" * 100}),
    "empty pattern": lambda value: value.update(normalizer=replace({"String": ""})),
    "two patterns": lambda value: value.update(normalizer=replace({"String": "a", "Regex": BOMB})),
    "no pattern": lambda value: value.update(normalizer=replace(None)),
    "deep": lambda value: value.update(normalizer=nested({"type": "NFC"}, 40)),
    "wide": lambda value: value.update(normalizer=sequence(*[{"type": "NFC"}] * 100_000)),
    "unknown step": lambda value: value.update(normalizer={"type": "Python", "code": "x"}),
    "unknown key": lambda value: value.update(normalizer={"type": "NFC", "more": 1}),
    "no step": lambda value: value.update(normalizer=[1]),
    "kind of no text": lambda value: value.update(normalizer={"type": ["NFC"]}),
    "template": lambda value: value.update(
        post_processor={"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 10_000}
    ),
    "dropout": lambda value: value["model"].update(dropout=0.5),
    "prefix": lambda value: value["model"].update(continuing_subword_prefix="\u00e9\u00e9\u00e9"),
    "no model": lambda value: value.pop("model"),
    "unknown model": lambda value: value["model"].update(type="WordPiece"),
    "no vocabulary": lambda value: value["model"].update(vocab=[]),
    "empty vocabulary": lambda value: value["model"].update(vocab={}),
    "huge id": lambda value: value["model"]["vocab"].update(zebra=2**31),
    "negative id": lambda value: value["model"]["vocab"].update(zebra=-1),
    "true id": lambda value: value["model"]["vocab"].update(zebra=True),
    "long word": lambda value: value["model"]["vocab"].update({"z" * 100_000: 1}),
    "merge of three": lambda value: value["model"].update(merges=["a b c"]),
    "merge of numbers": lambda value: value["model"].update(merges=[[1, 2]]),
    "merges of one": lambda value: value["model"].update(merges="a b"),
    "infinite score": lambda value: value.update(model={"type": "Unigram", "vocab": [["a", float("inf")]]}),
    "added nothing": lambda value: value["added_tokens"][0].update(content=""),
    "added id": lambda value: value["added_tokens"][0].update(id=MAX_TOKENS),
    "added novel": lambda value: value["added_tokens"][0].update(content="x" * 100_000),
    "added number": lambda value: value.update(added_tokens=[1]),
    "padding": lambda value: value.update(padding={"pad_token": "x" * 100_000}),
    "more": lambda value: value.update(more={}),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_what_no_real_tokenizer_has_is_refused(attack: Callable[[dict[str, Any]], Any], clip: dict[str, Any]) -> None:
    attack(clip)
    with deadline(), pytest.raises(Misfit, match=r"is not as tokenizers|is none of|is no part|no model"):
        check_tokenizer(clip)


@pytest.mark.parametrize("value", [None, 1, "x", [], {}, {"model": None}, {"model": []}])
def test_what_is_no_tokenizer_at_all(value: object) -> None:
    with pytest.raises(Misfit):
        check_tokenizer(value)


def test_what_is_just_within_the_bounds_takes_no_time(clip: dict[str, Any], tmp_path: Path) -> None:
    grown = [replace({"String": "a"}, "aa")] * (MAX_TOKENIZER_GROWTH.bit_length() - 1)
    rest = [{"type": "NFKD"}] * (MAX_TOKENIZER_STEPS - 1 - len(grown))
    clip["normalizer"] = sequence(*grown, *rest)
    clip["model"] |= {"vocab": {**clip["model"]["vocab"], **{f"word{index}": 5 for index in range(50_000)}}}
    check_tokenizer(clip)
    tokenizer = opened(clip, tmp_path)
    with deadline():
        tokenizer.ids("a" * 2**16)
        tokenizer.ids("\ufdfa" * (2**16 // 3))


def test_a_bundle_with_such_a_tokenizer_is_not_opened(tmp_path: Path) -> None:
    import shutil

    from tintype.bundle import file_facts, open_bundle, read_manifest, write_manifest

    folder = Path(shutil.copytree(POSTCARD.parents[1], tmp_path / "bundle"))
    value = json.loads(POSTCARD.read_text(encoding="utf-8"))
    ATTACKS["compiled map"](value)
    (folder / "tokenizer/tokenizer.json").write_text(json.dumps(value))
    import dataclasses

    write_manifest(folder, dataclasses.replace(read_manifest(folder)[0], files=file_facts(folder)))
    with pytest.raises(BundleError, match=r"tokenizer/tokenizer\.json is refused: .*Precompiled"):
        open_bundle(folder)


@pytest.mark.parametrize("attack", ["compiled map", "no model", "merge of three"])
def test_a_panic_that_comes_all_the_same_is_a_bundles_fault(
    attack: str, clip: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ATTACKS[attack](clip)
    with pytest.raises(BundleError):
        opened(clip, tmp_path).ids("a red house")


def test_a_panic_while_a_prompt_is_read_is_a_bundles_fault(clip: dict[str, Any], tmp_path: Path) -> None:
    class PanicException(BaseException):
        """As pyo3 names it."""

    class Panicking:
        def encode(self, *_: object, **__: object) -> object:
            raise PanicException("index out of bounds\x1b[2J")

    tokenizer = opened(clip, tmp_path)
    broken = PromptTokenizer(Panicking(), 77, 0, 1, 1, None)
    assert tokenizer.ids("a red house")
    with pytest.raises(BundleError, match="index out of bounds"):
        broken.ids("a red house")


def opened(value: dict[str, Any], folder: Path) -> PromptTokenizer:
    (folder / "tokenizer.json").write_text(json.dumps(value))
    return PromptTokenizer.open(
        folder / "tokenizer.json", max_length=77, bos_token_id=980, eos_token_id=981, pad_token_id=981
    )
