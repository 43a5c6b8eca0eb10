"""A plan: what will be in memory when, how long it takes, and how each graph is held; made before anything loads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tintype.costs import Costs
from tintype.memory.mode import MIB, PACKED, Mode
from tintype.uses import GraphUse


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionPlan:
    """What a plan decides. It is what the pipeline goes by, and with the request it decides a picture's bytes."""

    modes: Mapping[str, Mode] = field(default_factory=dict)  # by name of a use; packed where there is none
    split_guidance: bool = False  # a call for each branch in place of one on a batch as much larger
    keep: bool = True  # graphs stay open from stage to stage, and for the next request
    device_limits: Mapping[str, int] = field(default_factory=dict)  # by role, bytes of a device's memory
    # By role, whether the build's kernels were timed here or chosen by priors; where it says nothing, timed if such a
    # build is there.
    timed: Mapping[str, bool] = field(default_factory=dict)

    def mode(self, role: str) -> Mode:
        return self.modes.get(role, PACKED)

    def with_mode(self, role: str, mode: Mode) -> ExecutionPlan:
        """The same but for how one graph is held."""
        return self if mode == self.mode(role) else replace(self, modes={**self.modes, role: mode})

    def called(self, use: GraphUse) -> GraphUse:
        """A use as its graph is called: for one prompt at a time, for a tile, or as it is."""
        return self.mode(use.name).cut(use.split() if self.split_guidance else use)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One graph's part in making the pictures of a request."""

    role: str
    mode: Mode
    split_guidance: bool
    opens: int
    calls: int
    costs: Costs
    before_bytes: int  # what the process holds when this stage begins
    phase: str = ""  # whose graphs are open together, even where others are closed; "": it has its own
    branches: int = 2  # that a call has a part of its own for, or with split guidance is one of
    kernels: Mapping[str, int] = field(default_factory=dict)  # which ways of computing its build has, and how often
    build_bytes: int = 0  # the most that the process had, or is reckoned to have, that makes its build
    build: Path | None = None  # its folder, where it is there

    @property
    def built(self) -> bool:
        return self.build is not None

    @property
    def peak_bytes(self) -> int:
        return self.before_bytes + self._own_peak_bytes + self.held_again_bytes

    @property
    def _own_peak_bytes(self) -> int:
        once = self.costs.first_peak_bytes if self.calls <= self.opens else None
        return self.costs.peak_bytes if once is None else once

    @property
    def held_again_bytes(self) -> int:
        """With split guidance each branch has its own of what depends on its prompt; the costs have one."""
        return self.costs.held_bytes * (self._held_sets - 1)

    @property
    def _held_sets(self) -> int:
        return self.branches if self.split_guidance else 1

    @property
    def resident_bytes(self) -> int:
        """While the graph is open and doesn't run."""
        return self.costs.resident_bytes + self.held_again_bytes

    @property
    def device_bytes(self) -> int:
        """The most in a device's memory; what any process has there is not in it."""
        return self.costs.device_bytes + (self.held_again_bytes if self.costs.device_bytes else 0)

    @property
    def device_resident_bytes(self) -> int:
        """In a device's memory while the graph is open and doesn't run."""
        return self.costs.device_resident_bytes + (self.held_again_bytes if self.costs.device_resident_bytes else 0)

    @property
    def seconds(self) -> float:
        """Of all its calls, and of opening it as often as the request needs and bringing its weights into memory."""
        costs = self.costs
        once = costs.open_seconds + costs.held_seconds * self._held_sets + costs.first_seconds
        return self.opens * once + self.calls * costs.call_seconds

    @property
    def warm_seconds(self) -> float:
        """The same for further pictures, where it has stayed open."""
        held = self.costs.held_seconds * self._held_sets
        return self.opens * held + self.calls * self.costs.call_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """budget_bytes: None is none. base_bytes: of the process without any graph, and its pictures.

    keep: graphs stay open together. repeats: the request itself uses them again, as it has more batches than one.
    """

    budget_bytes: int | None
    base_bytes: int
    stages: tuple[Stage, ...]
    keep: bool
    repeats: bool = False

    @property
    def peak_bytes(self) -> int:
        """Of a fresh process that makes the request's pictures."""
        return max(self._first_bytes, self.warm_bytes) if self.repeats else self._first_bytes

    @property
    def most_bytes(self) -> int:
        """Of a process that makes them, and makes them again: what has to fit."""
        return max(self.peak_bytes, self.warm_bytes)

    @property
    def warm_bytes(self) -> int:
        """Of a process that has made such pictures before.

        Graphs that stay open hold what they hold, all of them, and the arena that they share is as large as the
        hungriest one left it; what else one needs while it runs comes on top of that.
        """
        if not self.keep:
            return self._first_bytes
        held = sum(stage.resident_bytes for stage in self.stages)
        arena = max((stage.costs.arena_bytes for stage in self.stages), default=0)
        rest = max((stage.costs.work_bytes - stage.costs.arena_bytes for stage in self.stages), default=0)
        return self.base_bytes + self.device_base_bytes + held + arena + rest

    @property
    def device_base_bytes(self) -> int:
        """In a device's memory without any graph."""
        return max((stage.costs.device_base_bytes for stage in self.stages), default=0)

    @property
    def device_bytes(self) -> int:
        """The most in a device's memory; part of the peak, and 0 where tensors lie in the process's own."""
        most = (
            stage.device_bytes + sum(other.device_resident_bytes for other in self.open_beside(stage))
            for stage in self.stages
        )
        return self.device_base_bytes + max(most, default=0)

    def open_beside(self, stage: Stage) -> Iterator[Stage]:
        """The other stages whose graphs are open while this one's is: all of them, or those of its phase."""
        for other in self.stages:
            if other is not stage and (self.keep or (stage.phase and other.phase == stage.phase)):
                yield other

    @property
    def _first_bytes(self) -> int:
        return max((stage.peak_bytes for stage in self.stages), default=self.base_bytes)

    @property
    def build_bytes(self) -> int:
        """The most of a process that makes a build, which the budget doesn't bound: one at a time, the first time."""
        return max((stage.build_bytes for stage in self.stages), default=0)

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def warm_seconds(self) -> float:
        """Of a process that has made such pictures before."""
        return sum(stage.warm_seconds if self.keep else stage.seconds for stage in self.stages)

    @property
    def measured(self) -> bool:
        """Whether every figure was measured on this machine."""
        return all(stage.costs.measured for stage in self.stages)

    @property
    def execution(self) -> ExecutionPlan:
        return ExecutionPlan(
            modes={stage.role: stage.mode for stage in self.stages},
            split_guidance=any(stage.split_guidance for stage in self.stages),
            keep=self.keep,
            device_limits={stage.role: stage.device_bytes for stage in self.stages if stage.device_bytes},
        )

    def as_dict(self) -> dict[str, Any]:
        """For --json: bytes and seconds."""
        rows = [
            {
                "role": stage.role,
                "held": str(stage.mode),
                "split_guidance": stage.split_guidance,
                "branches": stage.branches,
                "calls": stage.calls,
                "before_bytes": stage.before_bytes,
                "peak_bytes": stage.peak_bytes,
                "seconds": round(stage.seconds, 3),
                "kernels": dict(stage.kernels),
                "build_bytes": stage.build_bytes,
                "built": stage.built,
                "costs": asdict(stage.costs),
            }
            for stage in self.stages
        ]
        return {
            "budget_bytes": self.budget_bytes,
            "base_bytes": self.base_bytes,
            "peak_bytes": self.peak_bytes,
            "warm_bytes": self.warm_bytes,
            "device_bytes": self.device_bytes,
            "build_bytes": self.build_bytes,
            "seconds": round(self.seconds, 3),
            "measured": self.measured,
            "resident_together": self.keep,
            "stages": rows,
        }

    def lines(self) -> list[str]:
        """A table for people."""
        heads = ("mapped", "copied", "work", "peak", "seconds")
        said = [f"{'stage':<16} {'held':<22} {'calls':>9} " + " ".join(f"{head:>9}" for head in heads)]
        for stage in self.stages:
            costs = stage.costs
            calls = f"{stage.calls}{' split' if stage.split_guidance else ''}"
            copied = costs.copied_bytes + stage.held_again_bytes
            sizes = (costs.mapped_bytes, copied, costs.work_bytes, stage.peak_bytes)
            said.append(
                f"{stage.role:<16} {stage.mode!s:<22} {calls:>9} "
                + " ".join(f"{_mib(size):>9}" for size in sizes)
                + f" {stage.seconds:>9.2f}{'' if costs.measured else ' ~'}"
            )
        together = "stay open together" if self.keep else "one after another"
        said.append(f"{'process':<16} {'graphs ' + together:<62} {_mib(self.base_bytes):>9}")
        if self.device_bytes:
            told = "" if all(stage.costs.device_told for stage in self.stages) else ", reckoned: no driver tells it"
            said.append(f"{'device':<16} {f'in its own memory{told}':<62} {_mib(self.device_bytes):>9}")
        missing = [stage for stage in self.stages if not stage.built]
        when = f"{len(missing)} to be made first" if missing else "made before"
        words = f"{when}, in a process of their own, not in the peak"
        said.append(f"{'builds':<16} {words:<62} {_mib(self.build_bytes):>9}")
        for stage in self.stages:
            if stage.kernels:
                ways = ", ".join(f"{name} {count}" for name, count in sorted(stage.kernels.items()))
                said.append(f"{stage.role:<16} kernels: {ways}")
        budget = "no budget" if self.budget_bytes is None else f"of {_mib(self.budget_bytes)} MiB"
        again = f" ({_mib(self.warm_bytes)} for further pictures)" if self.warm_bytes > self.peak_bytes else ""
        said.append(f"peak {_mib(self.peak_bytes)} MiB{again}, {budget}; {self.seconds:.1f} s")
        if not self.measured:
            said.append("~ reckoned from the graph; measured when it is built")
        return said


def _mib(count: int) -> str:
    return f"{count / MIB:,.0f}"
