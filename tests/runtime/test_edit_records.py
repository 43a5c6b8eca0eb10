"""What began with a picture, a mask or noise is made again byte for byte with the same one, and with no other."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from pictures import PROMPT, middle, no_memory_to_decode, photo
from PIL import Image, ImageOps

import tintype
from tintype.errors import MemoryBudgetError, RecordError
from tintype.image.png import read_texts, write_png
from tintype.record import parse_record
from tintype.record.latents_file import read_latents
from tintype.sampling import noise_source

ASKED = {"seed": 7, "num_inference_steps": 2, "sampler": "euler_a"}
NOISE = noise_source("philox", [3, 4, 5]).draw((3, 4, 16, 16))
BEGINNINGS = {
    "image": {"image": photo()},
    "another size": {"image": photo(90, 64), "fit": "pad", "width": 64, "height": 64, "background": "navy"},
    "mask": {"image": photo(), "mask": middle(), "strength": 0.5},
    "exact": {"image": photo(), "mask": middle(), "mask_grow": 2, "mask_blur": 1.5, "keep_outside": "exact"},
    "margins": {"image": photo(32, 64), "outpaint": "16,0,16,0", "keep_outside": "exact"},
    "both": {"image": photo(32, 64), "mask": middle(32, 64), "outpaint": "16,0,16,0"},
    "latents": {"latents": NOISE},
}
INPUTS = ("image", "mask", "latents")


def inputs_of(beginning: dict) -> dict:
    return {name: value for name, value in beginning.items() if name in INPUTS}


@pytest.fixture(scope="module")
def made(pipeline):
    """Three pictures of each beginning, in batches of two."""
    return {
        name: pipeline.generate(PROMPT, count=3, batch_size=2, **ASKED, **beginning)
        for name, beginning in BEGINNINGS.items()
    }


@pytest.mark.parametrize("name", BEGINNINGS)
def test_a_record_makes_the_same_file_from_the_same_beginning(pipeline, made, name, tmp_path):
    for path in made[name].save(tmp_path / "x.png"):
        record = tintype.read_record(path)
        again = pipeline.reproduce(record, **inputs_of(BEGINNINGS[name]))
        again.save(tmp_path / "again.png")
        assert (tmp_path / "again.png").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", BEGINNINGS)
def test_a_record_has_hashes_of_what_it_began_with_and_nothing_else_of_it(made, name):
    text = made[name].record.texts()["tintype"]
    assert len(text) < 4000
    request = json.loads(text)["request"]
    assert "inputs" not in request
    assert parse_record(text) == made[name].record
    for field in inputs_of(BEGINNINGS[name]):
        told = request[field] if field == "latents" else request[field]["sha256"]
        assert len(told) == 64


def test_the_same_beginning_as_a_file_or_an_array_will_do(pipeline, made, tmp_path):
    photo().save(tmp_path / "image.png")
    middle().save(tmp_path / "mask.png")
    record = made["exact"].record
    inputs = {"image": tmp_path / "image.png", "mask": np.asarray(middle()) > 127}
    assert pipeline.reproduce(record, **inputs).image.tobytes() == made["exact"].image.tobytes()


@pytest.mark.parametrize("name", BEGINNINGS)
def test_without_its_beginning_a_record_says_what_to_give(pipeline, made, name):
    given = inputs_of(BEGINNINGS[name])
    for missing in given:
        rest = {field: value for field, value in given.items() if field != missing}
        with pytest.raises(RecordError, match="began with") as caught:
            pipeline.reproduce(made[name].record, **rest)
        if len(given) == 1:
            assert f"--{missing} FILE" in caught.value.fix
            assert f"{missing}=" in caught.value.fix


def test_each_missing_input_is_named(pipeline, made):
    with pytest.raises(RecordError, match="began with a mask") as caught:
        pipeline.reproduce(made["mask"].record, image=photo())
    assert "--mask FILE" in caught.value.fix


@pytest.mark.parametrize("name", BEGINNINGS)
def test_another_beginning_is_refused(pipeline, made, name):
    given = inputs_of(BEGINNINGS[name])
    for field, value in given.items():
        other = value * np.float32(0.5) if field == "latents" else ImageOps.invert(value)
        with pytest.raises(RecordError, match="another") as caught:
            pipeline.reproduce(made[name].record, **{**given, field: other})
        assert caught.value.fix


def test_an_input_that_a_record_does_not_have_is_refused(pipeline, made):
    text_only = pipeline.generate(PROMPT, **ASKED).record
    for field, value in {"image": photo(), "latents": NOISE[:1]}.items():
        with pytest.raises(RecordError, match="did not begin with") as caught:
            pipeline.reproduce(text_only, **{field: value})
        assert caught.value.fix == f"leave {field} out"
    with pytest.raises(RecordError, match="did not begin with a mask"):
        pipeline.reproduce(made["image"].record, image=photo(), mask=middle())
    assert pipeline.reproduce(text_only, image=None).image.size == (64, 64)


def test_a_picture_of_another_size_is_another_one(pipeline, made):
    with pytest.raises(RecordError, match="another picture"):
        pipeline.reproduce(made["image"].record, image=photo(128, 128))


def test_a_picture_made_from_a_picture_names_its_parents_record(pipeline, tmp_path):
    (path,) = pipeline.generate(PROMPT, **ASKED).save(tmp_path / "first.png")
    text = read_texts(path)["tintype"]
    second = pipeline.generate(PROMPT, image=path, **ASKED)
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert second.record.request.image.parent == expected
    with Image.open(path) as opened:
        assert pipeline.generate(PROMPT, image=opened, **ASKED).record == second.record
    third = pipeline.generate(PROMPT, image=second.save(tmp_path / "second.png")[0], **ASKED)
    assert third.record.request.image.parent not in (None, expected)
    assert pipeline.generate(PROMPT, image=photo(), **ASKED).record.request.image.parent is None


def test_a_copy_that_lost_its_record_makes_the_same_file(pipeline, tmp_path):
    (path,) = pipeline.generate(PROMPT, **ASKED).save(tmp_path / "first.png")
    (second,) = pipeline.generate(PROMPT, image=path, **ASKED).save(tmp_path / "second.png")
    with Image.open(path) as opened:
        write_png(tmp_path / "copy.png", opened.convert("RGB"), {})
    again = pipeline.reproduce(tintype.read_record(second), image=tmp_path / "copy.png")
    again.save(tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == second.read_bytes()


def test_a_record_of_the_first_version_is_read_and_made_again(pipeline):
    result = pipeline.generate(PROMPT, **ASKED)
    value = json.loads(result.record.texts()["tintype"])
    value["record_version"] = 1
    value["made_with"]["holdings"] = value["made_with"].pop("modes")
    value["tiling"] = None
    for field in INPUTS:
        del value["request"][field]
    record = parse_record(json.dumps(value))
    assert record.request == result.record.request
    assert pipeline.reproduce(record).image.tobytes() == result.image.tobytes()


# Latents that waited for their decoding.
@pytest.fixture
def saved(pipeline, monkeypatch, tmp_path):
    """Latents of a beginning by name, whose decoding failed, as they are read from disk."""

    def waited(name: str):
        with no_memory_to_decode(monkeypatch):
            attempt = pipeline.steps(PROMPT, count=3, batch_size=3, **ASKED, **BEGINNINGS[name])
            with pytest.raises(MemoryBudgetError):
                list(attempt)
        return read_latents(attempt.save_latents(tmp_path / "x.latents.safetensors"))

    return waited


@pytest.mark.parametrize("name", BEGINNINGS)
def test_latents_that_waited_become_the_same_pictures(pipeline, saved, name):
    expected = pipeline.generate(PROMPT, count=3, batch_size=3, **ASKED, **BEGINNINGS[name])
    result = pipeline.resume(saved(name), **inputs_of(BEGINNINGS[name]))
    assert [image.tobytes() for image in result.images] == [image.tobytes() for image in expected.images]
    assert result.records == expected.records


@pytest.mark.parametrize("name", BEGINNINGS)
def test_only_an_exact_outside_needs_its_picture_to_go_on(pipeline, saved, name):
    waited = saved(name)
    if BEGINNINGS[name].get("keep_outside") != "exact":
        assert len(pipeline.resume(waited).images) == 3
        return
    with pytest.raises(RecordError, match="began with") as caught:
        pipeline.resume(waited)
    assert "FILE" in caught.value.fix
    with pytest.raises(RecordError, match="another picture"):
        pipeline.resume(waited, **{**inputs_of(BEGINNINGS[name]), "image": ImageOps.mirror(BEGINNINGS[name]["image"])})


def test_another_beginning_is_refused_by_latents_too(pipeline, saved):
    with pytest.raises(RecordError, match="another picture"):
        pipeline.resume(saved("image"), image=ImageOps.mirror(photo()))
