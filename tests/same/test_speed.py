"""A commit beside itself: both sides are measured, in pairs, by what each has; a slower side misses its bar."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from speed import Side, comparison, main

from tintype.bench.measurement import judge
from tintype.bench.runner import Command


def test_each_figure_is_judged_after_over_before() -> None:
    sides = [Command(["x"], output=Path(name)) for name in ("a", "b")]
    made = comparison({"first": sides}, "call_seconds")
    assert made.near == {"first after": "first before"}
    before = {"seconds": 1.0, "call_seconds": 2.0, "peak_rss_bytes": 100, "psnr_db": 200.0}
    after = {"seconds": 1.1, "call_seconds": 1.0, "peak_rss_bytes": 104, "psnr_db": 50.0}
    bars = judge(made.bars, {"first before": before, "first after": after})
    assert [(bar["value"], bar["met"]) for bar in bars] == [(0.5, True), (1.1, False), (1.04, True), (50.0, False)]


def test_a_side_keeps_to_its_own_packages_and_cache(tmp_path: Path) -> None:
    side = Side(tmp_path / "before")
    assert side.environment == {
        "PYTHONPATH": str(tmp_path / "before/site"),
        "TINTYPE_CACHE": str(tmp_path / "before/cache"),
    }


@pytest.mark.bench
def test_a_commit_and_its_tree_start_and_draw_in_turn(tmp_path: Path) -> None:
    asked = ["HEAD", "--measures", "help,steady", "--rounds", "1", "--steps", "1", "--threads", "1"]
    done = CliRunner().invoke(main, [*asked, "--results", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (path,) = tmp_path.iterdir()
    parts = json.loads(path.read_text("utf-8"))["parts"]
    assert list(parts["help"]["peers"]) == ["--help before", "--help after"]
    for figures in parts["steady"]["peers"].values():
        assert figures["seconds"]["runs"] == 2
        assert 0 < figures["call_seconds"]["median"] < figures["seconds"]["median"]
        assert figures["peak_rss_bytes"] > 50 * 2**20
