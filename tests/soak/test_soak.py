"""A short soak: every kind of picture once and more, with what fails in between. `make soak` goes on for thousands."""

from __future__ import annotations

import pytest
from soak import BETWEEN, KINDS, soak

pytestmark = [pytest.mark.memory, pytest.mark.slow]


def test_pictures_of_every_kind_are_the_same_between_faults_and_leave_nothing_open() -> None:
    tally = soak(100, seed=3)
    assert tally.problems == []
    assert set(tally.kinds) == set(KINDS)
    assert len(tally.between) == len(BETWEEN)
    for values in (tally.files, tally.threads):
        before, after = tally.growth(values)
        assert after <= before
