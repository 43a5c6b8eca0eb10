"""Graphs that a step uses in turn: planned as open together, and with guidance split for all of them or for none."""

from __future__ import annotations

import dataclasses

import pytest

from tintype.costs import Costs
from tintype.errors import MemoryBudgetError
from tintype.memory.mode import MAPPED, MIB, PACKED, Segments
from tintype.memory.planner import MARGIN, Candidate, Need, make_plan

BASE = 60 * MIB
NEEDS = (
    Need(role="text_encoder", modes=(PACKED, Segments(64)), opens=1, calls=2, phase="encode"),
    Need(role="denoiser", modes=(PACKED, MAPPED, Segments(256)), opens=1, calls=10, can_split=True, phase="denoise"),
    Need(role="denoiser.shallow", modes=(PACKED, MAPPED), opens=1, calls=20, can_split=True, phase="denoise"),
    Need(role="vae_decoder", modes=(PACKED,), opens=1, calls=1, phase="decode"),
)
PEAKS = {PACKED: 1000, MAPPED: 600, Segments(256): 300, Segments(64): 80}
SECONDS = {PACKED: 1.0, MAPPED: 1.2, Segments(256): 1.5, Segments(64): 1.5}


def costs(candidate: Candidate) -> Costs:
    """A shallow graph is small, and what it needs while it runs is the larger."""
    shallow, split = candidate.role == "denoiser.shallow", candidate.split_guidance
    peak = 90 if shallow else 120 if candidate.role == "vae_decoder" else PEAKS[candidate.mode] - 50 * split
    resident = 40 if shallow else 5 if isinstance(candidate.mode, Segments) else peak - 10
    return Costs(
        peak_bytes=peak * MIB,
        resident_bytes=resident * MIB,
        copied_bytes=resident * MIB,
        arena_bytes=50 * MIB * shallow,
        open_seconds=0.5,
        held_seconds=0.0,
        call_seconds=SECONDS[candidate.mode] / (10 if shallow else 1) / (1.9 if split else 1.0),
    )


@pytest.mark.parametrize("budget", [1200, 1500])
def test_graphs_of_one_phase_are_open_together_where_others_are_closed(budget: int) -> None:
    plan = make_plan(NEEDS, BASE, budget * MIB, costs)
    assert not plan.keep
    assert plan.most_bytes <= budget * MIB * MARGIN
    text, whole, shallow, decoder = plan.stages
    assert text.before_bytes == decoder.before_bytes == BASE
    assert whole.before_bytes == BASE + 40 * MIB + 50 * MIB  # the shallow one's arena is the larger
    assert shallow.before_bytes == BASE + whole.resident_bytes
    there = {"text_encoder": 7, "denoiser": 300, "denoiser.shallow": 20, "vae_decoder": 9}
    on_device = dataclasses.replace(
        plan,
        stages=tuple(
            dataclasses.replace(
                stage,
                costs=dataclasses.replace(
                    stage.costs, device_bytes=there[stage.role] * 2, device_resident_bytes=there[stage.role]
                ),
            )
            for stage in plan.stages
        ),
    )
    assert on_device.device_bytes == 2 * 300 + 20
    assert dataclasses.replace(on_device, keep=True).device_bytes == 2 * 300 + 7 + 20 + 9
    alone = make_plan([dataclasses.replace(need, phase="") for need in NEEDS], BASE, budget * MIB, costs)
    assert alone.stages[1].before_bytes == BASE


@pytest.mark.parametrize("budget", [450, 700, 1100, 5000])
def test_guidance_is_split_for_all_graphs_of_a_step_or_for_none(budget: int) -> None:
    """By itself each would choose otherwise: a whole call is faster, a shallow one is slower than its halves."""

    def known(candidate: Candidate) -> Costs:
        found = costs(candidate)
        halves = candidate.role == "denoiser.shallow" and candidate.split_guidance
        return dataclasses.replace(found, call_seconds=found.call_seconds / 4) if halves else found

    plan = make_plan(NEEDS, BASE, budget * MIB, known)
    assert plan.stages[1].split_guidance == plan.stages[2].split_guidance
    with pytest.raises(MemoryBudgetError) as refusal:
        make_plan(NEEDS, BASE, 200 * MIB, known)
    assert refusal.value.least_bytes is not None
    least = make_plan(NEEDS, BASE, refusal.value.least_bytes, known)
    assert [stage.split_guidance for stage in least.stages] == [False, True, True, False]


def test_where_some_steps_have_one_prompt_alone_guidance_is_split_for_all_graphs_of_a_step() -> None:
    needs = (NEEDS[0], dataclasses.replace(NEEDS[1], unguided_calls=3), *NEEDS[2:])
    plan = make_plan(needs, BASE, 5000 * MIB, costs)
    assert [stage.split_guidance for stage in plan.stages] == [False, True, True, False]
    assert [stage.calls for stage in plan.stages] == [2, 23, 40, 1]
