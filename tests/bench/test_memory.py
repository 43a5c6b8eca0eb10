"""Strips beside the whole: less in no picture. Memory that grows is seen, and a start after a kill draws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tintype.bench.memory import growth_of, memory


def test_growth_is_of_the_largest_shape_from_the_tenth_picture_on() -> None:
    steady = [50, *[100, 120, 110] * 10]
    assert growth_of(steady, 3) == 0.0
    assert growth_of([*steady[:-3], 100, 132, 110], 3) == pytest.approx(0.1)


@pytest.mark.bench
def test_pictures_and_kills_are_measured_and_judged(tiny_bundle: Path, tmp_path: Path) -> None:
    def report(*arguments: str) -> dict[str, Any]:
        out = tmp_path / arguments[0]
        done = CliRunner().invoke(memory, [*arguments, "--results", str(out)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        (path,) = out.iterdir()
        return dict(json.loads(path.read_text())["parts"][arguments[0]])

    pictures = report("pictures", str(tiny_bundle), "--count", "20", "--steps", "1")["peers"]
    for name, shapes in (("one shape", 1), ("three shapes", 3)):
        part = pictures[name]
        assert len(part["shapes"]) == shapes
        assert len(part["every_tenth_rss"]) == 2
        assert min(part["every_tenth_rss"]) > 20 * 2**20
    kills = report("kills", str(tiny_bundle), "--count", "1")
    assert kills["bars"][0]["met"], (kills["killed"], kills["peers"])
    assert [row["left"] for name, row in kills["peers"].items() if name != "undisturbed"] == [[]]
    assert sum(row["was_running"] for row in kills["killed"]) == 1


@pytest.mark.bench
@pytest.mark.parametrize("role", ["vae_decoder", "vae_encoder"])
def test_strips_are_as_near_to_the_whole_as_can_be(tiny_bundle: Path, tmp_path: Path, role: str) -> None:
    asked = [str(tiny_bundle), "--role", role, "--sizes", "128x192", "--strip-mib", "0.25", "--threads", "1"]
    done = CliRunner().invoke(memory, ["strips", *asked, "--results", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (path,) = tmp_path.iterdir()
    part = json.loads(path.read_text())["parts"]["128x192"]
    assert list(part["peers"]) == ["whole", "0.25MiB"]
    strips = part["peers"]["0.25MiB"]
    assert list(part["strips_a_stage"]) == ["0.25MiB"]
    assert max(part["strips_a_stage"]["0.25MiB"]) > 1
    assert strips["psnr_db"]["smallest"] > 80
    assert strips["seconds"]["runs"] == 2
    assert min(strips["seconds"]["smallest"], strips["processor_seconds"]["smallest"]) > 0
    assert strips["peak_rss_bytes"] > strips["bare_bytes"] > 0
