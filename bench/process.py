"""A fresh process, from spawn to exit: wall-clock seconds, peak memory, and what it imported."""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import psutil

POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Run:
    """One finished process."""

    seconds: float
    peak_rss_bytes: int | None  # with its children's, as a maximum and not a sum; None where it could not be told
    stdout: str
    stderr: str


def tintype_command() -> list[str]:
    """The installed `tintype`, the one that belongs to this Python."""
    script = shutil.which("tintype", path=str(Path(sys.executable).parent))
    return [script] if script else [sys.executable, "-m", "tintype"]


def run_process(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    with_children: bool = True,
    refusable: bool = False,
) -> Run:
    """Run a command to its end. Raises ClickException with what it said when it fails.

    with_children: the peak is the largest of the family's; else the process's own, where the system tells it apart.
    refusable: a failure that is told on stdout, as with --json, is an answer too.
    """
    merged = {**os.environ, **(environment or {})}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out, tempfile.TemporaryFile("w+", encoding="utf-8") as err:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=merged)
        try:
            peak = _wait(process, with_children)
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds = time.perf_counter() - started
        out.seek(0)
        err.seek(0)
        finished = Run(seconds, peak, out.read(), err.read())
    if process.returncode != 0 and not (refusable and finished.stdout.strip()):
        raise click.ClickException(
            f"{' '.join(command[:3])} ended with {process.returncode}: {finished.stderr.strip()[-400:]}"
        )
    return finished


def imported_modules(command: Sequence[str], environment: Mapping[str, str] | None = None) -> frozenset[str]:
    """Top-level packages that `python -m tintype ...` imports, as Python's own import log tells."""
    run = run_process([sys.executable, "-X", "importtime", "-m", "tintype", *command], environment)
    names = re.findall(r"^import time:\s+\d+ \|\s+\d+ \|\s+([\w.]+)$", run.stderr, flags=re.MULTILINE)
    return frozenset(name.partition(".")[0] for name in names)


def _wait(process: subprocess.Popen[bytes], with_children: bool) -> int | None:
    """Wait for the process; returns its peak resident bytes."""
    if Path("/proc/self/status").exists():
        return _watch_peak(process, with_children)
    if not hasattr(os, "wait4"):
        return _poll_peak(process)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _watch_peak(process: subprocess.Popen[bytes], with_children: bool) -> int | None:
    """Linux keeps each program's own peak, VmHWM; read it until the process is gone, its children's too.

    Not ru_maxrss, which outlives exec: a child smaller than this process would have this process's figure.
    """
    peak = 0
    ended = os.pidfd_open(process.pid)
    try:
        while not select.select([ended], [], [], POLL_SECONDS)[0]:
            watched = _family(process.pid) if with_children else [process.pid]
            peak = max([peak, *map(_high_water_bytes, watched)])
    finally:
        os.close(ended)
    process.wait()
    return peak or None


def _family(pid: int) -> list[int]:
    """A process and its descendants."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:  # gone, or a kernel without this file
        children = []
    return [pid, *(member for child in children for member in _family(int(child)))]


def _high_water_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _poll_peak(process: subprocess.Popen[bytes]) -> int | None:
    """Windows keeps each process's peak; read it until the process is gone."""
    peak = 0
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            peak = max(peak, watched.memory_info().peak_wset)
        except psutil.NoSuchProcess:
            break
        time.sleep(POLL_SECONDS)
    process.wait()
    return peak or None
