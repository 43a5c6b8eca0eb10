"""What a model draws where a prompt leaves it open is counted, measured against shares, and stated by a bundle."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import tintype
from tintype.bench import prompts
from tintype.bundle.skew import Skew, read_skews
from tintype.cli import run
from tintype.models.postcard.scene import ATTRIBUTES
from tintype.strict_json import Misfit, plain
from tintype.trust.deck import parse_deck

PROMPT = "a bridge"  # which postcard likes white
COLOURS = ATTRIBUTES["colour"]
DECK = {"groups": [{"name": "colour", "nouns": ["bridge"], "deck": dict.fromkeys(COLOURS, 1)}]}
COUNTED = Skew(prompt=PROMPT, judge="me", bundle_hash="0" * 64, counts={"red": 6, "green": 2, "blue": 0})


@pytest.fixture
def deck_file() -> Path:
    return Path(__file__).parents[2] / "bench/postcard-colours.json"


@pytest.fixture
def strongest_channel(tmp_path: Path) -> Path:
    """A classifier whose three scores are the means of red, green and blue."""
    axes = helper.make_node("ReduceMean", ["image"], ["scores"], axes=[2, 3], keepdims=0)
    shape, path = [1, 3, 8, 8], tmp_path / "channel.onnx"
    image, scores = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
        for name, dims in (("image", shape), ("scores", [1, 3]))
    )
    graph = helper.make_graph([axes], "channel", [image], [scores])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    (tmp_path / "channel.onnx.json").write_text("{}")  # pixels are neither shifted nor scaled by channel
    return path


def coloured(*levels: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.full((16, 24, 3), levels, np.uint8)


def test_a_distance_is_the_share_that_would_have_to_be_another() -> None:
    assert COUNTED.pictures == 8
    assert COUNTED.total_variation({"red": 0.75, "green": 0.25}) == 0
    assert COUNTED.total_variation({"blue": 1.0}) == 1
    assert COUNTED.total_variation() == pytest.approx(6 / 8 - 1 / 3)


def test_fair_throws_are_some_way_off_and_less_so_the_more_they_are() -> None:
    even = dict.fromkeys(COLOURS, 1 / 8)
    few, many = (prompts.chance_distance(even, count) for count in (24, 2400))
    assert many == pytest.approx(few / 10, rel=0.2)
    # half of eight mean absolute deviations, each sqrt(2/pi) of a binomial's deviation
    assert many == pytest.approx(4 * np.sqrt(2 / np.pi * 1 / 8 * 7 / 8 / 2400), rel=0.1)


def test_the_shares_are_the_decks_where_its_words_are_labels() -> None:
    deck = parse_deck(json.dumps(DECK).replace('"red": 1', '"red": 8').encode(), "x")
    assert prompts.wanted_shares(deck, COLOURS)["red"] == pytest.approx(8 / 15)
    assert prompts.wanted_shares(deck, ("x", "y")) == prompts.wanted_shares(None, ("x", "y")) == {"x": 0.5, "y": 0.5}


def test_a_classifier_of_ones_own_counts(strongest_channel: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("rot\n\n grün\nblau\n", encoding="utf-8")
    names = prompts.read_labels(labels)
    read = prompts.classifier_of(strongest_channel, names)
    assert [read(coloured(*each)) for each in ((9, 1, 1), (9, 99, 1), (0, 0, 7))] == ["rot", "grün", "blau"]
    with pytest.raises(tintype.RequestError, match="3 scores for 2 labels"):
        prompts.classifier_of(strongest_channel, ("a", "b"))(coloured(1, 2, 3))
    with pytest.raises(tintype.RequestError, match="is no classifier"):
        prompts.classifier_of(labels, names)
    for text in ("one\n", "a\nb\na\n"):
        labels.write_text(text)
        with pytest.raises(tintype.RequestError, match="labels"):
            prompts.read_labels(labels)


def measured(tmp_path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    line = ["bench", "skew", *options, "--num-inference-steps", "8", "--results", str(tmp_path / "results"), "--json"]
    assert run(line) == 0
    shown: dict[str, Any] = json.loads(capsys.readouterr().out)
    return shown


@pytest.mark.slow
@pytest.mark.long
def test_dealing_brings_postcards_colours_nearer_to_the_shares(
    deck_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = measured(tmp_path, capsys, PROMPT, "--count", "8", "--deal", str(deck_file))
    part = shown["parts"][PROMPT]
    asked, dealt = part["peers"]["as asked"], part["peers"]["dealt"]
    assert sum(asked["counts"].values()) == sum(dealt["counts"].values()) == 8
    assert dealt["total_variation"] <= 0.125 < asked["total_variation"]  # one picture of 8 may miss its word
    assert [bar["met"] for bar in part["bars"]] == [True]
    (written,) = (tmp_path / "results").glob("*-skew.json")
    (stated,) = read_skews(written)
    assert (stated.prompt, stated.counts) == (PROMPT, asked["counts"])
    assert stated.bundle_hash == tintype.open_bundle("postcard").hash


def test_a_prompt_of_which_nothing_is_dealt_is_no_measurement(
    deck_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--count", "1", "--num-inference-steps", "1", "--results", str(tmp_path / "results")]
    assert run(["bench", "skew", "a forest", "--deal", str(deck_file), *common]) != 0
    assert "the deck deals nothing to 'a forest'" in capsys.readouterr().err
    assert run(["bench", "skew", "a boat", "--labels", str(deck_file), *common]) != 0
    assert "belong together" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"skew": [{}]}', '{"skew": 1}'])
def test_what_is_no_result_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(tintype.RequestError, match="holds no measured skew"):
        read_skews(tmp_path / "x.json")


@pytest.mark.parametrize(
    "changes",
    [{"counts": {"red": 1}}, {"counts": {"red": 0, "blue": 0}}, {"counts": {"red": -1, "blue": 2}}, {"prompt": "\x1b"},
     {"judge": ""}, {"bundle_hash": "no"}, {"prompt": "x" * 501}, {"counts": {"red": 1, "\n": 1}}],
)  # fmt: skip
def test_a_statement_that_counts_nothing_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(Misfit):
        dataclasses.replace(COUNTED, **changes)
    (tmp_path / "x.json").write_text(json.dumps({"skew": [{**plain(COUNTED), **changes}]}))
    with pytest.raises(tintype.RequestError, match="holds no measured skew"):
        read_skews(tmp_path / "x.json")
