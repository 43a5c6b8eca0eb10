"""Words that are dealt to pictures: each is that of its own prompt, and its record makes it again without the deck."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from decks import FIELDS, KIOSK, prompts

import tintype
from tintype.cli import run as run_command
from tintype.image.png import read_texts
from tintype.record import parse_record


@pytest.fixture(scope="module")
def deck_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("deck") / "deck.json"
    path.write_text(json.dumps(KIOSK), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def postcard() -> Iterator[tintype.Pipeline]:
    with tintype.load("postcard", provider="cpu") as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def dealing(deck_file: Path) -> Iterator[tintype.Pipeline]:
    with tintype.load("postcard", provider="cpu", deal=deck_file) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def dealt(dealing: tintype.Pipeline) -> tintype.Result:
    return dealing.generate("a car on a [calm:rough:0.5] sea", count=4, **FIELDS)


def test_a_dealt_picture_is_that_of_its_own_prompt_and_seed(postcard: tintype.Pipeline, dealt: tintype.Result) -> None:
    for number, (image, record) in enumerate(zip(dealt.images, dealt.records, strict=True)):
        assert record.deal is not None
        assert record.deal.prompt == "a car on a [calm:rough:0.5] sea"
        colour, size = record.deal.words
        assert (colour.group, colour.noun, size.group) == ("colour", "car", "size")
        article = "an" if colour.word == "orange" else "a"
        assert record.request.prompt == f"{article} {colour.word} {size.word} car on a [calm:rough:0.5] sea"
        alone = postcard.generate(record.request.prompt, **{**FIELDS, "seed": FIELDS["seed"] + number})
        assert alone.image.tobytes() == image.tobytes()
    assert collections.Counter(record.deal.words[0].word for record in dealt.records if record.deal) == {
        "red": 2, "orange": 1, "blue": 1,
    }  # fmt: skip


def test_a_record_makes_its_picture_again_without_the_deck(
    postcard: tintype.Pipeline, dealing: tintype.Pipeline, dealt: tintype.Result
) -> None:
    for pipeline in (postcard, dealing):
        again = pipeline.reproduce(dealt.records[2])
        assert again.image.tobytes() == dealt.images[2].tobytes()
        assert again.record == dealt.records[2] == parse_record(again.record.texts()["tintype"])
    plain = postcard.generate("a car", **FIELDS)
    assert plain.record.deal is None
    assert dealing.reproduce(plain.record).image.tobytes() == plain.image.tobytes()


def test_latents_of_dealt_pictures_are_decoded_without_the_deck(
    postcard: tintype.Pipeline, dealing: tintype.Pipeline, dealt: tintype.Result, tmp_path: Path
) -> None:
    run = dealing.steps("a car on a [calm:rough:0.5] sea", count=4, **FIELDS)
    steps = [(step.index, step.total, step.pictures) for step in run]
    assert steps == [(number, 8, range(number // 2, number // 2 + 1)) for number in range(8)]
    assert [picture.index for picture in run.pictures] == [0, 1, 2, 3]
    assert run.request.prompt == "a car on a [calm:rough:0.5] sea"
    saved = tintype.read_latents(run.save_latents(tmp_path / "kept.safetensors"))
    made = postcard.resume(saved)
    assert [image.tobytes() for image in made.images] == [image.tobytes() for image in dealt.images]
    assert [record.deal for record in made.records] == [record.deal for record in dealt.records]
    assert [record.request for record in made.records] == [record.request for record in dealt.records]
    other = dataclasses.replace(saved.records[1], deal=None)
    mixed = dataclasses.replace(saved, records=(saved.records[0], other, *saved.records[2:]))
    with pytest.raises(tintype.RecordError, match="different prompts"):
        postcard.resume(mixed)


@pytest.fixture(scope="module")
def guarded(deck_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tintype.Pipeline]:
    policy = tmp_path_factory.mktemp("policy") / "policy.txt"
    policy.write_text("[no orange] block\norange car\n[blue] warn\nblue car\n", encoding="utf-8")
    deck = json.loads(deck_file.read_text())
    deck["groups"] = deck["groups"][:1]
    (policy.parent / "deck.json").write_text(json.dumps(deck))
    with tintype.load("postcard", provider="cpu", policy=policy, deal=policy.parent / "deck.json") as pipeline:
        yield pipeline


def test_a_policy_sees_what_is_dealt(guarded: tintype.Pipeline, dealing: tintype.Pipeline, tmp_path: Path) -> None:
    with pytest.raises(tintype.BlockedError) as blocked:
        guarded.steps("a car", count=4, **FIELDS)
    assert (blocked.value.rule, blocked.value.where) == ("no orange", "prompt")
    seed = next(
        seed for seed in range(50)
        if not any("orange" in each for each in prompts(guarded.chosen.deck, guarded, "a car", count=3, seed=seed))  # type: ignore[arg-type]
        and any("blue" in each for each in prompts(guarded.chosen.deck, guarded, "a car", count=3, seed=seed))  # type: ignore[arg-type]
    )  # fmt: skip
    made = guarded.generate("a car", count=3, **{**FIELDS, "seed": seed, "num_inference_steps": 1})
    for record in made.records:
        assert record.deal is not None
        noted = any("'blue'" in note for note in record.notes)
        assert noted is (record.deal.words[0].word == "blue")
    run = dealing.steps("automobiles", count=4, **{**FIELDS, "num_inference_steps": 1})
    for _ in run:
        pass
    saved = tintype.read_latents(run.save_latents(tmp_path / "kept.safetensors"))
    guarded.resume(saved, anyway=True)  # none of its rules is met
    lying = [
        record if number != 2 else dataclasses.replace(
            record, request=dataclasses.replace(record.request, prompt="an orange car")
        ) for number, record in enumerate(saved.records)
    ]  # fmt: skip
    with pytest.raises(tintype.BlockedError):
        guarded.resume(dataclasses.replace(saved, records=tuple(lying)), anyway=True)


def test_pictures_that_are_denoised_together_are_refused_words_of_their_own(dealing: tintype.Pipeline) -> None:
    with pytest.raises(tintype.RequestError, match="batch_size is 2") as refused:
        dealing.steps("a car", count=2, batch_size=2, **FIELDS)
    assert "batch_size" in refused.value.fix
    dealing.steps("a boat", count=2, batch_size=2, **FIELDS).close()


def test_an_enlarged_picture_and_one_from_a_picture_are_dealt_as_well(
    postcard: tintype.Pipeline, dealing: tintype.Pipeline
) -> None:
    begun = postcard.generate("a house", **FIELDS).image
    for fields in ({"hires": 1.0}, {"image": begun, "strength": 0.5}):
        made = dealing.generate("a car", count=2, **{**FIELDS, **fields})
        alone = postcard.generate(made.records[1].request.prompt, **{**FIELDS, **fields, "seed": 8})
        assert alone.image.tobytes() == made.images[1].tobytes()
        assert made.images[0].tobytes() != made.images[1].tobytes()


def test_a_run_of_dealt_pictures_is_stopped_as_any(dealing: tintype.Pipeline) -> None:
    run = dealing.steps("a car", count=3, **FIELDS)
    next(run)
    next(run)
    next(run)
    run.cancel()
    with pytest.raises(tintype.CancelledError):
        next(run)
    assert [picture.index for picture in run.pictures] == [0]


def test_the_command_deals_and_says_so(deck_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = [
        "generate",
        "a lorry",
        "-o",
        str(tmp_path / "x.png"),
        "--deal",
        str(deck_file),
        "--count",
        "2",
        "--seed",
        "3",
    ]
    assert run_command([*line, "--num-inference-steps", "1", "--size", "64x64", "--provider", "cpu"]) == 0
    shown = capsys.readouterr().out.splitlines()
    for number, text in enumerate(shown, 1):
        record = tintype.read_record(tmp_path / f"x-{number}.png")
        assert record.deal is not None
        assert record.deal.words[0].word in ("red", "orange", "blue")
        assert text.endswith(f", dealt '{record.deal.words[0].word}'")
        assert record.request.prompt in read_texts(tmp_path / f"x-{number}.png")["parameters"]  # type: ignore[attr-defined]
    run_command(["generate", "--from-record", str(tmp_path / "x-2.png"), "-o", str(tmp_path / "again.png")])
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "x-2.png").read_bytes()
    assert run_command(["verify", str(tmp_path / "again.png")]) == 0
    assert "it was asked for with: a lorry" in capsys.readouterr().out


def test_noise_that_is_given_is_each_pictures_own(postcard: tintype.Pipeline, dealing: tintype.Pipeline) -> None:
    noise = np.random.default_rng(0).standard_normal((2, 4, 16, 16)).astype(np.float32)
    made = dealing.generate("a car", count=2, latents=noise, **FIELDS)
    alone = postcard.generate(made.records[1].request.prompt, latents=noise[1:], **{**FIELDS, "seed": 8})
    assert alone.image.tobytes() == made.images[1].tobytes()
    assert postcard.reproduce(made.records[1], latents=noise).image.tobytes() == made.images[1].tobytes()
