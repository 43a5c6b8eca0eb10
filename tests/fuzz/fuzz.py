"""Hostile inputs for every door, for a while: `make fuzz MINUTES=n`.

hypothesis changes real files and looks for what is slow; a process of its own opens each and judges (see `judge`).
What is found is made as small as it gets within the time, and kept in build/fuzz/, by door.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import secrets
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from doors import DOORS, ROOT
from judge import Judge, Verdict

FOUND = ROOT / "build/fuzz"
ROUND = 400  # inputs of one run of hypothesis, which grows bolder within it
SHRINK_SECONDS = 20.0  # after the door's time, for what was found


@dataclass(slots=True)
class Tally:
    """What one door did with its inputs."""

    door: str
    inputs: int = 0
    opened: int = 0
    refused: int = 0
    slowest_seconds: float = 0.0
    most_bytes: int = 0
    findings: dict[str, tuple[bytes, str]] = field(default_factory=dict)  # by kind: the smallest input, and what it did

    def count(self, content: bytes, verdict: Verdict) -> None:
        self.inputs += 1
        self.opened += verdict.outcome == "opened"
        self.refused += verdict.outcome == "refused"
        self.slowest_seconds = max(self.slowest_seconds, verdict.seconds)
        self.most_bytes = max(self.most_bytes, verdict.nbytes)
        if verdict.problem is not None:
            smallest = self.findings.get(verdict.kind)
            if smallest is None or len(content) < len(smallest[0]):
                self.findings[verdict.kind] = (content, verdict.problem)

    def line(self) -> str:
        return (
            f"{self.door:<12} {self.inputs:>7,} inputs {self.refused:>7,} refused {self.opened:>7,} opened "
            f"{self.slowest_seconds:6.2f} s {self.most_bytes / 2**20:6.0f} MiB"
            + (f"   {len(self.findings)} FINDINGS" if self.findings else "")
        )

    def as_dict(self) -> dict[str, Any]:
        found = [{"kind": kind, "problem": problem} for kind, (_, problem) in self.findings.items()]
        return {
            "inputs": self.inputs,
            "refused": self.refused,
            "opened": self.opened,
            "slowest_seconds": round(self.slowest_seconds, 3),
            "most_bytes": self.most_bytes,
            "findings": found,
        }


class Found(Exception):
    """What hypothesis is told of an input that isn't as it should be."""


class Late(KeyboardInterrupt):
    """The door's time is over: the one kind of exception that hypothesis lets pass."""


def fuzz(door: str, seconds: float, seed: int) -> Tally:
    """Give a door inputs for so long. A kind of finding is looked for until it is small, and then only counted."""
    from seeds import SEEDS
    from strategies import inputs_of

    tally, usual, strategy = Tally(door), SEEDS[door]()[0], inputs_of(door)
    with scratch() as folder, Judge(folder / door) as judge:
        judge.judge(door, usual)
        end = time.monotonic() + seconds
        for content in SEEDS[door]():
            tally.count(content, judge.judge(door, content, usual))
        while time.monotonic() < end:
            _round(tally, judge, strategy, usual, end, seed)
            seed += 1
    return tally


def _round(tally: Tally, judge: Judge, strategy: Any, usual: bytes, end: float, seed: int) -> None:
    import hypothesis
    from hypothesis import HealthCheck, Phase

    known = set(tally.findings)
    bad: dict[bytes, str] = {}  # by hash: making an input smaller takes thousands, of megabytes each
    chosen: list[str] = []  # the kind that this round makes smaller

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=ROUND,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.target, Phase.shrink),
        verbosity=hypothesis.Verbosity.quiet,
    )
    @hypothesis.given(strategy)
    def look(content: bytes) -> None:
        digest = hashlib.sha256(content).digest()
        if digest not in bad:
            late = time.monotonic() > end + (SHRINK_SECONDS if chosen else 0.0)
            if late:
                raise Late
            verdict = judge.judge(tally.door, content, usual)
            tally.count(content, verdict)
            hypothesis.target(verdict.seconds, label="seconds")
            hypothesis.target(float(verdict.nbytes), label="bytes")
            if verdict.problem is None or verdict.kind in known:
                return
            chosen[:] = chosen or [verdict.kind]
            if verdict.kind != chosen[0]:
                return
            bad[digest] = verdict.problem
        raise Found(bad[digest])

    with suppress(Found, Late, hypothesis.errors.Flaky):
        look()


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for judges, below the one for what is temporary."""
    with tempfile.TemporaryDirectory(prefix="tintype-fuzz-") as folder:
        yield Path(folder)


def keep(tally: Tally) -> list[str]:
    """Write each finding below build/fuzz/; lines that say what it is and how to see it again."""
    lines = []
    for content, problem in tally.findings.values():
        path = FOUND / tally.door / hashlib.sha256(content).hexdigest()[:12]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        shown = path.relative_to(ROOT)
        lines += [
            f"{tally.door}: {problem}",
            f"  {len(content):,} bytes; again: {os.path.relpath(sys.executable)} tests/fuzz/fuzz.py "
            f"--replay {tally.door} {shown}",
        ]
    return lines


def read_input(path: Path) -> bytes:
    """An input as it was kept; .gz is unpacked."""
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def replay(door: str, path: Path) -> Verdict:
    """What comes of one kept input."""
    from seeds import SEEDS

    with scratch() as folder, Judge(folder / door) as judge:
        return judge.judge(door, read_input(path), SEEDS[door]()[0])


def main() -> int:
    parser = argparse.ArgumentParser(description="Hostile inputs for every door, for a while.")
    parser.add_argument("--minutes", type=float, default=2.0, help="for all doors together")
    parser.add_argument("--seed", type=int, help="of what is drawn [default: a new one]")
    parser.add_argument("--doors", nargs="+", choices=sorted(DOORS), default=list(DOORS))
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    parser.add_argument("--replay", nargs=2, metavar=("DOOR", "FILE"), help="judge one input")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.replay:
        verdict = replay(options.replay[0], Path(options.replay[1]))
        print(f"{verdict.outcome}, {verdict.seconds:.2f} s, {verdict.nbytes / 2**20:.0f} MiB")
        print(verdict.problem or "nothing is wrong with that")
        return 1 if verdict.problem else 0
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    tallies = []
    for door in options.doors:
        tallies.append(fuzz(door, options.minutes * 60 / len(options.doors), seed))
        print(tallies[-1].line(), flush=True)
        for line in keep(tallies[-1]):
            print(ascii(line)[1:-1], flush=True)
    if options.out is not None:
        write_report(options.out, options.minutes, seed, tallies)
    return 1 if any(tally.findings for tally in tallies) else 0


def write_report(path: Path, minutes: float, seed: int, tallies: list[Tally]) -> None:
    from tintype.bench.measurement import machine_facts

    doors = {tally.door: tally.as_dict() for tally in tallies}
    report = {"machine": machine_facts(1), "minutes": minutes, "seed": seed, "doors": doors}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
