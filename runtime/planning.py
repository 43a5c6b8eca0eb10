"""A request and a budget become a plan: what it needs, what each way of running it costs, and the fastest that fits.

Costs are reckoned from the graphs until a plan is made of them; then their builds are made and measured, once for a
machine, and the plan is made again with what was seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import psutil

from tintype.conditioning import is_guided, prompts_of
from tintype.costs import IMPOSSIBLE, Costs, GraphFacts
from tintype.errors import RequestError, UncutError
from tintype.manifest import ENCODER
from tintype.memory.budget import Room, auto_room, budget_bytes
from tintype.memory.corrections import Corrections
from tintype.memory.holding import MIB, PACKED, Holding
from tintype.memory.plan import Arrangement, Plan, Stage
from tintype.memory.planner import NO_BOUND, Candidate, KnownPlan, Need, device_holdings, holdings_for, make_plan
from tintype.memory.reckoning import Correction, reckon
from tintype.recent import Recent
from tintype.request import ResolvedRequest

if TYPE_CHECKING:
    from tintype.engine import BuildOptions
    from tintype.pipeline import Pipeline

Needs = Callable[["Pipeline", ResolvedRequest], list[Need]]
PLANS_KEPT = 64  # a request of another size, step count or sampler has another plan
COSTS_KEPT = 4096  # one plan looks at some sixty ways to run a graph
FACTS_KEPT = 512
PICTURE_COPIES = 4  # of a picture's bytes while it is put together, encoded and kept
SAMPLE_COPIES = 2  # of its float samples


@dataclass(slots=True)
class Planner:
    """Plans for one pipeline. What was measured or looked up once is kept, so that a plan made again costs nothing."""

    pipeline: Pipeline
    _base: int = 0
    _plans: Recent[Any, KnownPlan] = field(default_factory=lambda: Recent(PLANS_KEPT))
    _measured: Recent[tuple[str, BuildOptions], Costs] = field(default_factory=lambda: Recent(COSTS_KEPT))
    # Known to have no measured build.
    _unmeasured: Recent[tuple[str, BuildOptions], bool] = field(default_factory=lambda: Recent(COSTS_KEPT))
    _uncut: set[str] = field(default_factory=set)  # roles whose graphs can't run in strips
    _facts: Recent[tuple[str, str], GraphFacts] = field(default_factory=lambda: Recent(FACTS_KEPT))  # by role and shape
    _corrections: Corrections | None = None

    def planned(self, request: ResolvedRequest, memory: str | int, graphs_for: Needs) -> Plan:
        """The plan that was made before for such a request, while it is still the one to take, or a new one.

        What is free is read anew: `auto` stands for that, and a device has no more. See `KnownPlan`.
        """
        alike = replace(request, prompt="", negative_prompt="", seed=0)
        key = (tuple(graphs_for(self.pipeline, request)), alike, self.pipeline.chunks(request))
        budget, room = self._bounds(memory)
        known = self._plans.get(key)
        if known is None or not known.serves(budget, room):
            known = self._plans.put(key, KnownPlan(self.plan(request, memory, graphs_for), budget, room))
        return replace(known.plan, budget_bytes=budget)

    def plan(
        self, request: ResolvedRequest, memory: str | int | None, graphs_for: Needs, *, build: bool = True
    ) -> Plan:
        """The fastest plan for a request, or what stands for one, within a budget; None is no budget.

        graphs_for: tells what it needs. build: make and measure the builds that the plan consists of; otherwise what
        isn't known stays reckoned.

        Raises MemoryBudgetError when nothing fits.
        """
        needs = graphs_for(self.pipeline, request)
        base = self.base_bytes() + picture_bytes(request)
        budget, room = None, NO_BOUND
        if memory is None:
            needs = [Need(role=n.role, holdings=(PACKED,), opens=n.opens, calls=n.calls) for n in needs]
        else:
            needs = [self._worthwhile(need, request) for need in needs]
            budget, room = self._bounds(memory)
        measure = (lambda candidate: self._measure(candidate, request)) if build else None
        plan = make_plan(needs, base, budget, lambda candidate: self._known(candidate, request), measure, room=room)
        return replace(plan, stages=tuple(self._with_kernels(stage, request) for stage in plan.stages))

    def _bounds(self, memory: str | int) -> tuple[int, Room]:
        """The budget in bytes, and what bounds a plan beside it: a device has no more than it has free."""
        from tintype.engine.device.device_memory import device_bytes, free_device_bytes

        target = self.pipeline.target
        free = free_device_bytes(target)
        if free is not None:
            free += device_bytes(target) or 0
        if memory == "auto":
            room = auto_room(free)
            return budget_bytes(memory, room), room
        return budget_bytes(memory), Room(device=free)

    def _worthwhile(self, need: Need, request: ResolvedRequest) -> Need:
        """A need without segments that would be the whole graph, or two of which would: nothing is gained by them."""
        options = self._options(Candidate(need.role, PACKED, False), request)
        most = self._facts_of(need.role, options).float_bytes // (2 * MIB)
        kept = tuple(way for way in need.holdings if (way.segment_mib or 0) <= most)
        return replace(need, holdings=kept)

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
            self.pipeline.close()
            self.pipeline.open_tokenizers()
            trim()
            self._base = int(psutil.Process().memory_info().rss)
        return self._base

    def _options(self, candidate: Candidate, request: ResolvedRequest) -> BuildOptions:
        arrangement = Arrangement(holdings={candidate.role: candidate.holding}, split_guidance=candidate.split_guidance)
        return self.pipeline.options(candidate.role, request, arrangement=arrangement)

    def _known(self, candidate: Candidate, request: ResolvedRequest) -> Costs:
        from tintype.engine.build.builds import find_build
        from tintype.engine.build.probe import known_costs

        if candidate.holding.strip_mib is not None and candidate.role in self._uncut:
            return IMPOSSIBLE
        options = self._options(candidate, request)
        key = (candidate.role, options)
        measured = self._measured.get(key)
        if measured is not None:
            return measured
        if self._unmeasured.get(key) is None:
            folder = find_build(self.pipeline.bundle, candidate.role, self.pipeline.target, options=options)
            known = known_costs(folder, options, self.pipeline.threads) if folder is not None else None
            if known is not None:
                return self._measured.put(key, known)
            self._unmeasured.put(key, True)
        return self._reckon(candidate, options, corrected=True)

    def _with_kernels(self, stage: Stage, request: ResolvedRequest) -> Stage:
        """The stage with what its build says of its kernels; as it is while there is no build."""
        from tintype.engine.build.builds import find_build
        from tintype.engine.build.cache import read_report

        options = self._options(Candidate(stage.role, stage.holding, stage.split_guidance), request)
        folder = find_build(self.pipeline.bundle, stage.role, self.pipeline.target, options=options)
        return stage if folder is None else replace(stage, kernels=read_report(folder).get("kernels", {}))

    def _measure(self, candidate: Candidate, request: ResolvedRequest) -> Costs:
        from tintype.engine import ensure_build
        from tintype.engine.build.probe import measured_costs

        pipeline, options = self.pipeline, self._options(candidate, request)
        what = f"{candidate.role} in {candidate.holding.words}" if candidate.holding.is_cut else candidate.role
        pipeline.tell(f"building {what}")
        try:
            folder = ensure_build(pipeline.bundle, candidate.role, pipeline.target, options=options)
        except UncutError:  # however large the strips
            self._uncut.add(candidate.role)
            return IMPOSSIBLE
        pipeline.tell(f"measuring {what}")
        working = self._facts_of(candidate.role, options).live_bytes
        costs = measured_costs(folder, pipeline.target, options, pipeline.threads, working_bytes=working)
        plain = self._reckon(candidate, options, corrected=False)
        self._known_corrections().learn(
            self._correction_place(candidate, options),
            candidate.holding.kind,
            Correction(costs.peak_bytes / max(1, plain.peak_bytes), costs.call_seconds / max(1e-9, plain.call_seconds)),
        )
        return self._measured.put((candidate.role, options), costs)

    def _reckon(self, candidate: Candidate, options: BuildOptions, *, corrected: bool) -> Costs:
        from tintype.engine.device.providers import computes_on_processor

        corrections = self._known_corrections()
        place = self._correction_place(candidate, options)
        factor = corrections.factor(place, candidate.holding.kind) if corrected else None
        graph = self.pipeline.bundle.graph(candidate.role)
        return reckon(
            self._facts_of(candidate.role, options),
            candidate.holding,
            floats=options.exactness == "exact" or graph.precision != "int8",
            rate=corrections.machine_rate(),
            correction=factor,
            on_device=not computes_on_processor(self.pipeline.target),
        )

    def _facts_of(self, role: str, options: BuildOptions) -> GraphFacts:
        from tintype.engine.build.analyse import analysis_of

        key = (role, options.shape)
        return self._facts.get(key) or self._facts.put(key, analysis_of(self.pipeline.bundle, role, options))

    def _correction_place(self, candidate: Candidate, options: BuildOptions) -> str:
        """What decides how far reckoning is off, beside the kind of holding: half a batch takes more than half."""
        target = self.pipeline.target
        words = [candidate.role, options.exactness, str(options.threads)]
        words += ["split"] * candidate.split_guidance
        return " ".join(words if target.is_host else [*words, target.name])

    def _known_corrections(self) -> Corrections:
        if self._corrections is None:
            from tintype.engine import cache_folder

            self._corrections = Corrections.read(cache_folder() / "costs" / "corrections.json")
        return self._corrections


def needs_of(pipeline: Pipeline, request: ResolvedRequest) -> list[Need]:
    """The graphs that a request needs, in the order of their stages."""
    manifest = pipeline.bundle.manifest
    prompts = sum(prompt is not None for prompt in prompts_of(request, manifest))
    chunks = pipeline.chunks(request)
    batches = len(request.batches)
    found = []
    for role in manifest.roles:
        if role in manifest.text_encoders:
            opens, calls = 1, prompts * chunks
        elif role == "denoiser":
            opens, calls = batches, batches * pipeline.schedule(request).model_calls
        elif role == "vae_decoder":
            opens, calls = batches, request.count
        else:
            raise RequestError(f"no plan is known for {role}", fix="leave the budget out")
        split = role == "denoiser" and is_guided(request, manifest)
        found.append(Need(role=role, holdings=_holdings(pipeline, role), opens=opens, calls=calls, can_split=split))
    return found


def encoding_needs(pipeline: Pipeline, request: ResolvedRequest) -> list[Need]:
    """The graph that turns a picture of the request's size into latents."""
    return [Need(role=ENCODER, holdings=_holdings(pipeline, ENCODER), opens=1, calls=1)]


def _holdings(pipeline: Pipeline, role: str) -> tuple[Holding, ...]:
    from tintype.engine.run.pages import can_give_back

    if pipeline.target.is_host:
        return holdings_for(role, standing=can_give_back())
    return device_holdings(role)


def picture_bytes(request: ResolvedRequest) -> int:
    """What the pictures of a request take beside the graphs."""
    pixels = request.width * request.height * 3
    return pixels * (PICTURE_COPIES + request.count - 1) + pixels * 4 * SAMPLE_COPIES
