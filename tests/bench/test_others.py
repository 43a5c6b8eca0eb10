"""A disturbed measurement is taken again while patience lasts."""

from __future__ import annotations

from tintype.bench.runner import quiet_answer


def test_the_quietest_answer_is_taken_and_the_first_quiet_one_ends_it() -> None:
    shares = iter([0.5, 0.2, 0.01, 0.0])
    assert quiet_answer(lambda: {"others_share": next(shares)}, 60.0) == {"others_share": 0.01}
    assert next(shares) == 0.0
    assert quiet_answer(lambda: {"others_share": 0.9}, 0.0) == {"others_share": 0.9}
    assert quiet_answer(lambda: {"others_share": None}, 60.0) == {"others_share": None}
