"""The watermark's measurement: pictures without a mark of every kind, and marks that were taken off others."""

from __future__ import annotations

import click
import numpy as np
import pytest

from tintype.bench.command import OTHERS, other_command
from tintype.bench.marks import OPERATOR, VIEWS, drawn, false_alarms, forged
from tintype.bench.pictures import KINDS, SIDES, unmarked
from tintype.cli import run


def test_every_kind_comes_in_turn_and_is_the_same_again() -> None:
    first, again = (list(unmarked(2 * len(KINDS), seed=1)) for _ in range(2))
    assert [kind for kind, _ in first] == list(KINDS) * 2
    for (_, one), (_, other) in zip(first, again, strict=True):
        assert np.array_equal(one, other)
        assert one.shape in {(side, side, 3) for side in SIDES}
    assert len({picture.tobytes() for _, picture in first}) == len(first)
    views = [picture for _, picture in unmarked(8, seed=1, views=8)]
    assert np.array_equal(views[0], first[0][1])
    assert len({picture.tobytes() for picture in views}) == 8
    assert next(unmarked(1, seed=2))[1].tobytes() != first[0][1].tobytes()


def test_false_alarms_are_counted_with_the_kind_that_gave_them() -> None:
    told = false_alarms(VIEWS * len(KINDS), whole=False)
    assert told["found"] == 0
    assert set(told["highest_scores"]) == set(KINDS)
    assert 0 < told["highest_score"] < told["threshold"]
    assert told["samples"] == VIEWS * len(KINDS) * 128 * 128


def test_a_mark_that_was_taken_off_one_picture_is_told_and_of_many_is_nobodys() -> None:
    one = forged(3, 1, OPERATOR, side=256)
    assert one["found"] == one["read_as_the_victims"] == 1.0
    assert one["of_these_told"] > 0
    many = forged(2, 16, OPERATOR, side=256)
    assert many["read_as_the_victims"] == 0


@pytest.mark.parametrize("name", OTHERS)
def test_every_command_of_the_bench_is_where_it_is_said_to_be(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(other_command(name), click.Command)
    assert run(["bench", name, "--help"]) == 0
    assert f"bench {name} " in capsys.readouterr().out


def test_it_is_a_command_of_the_bench(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "watermark", "--help"]) == 0
    said = capsys.readouterr().out
    assert "bench watermark [OPTIONS]" in said
    assert "--forgeries" in said


def test_half_of_the_marked_are_renders() -> None:
    pictures = list(drawn(4, 64, seed=0))
    assert {picture.shape for picture in pictures} == {(64, 64, 3)}
    assert len({picture.tobytes() for picture in pictures}) == 4
