"""The one runner: contestants take turns, round by round, each in a process of its own, so that drift hits all alike.

In every round each is opened, warmed up, timed and ended, so that it has the machine to itself; or all stay open
(`resident`), so that rounds are close to one another. What other programs disturbed is measured again, as long as
patience lasts; what they took stays in `others_share`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from tintype.bench.figures import summary
from tintype.bench.job import Job
from tintype.bench.process import Run, device_samples, run_process, tintype_command

Answer = dict[str, Any]
Changes = Mapping[str, Any]  # of the job's fields, for one picture or call

WORKER = ("-m", "tintype.bench.worker")
QUIET_SHARE = 0.05  # of the processors' time, that others may take while something is timed
SETTLE_SECONDS = 0.5  # between those that stay open: threads of one that has just worked may spin on, on others' cores


@dataclass(slots=True)
class Turn:
    """A contestant at work: `ask` has one picture or call made and gives seconds and other figures."""

    ask: Callable[[Changes], Answer]
    facts: Answer  # told when it is ready, load_seconds among them, and when it has ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """Who takes part. warm_ups come first in each turn and aren't counted; requests are timed.

    opens_cold: the first opening on a machine costs more, builds or compiles, and is told apart. build: arguments of
    `tintype` that make what it needs before.
    """

    warm_ups: Sequence[Changes] = ({},)
    requests: Sequence[Changes] = ({},)
    opens_cold: bool = False
    build: tuple[str, ...] = ()
    environment: Mapping[str, str] | None = None

    def open(self) -> AbstractContextManager[Turn]:
        raise NotImplementedError

    def saving(self, place: Path) -> tuple[Contestant, list[Path]]:
        """The same with answers saved, and their files, one a request; place: what their names may begin with."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Peer(Contestant):
    """A runtime that loads a job once and then answers: see `worker`. program: Python's arguments for another such."""

    kind: str
    job: Job
    program: Sequence[str] = field(default=WORKER, kw_only=True)

    def open(self) -> AbstractContextManager[Turn]:
        return worker(self.kind, self.job, self.program, self.environment)

    def saving(self, place: Path) -> tuple[Contestant, list[Path]]:
        requests = [{**request, "output": f"{place}-{number}.npy"} for number, request in enumerate(self.requests)]
        return dataclasses.replace(self, requests=requests), [Path(each["output"]) for each in requests]


@dataclass(frozen=True, slots=True)
class Command(Contestant):
    """A process from spawn to exit for each answer; by itself it isn't warmed up.

    output: a file that it has to write. anew: a folder that is removed before each run, so that each is a first one.
    read: what a run tells besides its time and memory.
    """

    command: Sequence[str]
    output: Path | None = None
    anew: Path | None = None
    read: Callable[[Run], Answer] = lambda run: {}
    warm_ups: Sequence[Changes] = field(default=(), kw_only=True)

    def open(self) -> AbstractContextManager[Turn]:
        return contextlib.nullcontext(Turn(self._run, {"load_seconds": 0.0}))

    def saving(self, place: Path) -> tuple[Contestant, list[Path]]:
        return self, [self.output] if self.output is not None else []

    def _run(self, changes: Changes) -> Answer:
        if self.anew is not None:
            shutil.rmtree(self.anew, ignore_errors=True)
        if self.output is not None:
            self.output.unlink(missing_ok=True)
        run = run_process(self.command, self.environment)
        if self.output is not None and not self.output.is_file():
            raise RuntimeError(f"the measured process ended well but did not write {self.output.name}")
        measured = {"seconds": run.seconds, "others_share": run.others_share, "peak_rss_bytes": run.peak_rss_bytes}
        return {**measured, **self.read(run)}


@contextlib.contextmanager
def worker(
    kind: str, job: Job, program: Sequence[str] = WORKER, environment: Mapping[str, str] | None = None
) -> Iterator[Turn]:
    """A runtime in a child process, which ends with the block and tells its peak memory."""
    command = [sys.executable, *program, kind, json.dumps(dataclasses.asdict(job))]
    merged = {**os.environ, **(environment or {})}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=merged) as process:
        requests, answers = process.stdin, process.stdout
        assert requests is not None
        assert answers is not None

        def read() -> Answer:
            if line := answers.readline():
                return dict(json.loads(line))
            raise click.ClickException(f"the {kind} worker ended; what it said is above")

        def ask(changes: Changes) -> Answer:
            with contextlib.suppress(OSError):  # it has ended: reading tells
                requests.write(json.dumps(changes) + "\n")
                requests.flush()
            return read()

        try:
            turn = Turn(ask, read())
            yield turn
            requests.close()
            turn.facts |= read()
        except BaseException:
            process.kill()
            with contextlib.suppress(OSError):  # what it didn't read any more
                requests.close()
            raise


@dataclass(slots=True)
class Measured:
    """What one contestant's turns gave: when it was ready or had ended, and for each request."""

    turns: list[Answer] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    cold_seconds: float | None = None  # making builds and the first opening, with the picture or call that came with it

    def figures(self) -> dict[str, Any]:
        """Summaries of every number that the contestant gave; of what it had in memory the largest."""
        values: dict[str, list[float]] = {}
        for facts in (*self.turns, *self.answers):
            for name, value in facts.items():
                if isinstance(value, int | float):
                    values.setdefault(name, []).append(value)
        cold = {} if self.cold_seconds is None else {"cold_seconds": self.cold_seconds}
        return cold | {name: max(each) if name.endswith("_bytes") else summary(each) for name, each in values.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How contestants are measured. resident: all stay open from the first round to the last. lock: a file that is
    locked during each turn. patience_seconds: for each answer to be had without other processes disturbing it."""

    rounds: int
    resident: bool = False
    lock: Path | None = None
    patience_seconds: float = 0.0


def measure(contestants: Mapping[str, Contestant], schedule: Schedule) -> dict[str, Measured]:
    """What each contestant gave, by name."""
    measured = {name: Measured() for name in contestants}
    for name, contestant in contestants.items():
        if contestant.opens_cold or contestant.build:
            click.echo(f"opening {name}", err=True)
            with _alone(schedule.lock):
                measured[name].cold_seconds = _cold_seconds(contestant)
    with contextlib.ExitStack() as stack:
        resident = {}
        if schedule.resident:
            resident = {name: stack.enter_context(_opened(each, measured[name])) for name, each in contestants.items()}
        for number in range(schedule.rounds):
            for name, contestant in contestants.items():
                click.echo(f"round {number + 1} of {schedule.rounds}: {name}", err=True)
                with _alone(schedule.lock), contextlib.ExitStack() as single:
                    turn = resident.get(name) or single.enter_context(_opened(contestant, measured[name]))
                    time.sleep(SETTLE_SECONDS if schedule.resident else 0.0)
                    for request in contestant.requests:
                        answer = quiet_answer(functools.partial(turn.ask, request), schedule.patience_seconds)
                        measured[name].answers.append(answer)
    return measured


def _cold_seconds(contestant: Contestant) -> float:
    """Have everything built. A pipeline opens its graphs only when it makes a picture, so it makes one."""
    building = run_process(tintype_command(*contestant.build)).seconds if contestant.build else 0.0
    with contestant.open() as turn:
        first = turn.ask(next(iter(contestant.warm_ups), {}))
    return round(building + float(turn.facts["load_seconds"]) + float(first["seconds"]), 4)


@contextlib.contextmanager
def _opened(contestant: Contestant, measured: Measured) -> Iterator[Turn]:
    """A contestant's turn, warmed up. Where that begins with a whole answer, what it took from the start of loading is
    told: `first_seconds`, and those of the answer's stages beside."""
    first: Answer = {}
    with device_samples() as held, contestant.open() as turn:
        for number, changes in enumerate(contestant.warm_ups):
            answer = turn.ask(changes)
            if number == 0 and not changes:
                first = {f"first_{name}": value for name, value in answer.items() if name.endswith("seconds")}
                first["first_seconds"] += turn.facts["load_seconds"]
        yield turn
    measured.turns.append({**turn.facts, **first, "device_peak_bytes": max(held, default=None)})


def quiet_answer(ask: Callable[[], Answer], patience_seconds: float) -> Answer:
    """An answer, asked for again while other processes disturb it, as long as patience lasts; then the quietest so far.
    Where what others took can't be told, the first answer is taken."""
    ends = time.perf_counter() + patience_seconds
    quietest = ask()
    while (quietest.get("others_share") or 0.0) > QUIET_SHARE and time.perf_counter() < ends:
        quietest = min(quietest, ask(), key=lambda answer: float(answer["others_share"] or 0.0))
    return quietest


@contextlib.contextmanager
def _alone(lock: Path | None) -> Iterator[None]:
    """Hold the file's lock, the one that flock(1) takes too."""
    with contextlib.ExitStack() as stack:
        if lock is not None:
            import fcntl  # POSIX; filelock would do everywhere but polls, and never gets its turn among those who wait

            fcntl.flock(stack.enter_context(lock.open("a")), fcntl.LOCK_EX)
        yield
