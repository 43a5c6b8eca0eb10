"""What twenty budgets are judged by, and a sweep over a small bundle."""

from __future__ import annotations

import json

import click
import pytest
from click.testing import CliRunner

from tintype.bench.job import Job
from tintype.bench.measurement import judge
from tintype.bench.memory import budgets, comparison, given_budgets, settled, spread

MIB = 2**20


def row(*, used=0.9, off=0.02, psnr=80.0, seconds=11.0):
    return {
        "used": {"largest": used},
        "prediction_off": {"largest": off},
        "psnr_db": {"smallest": psnr},
        "total_seconds": {"median": seconds},
    }


UNLIMITED = {"prediction_off": {"largest": 0.0}, "total_seconds": {"median": 10.0}}


def missed(tmp_path, table, given=()):
    plans = {name: {"budget_bytes": 1} for name in table}
    bars = comparison(Job(), plans, dict(given), tmp_path).bars
    return [bar["what"] for bar in judge(bars, table) if not bar["met"]]


def test_each_bar_is_missed_by_the_worst_budget(tmp_path):
    good = {"no budget": UNLIMITED, "300 MiB": row(), "900 MiB": row()}
    assert missed(tmp_path, good) == []
    assert missed(tmp_path, {**good, "400 MiB": row(used=1.01)}) == ["most of a budget that was used"]
    assert missed(tmp_path, {**good, "400 MiB": row(off=0.11)}) == ["worst prediction of a peak"]
    assert missed(tmp_path, {**good, "400 MiB": row(psnr=59.0)}) == ["worst picture, dB"]


def test_a_budget_may_have_a_time_of_its_own(tmp_path):
    given = given_budgets("512,1024:1.5,2048:1.15")
    assert list(given.items()) == [(512 * MIB, None), (1024 * MIB, 1.5), (2048 * MIB, 1.15)]
    table = {"no budget": UNLIMITED, "1,024 MiB": row(seconds=14.0), "2,048 MiB": row(seconds=12.0)}
    assert missed(tmp_path, table, given) == ["2,048 MiB over no budget, total_seconds"]
    with pytest.raises(click.UsageError):
        given_budgets("2GiB")


def test_plans_are_made_until_they_stay_as_they_are():
    def plans(held, base):
        stage = {"role": "denoiser", "held": held, "split_guidance": False}
        return {"5 MiB": {"resident_together": False, "base_bytes": base, "stages": [stage]}}

    made = iter([plans("mapped", 1), plans("packed", 1), plans("packed", 2), plans("mapped", 3)])
    assert settled(lambda: next(made)) == plans("packed", 2)
    changing = iter("abcdefghijkl")
    with pytest.raises(click.ClickException, match="still change"):
        settled(lambda: plans(next(changing), 1))


def test_budgets_are_spread_by_one_factor():
    assert spread(100, 1600, 5) == pytest.approx((100, 200, 400, 800, 1600), abs=1)


@pytest.mark.bench
def test_a_sweep_over_a_small_bundle_keeps_its_budgets(tiny_bundle, tmp_path, no_builds):
    asked = [str(tiny_bundle), "--sizes", "64x64", "--budgets", "2", "--threads", "1"]
    asked += ["--results", str(tmp_path / "out")]
    done = CliRunner().invoke(budgets, asked, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (path,) = (tmp_path / "out").glob("*.json")
    assert path.with_suffix(".svg").is_file()
    part = json.loads(path.read_text())["parts"]["64x64"]
    _, *within = part["plans"]
    assert len(within) == 2
    assert all(part["peers"][name]["peak_rss_bytes"] <= part["plans"][name]["budget_bytes"] for name in within)
