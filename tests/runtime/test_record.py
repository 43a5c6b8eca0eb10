"""A record says all that the bytes depend on, survives a PNG, and is honoured or refused with the reason."""

from __future__ import annotations

import dataclasses
import json

import pytest
from PIL import Image

from tintype import strict_json
from tintype.errors import RecordError
from tintype.image.png import read_texts, write_png
from tintype.memory.mode import parse_mode
from tintype.record import Provenance, Record, parse_record, read_record
from tintype.record.a1111 import parameters_text
from tintype.record.provenance import execution_plan_of, mismatches
from tintype.record.record import RECORD_VERSION
from tintype.request import Request, resolve

MADE_WITH = Provenance(
    tintype="0.1.0",
    onnxruntime="1.31.1",
    bundle="postcard",
    bundle_hash="ab" * 32,
    precision="fp32",
    target="cpu",
    builds={"denoiser": "1234"},
    threads=2,
)


@pytest.fixture
def record(manifest):
    request = resolve(
        Request(prompt='a "red" house,\n雪 👍', negative_prompt="rain", seed=7, sigmas="karras", count=3), manifest
    )
    return Record(request=request, picture=1, made_with=MADE_WITH)


def test_a_record_survives_its_text(record):
    assert parse_record(record.texts()["tintype"]) == record
    assert record.seed == 8


def test_a_record_survives_a_png(record, tmp_path):
    write_png(tmp_path / "x.png", Image.new("RGB", (2, 2)), record.texts())
    assert read_record(tmp_path / "x.png") == record
    assert read_texts(tmp_path / "x.png")["parameters"] == parameters_text(
        record.request, record.made_with, record.seed
    )


def test_a_record_holds_no_clock_and_no_path(record):
    value = json.loads(record.texts()["tintype"])
    known = {"record_version", "request", "picture", "made_with", "memory", "notes"}
    of_trust = {"watermark", "coded_noise", "trustmark", "credentials", "policy", "safety", "deal", "withheld"}
    assert set(value) == {*known, *of_trust, "memorisation"}
    assert set(value["made_with"]) == {
        "tintype",
        "onnxruntime",
        "bundle",
        "bundle_hash",
        "precision",
        "target",
        "builds",
        "threads",
        "modes",
        "split_guidance",
        "kernels",
        "refiner",
        "licence",
    }


def test_the_parameters_are_as_a1111_writes_them(record):
    text = parameters_text(record.request, record.made_with, record.seed)
    prompt, negative, facts = text.rsplit("\n", 2)
    assert prompt == record.request.prompt
    assert negative == "Negative prompt: rain"
    assert facts.startswith(
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 8, Size: 64x64, "
    )
    assert "RNG: NV" in facts
    assert "CFG Interval" not in facts


def test_an_interval_of_guidance_stands_in_the_parameters(record):
    request = dataclasses.replace(record.request, guidance_interval="0.2,0.8")
    assert 'CFG Interval: "0.2,0.8", ' in parameters_text(request, record.made_with, record.seed)


def test_every_sampler_and_noise_has_a_name_there():
    from tintype.record.a1111 import A1111_NOISE, A1111_SAMPLERS
    from tintype.sampling import NOISE_MODES, SAMPLERS

    assert set(A1111_SAMPLERS) == set(SAMPLERS)
    assert set(A1111_NOISE) == set(NOISE_MODES)


def test_the_same_circumstances_differ_in_nothing(record):
    assert mismatches(record.made_with, MADE_WITH) == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"bundle_hash": "cd" * 32}, "another bundle"),
        ({"tintype": "9"}, "tintype was 0.1.0"),
        ({"onnxruntime": "1.0"}, "onnxruntime"),
        ({"target": "cuda"}, "target was cpu"),
        ({"threads": 8}, "threads was 2"),
        ({"builds": {"denoiser": "other"}}, "processor"),
    ],
)
def test_each_difference_is_named(record, change, word):
    (reason,) = mismatches(record.made_with, dataclasses.replace(MADE_WITH, **change))
    assert word in reason


def test_a_newer_record_says_so(record):
    value = json.loads(record.texts()["tintype"])
    value["record_version"] = RECORD_VERSION + 1
    with pytest.raises(RecordError, match="newer") as caught:
        parse_record(json.dumps(value))
    assert caught.value.fix == "upgrade tintype"


def first_version(record, *, holdings, tiling):
    value = json.loads(record.texts()["tintype"]) | {"record_version": 1, "tiling": tiling}
    del value["made_with"]["modes"]
    value["made_with"]["holdings"] = holdings
    return json.dumps(value)


@pytest.mark.parametrize(
    ("holdings", "tiling", "modes"),
    [
        ({}, None, {}),
        ({"denoiser": "segments of 64 MiB, open"}, None, {"denoiser": "segments of 64 MiB, open"}),
        ({}, {"tile": 32, "overlap": 8, "multiple": 1}, {"vae_decoder": "tiles of 32 cells, 8 shared"}),
        (
            {"vae_decoder": "mapped"},
            {"tile": 32, "overlap": 8, "multiple": 1},
            {"vae_decoder": "tiles of 32 cells, 8 shared, mapped"},
        ),
    ],
)
def test_how_graphs_were_held_is_read_from_the_first_version(record, holdings, tiling, modes):
    read = parse_record(first_version(record, holdings=holdings, tiling=tiling))
    assert read.made_with.modes == modes
    assert execution_plan_of(read.made_with).modes == {role: parse_mode(words) for role, words in modes.items()}


@pytest.mark.parametrize("tiling", [5, {}, {"tile": 8, "overlap": 8}, {"tile": "8", "overlap": 2}, [8, 2]])
def test_tiles_of_the_first_version_that_are_none(record, tiling):
    with pytest.raises(RecordError):
        parse_record(first_version(record, holdings={}, tiling=tiling))


@pytest.mark.parametrize("text", ["", "{}", "[1]", "null", '{"record_version": 1}', "[" * 10_000, '{"a": 1, "a": 2}'])
def test_a_text_that_is_no_record(text):
    with pytest.raises(RecordError):
        parse_record(text)


@pytest.mark.parametrize("picture", [-1, 3, "0"])
def test_a_record_of_a_picture_that_is_not_in_its_request(record, picture):
    value = json.loads(strict_json.dump(record))
    value["picture"] = picture
    with pytest.raises(RecordError):
        parse_record(json.dumps(value))


def test_files_without_a_record(tmp_path):
    with pytest.raises(RecordError, match="no file"):
        read_record(tmp_path / "nothing.png")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(RecordError, match="PNG"):
        read_record(tmp_path / "text.png")
    Image.new("RGB", (2, 2)).save(tmp_path / "plain.png")
    with pytest.raises(RecordError, match="no record"):
        read_record(tmp_path / "plain.png")
    write_png(tmp_path / "a1111.png", Image.new("RGB", (2, 2)), {"parameters": "a house"})
    with pytest.raises(RecordError, match="A1111"):
        read_record(tmp_path / "a1111.png")
    with pytest.raises(RecordError):
        read_record(tmp_path)
