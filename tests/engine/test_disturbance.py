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


@pytest.mark.parametrize(("busy", "calm"), [(0.0, True), (0.6, False), (None, False)])
def test_it_is_calm_where_others_are_seen_to_take_little(monkeypatch: pytest.MonkeyPatch, busy, calm) -> None:
    """busy: of one processor's time between the two looks, by others."""
    moments = iter([Reading(0.0, 0.0, 0.0), Reading(1.0, busy, 0.0)])
    monkeypatch.setattr(disturbance.Reading, "now", lambda: next(moments))
    monkeypatch.setattr(disturbance.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(disturbance.time, "sleep", lambda seconds: None)
    disturbance.is_calm.cache_clear()
    assert disturbance.is_calm() is calm
    disturbance.is_calm.cache_clear()
