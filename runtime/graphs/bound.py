"""The graphs of a bundle as one run calls them: held as its plan says, each answer finite."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from tintype.arrays import Arrays
from tintype.engine.run.switch import Stop
from tintype.errors import CancelledError, NumericError, ProviderError
from tintype.graphs.resident import Graphs
from tintype.memory.plan import ExecutionPlan
from tintype.uses import GraphUse

if TYPE_CHECKING:
    from tintype.engine import BuildOptions, Session
    from tintype.engine.run.bound_run import BoundRun

NOTHING: Arrays = {}


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

    def call(
        self, use: GraphUse, inputs: Arrays, *, who: str, held: Arrays = NOTHING, since: str = "", again: bool = False
    ) -> Arrays:
        """Every output by name, finite; where it wasn't, from the same graph in float32, which the record is told, and
        so for every later call of the phase.

        held: inputs that stay the same over many calls; give the same mapping each time, and what depends on it alone
        is computed once and kept for the phase, or until `release`. who: is blamed in the error, since: from when on,
        in what the record is told. again: it is likely to be asked for again: then the answer is what it was, without a
        call.

        Raises NumericError when the answer in float32 isn't finite either, CancelledError when the run was cancelled.
        """
        self.all.demand_own_process()  # before the lock, which another thread may have had when it was forked
        with self.all.lock:
            self.check_cancelled()
            asked = self._asked(use, inputs) if again else None
            known = None if asked is None else self.all.answers.get(asked)
            if known is not None:
                return known
            outputs = self._answer(use, inputs, held)
            if _finite(outputs):
                return outputs if asked is None else self.all.answers.put(asked, _unchanging(outputs))
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

    def _asked(self, use: GraphUse, inputs: Arrays) -> Hashable:
        """What an answer follows from: the build, and what goes in."""
        return use.name, self._options(use), *((name, each.tobytes()) for name, each in inputs.items())

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


def _unchanging(arrays: Arrays) -> Arrays:
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def _finite(arrays: Arrays) -> bool:
    return all(np.isfinite(array).all() for array in arrays.values() if array.dtype.kind == "f")
