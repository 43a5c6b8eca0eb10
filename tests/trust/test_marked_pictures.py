"""Pictures that are made here are marked, their records say so, and they can be made again byte for byte."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import tintype
from tintype.bench.pictures import photograph
from tintype.record import parse_record
from tintype.trust.embed import MOST_DB
from tintype.trust.keys import MAKER_NAME, maker_of, read_key
from tintype.trust.payload import payload_of_hex

FIELDS = {"seed": 7, "num_inference_steps": 1}
PROMPT = "a red sailboat on a calm sea at sunset"


@pytest.fixture(scope="module")
def postcard() -> Iterator[tintype.Pipeline]:
    with tintype.load("postcard", provider="cpu") as pipeline:
        yield pipeline


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_bytes(bytes(range(32)))
    path.chmod(0o600)
    return path


def test_a_picture_is_marked_unless_it_is_not_to_be(postcard: tintype.Pipeline, tmp_path: Path) -> None:
    marked, plain = (postcard.generate(PROMPT, watermark=asked, **FIELDS) for asked in (True, False))
    assert postcard.resolve(tintype.Request(prompt=PROMPT)).watermark
    facts = marked.record.watermark
    assert facts is not None
    assert facts.psnr_db >= MOST_DB - 0.05
    payload = payload_of_hex(facts.payload)
    assert payload is not None
    assert payload.maker == postcard.marker.maker != 0
    assert plain.record.watermark is None
    error = np.mean((np.asarray(marked.image, float) - np.asarray(plain.image, float)) ** 2)
    assert 10 * np.log10(255**2 / error) == pytest.approx(facts.psnr_db, abs=0.01)
    assert np.array_equal(np.rint(marked.pixels[0] * 255).astype(np.uint8), np.asarray(plain.image))  # not marked
    paths = [result.save(tmp_path / name)[0] for result, name in ((marked, "marked.png"), (plain, "plain.png"))]
    found, nothing = map(tintype.verify, paths)
    assert (found.watermark.found, nothing.watermark.found) == (True, False)
    assert found.record == marked.record


def test_a_marked_picture_is_made_again_elsewhere(
    postcard: tintype.Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = postcard.generate(PROMPT, **FIELDS)
    record = parse_record(first.record.texts()["tintype"])
    assert record == first.record
    monkeypatch.setattr("tintype.trust.chosen.maker_of", lambda folder: 0x123456)  # another installation
    assert postcard.marker.maker == 0x123456
    again = postcard.reproduce(record)
    assert again.image.tobytes() == first.image.tobytes()
    assert again.record.watermark == first.record.watermark


def test_an_operators_key_carries_the_payload(postcard: tintype.Pipeline, key: Path) -> None:
    public = postcard.generate(PROMPT, **FIELDS)
    with tintype.load("postcard", provider="cpu", watermark_key=key) as pipeline:
        theirs = pipeline.generate(PROMPT, **FIELDS)
        assert theirs.record.watermark is not None
        assert public.record.watermark is not None
        assert theirs.record.watermark.key != public.record.watermark.key == "public"
        assert theirs.image.tobytes() != public.image.tobytes()
        assert pipeline.reproduce(theirs.record).image.tobytes() == theirs.image.tobytes()
        with pytest.raises(tintype.RecordError, match="another key, public"):
            pipeline.reproduce(public.record)


def test_a_record_from_before_has_no_mark(postcard: tintype.Pipeline) -> None:
    plain = postcard.generate(PROMPT, watermark=False, **FIELDS)
    old = json.loads(plain.record.texts()["tintype"])
    del old["watermark"], old["request"]["watermark"]
    again = postcard.reproduce(parse_record(json.dumps(old)))
    assert again.image.tobytes() == plain.image.tobytes()
    assert again.record.watermark is None


def test_a_record_with_a_payload_that_is_none_is_refused(postcard: tintype.Pipeline) -> None:
    record = json.loads(postcard.generate(PROMPT, **FIELDS).record.texts()["tintype"])
    record["watermark"]["payload"] = "\x1b[2J"
    with pytest.raises(tintype.RecordError, match="no payload"):
        postcard.reproduce(parse_record(json.dumps(record)))


def test_what_is_kept_outside_of_a_mask_is_kept_byte_for_byte(postcard: tintype.Pipeline) -> None:
    picture, mask = photograph(4, (128, 128)), np.zeros((128, 128), np.uint8)
    mask[:, 40:] = 255
    result = postcard.generate(PROMPT, image=picture, mask=mask, keep_outside="exact", **FIELDS)
    made = np.asarray(result.image)
    assert result.record.watermark is not None
    assert np.array_equal(made[:, :40], picture[:, :40])
    assert not np.array_equal(made[:, 40:], picture[:, 40:])


def test_latents_that_waited_are_marked_when_they_are_decoded(postcard: tintype.Pipeline, tmp_path: Path) -> None:
    run = postcard.steps(PROMPT, **FIELDS)
    result = tintype.run.take_all(run.events())
    saved = tintype.read_latents(run.save_latents(tmp_path / "x.safetensors"))
    assert postcard.resume(saved).image.tobytes() == result.image.tobytes()


@pytest.mark.parametrize("given", ["yes", 1, None, 0.5])
def test_a_watermark_is_true_or_false(postcard: tintype.Pipeline, given: object) -> None:
    with pytest.raises(tintype.RequestError, match="watermark should be true or false"):
        postcard.resolve(tintype.Request(prompt=PROMPT, watermark=given))  # type: ignore[arg-type]


def test_an_installation_keeps_its_number(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    number = maker_of(folder)
    assert 0 < number < 2**24
    assert maker_of(folder) == number
    assert maker_of(tmp_path / "other") != number
    (folder / MAKER_NAME).write_text("what is this")
    assert 0 < maker_of(folder) < 2**24


@pytest.mark.skipif(os.name != "posix", reason="pipes are POSIX")
def test_an_installation_that_cannot_keep_a_number_has_none(tmp_path: Path) -> None:
    (tmp_path / MAKER_NAME).mkdir()
    assert maker_of(tmp_path) == 0


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [(b"short", 0o600, "16 are the least"), (bytes(5000), 0o600, "more than"), (bytes(32), 0o644, "others can read")],
)
def test_a_key_that_is_none_is_refused(tmp_path: Path, content: bytes, mode: int, words: str) -> None:
    if os.name != "posix" and mode != 0o600:
        pytest.skip("modes are POSIX")
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(tintype.RequestError, match=words):
        read_key(path)
    with pytest.raises(tintype.RequestError, match="cannot be read"):
        read_key(tmp_path / "nowhere")
