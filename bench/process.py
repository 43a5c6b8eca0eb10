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
# nvidia-smi's, of the first GPU, over all processes; a number every 50 ms where it goes on.
USED = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"]
AGAIN = ["-lms", "50"]
ASK_SECONDS = 10.0
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
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out, tempfile.TemporaryFile("w+", encoding="utf-8") as err:
        before = _moment()
        merged, was_killed = {**os.environ, **(environment or {})}, False
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=merged)
        with family_memory(process.pid) as memory:
            try:
                process.wait(kill_after)
            except subprocess.TimeoutExpired:
                was_killed = True
            finally:
                _kill_family(process)
        after = _moment()
        for file in (out, err):
            file.seek(0)
        said, complained = out.read(), err.read()
    code = process.returncode
    if code != 0 and kill_after is None and not (refusable and said.strip()):
        raise click.ClickException(f"{' '.join(command[:3])} ended with {code}: {complained.strip()[-400:]}")
    own, largest, together = (peak or None for peak in memory)
    seconds, others = after.wall_seconds - before.wall_seconds, others_share(before, after)
    return Run(seconds, code, said, complained, own, largest, together, others, was_killed)


def _moment() -> Reading:
    """Now, with what children that have ended took of the processors as this process's own."""
    times, now = os.times(), Reading.now()
    return dataclasses.replace(now, own_seconds=now.own_seconds + times.children_user + times.children_system)


def imported_modules(command: Sequence[str], environment: Mapping[str, str] | None = None) -> frozenset[str]:
    """Top-level packages that `python -m tintype ...` imports, as Python's own import log tells."""
    run = run_process([sys.executable, "-X", "importtime", "-m", "tintype", *command], environment)
    names = re.findall(r"^import time:\s+\d+ \|\s+\d+ \|\s+([\w.]+)$", run.stderr, flags=re.MULTILINE)
    return frozenset(name.partition(".")[0] for name in names)


def _kill_family(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that runs on, and its children, and wait for them."""
    if process.poll() is None:
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for child in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.wait()
        psutil.wait_procs(family, timeout=GONE_SECONDS)


@contextlib.contextmanager
def family_memory(pid: int) -> Iterator[list[int]]:
    """Until the block ends, peaks of a process: its own, the largest of it and its children, what they had together; 0
    where it could not be seen.

    Linux keeps each program's own peak, VmHWM. Not ru_maxrss, which outlives exec: a child smaller than this process
    would have this process's figure. Windows keeps a peak too; elsewhere the present is all that is told.
    """
    peaks, ended = [0, 0, 0], threading.Event()

    def watch() -> None:
        while not ended.wait(POLL_SECONDS):
            memory = [_memory(each) for each in _family(pid)]
            now = (memory[0][0], max(peak for peak, _ in memory), sum(resident for _, resident in memory))
            peaks[:] = map(max, peaks, now)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


def _memory(pid: int) -> tuple[int, int]:
    """Peak and present resident bytes of one process."""
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


@contextlib.contextmanager
def device_samples() -> Iterator[list[int]]:
    """What the first GPU holds beyond what it held before, bytes, again and again until the block ends; nothing where
    nvidia-smi doesn't tell. Other processes' growth counts too."""
    before, samples = used_bytes(), list[int]()
    if before is None:
        yield samples
        return
    with subprocess.Popen([*USED, *AGAIN], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        grown = (int(line) * 2**20 - before for line in process.stdout or () if line.strip().isdigit())
        thread = threading.Thread(target=lambda: samples.extend(grown), daemon=True)
        thread.start()
        try:
            yield samples
        finally:
            process.terminate()
            thread.join()


def used_bytes() -> int | None:
    """What the first GPU holds now, over all processes; None where nvidia-smi doesn't tell."""
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        return int(subprocess.run(USED, capture_output=True, text=True, check=True, timeout=ASK_SECONDS).stdout) * 2**20
    return None
