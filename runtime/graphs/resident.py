"""The graphs of one bundle on one device: which are open, which close to make room, and who computes at present.

Graphs are opened when they are first called, and stay open for the next request. `BoundGraphs` is what one run sees of
them: within its plan, each answer finite.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tintype.arrays import Arrays
from tintype.bundle import Bundle
from tintype.bundle.bundle import BESIDE
from tintype.bundle.opening import BesideModels
from tintype.engine.run.switch import Stop
from tintype.errors import CancelledError, NumericError, ProviderError, RequestError
from tintype.free_memory import free_bytes
from tintype.memory.plan import ExecutionPlan
from tintype.recent import Recent
from tintype.uses import GraphRef, GraphUse

if TYPE_CHECKING:
    from tintype.engine import BuildOptions, Session, Target
    from tintype.engine.run.bound_run import BoundRun

BESIDE_KEPT = 64
BUILDS_KEPT = 512  # whose ids are remembered
ALL_RESIDENT = ExecutionPlan()  # every graph packed and kept open: what is done without a budget
NOTHING: Arrays = {}


class Graphs:
    """Every session of a pipeline. Threads take turns: `lock` is held while one of them opens or calls a graph."""

    def __init__(self, bundle: Bundle, target: Target, threads: int) -> None:
        self.bundle, self.target, self.threads = bundle, target, threads
        self.load_seconds = 0.0  # spent opening graphs so far
        self.lock = threading.RLock()
        self._process = os.getpid()
        self._beside: Recent[GraphRef, BesideModels] = Recent(BESIDE_KEPT)
        self._sessions: dict[str, tuple[BuildOptions, Session]] = {}  # by the names of their uses
        self._builds: Recent[tuple[GraphRef, BuildOptions], BuildFacts] = Recent(BUILDS_KEPT)
        self._settled: Recent[tuple[GraphRef, BuildOptions], BuildOptions] = Recent(BUILDS_KEPT)

    def add(self, other: BesideModels) -> None:
        """Let uses of the graph of a bundle that stands beside the model be known here."""
        self._beside.put(other.ref, other)

    def source(self, ref: GraphRef) -> Bundle | BesideModels:
        """The bundle that has a graph."""
        return self._beside.get(ref) or self.bundle

    def demand_own_process(self) -> None:
        """RequestError in a fork of the process that made these: the threads that compute stayed there."""
        if os.getpid() != self._process:
            raise RequestError(
                f"this pipeline belongs to process {self._process}, of which this one is a fork",
                fix="load a pipeline in each process, after it was forked",
            )

    def within(
        self,
        plan: ExecutionPlan,
        exactness: str,
        warn: Callable[[str], None] = lambda _: None,
        state: RunState | None = None,
    ) -> BoundGraphs:
        """These graphs for one run. warn: takes a sentence for the record. state: of the run that it is a part of."""
        return BoundGraphs(self, plan, exactness, warn, state)

    def options(self, use: GraphUse, exactness: str, plan: ExecutionPlan = ALL_RESIDENT) -> BuildOptions:
        """The build that a use needs. A pipeline keeps to the builds that it began with, so that a timed one made
        meanwhile changes no picture of a series."""
        from tintype.engine import BuildOptions, with_kernels_settled

        ref, dims, held, timed = use.ref, plan.called(use).dims, plan.mode(use.name).options(), plan.timed.get(use.name)
        options = BuildOptions.for_shape(
            dims,
            exactness=exactness,
            threads=self.threads,
            timed=timed,
            cut=use.cut,
            token_merging=use.token_merging,
            low_rank=use.low_rank,
            embedding_rows=use.embedding_rows,
            residuals=use.residuals,
            features=use.features,
            image_tokens=use.image_tokens,
            **held,
        )
        return self._settled.get((ref, options)) or self._settled.put(
            (ref, options),
            with_kernels_settled(self.source(ref), ref.role, self.target, variant=ref.variant, options=options),
        )

    def session(self, use: GraphUse, options: BuildOptions, plan: ExecutionPlan, beside: Iterable[str] = ()) -> Session:
        """The session of a use, opened when it is first needed.

        It stays open until another one takes its place, or its room where the plan doesn't keep graphs. beside: those
        that stay open even so, as they are used in turn.
        """
        known = self._sessions.get(use.name)
        if known is not None and known[0] == options:
            return known[1]
        started = time.perf_counter()
        # Close before the next one opens: both at once would cost the memory of both.
        stay = set(self._sessions if plan.keep else beside) - {use.name}
        self._close(set(self._sessions) - stay)
        session = self.open(use, options, plan.device_limits.get(use.name))
        self._sessions[use.name] = (options, session)
        self.load_seconds += time.perf_counter() - started
        return session

    def open(self, use: GraphUse, options: BuildOptions, device_bytes: int | None) -> Session:
        """A new session; `session` keeps it and closes it. device_bytes: its limit on a device, if any."""
        from tintype.engine import open_role
        from tintype.engine.run.cuda import SMALLEST_LIMIT

        device_bytes = None if device_bytes is None else max(device_bytes, SMALLEST_LIMIT)
        ref = use.ref
        return open_role(
            self.source(ref), ref.role, self.target, variant=ref.variant, options=options, device_bytes=device_bytes
        )

    @property
    def device_bytes(self) -> int:
        """What open graphs hold in a device's memory: weights, held inputs and outputs; 0 on the processor."""
        return sum(session.device_bytes for _, session in tuple(self._sessions.values()))

    def device_bytes_taken(self) -> int:
        """What this process has of a device's memory beside its own, as the driver tells; else `device_bytes`."""
        from tintype.engine.device.device_memory import device_bytes

        told = device_bytes(self.target)
        return self.device_bytes if told is None else told

    def build(self, uses: Iterable[GraphUse], exactness: str) -> Iterator[tuple[str, Path]]:
        """Make the builds of uses, one after another, on the processor with each layer's kernels timed; yields the
        name of each and its folder. What is drawn from then on is drawn by them."""
        from tintype.engine import ensure_build

        for use in uses:
            options = replace(self.options(use, exactness), timed=self.target.is_host)
            ref = use.ref
            yield use.name, ensure_build(self.source(ref), ref.role, self.target, variant=ref.variant, options=options)
            self._settled.clear()

    def begin_builds(self, uses: Iterable[GraphUse], exactness: str) -> None:
        """Begin the builds that uses lack, beside one another; `session` waits for its own.

        A graph that is open for a use has one.
        """
        from tintype.engine import begin_builds

        wanted = [(use, self.options(use, exactness)) for use in uses if self.source(use.ref) is self.bundle]
        missing = [(use.ref, options) for use, options in wanted if self._sessions.get(use.name, (None,))[0] != options]
        begin_builds(self.bundle, missing, self.target, free_bytes=free_bytes())

    def build_facts(self, use: GraphUse, options: BuildOptions) -> BuildFacts:
        """What the record says of a build; it is made where it is missing."""
        from tintype.engine import build_id, ensure_build, is_timed

        known = self._builds.get((use.ref, options))
        if known is None:
            ref = use.ref
            folder = ensure_build(self.source(ref), ref.role, self.target, variant=ref.variant, options=options)
            known = self._builds.put((use.ref, options), BuildFacts(build_id(folder), is_timed(folder)))
        return known

    def evict_unplanned(self, uses: Iterable[GraphUse], exactness: str, plan: ExecutionPlan) -> None:
        """Close what is open and has no place in a plan."""
        wanted = {(use.name, self.options(use, exactness, plan)) for use in uses}
        with self.lock:
            self._close([name for name, (options, _) in self._sessions.items() if (name, options) not in wanted])

    def close_beside(self, uses: Iterable[GraphUse]) -> None:
        """Close what stands beside the model and none of these uses is of: there may be any number of them."""
        wanted = {use.name for use in uses}
        with self.lock:
            self._close([name for name in self._sessions if name.startswith(tuple(BESIDE)) and name not in wanted])

    def trim(self) -> None:
        """Give memory back that a graph needed for a moment."""
        from tintype.engine.run.heap import trim

        trim()

    def close(self) -> None:
        """Close every graph; a later call opens it again."""
        with self.lock:
            self._close(tuple(self._sessions))

    def _close(self, names: Iterable[str]) -> None:
        with self.lock:
            closing = [self._sessions.pop(name)[1] for name in names if name in self._sessions]
            for session in closing:
                session.close()
            if not closing:
                return
            from tintype.engine.run import arena
            from tintype.engine.run.heap import return_large_blocks, trim

            del session, closing
            return_large_blocks()  # graphs come and go in this process: what one leaves must not add to the next
            arena.shrink()
            trim()


@dataclass(frozen=True, slots=True)
class BuildFacts:
    id: str
    timed: bool  # whether its kernels were


@dataclass(slots=True)
class RunState:
    """What the graphs of one run share, however they are held."""

    stop: Stop = field(default_factory=Stop)
    load_seconds: float = 0.0


class BoundGraphs:
    """Graphs as one run calls them: held as its plan says, and each answer finite or computed again in float32."""

    def __init__(
        self,
        graphs: Graphs,
        plan: ExecutionPlan,
        exactness: str,
        warn: Callable[[str], None],
        state: RunState | None = None,
    ) -> None:
        self.run_seconds = 0.0  # spent inside ONNX Runtime so far, without what depends on held inputs alone
        self.all = graphs
        self.plan, self.exactness = plan, exactness
        self._warn = warn
        self.state = state or RunState()
        self._phase: frozenset[str] = frozenset()  # names of uses, as in the two below
        self._retry_in_float32: set[str] = set()  # those that gave NaN or infinity in this phase
        self._held: dict[str, tuple[Session, dict[int, tuple[Arrays, BoundRun]]]] = {}

    def held_as(self, plan: ExecutionPlan) -> BoundGraphs:
        """The same graphs within another plan."""
        if plan == self.plan:
            return self
        return BoundGraphs(self.all, plan, self.exactness, self._warn, self.state)

    def beside(self, graphs: Graphs, plan: ExecutionPlan) -> BoundGraphs:
        """Another bundle's graphs for the same run: one stop for both, and one time that opening took."""
        return BoundGraphs(graphs, plan, self.exactness, self._warn, self.state)

    @property
    def load_seconds(self) -> float:
        """Spent opening graphs for this run so far."""
        return self.state.load_seconds

    def cancel(self) -> None:
        """End the call in progress, from another thread, and begin no other one: who calls gets a CancelledError."""
        self.state.stop.set()

    def check_cancelled(self) -> None:
        if self.state.stop.is_set:
            raise CancelledError("the run was cancelled", fix="begin it again")

    @contextlib.contextmanager
    def phase(self, *uses: GraphUse) -> Iterator[None]:
        """A time in which these graphs are called in turn; what they hold of their inputs goes with it."""
        before, self._phase = self._phase, frozenset(use.name for use in uses)
        try:
            yield
        except ProviderError:
            self._held.clear()
            self.all.close()  # a device that was lost is opened anew once nothing holds it
            raise
        finally:
            for name in self._phase:
                self._held.pop(name, None)
            self._retry_in_float32 -= self._phase
            self._phase = before

    def call(self, use: GraphUse, inputs: Arrays, *, who: str, held: Arrays = NOTHING, since: str = "") -> Arrays:
        """Every output by name, finite; where it wasn't, from the same graph in float32, which the record is told, and
        so for every later call of the phase.

        held: inputs that stay the same over many calls; give the same mapping each time, and what depends on it alone
        is computed once and kept for the phase, or until `release`. who: is blamed in the error, since: from when on,
        in what the record is told.

        Raises NumericError when the answer in float32 isn't finite either, CancelledError when the run was cancelled.
        """
        self.all.demand_own_process()  # before the lock, which another thread may have had when it was forked
        with self.all.lock:
            self.check_cancelled()
            outputs = self._answer(use, inputs, held)
            if _finite(outputs):
                return outputs
            if use.name not in self._retry_in_float32 and self._options(use).exactness != "exact":
                self._retry_in_float32.add(use.name)
                outputs = self._answer(use, inputs, held)
                if _finite(outputs):
                    self._warn(f"{use.name} was run again in float32{since}: it had given NaN or infinity")
                    return outputs
        raise not_finite(who)

    def demand_build(self, use: GraphUse) -> None:
        """Make the build of a use, where it is missing. Raises RequestError where the graph can't be changed so."""
        with self.all.lock, self.cancellable():
            self.check_cancelled()
            self.all.build_facts(use, self._options(use))

    @contextlib.contextmanager
    def cancellable(self) -> Iterator[None]:
        """A time in which this thread waits for child processes only until the run is cancelled."""
        from tintype.engine.build.child import cancelled_by

        with cancelled_by(lambda: self.state.stop.is_set):
            yield

    def release(self, held: Arrays) -> None:
        """Give back what was computed of held inputs, which no later call is given."""
        with self.all.lock:
            for _, runs in self._held.values():
                released = runs.pop(id(held), None)
                if released is not None:
                    released[1].close()

    def _answer(self, use: GraphUse, inputs: Arrays, held: Arrays) -> Arrays:
        loaded = self.all.load_seconds
        with self.cancellable():
            session = self.all.session(use, self._options(use), self.plan, self._phase)
        self.state.load_seconds += self.all.load_seconds - loaded
        self.check_cancelled()
        with session.under(self.state.stop):
            runs = self._held_by(session, use.name, held) if held else session
            before = session.run_seconds
            try:
                return runs.run(inputs)
            finally:
                self.run_seconds += session.run_seconds - before

    def _options(self, use: GraphUse) -> BuildOptions:
        options = self.all.options(use, self.exactness, self.plan)
        # Graphs round to float16 or to 8 bits in `balanced` builds only.
        return replace(options, exactness="exact", timed=None) if use.name in self._retry_in_float32 else options

    def _held_by(self, session: Session, name: str, held: Arrays) -> BoundRun:
        """What depends on held inputs alone, computed once for a session."""
        known = self._held.get(name)
        if known is None or known[0] is not session:
            self._held.pop(name, None)  # before the new ones are made
            known = self._held[name] = (session, {})
        if id(held) not in known[1]:
            known[1][id(held)] = (held, session.hold(held))
        return known[1][id(held)][1]


def not_finite(who: str) -> NumericError:
    return NumericError(
        f"{who} gave NaN or infinity",
        fix="try guidance nearer to 7 or another sampler; if it stays so, export the checkpoint again in fp32",
    )


def _finite(arrays: Arrays) -> bool:
    return all(np.isfinite(array).all() for array in arrays.values() if array.dtype.kind == "f")
