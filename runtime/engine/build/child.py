"""Child processes of the engine: how one is run, what it answers, and how it ends when its parent does.

The job is a text on stdin. The last line on stdout is JSON, `{"answer": {...}}`, or `{"error": ..., "kind": ...}` where
the kind says what a parent acts on. Work that nobody waits for any more must not go on.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import filelock

from tintype.engine.device.process_memory import status_bytes
from tintype.engine.device.remedies import says_no_memory
from tintype.errors import NO_ROOM, CancelledError, MemoryBudgetError, RequestError, UncutError
from tintype.free_memory import free_bytes

Job = TypeVar("Job")
LOOK_SECONDS = 0.5
GRAPH_SECONDS = 600.0  # to look at a graph, against one that never ends; the largest we know takes seconds
# No space left; none to compute in; a graph that can't run in pieces; what nobody can have of this model.
DISK, MEMORY, UNCUT, REFUSED = "disk", "memory", "uncut", "refused"
_KILLED = (-9, 137)  # mostly by the system, for want of memory
UNTOUCHED_BYTES = 2**28  # of address space that a child reserves and never uses: stacks, arenas


class ChildError(Exception):
    """A child that gave no answer: its message, of the kinds above the one that it is of, or None, and the remedy that
    it knew, if any."""

    def __init__(self, message: str, kind: str | None, fix: str | None = None) -> None:
        super().__init__(message)
        self.message, self.kind, self.fix = message, kind, fix


def run_child(
    module: str, job: str, most_seconds: float = math.inf, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run a module as a process of its own, with the job on stdin, to its end; what it answers.

    most_seconds: after which it is ended. environment: what it has beside ours. Raises ChildError.
    """
    with start(module, environment) as process:
        try:
            stdout, stderr = _communicate(process, job, time.monotonic() + most_seconds)
        except BaseException:
            process.kill()
            raise
    if process.returncode in _KILLED:
        raise ChildError("the child process was killed, most likely for want of memory", MEMORY)
    said = _last_object(stdout)
    if process.returncode == 0 or "error" in said:
        return answer_in(said)
    if process.returncode == -signal.SIGABRT and "bad_alloc" in stderr:  # in a thread of a library's own
        raise ChildError("the child process found no memory to go on with", MEMORY)
    last_line = (stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
    raise ChildError(last_line, MEMORY if last_line.startswith("MemoryError") else None)


def start(module: str, environment: Mapping[str, str] | None) -> subprocess.Popen[str]:
    """Begin a module as a process of its own, with that environment beside ours."""
    # -P: a file of the user's folder that happens to be called onnx.py must not be imported.
    command = [sys.executable, "-P", "-m", module]
    pipe, every = subprocess.PIPE, {**os.environ, **(environment or {})}
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=every)


def _communicate(process: subprocess.Popen[str], job: str, deadline: float) -> tuple[str, str]:
    given: str | None = job  # once: `communicate` goes on from where it was
    while True:
        try:
            return process.communicate(given, timeout=LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            given = None
            check_cancelled()
            if time.monotonic() > deadline:
                raise ChildError("the child process was ended, as it took too long", None) from None


_waits = threading.local()


@contextlib.contextmanager
def cancelled_by(is_cancelled: Callable[[], bool]) -> Iterator[None]:
    """A time in which this thread waits for child processes, and for others' builds, only until that is true."""
    _waits.is_cancelled = is_cancelled
    try:
        yield
    finally:
        del _waits.is_cancelled


def check_cancelled() -> None:
    """Raises CancelledError where this thread need not wait any longer."""
    if getattr(_waits, "is_cancelled", bool)():
        raise CancelledError("the run was cancelled while a build was made", fix="begin it again")


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """The lock of a file, waited for until `check_cancelled` ends it."""
    lock = filelock.FileLock(path)
    while True:
        try:
            lock.acquire(timeout=LOOK_SECONDS)
            break
        except filelock.Timeout:
            check_cancelled()
    try:
        yield
    finally:
        lock.release()


def answer_in(said: Mapping[str, Any]) -> dict[str, Any]:
    """The answer in what `attempt` gave; raises ChildError where that is an error."""
    if isinstance(said.get("answer"), dict):
        return dict(said["answer"])
    raise ChildError(str(said.get("error", "the child process gave no answer")), said.get("kind"), said.get("fix"))


def answer_parent(work: Callable[[str], dict[str, Any]]) -> int:
    """Do the job on stdin and answer as `run_child` reads it; returns the exit code."""
    end_with_parent()
    take_what_is_free()
    said = attempt(work, sys.stdin.read())
    print(json.dumps(said))
    return 1 if "error" in said else 0


def attempt(work: Callable[[Job], dict[str, Any]], job: Job) -> dict[str, Any]:
    """Do a job: {"answer": ...}, or {"error": ..., "kind": ...}, with "fix" where the job is refused."""
    try:
        return {"answer": work(job)}
    except RequestError as error:
        return {"error": error.message, "kind": REFUSED, "fix": error.fix}
    except Exception as error:
        message = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        return {"error": message, "kind": kind_of(error)}


def attempt_all(work: Callable[[Job], dict[str, Any]], jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """`attempt` each job: on Linux beside one another, each in a fork of this process, which shares what is imported;
    elsewhere one after another."""
    if sys.platform != "linux" or len(jobs) == 1:
        return [attempt(work, job) for job in jobs]
    pipes = [_fork(work, job) for job in jobs]
    said = []
    for pid, pipe in pipes:
        with os.fdopen(pipe, encoding="utf-8") as file:
            text = file.read()
        exit_code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        kind = MEMORY if exit_code in _KILLED else None
        said.append(_last_object(text) or {"error": f"its process ended with {exit_code}", "kind": kind})
    return said


def _fork(work: Callable[[Job], dict[str, Any]], job: Job) -> tuple[int, int]:
    """The id of a process that does a job, and the end of a pipe where it writes what came of it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    try:
        end_with_parent()
        with os.fdopen(writing, "w", encoding="utf-8") as file:
            file.write(json.dumps(attempt(work, job)))
    finally:
        os._exit(0)


def kind_of(error: Exception) -> str | None:
    """What an error is for a parent: DISK, MEMORY, UNCUT or None."""
    if isinstance(error, OSError):
        return DISK if error.errno in NO_ROOM else None
    if isinstance(error, UncutError):
        return UNCUT
    from_onnxruntime = type(error).__module__.startswith("onnxruntime")
    short = isinstance(error, MemoryError | MemoryBudgetError) or (from_onnxruntime and says_no_memory(str(error)))
    return MEMORY if short else None


def _last_object(text: str) -> dict[str, Any]:
    """The last line of a text, where that is a JSON object."""
    lines = text.strip().splitlines()
    try:
        found = json.loads(lines[-1]) if lines else None
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}


def take_what_is_free() -> None:
    """From now on this process gets no more memory than is free now: it fails where the system would begin to end
    processes, among them those that make pictures. Does nothing but on Linux, where alone a limit of data is kept."""
    own = status_bytes("VmData") if sys.platform == "linux" else None
    if own is None:
        return
    import resource

    bound = own + max(0, free_bytes()) + UNTOUCHED_BYTES
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    for limit in (soft, hard):
        bound = bound if limit == resource.RLIM_INFINITY else min(bound, limit)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))


def end_with_parent() -> None:
    """Watch the parent from now on, in a thread of this process; does nothing where a parent can't be watched."""
    if os.name == "posix":
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os._exit(1)
