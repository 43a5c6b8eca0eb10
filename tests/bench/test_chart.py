"""A chart of a result file shows every contestant at its figures, by its name."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tintype.bench.figures import GIB, exactness_of, memory_of, new_figure, peers_figure
from tintype.cli import run
from tintype.errors import InstallError

PEERS: dict[str, dict[str, Any]] = {
    "plain": {"seconds": {"median": 4.0}, "peak_rss_bytes": 2 * GIB},
    "tintype-exact": {
        "seconds": {"median": 2.0}, "psnr_db": {"smallest": 100.0, "median": 110.0}, "peak_rss_bytes": GIB,
    },
    "tintype-balanced": {"seconds": {"median": 1.0}, "psnr_db": {"smallest": 30.0}, "peak_rss_bytes": 3 * GIB},
}  # fmt: skip
MACHINE = {"cpu": "a processor", "processor_kind": "avx2", "threads": 2, "date": "2026-11-29T10:00:00"}


def test_a_contestant_stands_at_its_farthest_answer_and_the_reference_above_all() -> None:
    points, reference = exactness_of(PEERS)
    assert reference == "plain"
    assert points == {
        "plain": (4.0, pytest.approx(110.0)), "tintype-exact": (2.0, 100.0), "tintype-balanced": (1.0, 30.0),
    }  # fmt: skip
    assert memory_of(PEERS) == {"plain": (4.0, 2.0), "tintype-exact": (2.0, 1.0), "tintype-balanced": (1.0, 3.0)}
    alone = {"plain": PEERS["plain"]}
    assert exactness_of(alone) == ({}, None)  # nobody's answers were compared


def test_every_contestant_is_named_once_in_a_colour_of_its_own_and_names_lie_apart() -> None:
    fewer = {name: PEERS[name] for name in ("plain", "tintype-exact")}
    figure = peers_figure(MACHINE, {"unet": {"peers": PEERS}, "vae": {"peers": fewer}})
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [words.get_text() for words in legend.texts] == list(PEERS)
    boxes = [words.get_window_extent() for words in legend.texts]
    assert not any(box.count_overlaps(boxes[:index]) for index, box in enumerate(boxes))
    assert all(figure.bbox.count_contains(box.corners()) == 4 for box in boxes)
    lines = [line for axes in figure.axes for line in axes.get_lines()]
    assert len(lines) == 2 * len(PEERS) + 2 * len(fewer)
    assert len({(line.get_label(), line.get_color()) for line in lines}) == len(PEERS)
    hollow = {line.get_label() for line in lines if line.get_markerfacecolor() == "none"}
    assert hollow == {"plain"}


def height(file: Path) -> int:
    with Image.open(file) as picture:
        return picture.size[1]


def test_the_command_draws_a_small_png_with_a_row_for_each_part(tmp_path: Path) -> None:
    result, chart = tmp_path / "result.json", tmp_path / "chart.png"
    parts = {title: {"peers": PEERS, "bars": []} for title in ("unet 512x512", "vae 512x512")}
    result.write_text(json.dumps({"machine": MACHINE, "parts": parts}))
    assert run(["bench", "chart", str(result), "-o", str(chart)]) == 0
    whole = height(chart)
    assert chart.stat().st_size < 100_000
    assert run(["bench", "chart", str(result), "-o", str(chart), "--part", "vae 512x512"]) == 0
    assert height(chart) < whole * 0.6


def test_what_cannot_be_drawn_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = tmp_path / "result.json"
    result.write_text('{"graphs": {}}')
    assert run(["bench", "chart", str(result), "-o", str(tmp_path / "chart.png")]) == 2
    assert "it has no 'parts'" in capsys.readouterr().err


def test_matplotlib_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InstallError, match="matplotlib"):
        new_figure()
