"""A request and a budget become a plan: what it needs, what each way of running it costs, and the fastest that fits.

Costs are reckoned from the graphs until a plan is made of them; then their builds are made and measured, once for a
machine, and the plan is made again with what was seen.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tintype.costs import IMPOSSIBLE, Costs, GraphFacts
from tintype.errors import UncutError
from tintype.graphs.resident import Graphs
from tintype.memory.budget import MemoryLimits, budget_bytes, free_limits
from tintype.memory.corrections import Corrections
from tintype.memory.mode import MIB, PACKED, Mode, Segments, Strips
from tintype.memory.plan import ExecutionPlan, Plan, Stage
from tintype.memory.planner import (
    NO_BOUND,
    Candidate,
    KnownPlan,
    Need,
    device_modes,
    make_plan,
    modes_for,
    whole_plan,
)
from tintype.memory.reckoning import Correction, reckon
from tintype.recent import Recent
from tintype.uses import GraphRef, GraphUse

if TYPE_CHECKING:
    from tintype.engine import BuildOptions

PLANS_KEPT = 64  # a request of another size, step count or sampler has another plan
COSTS_KEPT = 4096  # one plan looks at some sixty ways to run a graph
FACTS_KEPT = 512


PICTURE_COPIES = 4  # of a picture's bytes while it is put together, encoded and kept
SAMPLE_COPIES = 2  # of its float samples
# A watermark's: of each pixel, and of each of those that its strength follows from.
MARK_BYTES, MARK_ANALYSIS_BYTES, MARK_PIXELS = 8, 40, 512 * 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a plan is made for."""

    uses: tuple[GraphUse, ...]
    exactness: str
    picture_bytes: int  # of its pictures and words, beside the graphs

    def use(self, name: str) -> GraphUse:
        return next(use for use in self.uses if use.name == name)

    def ref(self, name: str) -> GraphRef:
        return self.use(name).ref


@dataclass(slots=True)
class Planner:
    """Plans for one pipeline. What was measured or looked up once is kept, so that a plan made again costs nothing.

    Threads may share one: a plan is made after the other.
    """

    graphs: Graphs
    open_tokenizers: Callable[[], object]
    on_progress: Callable[[str], None]  # is told what planning takes its time for
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _base: int = 0
    _plans: Recent[Work, KnownPlan] = field(default_factory=lambda: Recent(PLANS_KEPT))
    _measured: Recent[tuple[str, BuildOptions], Costs] = field(default_factory=lambda: Recent(COSTS_KEPT))
    # Known to have no measured build.
    _unmeasured: Recent[tuple[str, BuildOptions], bool] = field(default_factory=lambda: Recent(COSTS_KEPT))
    _uncut: set[str] = field(default_factory=set)  # roles whose graphs can't run in strips
    # By graph, and shape with what is changed.
    _facts: Recent[tuple[GraphRef, str], GraphFacts] = field(default_factory=lambda: Recent(FACTS_KEPT))
    _corrections: Corrections | None = None

    def planned(self, work: Work, memory: str | int) -> Plan:
        """The plan that was made before for such work, while it is still the one to take, or a new one.

        What is free is read anew: `auto` stands for that, and a device has no more. See `KnownPlan`.
        """
        self.graphs.demand_own_process()
        with self._lock:
            budget, room = self._bounds(memory)
            known = self._plans.get(work)
            if known is None or not known.serves(budget, room):
                known = self._plans.put(work, KnownPlan(self.plan(work, memory), budget, room))
        return replace(known.plan, budget_bytes=budget)

    def plan(self, work: Work, memory: str | int | None, *, build: bool = True) -> Plan:
        """Every graph whole and open, as without a budget (None), where that fits; else the fastest plan that does.

        build: make and measure the builds that the plan consists of; otherwise what isn't known stays reckoned.

        Raises MemoryBudgetError when nothing fits.
        """
        self.graphs.demand_own_process()
        with self._lock:
            return self._plan(work, memory, build=build)

    def _plan(self, work: Work, memory: str | int | None, *, build: bool) -> Plan:
        base = self.base_bytes() + work.picture_bytes
        whole = [_need(use, (PACKED,), can_split=False) for use in work.uses]
        budget, room = (None, NO_BOUND) if memory is None else self._bounds(memory)

        def known(candidate: Candidate) -> Costs:
            return self._known(candidate, work)

        measure = (lambda candidate: self._measure(candidate, work)) if build else None
        plan = whole_plan(whole, base, budget, known, measure, room=room)
        if plan is None:
            needs = [self._worthwhile(work, use) for use in work.uses if not use.unguided]
            plan = make_plan(needs, base, budget, known, measure, room=room)
        return replace(plan, stages=tuple(self._with_build(stage, work) for stage in plan.stages))

    def _bounds(self, memory: str | int) -> tuple[int, MemoryLimits]:
        """The budget in bytes, and what bounds a plan beside it: a device has no more than it has free."""
        from tintype.engine.device.device_memory import device_bytes, free_device_bytes

        target = self.graphs.target
        free = free_device_bytes(target)
        if free is not None:
            free += device_bytes(target) or 0
        if memory == "auto":
            room = free_limits(free)
            return budget_bytes(memory, room), room
        return budget_bytes(memory), MemoryLimits(device=free)

    def _worthwhile(self, work: Work, use: GraphUse) -> Need:
        """A need without segments that would be the whole graph, or two of which would: nothing is gained by them."""
        options = self._options(Candidate(use.name, PACKED, False), work)
        most = self._facts_of(use.ref, options).float_bytes // (2 * MIB)
        kept = tuple(mode for mode in self._modes(use) if not isinstance(mode, Segments) or mode.mib <= most)
        # Where some steps have fewer branches, a call for each serves all of them with one build in memory.
        unguided_calls = sum(
            each.calls * each.branches
            for each in work.uses
            if each.unguided and (each.ref, each.cut) == (use.ref, use.cut)
        )
        return replace(_need(use, kept, can_split=use.branches > 1), unguided_calls=unguided_calls)

    def _modes(self, use: GraphUse) -> tuple[Mode, ...]:
        from tintype.engine.run.pages import can_give_back

        if self.graphs.target.is_host:
            return modes_for(use.ref.role, standing=can_give_back())
        return device_modes(use.ref.role)

    def base_bytes(self) -> int:
        """What the process holds with everything imported and no graph open; measured when it is first asked for.

        A device's libraries are in it, which the first graph on it brought: the one that asked whether it works.
        """
        if self._base == 0:
            from PIL import Image, PngImagePlugin  # noqa: F401 - imported for what they take

            from tintype.engine.device.providers import load_onnxruntime
            from tintype.engine.run.heap import return_large_blocks, trim

            return_large_blocks()  # what graphs were measured with, and needed where there is a budget to keep
            load_onnxruntime()
            self.graphs.close()
            self.open_tokenizers()
            trim()
            self._base = int(psutil.Process().memory_info().rss)
        return self._base

    def _options(self, candidate: Candidate, work: Work) -> BuildOptions:
        plan = ExecutionPlan(modes={candidate.role: candidate.mode}, split_guidance=candidate.split_guidance)
        return self.graphs.options(work.use(candidate.role), work.exactness, plan)

    def _known(self, candidate: Candidate, work: Work) -> Costs:
        from tintype.engine.build.probe import known_costs

        if isinstance(candidate.mode, Strips) and candidate.role in self._uncut:
            return IMPOSSIBLE
        options = self._options(candidate, work)
        key = (candidate.role, options)
        measured = self._measured.get(key)
        if measured is not None:
            return measured
        if self._unmeasured.get(key) is None:
            folder = self._find_build(work.ref(candidate.role), options)
            known = known_costs(folder, options, self.graphs.threads) if folder is not None else None
            if known is not None:
                return self._measured.put(key, known)
            self._unmeasured.put(key, True)
        return self._reckon(candidate, work, options, corrected=True)

    def _with_build(self, stage: Stage, work: Work) -> Stage:
        """The stage with what its build says of itself, or with what making one is reckoned to take."""
        from tintype.engine.build.builds import reckoned_build_bytes
        from tintype.engine.build.cache import read_report

        options = self._options(Candidate(stage.role, stage.mode, stage.split_guidance), work)
        ref = work.ref(stage.role)
        folder = self._find_build(ref, options)
        if folder is None:
            graph = self.graphs.source(ref).graph_path(ref.role, ref.variant)
            return replace(stage, build_bytes=reckoned_build_bytes(graph))
        report = read_report(folder)
        return replace(stage, kernels=report.get("kernels", {}), build_bytes=report.get("peak_bytes", 0), build=folder)

    def _find_build(self, ref: GraphRef, options: BuildOptions) -> Path | None:
        from tintype.engine.build.builds import find_build

        return find_build(self.graphs.source(ref), ref.role, self.graphs.target, variant=ref.variant, options=options)

    def _measure(self, candidate: Candidate, work: Work) -> Costs:
        from tintype.engine.build.builds import use_build
        from tintype.engine.build.probe import measured_costs

        graphs, options, ref = self.graphs, self._options(candidate, work), work.ref(candidate.role)
        what = f"{candidate.role} in {candidate.mode}" if candidate.mode.is_cut else candidate.role
        self.on_progress(f"building {what}")

        def measured(folder: Path) -> Costs:
            self.on_progress(f"measuring {what}")
            facts = self._facts_of(ref, options)
            return measured_costs(folder, graphs.target, options, graphs.threads, facts=facts)

        try:
            costs = use_build(
                graphs.source(ref), ref.role, graphs.target, measured, variant=ref.variant, options=options
            )
        except UncutError:  # however large the strips
            self._uncut.add(candidate.role)
            return IMPOSSIBLE
        plain = self._reckon(candidate, work, options, corrected=False)
        self._known_corrections().learn(
            self._correction_place(candidate, options),
            candidate.mode.kind,
            Correction(costs.peak_bytes / max(1, plain.peak_bytes), costs.call_seconds / max(1e-9, plain.call_seconds)),
        )
        return self._measured.put((candidate.role, options), costs)

    def _reckon(self, candidate: Candidate, work: Work, options: BuildOptions, *, corrected: bool) -> Costs:
        from tintype.engine.device.providers import computes_on_processor

        corrections = self._known_corrections()
        place = self._correction_place(candidate, options)
        factor = corrections.factor(place, candidate.mode.kind) if corrected else None
        ref = work.ref(candidate.role)
        precision = self.graphs.source(ref).graph(ref.role, ref.variant).precision
        return reckon(
            self._facts_of(ref, options),
            candidate.mode,
            floats=options.exactness == "exact" or precision not in ("int8", "int4"),
            rate=corrections.machine_rate(),
            correction=factor,
            on_device=not computes_on_processor(self.graphs.target),
        )

    def _facts_of(self, ref: GraphRef, options: BuildOptions) -> GraphFacts:
        from tintype.engine.build.analyse import analysis_of

        key = (ref, f"{options.shape} {options.change}")
        return self._facts.get(key) or self._facts.put(key, analysis_of(self.graphs.source(ref), ref, options))

    def _correction_place(self, candidate: Candidate, options: BuildOptions) -> str:
        """What decides how far reckoning is off, beside the kind of mode: half a batch takes more than half."""
        target = self.graphs.target
        words = [candidate.role, options.exactness, str(options.threads)]
        words += ["split"] * candidate.split_guidance
        return " ".join(words if target.is_host else [*words, target.name])

    def _known_corrections(self) -> Corrections:
        if self._corrections is None:
            from tintype.engine import cache_folder

            self._corrections = Corrections.read(cache_folder() / "costs" / "corrections.json")
        return self._corrections


def _need(use: GraphUse, modes: Sequence[Mode], *, can_split: bool) -> Need:
    return Need(
        role=use.name,
        modes=tuple(modes),
        opens=use.opens,
        calls=use.calls,
        can_split=can_split,
        branches=use.branches,
        phase=use.phase,
    )


def picture_bytes(width: int, height: int, count: int) -> int:
    """What pictures take beside the graphs."""
    pixels = width * height * 3
    marking = width * height * MARK_BYTES + min(width * height, MARK_PIXELS) * MARK_ANALYSIS_BYTES
    return pixels * (PICTURE_COPIES + count - 1) + max(pixels * 4 * SAMPLE_COPIES, marking)
