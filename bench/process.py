"""A fresh process, from spawn to exit: wall-clock seconds, peak memory, what others took meanwhile, what it said.

Of a GPU, the most that it held while a peer had its turn, beyond what it held before: the same measure for all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import psutil

from tintype.engine import Reading, others_share, status_bytes

POLL_SECONDS = 0.01
GONE_SECONDS = 5.0  # until what was killed is gone
INTERVAL_MILLISECONDS = 50
ASK_SECONDS = 10.0
QUERY = ("--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0")
_ON_LINUX = Path("/proc/self/status").exists()


@dataclass(frozen=True, slots=True)
class Run:
    """One finished process; memory is None where it could not be told."""

    seconds: float
    exit_code: int
    stdout: str
    stderr: str
    own_peak_bytes: int | None  # its own
    peak_rss_bytes: int | None  # the largest of it and its children, each by itself
    together_peak_bytes: int | None  # what it and its children had resident at once, file-mapped pages included
    others_share: float | None  # of all processors' time
    was_killed: bool = False


def tintype_command(*arguments: str) -> list[str]:
    """The installed `tintype`, the one that belongs to this Python, with arguments."""
    script = shutil.which("tintype", path=str(Path(sys.executable).parent))
    return [*([script] if script else [sys.executable, "-m", "tintype"]), *arguments]


def run_process(
    command: Sequence[str], environment: Mapping[str, str] | None = None, *, refusable: bool = False,
    kill_after: float | None = None,
) -> Run:  # fmt: skip
    """Run a command to its end. Raises ClickException with what it said when it fails.

    refusable: a failure that is told on stdout, as with --json, is an answer too. kill_after: seconds after which it is
    killed with its children; then any end is an answer.
    """
    merged, was_killed = {**os.environ, **(environment or {})}, False
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out, tempfile.TemporaryFile("w+", encoding="utf-8") as err:
        before, worked = Reading.now(), _children_seconds()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=merged)
        memory = FamilyMemory(process.pid)
        try:
            process.wait(kill_after)
        except subprocess.TimeoutExpired:
            was_killed = True
        finally:
            if process.poll() is None:
                kill_family(process)
            memory.stop()
        after = Reading.now()
        after = dataclasses.replace(after, own_seconds=after.own_seconds + _children_seconds() - worked)
        for file in (out, err):
            file.seek(0)
        said, complained = out.read(), err.read()
    code = process.returncode
    if code != 0 and kill_after is None and not (refusable and said.strip()):
        raise click.ClickException(f"{' '.join(command[:3])} ended with {code}: {complained.strip()[-400:]}")
    peaks = (memory.own or None, memory.largest or None, memory.together or None)
    seconds = after.wall_seconds - before.wall_seconds
    return Run(seconds, code, said, complained, *peaks, others_share(before, after), was_killed)


def imported_modules(command: Sequence[str], environment: Mapping[str, str] | None = None) -> frozenset[str]:
    """Top-level packages that `python -m tintype ...` imports, as Python's own import log tells."""
    run = run_process([sys.executable, "-X", "importtime", "-m", "tintype", *command], environment)
    names = re.findall(r"^import time:\s+\d+ \|\s+\d+ \|\s+([\w.]+)$", run.stderr, flags=re.MULTILINE)
    return frozenset(name.partition(".")[0] for name in names)


def kill_family(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its children, and wait for them."""
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()
    psutil.wait_procs(family, timeout=GONE_SECONDS)


class FamilyMemory(threading.Thread):
    """Peak memory of a process and its children until `stop`; 0 where it could not be seen."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.own = self.largest = self.together = 0
        self._pid, self._ended = pid, threading.Event()
        self.start()

    def stop(self) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            memory = [_memory(pid) for pid in _family(self._pid)]
            self.own = max(self.own, memory[0][0])
            self.largest = max(self.largest, *(peak for peak, _ in memory))
            self.together = max(self.together, sum(resident for _, resident in memory))


def _memory(pid: int) -> tuple[int, int]:
    """Peak and present resident bytes of one process.

    Linux keeps each program's own peak, VmHWM. Not ru_maxrss, which outlives exec: a child smaller than this process
    would have this process's figure. Windows keeps a peak too; elsewhere the present is all that is told.
    """
    if _ON_LINUX:
        return status_bytes("VmHWM", pid) or 0, status_bytes("VmRSS", pid) or 0
    with contextlib.suppress(psutil.Error):
        info = psutil.Process(pid).memory_info()
        return getattr(info, "peak_wset", info.rss), info.rss
    return 0, 0


def _family(pid: int) -> list[int]:
    """A process and its descendants, where Linux names them; else itself, for looking through all takes its time."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:  # gone, or a system without this file
        return [pid]
    return [pid, *(member for child in children for member in _family(int(child)))]


def _children_seconds() -> float:
    """Processor seconds of this process's children that have ended, and of theirs."""
    times = os.times()
    return times.children_user + times.children_system


@contextlib.contextmanager
def device_samples() -> Iterator[list[int]]:
    """What the first GPU holds beyond what it held before, bytes, again and again until the block ends; nothing where
    nvidia-smi doesn't tell. Other processes' growth counts too."""
    before, samples = used_bytes(), list[int]()
    if before is None:
        yield samples
        return
    command = ["nvidia-smi", *QUERY, "-lms", str(INTERVAL_MILLISECONDS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        told = ((_bytes(line) or before) - before for line in process.stdout or ())
        thread = threading.Thread(target=lambda: samples.extend(told), daemon=True)
        thread.start()
        try:
            yield samples
        finally:
            process.terminate()
            thread.join()


def used_bytes() -> int | None:
    """What the first GPU holds now, over all processes; None where nvidia-smi doesn't tell."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", *QUERY]
        return _bytes(subprocess.run(command, capture_output=True, text=True, check=True, timeout=ASK_SECONDS).stdout)
    return None


def _bytes(text: str) -> int | None:
    first = text.strip().partition("\n")[0].strip()
    return int(first) * 2**20 if first.isdigit() else None
