"""What skipping saves is measured beside the picture that skips nothing, and judged where a judge is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tintype.bench.denoiser import WAYS, WHOLE
from tintype.bundle import open_bundle
from tintype.cli import run
from tintype.request import Request, resolve

pytestmark = pytest.mark.slow


def measured(tmp_path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    few = ("--count", "2", "--num-inference-steps", "6", "--threads", "1")
    assert run(["bench", "skipping", *options, *few, "--results", str(tmp_path), "--json"]) == 0
    part: dict[str, Any] = json.loads(capsys.readouterr().out)["parts"]["skipping"]
    return part


def test_of_postcard_time_distance_and_accuracy_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part = measured(tmp_path, capsys, "--ways", "deepcache-3")
    whole, cached = part["peers"][WHOLE], part["peers"]["deepcache-3"]
    assert list(part["peers"]) == list(part["ways"]) == [WHOLE, "deepcache-3"]
    assert whole["psnr_db"]["smallest"] == 200.0 > cached["psnr_db"]["largest"]
    assert cached["ratios"]["denoise_seconds over whole"] < 0.7  # two calls of six are whole
    assert 0.0 <= cached["accuracy"] <= 1.0
    assert whole["accuracy"] == pytest.approx(
        sum(value for name, value in whole["accuracy_of"].items() if name != "mean") / 7
    )
    assert [path.name.endswith("-skipping-postcard.json") for path in tmp_path.iterdir()] == [True]


def test_of_another_bundle_nothing_is_judged(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = measured(tmp_path, capsys, str(tiny_bundle), "--ways", "gate-0.4")
    assert "accuracy" not in part["peers"]["gate-0.4"]
    assert part["peers"]["gate-0.4"]["psnr_db"]["largest"] < 200.0


def test_every_way_is_a_request_that_can_be_made() -> None:
    manifest = open_bundle("postcard").manifest
    asked = {name: resolve(Request(prompt="a house", seed=1, **way), manifest) for name, way in WAYS.items()}
    assert len(set(map(repr, asked.values()))) == len(WAYS)
