"""Budget -> plan, with costs that the tests set: the fastest that fits, or an error that names what would."""

from __future__ import annotations

import dataclasses

import pytest

from tintype.costs import Costs, GraphFacts
from tintype.errors import MemoryBudgetError
from tintype.memory.budget import MemoryLimits, parse_memory
from tintype.memory.mode import MAPPED, MIB, PACKED, Mode, Segments, Strips, Tiles, parse_mode
from tintype.memory.planner import MARGIN, Candidate, Need, device_modes, make_plan, modes_for, whole_plan
from tintype.memory.reckoning import Correction, reckon

BASE = 60 * MIB
NEEDS = (
    Need(role="text_encoder", modes=(PACKED, Segments(64)), opens=1, calls=2),
    Need(role="denoiser", modes=(PACKED, MAPPED, Segments(256)), opens=1, calls=10, can_split=True),
    Need(role="vae_decoder", modes=(PACKED, Strips(16)), opens=1, calls=1),
)
PEAKS = {PACKED: 1000, MAPPED: 600, Segments(256): 300, Segments(64): 80, Strips(16): 120}
SECONDS = {PACKED: 1.0, MAPPED: 1.2, Segments(256): 1.5, Segments(64): 1.5, Strips(16): 2.0}


def costs(candidate, measured=True):
    peak = PEAKS[candidate.mode] * MIB
    if candidate.split_guidance:
        peak -= 50 * MIB
    seconds = SECONDS[candidate.mode] / (1.9 if candidate.split_guidance else 1.0)
    resident = peak - 10 * MIB if candidate.mode in (PACKED, MAPPED) else 5 * MIB
    return Costs(
        peak_bytes=peak,
        resident_bytes=resident,
        copied_bytes=resident // 2,
        open_seconds=0.5,
        held_seconds=0.0,
        call_seconds=seconds,
        measured=measured,
    )


def test_without_a_budget_everything_is_fastest_and_stays_open():
    plan = make_plan(NEEDS, BASE, None, costs)
    assert [stage.mode for stage in plan.stages] == [PACKED] * 3
    assert plan.keep
    assert not plan.execution.split_guidance
    # The last stage begins with what the two before it hold; then everything is open.
    assert plan.peak_bytes == plan.stages[-1].peak_bytes == BASE + (990 + 990 + 1000) * MIB
    assert plan.seconds == pytest.approx(2 * 1.0 + 10 * 1.0 + 1.0 + 3 * 0.5)


@pytest.mark.parametrize("budget", [330, 380, 450, 700, 1100, 1500, 3500])
def test_a_plan_never_passes_its_budget_and_a_larger_one_is_no_slower(budget):
    plan = make_plan(NEEDS, BASE, budget * MIB, costs)
    assert plan.most_bytes <= budget * MIB * MARGIN
    larger = make_plan(NEEDS, BASE, 2 * budget * MIB, costs)
    assert larger.seconds <= plan.seconds


def test_graphs_stay_open_together_only_where_all_of_them_fit():
    assert not make_plan(NEEDS, BASE, 1200 * MIB, costs).keep
    assert make_plan(NEEDS, BASE, 4000 * MIB, costs).keep


def test_graphs_that_stay_open_share_their_arena():
    def hungry_in_the_middle(candidate):
        work = {"text_encoder": 5, "denoiser": 200, "vae_decoder": 50}[candidate.role] * MIB
        sizes = {"peak_bytes": 100 * MIB + work, "resident_bytes": 100 * MIB, "arena_bytes": work}
        return dataclasses.replace(costs(candidate), **sizes)

    plan = make_plan(NEEDS, BASE, None, hungry_in_the_middle)
    assert plan.keep
    assert [(stage.peak_bytes - BASE) // MIB for stage in plan.stages] == [105, 400, 500]
    assert plan.peak_bytes == BASE + 500 * MIB


def test_weights_that_come_and_go_are_on_top_of_the_arena_that_another_graph_left():
    def passing_weights(candidate):
        arena, weights = {"text_encoder": (5, 0), "denoiser": (20, 150), "vae_decoder": (50, 0)}[candidate.role]
        sizes = {"peak_bytes": 100 + arena + weights, "resident_bytes": 100, "arena_bytes": arena}
        return dataclasses.replace(costs(candidate), **{name: size * MIB for name, size in sizes.items()})

    plan = make_plan(NEEDS, BASE, None, passing_weights)
    assert plan.most_bytes == plan.warm_bytes == BASE + (300 + 50 + 150) * MIB  # of the second picture's denoiser
    first = BASE + 370 * MIB  # a first one has only the text encoder's arena there
    assert plan.peak_bytes == max(stage.peak_bytes for stage in plan.stages) == first
    assert f"({plan.warm_bytes / MIB:,.0f} for further pictures)" in plan.lines()[-1]
    # A request that comes back to the denoiser needs that at once, and a budget has to have room for it.
    batches = [dataclasses.replace(need, opens=2) for need in NEEDS]
    assert make_plan(batches, BASE, None, passing_weights).peak_bytes == plan.warm_bytes
    below = make_plan(NEEDS, BASE, int((plan.most_bytes - MIB) / MARGIN), passing_weights)
    assert not below.keep


def test_a_graph_that_is_called_once_needs_what_its_first_call_does():
    def growing(candidate):
        found = costs(candidate)
        return dataclasses.replace(found, first_peak_bytes=found.peak_bytes - 5 * MIB)

    plain, plan = (make_plan(NEEDS, BASE, 1100 * MIB, oracle) for oracle in (costs, growing))
    assert plan.execution == plain.execution
    less = [before.peak_bytes - after.peak_bytes for before, after in zip(plain.stages, plan.stages, strict=True)]
    calls = [need.calls for need in NEEDS]
    assert calls == [2, 10, 1]
    assert less == [0, 0, 5 * MIB]
    again = dataclasses.replace(plan, keep=True)
    assert again.warm_bytes == dataclasses.replace(plain, keep=True).warm_bytes  # its second picture calls it again


def test_opening_and_first_calls_count_in_the_time():
    slow_at_first = make_plan(NEEDS, BASE, None, lambda each: dataclasses.replace(costs(each), first_seconds=3.0))
    assert slow_at_first.seconds == pytest.approx(make_plan(NEEDS, BASE, None, costs).seconds + 3 * 3.0)


def test_of_two_that_take_as_long_the_one_is_taken_whose_further_pictures_take_less():
    def slow_at_first(candidate):
        found = costs(candidate)
        whole = candidate.mode == PACKED
        return dataclasses.replace(found, first_seconds=1.02 if whole and candidate.role == "vae_decoder" else 0.0)

    plan = make_plan(NEEDS, BASE, 4000 * MIB, slow_at_first)
    assert plan.keep
    assert [stage.mode for stage in plan.stages] == [PACKED] * 3
    assert plan.seconds - plan.warm_seconds == pytest.approx(3 * 0.5 + 1.02)
    # Strips, and what is opened anew, take as long the next time.
    smaller = make_plan(NEEDS, BASE, 2500 * MIB, slow_at_first)
    assert smaller.stages[-1].mode == Strips(16)
    assert smaller.warm_seconds <= smaller.seconds < plan.seconds
    # Two pictures of which the first takes that much longer are no gain.
    much = make_plan(NEEDS, BASE, 4000 * MIB, lambda each: _opens_slowly(slow_at_first(each), each))
    assert much.stages[-1].mode == Strips(16)


def _opens_slowly(found, candidate):
    slow = candidate.role == "vae_decoder" and candidate.mode == PACKED
    return dataclasses.replace(found, open_seconds=5.0) if slow else found


def test_guidance_is_split_where_one_call_for_both_does_not_fit():
    plan = make_plan(NEEDS, BASE, 330 * MIB, costs)
    denoiser = plan.stages[1]
    assert denoiser.split_guidance
    assert denoiser.calls == 20
    assert plan.execution.split_guidance


@pytest.mark.parametrize("budget", [700, 3500])
def test_guidance_is_split_where_some_steps_have_one_prompt_alone(budget):
    """One build then serves the steps of two prompts and those of one, however much memory there is."""
    needs = (NEEDS[0], dataclasses.replace(NEEDS[1], unguided_calls=4), NEEDS[2])
    plan = make_plan(needs, BASE, budget * MIB, costs)
    denoiser = plan.stages[1]
    assert denoiser.split_guidance
    assert denoiser.calls == 2 * 10 + 4
    assert plan.most_bytes <= budget * MIB * MARGIN
    assert plan.execution.split_guidance


UNGUIDED = Need(role="denoiser.unguided", modes=(PACKED,), opens=1, calls=4)
WHOLE = tuple(dataclasses.replace(need, modes=(PACKED,), can_split=False) for need in (*NEEDS[:2], UNGUIDED, NEEDS[2]))


def test_a_budget_with_room_for_every_graph_changes_nothing():
    plan = whole_plan(WHOLE, BASE, 5000 * MIB, costs, room=MemoryLimits(host=5000 * MIB))
    assert plan is not None
    assert plan.execution == make_plan(WHOLE, BASE, None, costs).execution
    assert plan.keep
    assert plan.most_bytes <= 5000 * MIB * MARGIN
    assert whole_plan(WHOLE, BASE, 3500 * MIB, costs) is None
    assert whole_plan(WHOLE, BASE, 5000 * MIB, costs, room=MemoryLimits(host=3500 * MIB)) is None
    assert whole_plan(WHOLE, BASE, 100 * MIB, costs) is None


def test_whole_graphs_that_are_reckoned_not_to_fit_are_not_measured():
    def measure(candidate):
        raise AssertionError(f"{candidate} is measured")

    assert whole_plan(WHOLE, BASE, 3500 * MIB, lambda each: costs(each, measured=False), measure) is None


def test_whole_graphs_that_are_found_not_to_fit_leave_the_plan_to_others():
    real = {}

    def measure(candidate):
        real[candidate] = dataclasses.replace(costs(candidate), peak_bytes=3000 * MIB, resident_bytes=2900 * MIB)

    known = lambda each: real.get(each) or costs(each, measured=False)  # noqa: E731
    assert whole_plan(WHOLE, BASE, 5000 * MIB, known, measure) is None
    assert real


def test_split_guidance_holds_what_depends_on_the_prompt_twice():
    def with_held(candidate):
        held = 20 * MIB if candidate.role == "denoiser" else 0
        return dataclasses.replace(costs(candidate), held_bytes=held)

    plan, plain = (make_plan(NEEDS, BASE, 355 * MIB, oracle) for oracle in (with_held, costs))
    assert plan.execution == plain.execution
    assert plan.execution.split_guidance
    assert plan.most_bytes == plain.most_bytes + 20 * MIB
    assert plan.stages[1].peak_bytes == plain.stages[1].peak_bytes + 20 * MIB
    whole = make_plan(NEEDS, BASE, None, with_held)  # not split: what the costs say is all
    assert whole.peak_bytes == make_plan(NEEDS, BASE, None, costs).peak_bytes


def test_with_parts_of_a_prompt_each_branch_has_a_call_and_holds_its_own():
    def with_held(candidate):
        held = 20 * MIB if candidate.role == "denoiser" else 0
        return dataclasses.replace(costs(candidate), held_bytes=held, held_seconds=1.0)

    needs = [dataclasses.replace(need, branches=4 if need.can_split else 1) for need in NEEDS]
    needs[1] = dataclasses.replace(needs[1], unguided_calls=6)  # of three branches, in two steps
    four = make_plan(needs, BASE, 400 * MIB, with_held).stages[1]
    assert (four.split_guidance, four.calls, four.held_again_bytes) == (True, 4 * 10 + 6, 60 * MIB)
    once = four.costs.open_seconds + 4.0 + four.costs.first_seconds
    assert four.seconds == pytest.approx(four.opens * once + four.calls * four.costs.call_seconds)


def test_nothing_fits_names_the_smallest_budget_that_would_and_it_does():
    with pytest.raises(MemoryBudgetError, match="denoiser") as caught:
        make_plan(NEEDS, BASE, 200 * MIB, costs)
    least = int(caught.value.fix.split("give ")[1].split()[0].replace(",", ""))
    assert make_plan(NEEDS, BASE, least * MIB, costs).peak_bytes <= least * MIB
    with pytest.raises(MemoryBudgetError):
        make_plan(NEEDS, BASE, (least - 24) * MIB, costs)


def test_the_size_that_a_refusal_names_can_be_given_as_it_stands():
    with pytest.raises(MemoryBudgetError) as caught:
        make_plan(NEEDS, 2000 * MIB, MIB, costs)
    told = caught.value.fix.removeprefix("give ").partition(" or more")[0]
    assert parse_memory(told) > 2000 * MIB


def test_a_plan_is_measured_until_nothing_in_it_is_reckoned():
    """Reckoned costs are half of the real ones, so that the first plans do not hold."""
    real, asked = {}, []

    def known(candidate):
        if candidate in real:
            return real[candidate]
        found = costs(candidate, measured=False)
        return Costs(
            peak_bytes=found.peak_bytes // 2,
            resident_bytes=found.resident_bytes // 2,
            copied_bytes=0,
            open_seconds=0.0,
            held_seconds=0.0,
            call_seconds=found.call_seconds,
            measured=False,
        )

    def measure(candidate):
        asked.append(candidate)
        real[candidate] = costs(candidate)
        return real[candidate]

    plan = make_plan(NEEDS, BASE, 700 * MIB, known, measure)
    assert plan.measured
    assert plan.peak_bytes <= 700 * MIB
    assert len(asked) == len(set(asked)) > len(NEEDS)
    assert not make_plan(NEEDS, BASE, 700 * MIB, known=lambda c: costs(c, measured=False)).measured


def test_what_is_only_reckoned_has_to_promise_more_than_a_little():
    """Mapped is measured; segments are reckoned, once a little faster than that, once by a fifth."""

    def known(candidate, gain):
        found = costs(candidate)
        if candidate.mode != Segments(256) or candidate.split_guidance:
            return found
        return dataclasses.replace(found, call_seconds=SECONDS[MAPPED] * (1 - gain), measured=False)

    budget = 800 * MIB
    assert make_plan(NEEDS, BASE, budget, lambda each: known(each, 0.02)).stages[1].mode == MAPPED
    assert make_plan(NEEDS, BASE, budget, lambda each: known(each, 0.20)).stages[1].mode == Segments(256)


def test_the_refusal_of_a_budget_is_made_of_measured_costs():
    real = {}

    def measure(candidate):
        real[candidate] = costs(candidate)
        return real[candidate]

    with pytest.raises(MemoryBudgetError):
        make_plan(NEEDS, BASE, 1 * MIB, lambda c: real.get(c) or costs(c, measured=False), measure)
    assert {candidate.role for candidate in real} == {need.role for need in NEEDS}


ON_DEVICE = (
    Need(role="text_encoder", modes=device_modes("text_encoder"), opens=1, calls=2),
    Need(role="denoiser", modes=device_modes("denoiser"), opens=1, calls=10, can_split=True),
    Need(role="vae_decoder", modes=device_modes("vae_decoder"), opens=1, calls=1),
)
CONTEXT = 300 * MIB
# On the device and beside it, in MiB.
TAKEN = {"text_encoder": (200, 50), "denoiser": (1800, 80), "vae_decoder": (2400, 60)}


def device_costs(candidate):
    """Whole, all of it stays; in parts a third is needed while they run, in twice the time, and nothing stays."""
    there, here = TAKEN[candidate.role]
    there, here = (there - 300 * candidate.split_guidance) * MIB, here * MIB
    parts = candidate.mode.is_cut
    there //= 3 if parts else 1
    return Costs(
        peak_bytes=there + here,
        resident_bytes=here if parts else there + here,
        copied_bytes=here,
        open_seconds=0.5,
        held_seconds=0.0,
        call_seconds=(2.0 if parts else 1.0) / (1.9 if candidate.split_guidance else 1.0),
        device_bytes=there,
        device_resident_bytes=0 if parts else there,
        device_base_bytes=CONTEXT,
    )


def test_a_device_s_memory_is_part_of_the_peak_and_what_any_process_takes_there_counts_once():
    plan = make_plan(ON_DEVICE, BASE, None, device_costs)
    assert plan.keep
    assert plan.device_bytes == CONTEXT + (200 + 1800 + 2400) * MIB
    assert plan.peak_bytes == plan.warm_bytes == BASE + plan.device_bytes + (50 + 80 + 60) * MIB
    apart = make_plan(ON_DEVICE, BASE, 3500 * MIB, device_costs)
    assert not apart.keep
    assert apart.device_bytes == CONTEXT + 2400 * MIB
    assert apart.peak_bytes == BASE + CONTEXT + 2460 * MIB
    assert apart.execution.device_limits == {
        "text_encoder": 200 * MIB,
        "denoiser": 1800 * MIB,
        "vae_decoder": 2400 * MIB,
    }
    assert f"{apart.device_bytes / MIB:,.0f}" in next(line for line in apart.lines() if line.startswith("device"))
    assert make_plan(NEEDS, BASE, None, costs).execution.device_limits == {}


def test_what_does_not_fit_on_a_device_as_a_whole_runs_there_in_parts():
    plan = make_plan(ON_DEVICE, BASE, 2400 * MIB, device_costs)
    assert [stage.mode.kind for stage in plan.stages] == ["packed", "packed", "strips"]
    assert plan.seconds == pytest.approx(3 * 0.5 + 2 * 1.0 + 10 * 1.0 + 2.0)
    assert make_plan(ON_DEVICE, BASE, 2200 * MIB, device_costs).execution.split_guidance
    least = make_plan(ON_DEVICE, BASE, 1300 * MIB, device_costs)
    assert [stage.mode.kind for stage in least.stages] == ["packed", "segments", "strips"]
    assert least.device_bytes == CONTEXT + 800 * MIB
    # Where all stay open, a part's weights come on top of what the others hold.
    together = dataclasses.replace(least, keep=True)
    assert together.device_bytes == CONTEXT + (200 + 800) * MIB
    assert together.warm_bytes == BASE + together.device_bytes + (50 + 80 + 60) * MIB


def leaving(candidate):
    """What a graph of a device needs while it runs stays with the device's library when it is closed."""
    found = device_costs(candidate)
    left = {"text_encoder": 40, "denoiser": 700, "vae_decoder": 100}[candidate.role] * MIB
    return dataclasses.replace(
        found,
        peak_bytes=found.peak_bytes + left,
        arena_bytes=left,
        left_bytes=left,
    )


def test_what_a_closed_graph_leaves_behind_counts_in_the_stages_after_it():
    plan = make_plan(ON_DEVICE, BASE, 3800 * MIB, leaving)
    assert not plan.keep
    before = [(stage.before_bytes - BASE - CONTEXT) // MIB for stage in plan.stages]
    assert before == [0, 40, 700]
    assert plan.peak_bytes == BASE + CONTEXT + (700 + 2400 + 60 + 100) * MIB
    # By itself the decoder would fit a budget in which it does not fit after the denoiser.
    assert device_costs(Candidate("vae_decoder", PACKED, False)).peak_bytes + BASE + CONTEXT < 3000 * MIB * MARGIN
    less = make_plan(ON_DEVICE, BASE, 3000 * MIB, leaving)
    assert less.stages[-1].mode.kind == "strips"
    assert less.most_bytes <= 3000 * MIB * MARGIN
    together = make_plan(ON_DEVICE, BASE, None, leaving)
    assert together.keep
    assert together.warm_bytes == make_plan(ON_DEVICE, BASE, None, device_costs).warm_bytes + 700 * MIB


def test_the_smallest_budget_that_a_refusal_names_is_enough_whatever_graphs_leave_behind():
    """A graph that has no smaller way must not be asked for one because another after it has."""

    def tight(candidate):
        left, whole, parts = {
            "text_encoder": (0, 300, 100),
            "denoiser": (40, 1000, 900),
            "vae_decoder": (10, 895, 400),
        }[candidate.role]
        peak = (parts if candidate.mode.is_cut else whole) * MIB
        return dataclasses.replace(device_costs(candidate), peak_bytes=peak, left_bytes=left * MIB, device_bytes=0)

    with pytest.raises(MemoryBudgetError) as refusal:
        make_plan(ON_DEVICE, BASE, 500 * MIB, tight)
    least = int(refusal.value.fix.split()[1]) * MIB
    plan = make_plan(ON_DEVICE, BASE, least, tight)
    assert plan.budget_bytes == least
    assert plan.most_bytes <= least * MARGIN
    assert [stage.mode.is_cut for stage in plan.stages] == [False, True, True]


def test_a_large_budget_does_not_make_a_device_larger():
    plan = make_plan(ON_DEVICE, BASE, 16 * 2**30, device_costs, room=MemoryLimits(device=2200 * MIB))
    assert plan.device_bytes <= 2200 * MIB * MARGIN
    assert plan.stages[-1].mode.kind == "strips"
    with pytest.raises(MemoryBudgetError, match="900 MiB that the device has free: the least that vae_dec") as caught:
        make_plan(ON_DEVICE, BASE, 16 * 2**30, device_costs, room=MemoryLimits(device=900 * MIB))
    assert "provider cpu" in caught.value.fix


def test_a_large_device_does_not_make_the_process_s_own_memory_larger():
    budget = 20 * 2**30  # as auto has it: what is free there, and little here
    assert make_plan(ON_DEVICE, BASE, budget, device_costs, room=MemoryLimits(host=260 * MIB, device=19 * 2**30)).keep
    assert not make_plan(
        ON_DEVICE, BASE, budget, device_costs, room=MemoryLimits(host=240 * MIB, device=19 * 2**30)
    ).keep
    with pytest.raises(MemoryBudgetError):
        make_plan(ON_DEVICE, BASE, budget, device_costs, room=MemoryLimits(host=100 * MIB, device=19 * 2**30))


FACTS = GraphFacts(
    float_bytes=3000 * MIB,
    stored_bytes=800 * MIB,
    largest_bytes=110 * MIB,
    live_bytes=100 * MIB,
    multiplications=4 * 10**11,
)


def reckoned(mode, **kwargs):
    return reckon(kwargs.pop("facts", FACTS), mode, floats=kwargs.pop("floats", True), rate=2e11, **kwargs)


def test_reckoning_knows_what_saves_memory():
    peaks = [reckoned(way).peak_bytes for way in (PACKED, MAPPED, Segments(512), Segments(64))]
    assert peaks == sorted(peaks, reverse=True)
    assert reckoned(Segments(32)).peak_bytes < reckoned(Segments(64)).peak_bytes
    assert reckoned(MAPPED, floats=False).peak_bytes < reckoned(MAPPED).peak_bytes
    assert reckoned(PACKED).call_seconds == pytest.approx(2.0)
    assert reckoned(Segments(64)).call_seconds > reckoned(Segments(512)).call_seconds > reckoned(PACKED).call_seconds
    assert not reckoned(PACKED).measured
    assert reckoned(Segments(64, standing=True)).call_seconds < reckoned(Segments(64)).call_seconds


def test_on_a_device_its_own_memory_is_reckoned_without_copies():
    here, there = reckoned(PACKED), reckoned(PACKED, on_device=True)
    assert here.device_bytes == here.device_resident_bytes == 0
    assert there.peak_bytes < here.peak_bytes
    assert FACTS.float_bytes < there.device_bytes == there.device_resident_bytes < there.peak_bytes
    parts = reckoned(Segments(512), on_device=True)
    assert parts.device_resident_bytes == 0 < parts.device_bytes < there.device_bytes / 2
    assert not there.device_told


def test_inner_values_that_a_graph_is_given_are_there_in_every_mode():
    given = dataclasses.replace(FACTS, taken_bytes=50 * MIB)
    for mode in (PACKED, MAPPED, Segments(64)):
        plain, more = reckoned(mode), reckoned(mode, facts=given)
        assert more.peak_bytes - plain.peak_bytes == more.resident_bytes - plain.resident_bytes == 50 * MIB
        assert more.held_bytes == 50 * MIB


def test_what_was_measured_corrects_what_is_reckoned():
    plain, corrected = reckoned(MAPPED), reckoned(MAPPED, correction=Correction(peak=1.5, seconds=2.0))
    assert corrected.peak_bytes == pytest.approx(1.5 * plain.peak_bytes, rel=1e-6)
    assert corrected.call_seconds == pytest.approx(2 * plain.call_seconds)


@pytest.mark.parametrize(
    "mode",
    [PACKED, MAPPED, Segments(96), Segments(128, standing=True), Strips(8), Tiles(64, 16), Tiles(16, 4, mapped=True)],
)
def test_modes_survive_their_words(mode):
    assert parse_mode(str(mode)) == mode


@pytest.mark.parametrize("words", ["", "packed mapped", "strips of -1 MiB", "tiles of 16 cells, 16 shared", "segments"])
def test_what_is_no_mode_is_none(words):
    with pytest.raises(ValueError):
        parse_mode(words)


@pytest.mark.parametrize("words", ["", "packed ", "segments", "segments of -1 MiB", "strips of 1e9 MiB", "mapped!"])
def test_other_words_are_refused(words):
    with pytest.raises(ValueError, match="no way to hold"):
        parse_mode(words)


def test_every_role_has_ways_that_differ():
    for role in ("text_encoder", "denoiser", "vae_decoder", "vae_encoder"):
        ways = modes_for(role, standing=True)
        assert len(set(ways)) == len(ways)
        assert all(isinstance(way, Mode) for way in ways)
        assert ways[0] == PACKED
