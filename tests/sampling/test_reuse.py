"""Which calls take inner values over, against plain loops."""

from __future__ import annotations

import pytest

from tintype.sampling import DeepCache, Gate

BOTH, WORDS = (0, 1), (1,)


@pytest.mark.parametrize("interval", [1, 2, 3, 50])
@pytest.mark.parametrize("calls", [1, 7])
def test_one_call_in_so_many_is_whole(interval, calls):
    reuse = DeepCache(interval)
    assert [reuse.takes(BOTH, 0.0) for _ in range(calls)] == [bool(call % interval) for call in range(calls)]


def test_a_branch_that_the_last_whole_call_left_out_needs_another_one():
    reuse = DeepCache(3)
    active = [WORDS, WORDS, BOTH, BOTH, WORDS, WORDS, WORDS]
    assert [reuse.takes(each, 0.0) for each in active] == [False, True, False, True, True, False, True]


def test_a_gate_closes_for_good_at_its_share_of_the_way():
    gate, steps = Gate(0.5), 6
    ways = [(BOTH, index / steps) for index in range(3)] + [(WORDS, index / steps) for index in range(3, 6)]
    assert [gate.takes(*each) for each in ways] == [False] * 3 + [True] * 3


def test_where_the_way_begins_behind_the_gate_the_first_call_is_whole():
    gate = Gate(0.2)
    assert [gate.takes(WORDS, share) for share in (0.6, 0.8)] == [False, True]
