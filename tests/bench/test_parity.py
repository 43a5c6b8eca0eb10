"""Pictures of two devices are compared as they are made; the processor stands for both where there is no other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tintype.bench import parity
from tintype.bench.parity import UNDECIDED, Drawn, compare, main


@pytest.mark.bench
def test_a_device_is_as_near_to_itself_as_can_be_and_rounding_costs_something() -> None:
    found = compare("cpu", UNDECIDED[:1], seeds=2, steps=1)
    assert found["usual"] == {"smallest_db": 200.0, "median_db": 200.0, "each_db": [200.0, 200.0]}
    assert 20.0 < found["processor_balanced"]["smallest_db"] < 100.0
    assert found["same_bytes_twice"] == 1.0
    assert 0.0 < found["outside_share"] < 1.0
    assert [bar["met"] for bar in found["bars"][:2]] == [True, True]


def test_a_device_that_is_not_here_is_told_without_a_traceback(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["qnn", "--results", str(tmp_path)])
    assert done.exit_code == 1
    assert done.output.startswith("Error: provider qnn cannot be used")
    assert "fix: " in done.output
    assert not list(tmp_path.iterdir())


def test_the_farthest_picture_is_judged_and_another_one_the_second_time_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shades = iter([(10, 10), (10, 90), (10, 10), (10, 10)])  # the device, the same again, the processor, balanced

    def drawn(*_: object, **__: object) -> list[Drawn]:
        return [Drawn(np.full((8, 8, 3), shade, np.uint8), 0.01) for shade in next(shades)]

    monkeypatch.setattr(parity, "draw", drawn)
    done = CliRunner().invoke(main, ["openvino", "--results", str(tmp_path)], catch_exceptions=False)
    assert "MISSED share of pictures" in done.stdout
    (file,) = tmp_path.iterdir()
    told = json.loads(file.read_text())
    assert told["same_bytes_twice"] == 0.5
    assert told["usual"]["smallest_db"] == 200.0
    shades = iter([(10, 90), (10, 90), (10, 10), (10, 10)])
    assert [bar["met"] for bar in compare("openvino", UNDECIDED, 1, 1)["bars"]] == [False, True, True]
