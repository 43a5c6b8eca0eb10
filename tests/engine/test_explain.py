"""Why each kernel won is told by what its build has of it."""

from __future__ import annotations

from typing import Any

import pytest

from tintype.cli.explain import explanation
from tintype.engine import explained
from tintype.engine.build.explain import ALLOWED, FASTEST, SMALLER, UNKNOWN


def choice(chosen: str, refused: dict[str, str] | None = None, **seconds: float) -> dict[str, Any]:
    ways = {name: {"seconds": each, "weight_bytes": 2**20, "psnr_db": 120.0} for name, each in seconds.items()}
    return {"node": "n", "layer": "Conv", "chosen": chosen, "ways": ways, "refused": refused or {}}


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (choice("ours", as_is=0.002, ours=0.001), FASTEST),
        (choice("as_is", {"ours": "below 90 dB"}, as_is=0.002, ours=0.001), ALLOWED),
        (choice("as_is", as_is=0.00102, ours=0.001), SMALLER),
        (choice("as_is", as_is=1.0), UNKNOWN),
    ],
)
def test_a_kernel_wins_for_a_reason(made: dict[str, Any], why: str) -> None:
    (row,) = explained({"timed": True, "choices": [made]})["layers"]
    assert row["why"] == why
    assert list(row["ways"]) == sorted(row["ways"], key=lambda name: made["ways"][name]["seconds"])


def test_times_are_milliseconds_where_they_were_timed_here_and_ratios_where_they_are_priors() -> None:
    choices = [choice("ours", as_is=0.004, ours=0.001)] * 2
    facts = {"choices": choices, "kernels": {"ours": 2, "attention": 3}, "others": {"Add": 5}}
    timed = explained({**facts, "timed": True})
    assert timed["layers"][0]["count"] == 2
    assert timed["layers"][0]["ways"]["ours"]["milliseconds"] == pytest.approx(1.0)
    assert timed["always"] == {"attention": 3}
    lines = "\n".join(explanation(timed))
    assert "timed here" in lines
    assert "Add 5" in lines
    likely = explained({**facts, "timed": False, "priors": {"processor": "avx2", "threads": 4}})
    assert likely["layers"][0]["ways"]["ours"] | {"weight_bytes": 0, "psnr_db": 0} == {
        "milliseconds": None, "times": 0.25, "weight_bytes": 0, "psnr_db": 0, "refused": None,
    }  # fmt: skip
    assert "priors of avx2, threads: 4" in next(explanation(likely))
