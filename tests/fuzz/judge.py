"""A judge of inputs: a process that opens them, ended when it hangs and started again."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import select
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

HANG_SECONDS = 10.0
MOST_SECONDS = 1.0  # of a processor that does the work of `slowness` in USUAL_SECONDS
HASHED_BYTES = 4e8  # a second takes, beside the door's own; files are hashed whole
USUAL_SECONDS = 0.038  # of an AMD EPYC (Zen 4) with half of a core's time
MOST_BYTES = 500 * 2**20
# What libtiff says of a damaged file on stderr, in fixed words and numbers; Pillow has no way to silence it.
LIBTIFF_LINES = re.compile(r"^(?:\w+|tempfile\.tif): [ -~]{1,200}\.\n", re.MULTILINE)
START_SECONDS = 180.0  # to import what a door needs


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one input. problem: None where all is well; kind: what sort of problem, and where."""

    outcome: str  # opened, refused, or ended: the process did
    seconds: float
    nbytes: int  # by which the peak of memory rose
    problem: str | None = None
    kind: str = ""


@functools.cache
def slowness() -> float:
    """By how much this processor is slower at Python and JSON than the one that bounds are meant for; 1 if it isn't."""
    text = json.dumps([{"a": number, "b": [1.5, "text", None]} for number in range(20_000)])

    def work() -> float:
        started = time.process_time()
        json.loads(text)
        sum(number & 3 for number in range(300_000))
        return time.process_time() - started

    return max(1.0, statistics.median(work() for _ in range(9)) / USUAL_SECONDS)


class Judge:
    """Use it as a context manager. scratch: a folder of its own, which is emptied."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: IO[str] | None = None
        self._answers = -1
        self._pending = b""
        self._warm: set[str] = set()

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def judge(self, door: str, content: bytes, seed: bytes = b"") -> Verdict:
        """seed: a usual input of the door, opened first where the process has not opened one yet."""
        if self._process is None:
            self._start()
        if door not in self._warm:
            self._ask(door, seed, START_SECONDS)
            self._warm.add(door)
        verdict = self._ask(door, content, HANG_SECONDS)
        for _ in range(2):  # a busy machine may be what was slow
            if verdict.outcome == "ended" or not verdict.kind.startswith(("slow", "large")):
                break
            again = self._ask(door, content, HANG_SECONDS)
            verdict = min(verdict, again, key=lambda each: (each.problem is not None, each.seconds, each.nbytes))
        return verdict

    def _ask(self, door: str, content: bytes, seconds: float) -> Verdict:
        if self._process is None:
            self._start()
        assert self._requests is not None
        path = self._scratch / "input"
        path.write_bytes(content)
        started = time.monotonic()
        with contextlib.suppress(BrokenPipeError):
            self._requests.write(json.dumps({"door": door, "path": str(path)}) + "\n")
            self._requests.flush()
        line = self._line(seconds)
        if line is None:
            return self._ended(time.monotonic() - started)
        said = json.loads(line)
        if door in ("picture", "credentials", "mask"):
            said["said"] = LIBTIFF_LINES.sub("", said["said"])
        return _verdict(said, len(content))

    def _line(self, seconds: float) -> bytes | None:
        """The next line of the process; None where it ends, or says nothing for so long."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._pending:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._answers], [], [], left)[0]:
                return None
            piece = os.read(self._answers, 2**16)
            if not piece:
                return None
            self._pending += piece
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _ended(self, seconds: float) -> Verdict:
        """Of a process that gave no answer: it has ended, or is ended now."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5)
        code = self._process.poll()
        if code is None:
            self._process.send_signal(signal.SIGUSR1)  # it says where it is
            time.sleep(0.5)
        self._end()
        said = self._said.read_text(errors="replace")
        frames = [line.strip() for line in said.splitlines() if line.strip().startswith("File")][:4]
        what = f"it took more than {HANG_SECONDS:g} s" if code is None else f"the process ended with {code}"
        kind = f"{'hang' if code is None else 'crash'} {frames[0] if frames else ''}"
        return Verdict("ended", seconds, 0, f"{what}: {' < '.join(frames) or said[-500:]}", kind)

    @property
    def _said(self) -> Path:
        return self._scratch / "said"

    def _start(self) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)
        (self._scratch / "cache").mkdir(parents=True, mode=0o700)
        to_child, from_parent = os.pipe()
        from_child, to_parent = os.pipe()
        command = [sys.executable, str(Path(__file__).with_name("judge_process.py")), str(to_child), str(to_parent)]
        environment = {**os.environ, "TINTYPE_CACHE": str(self._scratch / "cache"), "ORT_DISABLE_TELEMETRY": "1"}
        environment |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        with self._said.open("a+b") as said:
            self._process = subprocess.Popen(
                [*command, str(self._scratch)],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                pass_fds=(to_child, to_parent),
                env=environment,
                start_new_session=True,
            )
        os.close(to_child)
        os.close(to_parent)
        self._requests, self._answers, self._pending = os.fdopen(from_parent, "w"), from_child, b""
        self._warm = set()

    def _end(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError):
            assert self._requests is not None
            self._requests.close()
        os.close(self._answers)
        self._process = None


def _verdict(said: dict[str, Any], input_bytes: int) -> Verdict:
    """What the answer of the process means, of an input of so many bytes."""
    outcome, seconds, nbytes = said["outcome"], float(said["seconds"]), int(said["bytes"])
    problem, kind = said["problem"], ""
    if problem is not None:
        kind = f"{problem.partition(':')[0]} {said['where'].partition(' < ')[0]}"
        problem = f"{problem} ({said['where']})"
    elif said["said"]:
        problem, kind = f"it wrote to the terminal: {said['said'][:500]!r}", "it wrote"
    elif seconds > (MOST_SECONDS + input_bytes / HASHED_BYTES) * slowness():
        problem, kind = f"it took {seconds:.1f} s of a processor that is {slowness():.1f} times as slow", "slow"
    elif nbytes > MOST_BYTES:
        problem, kind = f"it took {nbytes / 2**20:,.0f} MiB", "large"
    return Verdict(outcome, seconds, nbytes, problem, kind)
