"""What other processes take of the machine while something is timed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tintype.engine.device import disturbance
from tintype.engine.device.disturbance import Reading, others_share

BUSY_SECONDS = 0.4
BUSY = f"import time\nwhile time.process_time() < {BUSY_SECONDS}: pass"


def test_what_other_processes_take_is_told_and_what_this_one_takes_is_not() -> None:
    if Reading.now().busy_seconds is None:
        pytest.skip("this system does not tell")
    before = Reading.now()
    subprocess.run([sys.executable, "-c", BUSY], check=True)
    after = Reading.now()
    disturbed = others_share(before, after)
    assert disturbed is not None
    all_seconds = (after.wall_seconds - before.wall_seconds) * (os.cpu_count() or 1)
    assert disturbed * all_seconds >= BUSY_SECONDS / 2  # the system counts in ticks, and may sample them
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
