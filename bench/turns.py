"""Peers that don't fit in memory together take turns: in each round each is opened, warmed up, timed and ended.

So drift hits all alike, as with peers that stay loaded; each has the machine's memory to itself, as it would at a
user's; and loading is measured once a round.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from tintype.bench.device_memory import DeviceMemory
from tintype.bench.figures import summary
from tintype.bench.others import quiet_answer
from tintype.bench.peers import Worker
from tintype.bench.worker import AnyJob

# The largest of all turns is kept.
MEMORY = ("opened_anonymous_bytes", "anonymous_bytes", "peak_rss_bytes", "device_peak_bytes")


@dataclass(frozen=True, slots=True)
class Seat:
    """One peer: the kind of its worker and its job."""

    kind: str
    job: AnyJob
    warm_ups: int = 1  # pictures or calls that come first and aren't counted
    warm_steps: int | None = None  # of each of them; None is the job's own
    opens_cold: bool = False  # the first opening on a machine builds, and is told apart


@dataclass(slots=True)
class Taken:
    """What one peer's turns gave."""

    loads: list[float] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    memory: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in MEMORY})
    cold_seconds: float | None = None  # the first opening and the picture or call that came with it

    def figures(self) -> dict[str, Any]:
        """Summaries of every figure that the peer gave, and the largest of what it held."""
        found: dict[str, Any] = {} if self.cold_seconds is None else {"cold_seconds": self.cold_seconds}
        found["load_seconds"] = summary(self.loads)
        for name in self.answers[0] if self.answers else ():
            values = [answer[name] for answer in self.answers if answer.get(name) is not None]
            if name not in MEMORY and values:
                found[name] = summary(values)
        found.update({name: max(values, default=None) for name, values in self.memory.items()})
        return found


def take_turns(
    seats: Mapping[str, Seat], rounds: int, calls: int, lock: Path | None = None, patience_seconds: float = 0.0
) -> dict[str, Taken]:
    """`rounds` turns of each peer, one after another, each with `calls` timed pictures or calls.

    lock: a file that is locked during each turn, for a machine on which others measure too. patience_seconds: for each
    picture or call to be had without other processes disturbing it.
    """
    taken = {name: Taken() for name in seats}
    for name, seat in seats.items():
        if seat.opens_cold:
            click.echo(f"opening {name}", err=True)
            with _alone(lock):
                _open_cold(seat, taken[name])
    for number in range(rounds):
        for name, seat in seats.items():
            click.echo(f"round {number + 1} of {rounds}: {name}", err=True)
            with _alone(lock):
                _turn(seat, calls, taken[name], patience_seconds)
    return taken


def _open_cold(seat: Seat, taken: Taken) -> None:
    """Have everything built. A pipeline opens its graphs only when it makes a picture, so it makes a short one."""
    with Worker(seat.kind, seat.job) as worker:
        opening = worker.picture(seat.warm_steps)
    taken.cold_seconds = round(worker.load_seconds + opening["seconds"], 4)


def _turn(seat: Seat, calls: int, taken: Taken, patience_seconds: float) -> None:
    with DeviceMemory() as device, Worker(seat.kind, seat.job) as worker:
        for _ in range(seat.warm_ups):
            worker.picture(seat.warm_steps)
        answers = [quiet_answer(worker.picture, patience_seconds) for _ in range(calls)]
    taken.loads.append(worker.load_seconds)
    taken.answers += answers
    told = {
        "opened_anonymous_bytes": worker.opened_anonymous_bytes,
        "anonymous_bytes": answers[-1]["anonymous_bytes"],
        "peak_rss_bytes": worker.peak_rss_bytes,
        "device_peak_bytes": device.peak_bytes,
    }
    for name, value in told.items():
        if value is not None:
            taken.memory[name].append(value)


@contextlib.contextmanager
def _alone(lock: Path | None) -> Iterator[None]:
    """Hold the file's lock, the one that flock(1) takes too."""
    if lock is None:
        yield
        return
    import fcntl  # POSIX; filelock would do everywhere but polls, and never gets its turn among those who wait

    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
