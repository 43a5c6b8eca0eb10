"""Budget -> plan. Pure: costs come from an oracle, which may measure them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from tintype.costs import Costs
from tintype.errors import MemoryBudgetError
from tintype.memory.budget import MemoryLimits
from tintype.memory.mode import MAPPED, MIB, PACKED, Mode, Segments, Strips
from tintype.memory.plan import Plan, Stage
from tintype.uses import CONTROLNET

SEGMENTS_MIB = (1536, 1024, 768, 512, 384, 256, 192, 128, 96, 64, 48, 32)
REOPENED_MIB = 64  # smaller segments are many: to keep them all open takes memory too
# Roles whose maps are larger than their weights.
EACH_STEP = ("denoiser", CONTROLNET)  # what is called over and over for one picture
IN_STRIPS = frozenset({"vae_decoder", "vae_encoder", "tiny_decoder", "tiny_encoder"})
STRIPS_MIB = (64, 32, 16, 8, 4)
# On a device each part is opened for every run, and none of them has been seen to be worth more steps.
DEVICE_SEGMENTS_MIB = (1024, 256, 64)
DEVICE_STRIPS_MIB = (32, 8)
NO_BOUND = MemoryLimits()
MARGIN = 0.97  # of a budget is what a plan may fill
NEAR = 1.15  # how far reckoning may be off where the smallest way is sought
PROMISING = 1.05  # a way that is only reckoned has to promise that much over one that was measured
GROWN = 1.25  # by which a bound has to grow before a plan is made again for it
SLACK_BYTES = 8 * MIB  # by which one process is larger than another before it has a graph


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """A graph that a request needs: how often it is opened when graphs don't stay open, and how often called."""

    role: str
    modes: tuple[Mode, ...]
    opens: int
    calls: int  # without split guidance
    can_split: bool = False
    branches: int = 2  # of a call, which become calls of their own where guidance is split
    unguided_calls: int = 0  # further ones for single branches, for which guidance is split then
    splits: tuple[bool, ...] | None = None  # whether guidance may be split; None: as the fields above say
    phase: str = ""  # graphs of one phase are used in turn and stay open for all of it; "": it has its own

    @property
    def choices(self) -> tuple[bool, ...]:
        """Whether guidance may be split for it, and whether it may not."""
        if self.splits is not None:
            return self.splits
        return (True,) if self.unguided_calls else (False, True) if self.can_split else (False,)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run one role."""

    role: str
    mode: Mode
    split_guidance: bool


@dataclass(frozen=True, slots=True)
class KnownPlan:
    """A plan, and what it was made within."""

    plan: Plan
    budget: int | None
    room: MemoryLimits

    def serves(self, budget: int | None, room: MemoryLimits) -> bool:
        """Whether it is still the one to take within these bounds: it fits, and none of them has grown much.

        What is free goes up and down all the time; a new plan may mean to open, and to build, other graphs.
        """
        before = (self.budget, self.room.host, self.room.device)
        grown = any(
            now is None or now > GROWN * then
            for then, now in zip(before, (budget, room.host, room.device), strict=True)
            if then is not None
        )
        return not grown and _fits(self.plan, budget, room)


Oracle = Callable[[Candidate], Costs]


def candidates(need: Need) -> Iterator[Candidate]:
    """Every way to run a role."""
    for split in need.choices:
        for mode in need.modes:
            yield Candidate(need.role, mode, split)


def modes_for(role: str, *, standing: bool) -> tuple[Mode, ...]:
    """The ways in which graphs of a role can be held on the processor.

    standing: whether segments can stay open, as this system takes back a mapped file's memory when asked.
    """
    if role in IN_STRIPS:
        return (PACKED, MAPPED, *map(Strips, STRIPS_MIB))
    anew = tuple(map(Segments, SEGMENTS_MIB))
    if role not in EACH_STEP or not standing:  # the others run once a prompt: nothing is gained by keeping them open
        return (PACKED, MAPPED, *anew)
    small = (mode for mode in anew if mode.mib <= REOPENED_MIB)
    return (PACKED, MAPPED, *(Segments(mib, standing=True) for mib in SEGMENTS_MIB), *small)


def device_modes(role: str) -> tuple[Mode, ...]:
    """The same on a device: whole in its memory, or in parts that are there one after another."""
    parts = map(Strips, DEVICE_STRIPS_MIB) if role in IN_STRIPS else map(Segments, DEVICE_SEGMENTS_MIB)
    return (PACKED, *parts)


def make_plan(
    needs: Sequence[Need],
    base_bytes: int,
    budget_bytes: int | None,
    known: Oracle,
    measure: Oracle | None = None,
    *,
    room: MemoryLimits = NO_BOUND,
) -> Plan:
    """The fastest plan within the budget.

    base_bytes: of the process without any graph. room: bounds beside the budget. known: a candidate's costs as far as
    they are known. measure: builds and measures one; then `known` knows more. It is asked for what the plan is made
    of, until all of that is measured; without it the plan may be reckoned.

    Raises MemoryBudgetError, naming the smallest budget that would do, when nothing fits.
    """
    while True:
        plan = _best(needs, base_bytes, budget_bytes, known, room)
        found = plan or _smallest(needs, base_bytes, known)
        guessed = [stage for stage in found.stages if not stage.costs.measured]
        if measure is not None and guessed:
            measure(Candidate(guessed[0].role, guessed[0].mode, guessed[0].split_guidance))
            continue
        near = next(_unmeasured_rivals(needs, found, known), None) if plan is None and measure is not None else None
        if near is not None and measure is not None:
            measure(near)
            continue
        if plan is None:
            raise _too_small(found, budget_bytes, room)
        return plan


def whole_plan(
    needs: Sequence[Need],
    base_bytes: int,
    budget_bytes: int | None,
    known: Oracle,
    measure: Oracle | None = None,
    *,
    room: MemoryLimits = NO_BOUND,
) -> Plan | None:
    """The plan without a budget, where it fits into this one with every graph open; else None.

    Nothing is measured that is reckoned not to fit.
    """
    with contextlib.suppress(MemoryBudgetError):
        for oracle in (None, measure):
            plan = make_plan(needs, base_bytes, budget_bytes, known, oracle, room=room)
            if not plan.keep:
                return None
        return plan
    return None


def _alike(needs: Sequence[Need]) -> Iterator[Sequence[Need]]:
    """The needs as often as guidance can be split for all of them alike: a step's graphs are called for the same
    prompts."""
    splitting = [need.choices for need in needs if len(need.choices) > 1 or need.choices == (True,)]
    if len(splitting) < 2:
        yield needs
        return
    for split in (False, True):
        if all(split in choices for choices in splitting):
            yield [replace(need, splits=(split,)) if True in need.choices else need for need in needs]


def _best(needs: Sequence[Need], base: int, budget: int | None, known: Oracle, room: MemoryLimits) -> Plan | None:
    found = (_best_of(alike, base, budget, known, room) for alike in _alike(needs))
    return min((plan for plan in found if plan is not None), key=_plan_seconds, default=None)


def _plan_seconds(plan: Plan) -> float:
    return sum(map(_ranked_seconds, plan.stages))


def _best_of(needs: Sequence[Need], base: int, budget: int | None, known: Oracle, room: MemoryLimits) -> Plan | None:
    # By graph, how much of the budget is for what graphs before it leave behind when they are closed.
    less = {need.role: 0 for need in needs}
    while True:
        chosen = []
        for need in needs:
            most = None if budget is None else budget - less[need.role]
            stages = [_stage(need, candidate, known(candidate), base) for candidate in candidates(need)]
            fitting = [stage for stage in stages if _fits(_single(stage, base), most, room)]
            if not fitting:
                smallest = _smallest(needs, base, known, budget)
                return smallest if _fits(smallest, budget, room) else None
            chosen.append(min(fitting, key=lambda stage: (_ranked_seconds(stage), stage.peak_bytes)))
        apart = _sequential(Plan(budget_bytes=budget, base_bytes=base, stages=tuple(chosen), keep=False))
        together = _all_resident(apart)
        if _fits(together, budget, room):
            return _prefer_warm(together, needs, known, room)
        if budget is None or _fits(apart, budget, room):
            return _prefer_warm(apart, needs, known, room)
        over = {stage.role: stage.peak_bytes - int(budget * MARGIN) for stage in apart.stages}
        tight = {role: count for role, count in over.items() if count > 0} or over
        for role, count in tight.items():
            less[role] += max(MIB, count)


def _prefer_warm(plan: Plan, needs: Sequence[Need], known: Oracle, room: MemoryLimits) -> Plan:
    """The plan, or the one that keeps every graph whole and open, where that fits and takes less for two pictures.

    For the first one parts, or graphs one after another, may take no longer: a whole graph's first call is its slowest.
    For the next one they take all of it again.
    """
    whole = [next(candidates(need)) for need in needs]
    stages = tuple(_stage(*each, known(each[1]), plan.base_bytes) for each in zip(needs, whole, strict=True))
    lasting = _all_resident(replace(plan, stages=stages))
    gains = lasting.seconds + lasting.warm_seconds < plan.seconds + plan.warm_seconds
    return lasting if gains and _fits(lasting, plan.budget_bytes, room) else plan


def _sequential(plan: Plan) -> Plan:
    """The same with each graph closed before the next phase's: each stage begins with what those before it have left,
    and with what others of its phase hold.

    Some of what is left it uses again; how much is not known, and a budget has to hold where it is nothing.
    """
    stages, left = [], 0
    for number, stage in enumerate(plan.stages):
        others = list(plan.open_beside(stage))
        arena = max(0, max((other.costs.arena_bytes for other in others), default=0) - stage.costs.arena_bytes)
        beside = sum(other.resident_bytes for other in others) + arena
        stages.append(replace(stage, before_bytes=plan.base_bytes + plan.device_base_bytes + left + beside))
        last = number + 1 == len(plan.stages) or not stage.phase or plan.stages[number + 1].phase != stage.phase
        if last:
            left = max(left, stage.costs.left_bytes, *(other.costs.left_bytes for other in others))
    return replace(plan, stages=tuple(stages))


def _single(stage: Stage, base: int) -> Plan:
    return Plan(budget_bytes=None, base_bytes=base, stages=(stage,), keep=False)


def _fits(plan: Plan, budget: int | None, room: MemoryLimits) -> bool:
    total, device = plan.most_bytes, plan.device_bytes
    bounds = ((total, budget), (total - device, room.host), (device, room.device))
    return all(most is None or count <= int(most * MARGIN) for count, most in bounds)


def _ranked_seconds(stage: Stage) -> float:
    """Seconds by which ways are compared: to build and measure one takes minutes, which a small gain isn't worth."""
    return stage.seconds * (1.0 if stage.costs.measured else PROMISING)


def _all_resident(plan: Plan) -> Plan:
    """The same with every graph left open: each stage begins with what those before it hold, and with their arena."""
    stages, held, arena = [], plan.base_bytes + plan.device_base_bytes, 0
    for stage in plan.stages:
        before = held + max(0, arena - stage.costs.arena_bytes)
        stages.append(replace(stage, opens=1, before_bytes=before))
        held += stage.resident_bytes
        arena = max(arena, stage.costs.arena_bytes)
    return replace(plan, stages=tuple(stages), keep=True, repeats=any(stage.opens > 1 for stage in plan.stages))


def _smallest(needs: Sequence[Need], base: int, known: Oracle, budget: int | None = None) -> Plan:
    """The plan with the lowest peak, whatever time it takes."""
    plans = (_smallest_of(alike, base, known, budget) for alike in _alike(needs))
    return min(plans, key=lambda plan: plan.most_bytes)


def _smallest_of(needs: Sequence[Need], base: int, known: Oracle, budget: int | None) -> Plan:
    stages = tuple(
        min(
            (_stage(need, candidate, known(candidate), base) for candidate in candidates(need)),
            key=lambda stage: stage.peak_bytes,
        )
        for need in needs
    )
    return _sequential(Plan(budget_bytes=budget, base_bytes=base, stages=stages, keep=False))


def _unmeasured_rivals(needs: Iterable[Need], smallest: Plan, known: Oracle) -> Iterator[Candidate]:
    """What is only reckoned and may be smaller than what was measured: asked for before a budget is refused."""
    for need, stage in zip(needs, smallest.stages, strict=True):
        for candidate in candidates(need):
            costs = known(candidate)
            if not costs.measured and costs.peak_bytes <= stage.costs.peak_bytes * NEAR:
                yield candidate


def _stage(need: Need, candidate: Candidate, costs: Costs, base: int) -> Stage:
    return Stage(
        role=need.role,
        mode=candidate.mode,
        split_guidance=candidate.split_guidance,
        opens=need.opens,
        calls=need.calls * (need.branches if candidate.split_guidance else 1) + need.unguided_calls,
        branches=need.branches,
        costs=costs,
        before_bytes=base + costs.device_base_bytes,
        phase=need.phase,
    )


def _too_small(smallest: Plan, budget: int | None, room: MemoryLimits) -> MemoryBudgetError:
    least = -(-int(smallest.most_bytes / MARGIN + SLACK_BYTES) // MIB)
    tightest = max(smallest.stages, key=lambda stage: stage.peak_bytes)
    if not _fits(smallest, None, MemoryLimits(device=room.device)):
        return MemoryBudgetError(
            f"nothing fits into the {(room.device or 0) / MIB:,.0f} MiB that the device has free: "
            f"the least that {tightest.role} takes there is {smallest.device_bytes / MIB:,.0f} MiB",
            fix="close other programs on it, ask for a smaller picture, or choose provider cpu",
        )
    return MemoryBudgetError(
        f"nothing fits into {(budget or 0) / MIB:,.0f} MiB: "
        f"the least that {tightest.role} runs in is {tightest.peak_bytes / MIB:,.0f} MiB",
        fix=f"give {least} MiB or more (about {smallest.seconds:,.0f} s then), or ask for a smaller picture",
        least_bytes=least * MIB,
    )
