"""What was found once, and a few inputs of each door besides, judged as `make fuzz` judges them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from doors import DOORS
from fuzz import read_input
from judge import Judge
from seeds import SEEDS

CORPUS = Path(__file__).parent / "corpus"
KEPT = sorted(path for path in CORPUS.glob("*/*") if path.is_file())
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="the judge reads /proc")]


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    with Judge(tmp_path_factory.mktemp("judge")) as judge:
        yield judge


@pytest.mark.parametrize("path", KEPT, ids=[f"{path.parent.name}-{path.name}" for path in KEPT])
def test_a_kept_input_is_opened_or_refused_within_the_bounds(path: Path, judge: Judge) -> None:
    verdict = judge.judge(path.parent.name, read_input(path), SEEDS[path.parent.name]()[0])
    assert verdict.problem is None


@pytest.mark.long
@pytest.mark.parametrize("door", DOORS)
def test_what_a_door_is_usually_given_is_judged_well(door: str, judge: Judge) -> None:
    usual = SEEDS[door]()
    verdicts = [judge.judge(door, content, usual[0]) for content in usual]
    assert [verdict.problem for verdict in verdicts] == [None] * len(usual)


def test_the_judge_tells_what_is_wrong(tmp_path: Path) -> None:
    with Judge(tmp_path / "judge") as judge:
        assert "unknown-door" in str(judge.judge("unknown-door", b"").problem)


def test_the_corpus_is_small() -> None:
    sizes = [path.stat().st_size for path in KEPT]
    assert max(sizes, default=0) < 20 * 2**10
    assert sum(sizes) < 500 * 2**10
