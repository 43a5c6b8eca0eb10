"""What other processes take of the machine while something is timed."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tintype.engine import disturbance
from tintype.engine.disturbance import Reading, others_share

BUSY = "import time\nends = time.perf_counter() + 5\nwhile time.perf_counter() < ends: pass"


def test_what_other_processes_take_is_told_and_what_this_one_takes_is_not() -> None:
    if Reading.now().busy_seconds is None:
        pytest.skip("this system does not tell")
    with subprocess.Popen([sys.executable, "-c", BUSY]) as other:
        before = Reading.now()
        time.sleep(0.5)
        disturbed = others_share(before, Reading.now())
        other.kill()
    assert disturbed is not None
    assert disturbed > 0.05
    quiet = Reading(0.0, 0.0, 0.0), Reading(10.0, 8.0, 8.0)
    assert others_share(*quiet) == 0.0
    assert others_share(quiet[0], Reading(10.0, None, 8.0)) is None


def test_shares_are_of_all_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disturbance.os, "cpu_count", lambda: 4)
    assert others_share(Reading(0.0, 0.0, 0.0), Reading(10.0, 30.0, 10.0)) == pytest.approx(0.5)
