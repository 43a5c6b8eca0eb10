"""Pictures of two devices are compared as they are made; the processor stands for both where there is no other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from tintype.bench.devices import UNDECIDED, parity_comparison
from tintype.bench.job import Job
from tintype.bench.runner import Schedule, Turn
from tintype.cli import run


@pytest.mark.bench
def test_a_device_is_as_near_to_itself_as_can_be_and_rounding_costs_something(tmp_path: Path) -> None:
    made = parity_comparison("cpu", UNDECIDED[:1], 2, Job(num_inference_steps=1)).run(Schedule(rounds=1), tmp_path)
    assert made["peers"]["on cpu"]["psnr_db"]["each"] == [200.0, 200.0]
    assert 20.0 < made["peers"]["the processor, balanced"]["psnr_db"]["smallest"] < 100.0
    assert made["peers"]["on cpu again"]["psnr_db"]["each"] == [200.0, 200.0]
    assert 0.0 < made["peers"]["on cpu"]["outside_share"]["median"] < 1.0
    assert [bar["met"] for bar in made["bars"][:2]] == [True, True]


def test_a_device_that_is_not_here_is_told_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "parity", "qnn", "--results", str(tmp_path)]) != 0
    said = capsys.readouterr().err
    assert said.startswith("error: provider qnn cannot be used")
    assert "fix: " in said
    assert not list(tmp_path.iterdir())


def test_the_farthest_picture_is_judged_and_another_one_the_second_time_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    @contextlib.contextmanager
    def drawn(kind: str, job: Job, *_: object) -> Iterator[Turn]:
        each = iter(next(shades))

        def ask(changes: Mapping[str, str]) -> dict[str, float]:
            np.save(changes["output"], np.full((8, 8, 3), next(each), np.uint8))
            return {"seconds": 1.0, "outside_share": 0.01}

        yield Turn(ask, {"load_seconds": 0.0})

    def judged() -> list[tuple[float, bool]]:
        part = parity_comparison("openvino", UNDECIDED[:2], 1, Job()).run(Schedule(rounds=1), tmp_path)
        return [(bar["value"], bar["met"]) for bar in part["bars"]]

    monkeypatch.setattr("tintype.bench.runner.worker", drawn)
    shades = iter([(10, 10), (10, 10), (10, 10), (10, 90)])  # the processor, balanced, the device, the same again
    assert judged() == [(200.0, True), (10.07, False), (0.01, True)]
    shades = iter([(10, 10), (10, 10), (10, 90), (10, 90)])
    assert judged() == [(10.07, False), (200.0, True), (0.01, True)]
