"""Bars are judged as they are said, and the processor's own rates are of real products."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from tintype.bench.figures import bar_lines, share_lines, table_lines, verdict
from tintype.bench.job import Job
from tintype.bench.measurement import BARS, Bar, add_ratios, judge
from tintype.bench.peers import plain_session
from tintype.bench.rates import (
    Stage,
    add_shares,
    copy_rate,
    float_product,
    int8_product,
    measure_rates,
    picture_stages,
)

MIB = 2**20


def test_a_ratio_is_judged_by_its_own_bar() -> None:
    def table(**seconds: float) -> dict[str, Any]:
        return {name: {"seconds": {"median": each}} for name, each in seconds.items()}

    bars = [Bar("ours", over="theirs", at_most=0.7)]
    judged = {"what": "ours over theirs, seconds", "value": 0.7, "at_most": 0.7, "met": True}
    assert judge(bars, table(ours=7.0, theirs=10.0)) == [judged]
    assert judge(bars, table(ours=7.1, theirs=10.0)) == [{**judged, "value": 0.71, "met": False}]
    assert judge(bars, table(ours=7.0)) == []
    compared = table(ours=7.0, theirs=10.0)
    add_ratios(compared, [("seconds", "theirs"), ("seconds", "nobody"), ("load_seconds", "theirs")])
    assert compared["ours"] == {"seconds": {"median": 7.0}, "ratios": {"seconds over theirs": 0.7}}
    assert compared["theirs"]["ratios"] == {"seconds over theirs": 1.0}


def test_a_line_has_the_figures_that_there_are() -> None:
    table = {"a": {"seconds": {"median": 1.5}, "peak_rss_bytes": 3 * MIB}, "b": {"seconds": {"median": 2.0}, "x": None}}
    first, second = table_lines(table, "t")
    assert first.split() == ["t", "a", "1.500", "s,", "peak", "3", "MiB"]
    assert second.split() == ["t", "b", "2.000", "s"]


@pytest.mark.parametrize("value", [None, math.nan, -math.inf])
def test_what_is_no_number_meets_no_bar(value: float | None) -> None:
    for sides in ({"at_most": 1.0}, {"at_least": 1.0}):
        judged = verdict("x", value, **sides)
        assert not judged["met"]
        json.dumps(judged, allow_nan=False)


def test_bars_are_said_with_what_was_reached_and_what_was_asked() -> None:
    bars = [verdict("a", 0.5, at_most=0.7), verdict("b", 60.0, at_least=70.0), verdict("c", None, at_most=1.0)]
    said = list(bar_lines(bars))
    assert said[0].startswith("met")
    assert "0.5 (bar <= 0.7)" in said[0]
    assert said[1].startswith("MISSED")
    assert "60 (bar >= 70.0)" in said[1]
    assert "not measured" in said[2]


def test_a_product_is_the_product_in_fp32_and_its_weight_is_near_in_int8() -> None:
    random = np.random.default_rng(0)
    x, weight = (random.standard_normal(shape, dtype=np.float32) for shape in ((48, 64), (64, 32)))
    exact = plain_session(float_product(weight), 1).run(None, {"x": x})[0]
    np.testing.assert_allclose(exact, x @ weight, rtol=1e-4, atol=1e-4)
    # One at a time, weights come out as they are stored: what sums of uint8 x int8 products come to is the peer's, and
    # on a processor without VNNI they saturate.
    rounded = plain_session(int8_product(weight), 1).run(None, {"x": np.eye(64, dtype=np.float32)})[0]
    step = np.abs(weight).max(axis=0) / 127
    error = np.abs(rounded - weight) / step
    assert 0.25 < error.max() <= 0.501


def test_a_stage_is_told_as_shares_of_the_rates_of_its_own_precision() -> None:
    def rate(value: float) -> dict[str, float]:
        return {"median": value, "largest": value}

    rates = {"fp32 a GFLOP/s": rate(200.0), "fp32 b GFLOP/s": rate(100.0), "int8 a GFLOP/s": rate(800.0)}
    rates["copy GB/s"] = rate(40.0)
    table: dict[str, dict[str, Any]] = {
        "float": {"seconds_a_step": {"median": 2.0}, "decode_seconds": {"median": 1.0}},
        "integers": {"seconds_a_step": {"median": 1.0}},
        "told nothing": {"seconds": {"median": 1.0}},
    }
    stages = {
        "denoise": Stage("seconds_a_step", {"Conv": 100 * 10**9, "MatMul": 180 * 10**9}, 8 * 10**9),
        "decode": Stage("decode_seconds", {"Conv": 50 * 10**9}, 10**9),
    }
    add_shares(table, stages, rates, int8=["integers"])
    assert list(share_lines(table, "picture")) == [
        "picture           float                 denoise: 70 % of 200 GFLOP/s (fp32), 10 % of 40 GB/s",
        "picture           float                 decode: 25 % of 200 GFLOP/s (fp32), 2 % of 40 GB/s",
        "picture           integers              denoise: 35 % of 800 GFLOP/s (int8), 20 % of 40 GB/s",
    ]
    assert table["float"]["shares"]["denoise"]["gflops"] == 140.0
    assert "shares" not in table["told nothing"]


def test_a_picture_with_guidance_is_of_two_rows_but_its_decode() -> None:
    guided, plain = (picture_stages(Job(guidance_scale=scale)) for scale in (7.5, 1.0))
    assert set(guided) == {"encode", "denoise", "decode"}
    assert sum(guided["denoise"].operations.values()) == 2 * sum(plain["denoise"].operations.values())
    assert guided["decode"] == plain["decode"]


@pytest.mark.bench
def test_rates_are_told_for_every_product_in_both_precisions_and_for_a_copy() -> None:
    job = Job(products=((32, 16, 8),), threads=1)
    figures = measure_rates(0, job)
    assert set(figures) == {"fp32 32x16x8 GFLOP/s", "int8 32x16x8 GFLOP/s", "copy GB/s"}
    assert all(value is not None and value > 0 for value in figures.values())
    assert copy_rate(3, MIB) > 0  # a size that three threads don't divide evenly


def test_the_loop_beside_plain_onnxruntime_has_a_bar_of_its_own() -> None:
    table = {
        "tintype": {"denoise_seconds": {"median": 0.9}, "outside_share": {"median": 0.05}},
        "tintype-balanced": {"denoise_seconds": {"median": 0.6}},
        "onnxruntime": {"denoise_seconds": {"median": 1.0}},
    }
    assert [bar["met"] for bar in judge(BARS["peers"], table)] == [True, False]
    assert [bar["what"] for bar in judge(BARS["peers"], {"tintype": table["tintype"]})] == [BARS["peers"][1].what]


def test_a_first_picture_may_take_half_as_long_again_and_ten_seconds() -> None:
    def judged(first: float) -> bool:
        return bool(judge(BARS["fresh"], {"cold": {"seconds": {"median": first}}, "later": later})[0]["met"])

    later = {"seconds": {"median": 60.0}}
    assert judged(100.0)
    assert not judged(100.1)
