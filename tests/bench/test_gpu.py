"""The bench of GPUs as far as it needs none: peers, figures, bars, memory as nvidia-smi tells it, and the command."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tintype.bench.devices import EXACTNESS, check, gpu, gpu_comparison, peers_of, placement
from tintype.bench.figures import file_psnr_db, table_lines
from tintype.bench.job import Job, with_steps
from tintype.bench.measurement import add_ratios, judge
from tintype.bench.process import device_samples, used_bytes
from tintype.bench.runner import Measured, Schedule
from tintype.bench.shapes import SHAPES

GIB, MIB = 2**30, 2**20


def test_every_peer_draws_the_same_picture_on_the_same_device(tmp_path: Path) -> None:
    peers = peers_of(tmp_path, "sdxl")
    assert list(peers) == ["tintype", "diffusers", "torch.compile"]
    jobs = [peer.job for peer in peers.values()]
    shared = ("model", "prompt", "num_inference_steps", "guidance_scale", "width", "height", "device")
    assert len({tuple(getattr(job, name) for name in shared) for job in jobs}) == 1
    assert [getattr(job, "compile", None) for job in jobs] == [None, None, "max-autotune"]
    assert all(peer.opens_cold for peer in peers.values())
    fewer = peers_of(tmp_path, "sd15", peers=("diffusers",), steps=2)
    assert list(fewer) == ["tintype", "diffusers"]
    assert {peer.job.num_inference_steps for peer in fewer.values()} == {2}


def test_the_usual_pictures_are_those_of_the_bars() -> None:
    assert (SHAPES["sd15"].side, SHAPES["sd15"].steps) == (512, 50)
    assert SHAPES["sdxl"].side == 1024
    assert (SHAPES["sdxl-turbo"].sampler, SHAPES["sdxl-turbo"].guidance_scale) == ("euler_a", 0.0)
    assert SHAPES["sdxl-turbo"].scheduler["timestep_spacing"] == "trailing"


def _table(ours: float, theirs: float, held: tuple[int | None, int | None]) -> dict[str, Any]:
    def row(seconds: float, peak: int | None) -> dict[str, Any]:
        job = Job(num_inference_steps=50)
        answers = [with_steps({"seconds": seconds, "denoise_seconds": seconds * 0.8}, job)]
        return Measured(turns=[{"device_peak_bytes": peak}], answers=answers, cold_seconds=9.0).figures()

    return {"tintype": row(ours, held[0]), "torch.compile": row(theirs, held[1])}


def _judged(shape: str, table: dict[str, Any]) -> list[tuple[float | None, bool]]:
    return [(bar["value"], bar["met"]) for bar in judge(gpu_comparison(shape, {}).bars, table)]


def test_bars_are_judged_against_torch_compile() -> None:
    table = _table(0.7, 1.0, (3 * GIB, 4 * GIB))
    assert table["tintype"]["seconds_a_step"]["median"] == pytest.approx(0.7 * 0.8 / 50)
    assert _judged("sd15", table) == [(0.7, True), (0.7, True), (0.75, False)]
    assert _judged("sdxl", table) == [(0.75, False)]
    assert _judged("sd15", {"tintype": table["tintype"]}) == []
    add_ratios(table, gpu_comparison("sd15", {}).ratios)
    over = {"seconds_a_step": 0.7, "seconds": 0.7, "device_peak_bytes": 0.75}
    assert table["tintype"]["ratios"] == {f"{figure} over torch.compile": ratio for figure, ratio in over.items()}
    (line, _) = table_lines(table)
    assert "0.0112 s a step" in line
    assert "3,072 MiB" in line


def test_memory_that_nobody_measured_meets_no_bar() -> None:
    assert _judged("sdxl", _table(0.7, 1.0, (None, None))) == [(None, False)]


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An nvidia-smi that says 100 MiB when asked once, and 100, 900, 300 when it goes on."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        '#!/bin/sh\ncase "$*" in *-lms*) echo 100; echo 900; echo 300; exec sleep 60;; *) echo 100;; esac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def test_the_devices_peak_is_beyond_what_it_held_before(smi: None) -> None:
    assert used_bytes() == 100 * MIB
    with device_samples() as held:
        ends = time.monotonic() + 10
        while len(held) < 3 and time.monotonic() < ends:
            time.sleep(0.01)
    assert held == [0, 800 * MIB, 200 * MIB]


def test_without_nvidia_smi_the_memory_is_not_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with device_samples() as held:
        pass
    assert held == []


def test_pictures_are_compared_over_their_whole_range(tmp_path: Path) -> None:
    for name, level in (("black", 0), ("white", 255), ("again", 255)):
        np.save(tmp_path / f"{name}.npy", np.full((2, 2, 3), level, np.uint8))
    black, white, again = (tmp_path / f"{name}.npy" for name in ("black", "white", "again"))
    assert file_psnr_db(black, white) == 0.0
    assert file_psnr_db(white, again) == 200.0


@pytest.mark.bench
def test_the_checks_run_on_a_processor_and_say_what_it_draws(tmp_path: Path) -> None:
    told = check("cpu", steps=2, size=64).run(Schedule(rounds=1), tmp_path)
    nearest = {name: figures["psnr_db"]["smallest"] for name, figures in told["peers"].items() if "psnr_db" in figures}
    assert 20.0 < nearest.pop("balanced") < 200.0
    assert nearest == {"exact": 200.0, "exact again": 200.0, "balanced again": 200.0}
    assert [list(placement("cpu", each)["denoiser"]) for each in EXACTNESS] == [["CPUExecutionProvider"]] * 2
    assert [bar["what"].partition(":")[0] for bar in told["bars"]] == ["exact", "exact again", "balanced"]


@pytest.mark.bench
@pytest.mark.reference
def test_the_command_measures_peers_on_a_tiny_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TINTYPE_CACHE", "TORCHINDUCTOR_CACHE_DIR"):  # the command sets what isn't set
        monkeypatch.setenv(name, str(tmp_path / name))
    arguments = ["--shapes", "tiny", "--device", "cpu", "--compile-mode", "eager", "--rounds", "1", "--pictures", "1"]
    arguments += ["--steps", "2", "--threads", "2", "--no-checks", "--json", "--results", str(tmp_path / "results")]
    done = CliRunner().invoke(gpu, [str(tmp_path / "work"), *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout.strip().splitlines()[-1])
    peers = report["parts"]["tiny"]["peers"]
    assert list(peers) == ["tintype", "diffusers", "torch.compile"]
    for figures in peers.values():
        assert figures["seconds_a_step"]["median"] > 0
        assert figures["cold_seconds"] > 0
        assert "device_peak_bytes" not in figures
    (written,) = (tmp_path / "results").iterdir()
    assert json.loads(written.read_text()) == report
    assert written.name.endswith("-gpu.json")
