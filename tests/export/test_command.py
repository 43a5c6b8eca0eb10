"""`tintype export` as people call it: one clear error with its remedy, nothing half-written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tintype.bundle import Parity
from tintype.cli import run
from tintype.errors import ExportError
from tintype.export import GraphReport, ParityReport
from tintype.export.command import read_prompts, show


def assert_one_error(capsys: pytest.CaptureFixture[str], *words: str) -> None:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2, lines
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("  fix: ")
    for word in words:
        assert word in lines[0]


def test_a_missing_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", str(tmp_path / "nowhere"), str(tmp_path / "b")]) == 1
    assert_one_error(capsys, "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_precision_is_bad_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", str(tmp_path), str(tmp_path / "b"), "--precision", "int3"]) == 2
    assert_one_error(capsys, "int3")


def test_an_output_that_is_a_file(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "b").write_text("mine")
    assert run(["export", str(tiny_checkpoint), str(tmp_path / "b")]) == 1
    assert_one_error(capsys, "is a file")
    assert (tmp_path / "b").read_text() == "mine"


def test_prompts_are_lines_that_say_something(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a red boat\n\n  a house \n", encoding="utf-8")
    assert read_prompts(path) == ["a red boat", "a house"]
    path.write_text("\n \n")
    with pytest.raises(ExportError, match="no prompts"):
        read_prompts(path)
    with pytest.raises(ExportError, match="can't be read"):
        read_prompts(tmp_path / "missing.txt")


def test_the_table_shows_every_graph_with_its_gate(capsys: pytest.CaptureFixture[str]) -> None:
    parity = Parity(
        graph="denoiser", reference="torch fp32", psnr_db=38.26, gate_db=35.0, guidance_error=0.04, passed=True
    )
    report = ParityReport("mine", "int8", (GraphReport("denoiser", "int8", parity, 2**20, 90, 101),), 2**21, 61.0)
    show(report, Path("somewhere"))
    said = capsys.readouterr().out
    for word in ("mine", "denoiser", "90 of 101", "38.3", "35", "0.0400", "2.0 MiB", "61 s"):
        assert word in said


def test_help_needs_no_torch() -> None:
    code = "import sys; from tintype.cli import run; run(['export', '--help']); print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--precision" in said
    assert said.splitlines()[-1] == "False"
