"""The graphs of one bundle on one device: which are open, which close to make room, and who computes at present.

Graphs are opened when they are first called, and stay open for the next request. What they answered
is known for as long as it is asked for again (`answers`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tintype.arrays import Arrays
from tintype.bundle import Bundle
from tintype.bundle.bundle import BESIDE
from tintype.bundle.opening import BesideModels
from tintype.errors import RequestError
from tintype.free_memory import free_bytes
from tintype.memory.plan import ExecutionPlan
from tintype.recent import Recent
from tintype.uses import GraphRef, GraphUse

if TYPE_CHECKING:
    from tintype.engine import BuildOptions, Session, Target

BESIDE_KEPT = 64
BUILDS_KEPT = 512  # whose ids are remembered
ANSWERS_KEPT = 4  # of some 0.5 MB each: a text encoder's to two prompts, in float32
ALL_RESIDENT = ExecutionPlan()  # every graph packed and kept open: what is done without a budget


class Graphs:
    """Every session of a pipeline. Threads take turns: `lock` is held while one of them opens or calls a graph."""

    def __init__(self, bundle: Bundle, target: Target, threads: int) -> None:
        self.bundle, self.target, self.threads = bundle, target, threads
        self.load_seconds = 0.0  # spent opening graphs so far
        self.lock = threading.RLock()
        self._process = os.getpid()
        self._beside: Recent[GraphRef, BesideModels] = Recent(BESIDE_KEPT)
        self._sessions: dict[str, tuple[BuildOptions, Session]] = {}  # by the names of their uses
        self.answers: Recent[Hashable, Arrays] = Recent(ANSWERS_KEPT)  # to what is asked for again, such as words
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
        """Close every graph; a later call opens it again. What they answered is forgotten."""
        with self.lock:
            self.answers.clear()
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
