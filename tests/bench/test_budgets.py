"""What twenty budgets are judged by, and a sweep over a small bundle."""

from __future__ import annotations

import json

import click
import pytest
from click.testing import CliRunner

from tintype.bench.budgets import given_budgets, judge, main, settled, spread

MIB = 2**20


def row(budget, *, used=0.9, off=0.02, psnr=80.0, ratio=1.1):
    return {
        "budget_bytes": budget,
        "used": used,
        "prediction_off": off,
        "psnr_db": psnr,
        "ratio_to_no_budget": ratio,
    }


def missed(table, slowest=None):
    return [bar["what"] for bar in judge(table, slowest) if not bar["met"]]


def test_each_bar_is_missed_by_the_worst_budget():
    good = [row(None, used=None), row(300 * MIB), row(900 * MIB)]
    assert missed(good) == []
    assert missed([*good, row(400 * MIB, used=1.01)]) == ["most of a budget that was used"]
    assert missed([*good, row(400 * MIB, off=0.11)]) == ["worst prediction of a peak"]
    assert missed([*good, row(400 * MIB, psnr=59.0)]) == ["worst picture, dB"]


def test_a_budget_may_have_a_time_of_its_own():
    budgets, slowest = given_budgets("512,1024:1.5,2048:1.15")
    assert budgets == (512 * MIB, 1024 * MIB, 2048 * MIB)
    table = [row(None, used=None), row(1024 * MIB, ratio=1.4), row(2048 * MIB, ratio=1.2)]
    assert missed(table, slowest) == ["time within 2,048 MiB over no budget"]
    with pytest.raises(click.UsageError):
        given_budgets("2GiB")


def test_plans_are_made_until_they_stay_as_they_are():
    def plans(held, base):
        stage = {"role": "denoiser", "held": held, "split_guidance": False}
        return {5: {"resident_together": False, "base_bytes": base, "stages": [stage]}}

    made = iter([plans("mapped", 1), plans("packed", 1), plans("packed", 2), plans("mapped", 3)])
    assert settled(lambda: next(made)) == plans("packed", 2)
    changing = iter("abcdefghijkl")
    with pytest.raises(click.ClickException, match="still change"):
        settled(lambda: plans(next(changing), 1))


def test_budgets_are_spread_by_one_factor():
    assert spread(100, 1600, 5) == pytest.approx((100, 200, 400, 800, 1600), abs=1)


@pytest.mark.bench
def test_a_sweep_over_a_small_bundle_keeps_its_budgets(tiny_bundle, tmp_path, no_builds):
    asked = [
        str(tiny_bundle),
        "--sizes",
        "64x64",
        "--budgets",
        "2",
        "--threads",
        "1",
        "--results",
        str(tmp_path / "out"),
    ]
    done = CliRunner().invoke(main, asked, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (path,) = (tmp_path / "out").glob("*.json")
    assert path.with_suffix(".svg").is_file()
    rows = json.loads(path.read_text())["sizes"]["64x64"]["budgets"]
    assert len(rows) == 3
    assert all(each["peak_bytes"] <= each["budget_bytes"] for each in rows[1:])
