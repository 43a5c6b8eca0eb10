"""Private pictures: their files tell neither words nor seed, and whoever knows them makes the picture again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from decks import FIELDS, KIOSK
from PIL import Image

import tintype
from tintype.cli import run
from tintype.record.private import Withheld

PROMPT, NEGATIVE, SEED = "a green tent by a lake at dawn", "a secret thing", 1_234_567
SECRETS = (b"green tent", b"secret thing", str(SEED).encode())


@pytest.fixture(scope="module")
def postcard() -> Iterator[tintype.Pipeline]:
    with tintype.load("postcard", provider="cpu") as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def private(postcard: tintype.Pipeline, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """The second of two private pictures, and its pixels."""
    result = postcard.generate(
        PROMPT, negative_prompt=NEGATIVE, seed=SEED - 1, count=2, num_inference_steps=1, private=True
    )
    path = tmp_path_factory.mktemp("private") / "private.png"
    records = result.records
    assert records[1].request.prompt == PROMPT  # whoever drew it has it whole
    tintype.Picture(1, result.images[1], records[1]).save(path)
    return path, result.images[1].tobytes()


def texts_of(path: Path) -> dict[str, str]:
    with Image.open(path) as picture:
        picture.load()
        return {name: value for name, value in picture.info.items() if isinstance(value, str)}


def test_the_file_tells_neither_words_nor_seed(private: tuple[Path, bytes]) -> None:
    content, info = private[0].read_bytes(), texts_of(private[0])
    texts = "\n".join(info.values()).encode()
    for secret in (*SECRETS, str(SEED - 1).encode()):
        assert secret not in content
        assert secret not in texts
    told = json.loads(info["tintype"])
    assert [told["request"][name] for name in ("prompt", "negative_prompt", "seed")] == [None, None, None]
    assert set(info) == {"tintype", "XML:com.adobe.xmp"}


def test_who_knows_them_shows_them_and_nobody_else(private: tuple[Path, bytes]) -> None:
    record = tintype.read_record(private[0])
    assert record.withheld is not None
    assert record.withheld.are(PROMPT, NEGATIVE)
    assert record.withheld.are(PROMPT, NEGATIVE, SEED)
    for words in ((PROMPT, ""), (PROMPT + " ", NEGATIVE), (NEGATIVE, PROMPT), (PROMPT, NEGATIVE, SEED - 1)):
        assert not record.withheld.are(*words)
    with pytest.raises(tintype.RecordError, match="not the words and the seed"):
        record.revealed(PROMPT, SEED)


def test_two_pictures_of_the_same_words_show_nothing_in_common() -> None:
    first, second = (Withheld.of(PROMPT, "", 7) for _ in range(2))
    assert len({first.salt, second.salt, first.words, second.words, first.seed, second.seed}) == 6


def test_the_picture_is_made_again_with_them_alone(private: tuple[Path, bytes], postcard: tintype.Pipeline) -> None:
    record = tintype.read_record(private[0])
    with pytest.raises(tintype.RecordError, match="the record is private"):
        postcard.reproduce(record)
    again = postcard.reproduce(record.revealed(PROMPT, SEED, NEGATIVE))
    assert again.image.tobytes() == private[1]
    assert again.record.withheld is not None  # it stays private


def test_the_command_makes_it_again(
    private: tuple[Path, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = ["generate", "--from-record", str(private[0]), "-o", str(tmp_path / "again.png"), "--seed", str(SEED)]
    assert run(again) == 1
    assert "the record is private" in capsys.readouterr().err
    assert run([*again, PROMPT, "--negative-prompt", NEGATIVE]) == 0
    with Image.open(tmp_path / "again.png") as again_made:
        assert again_made.tobytes() == private[1]


def test_a_name_of_its_own_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["generate", PROMPT, "--private", "--num-inference-steps", "1", "--json"]) == 0
    assert [each.name for each in tmp_path.iterdir()] == ["private.png"]
    told = json.loads(capsys.readouterr().out)["pictures"][0]["record"]
    assert told["request"]["prompt"] == PROMPT  # on the screen of whoever drew it


def test_verify_and_like_say_that_it_is_private(
    private: tuple[Path, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    run(["verify", str(private[0])])
    assert "private: its words and its seed are left out" in capsys.readouterr().out
    run(["verify", str(private[0]), "--json"])
    assert json.loads(capsys.readouterr().out)["record"]["request"]["prompt"] is None
    found = tintype.like(private[0])
    assert any("private" in sentence for sentence in found.left_out)
    assert not {"prompt", "negative_prompt", "seed"} & set(found.fields)


def test_dealt_words_and_what_follows_from_the_seed_are_left_out_too(tmp_path: Path) -> None:
    (tmp_path / "deck.json").write_text(json.dumps(KIOSK), encoding="utf-8")
    with tintype.load("postcard", provider="cpu", deal=tmp_path / "deck.json") as pipeline:
        fields = {**FIELDS, "width": 128, "height": 128}
        made = pipeline.generate("a car by a lake", private=True, code_noise=True, **fields)
        made.save(tmp_path / "private.png")
        told = json.loads(texts_of(tmp_path / "private.png")["tintype"])
        assert (told["deal"]["name"], told["deal"]["prompt"], told["deal"]["words"]) == ("kiosk", None, None)
        assert told["coded_noise"]["nonce"] is None  # it follows from the seed, of which there are few enough to try
        record = tintype.read_record(tmp_path / "private.png").revealed(made.record.request.prompt, FIELDS["seed"])
        assert pipeline.reproduce(record).image.tobytes() == made.image.tobytes()


def test_a_public_record_takes_no_words(
    postcard: tintype.Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    postcard.generate(PROMPT, seed=SEED, num_inference_steps=1).save(tmp_path / "x.png")
    assert run(["generate", "--from-record", str(tmp_path / "x.png"), "--seed", "7"]) == 2
    assert "contradict" in capsys.readouterr().err
