"""The process that opens strangers' inputs and says what came of each: `python judge_process.py FD_IN FD_OUT FOLDER`.

A line of JSON comes in for each input, {"door", "path"}, and one goes out: what happened, processor seconds, and by how
much the peak of memory rose. Its own stdout and stderr are a file, FOLDER/said, in which nothing may ever stand.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import resource
import signal
import sys
import time
import traceback
import unicodedata
import warnings
from pathlib import Path
from typing import Any

from doors import DOORS, Scratch, beside

MEMORY_LIMIT = 12 * 2**30  # of addresses: what takes more is a MemoryError here, and no harm to the machine
FRAMES = 4  # of a traceback that are told


def main() -> None:
    requests, answers = os.fdopen(int(sys.argv[1])), os.fdopen(int(sys.argv[2]), "w")
    folder = Path(sys.argv[3])
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    scratch = Scratch(folder)
    start_no_process()
    warnings.simplefilter("always")  # one that is shown is shown each time
    for line in requests:
        job = json.loads(line)
        answers.write(json.dumps(judge(job["door"], Path(job["path"]), scratch)) + "\n")
        answers.flush()


def judge(door: str, path: Path, scratch: Scratch) -> dict[str, Any]:
    """Open one input, and say what came of it."""
    more_bytes, more_seconds = beside(door, path)
    unexpected.clear()
    before, problem, where = _reset_peak(), None, ""
    started = time.process_time()
    try:
        outcome, said = "opened", DOORS[door](path, scratch)
        if isinstance(said, tuple):  # of the command
            outcome = "refused" if said[0] else "opened"
            problem = _unprintable(said[1].replace("\n", " "))
    except BaseException as error:
        outcome = "refused"
        problem, where = _judge_error(error)
    seconds = time.process_time() - started
    if unexpected:
        problem, where = _judge_error(unexpected[0])
        problem = problem or f"unexpected {type(unexpected[0]).__name__}: {unexpected[0]}"
    return {
        "outcome": outcome,
        "problem": problem and problem[:2000],
        "where": where,
        "seconds": max(0.0, seconds - more_seconds),
        "bytes": max(0, _peak() - before - more_bytes),
        "said": _said(),
    }


unexpected: list[BaseException] = []  # what the command answered with "run it again with TINTYPE_DEBUG=1"


def start_no_process() -> None:
    """Graphs are built in other processes, which take their time: each ends here as if it had failed."""
    import tintype.cli.failure as failure
    from tintype.engine.build import analyse, builds, child, probe

    def refuse(module: str, job: str, most_seconds: float = 0.0) -> dict[str, Any]:
        raise child.ChildError("no process is started here", None)

    for module in (analyse, builds, probe):
        module.run_child = refuse
    describe = failure.describe

    def describe_and_keep(error: BaseException) -> failure.Failure:
        found = describe(error)
        if found.fix == failure.SEE_TRACEBACK:
            unexpected.append(error)
        return found

    failure.describe = describe_and_keep


def _judge_error(error: BaseException) -> tuple[str | None, str]:
    """What is wrong with an exception, if anything, and where it was raised."""
    from tintype.errors import TintypeError

    if isinstance(error, TintypeError):
        return _unprintable(error.message + error.fix) or (None if error.fix else "there is no fix"), "a message"
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/fuzz/" not in frame.filename]
    where = " < ".join(
        f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno} {frame.name}" for frame in ours[: -FRAMES - 1 : -1]
    )
    return f"{type(error).__name__}: {error}", where


def _unprintable(text: str) -> str | None:
    """What a terminal would obey, or not show, in a text."""
    for letter in text:
        if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or letter in "\u200e\u200f\u202a\u202b\u202d\u202e":
            return f"a control character is shown: U+{ord(letter):04X}"
    return None


def _said() -> str:
    """What was written to stdout and stderr since the last time."""
    size = os.fstat(1).st_size
    if size == 0:
        return ""
    text = os.pread(1, 4000, 0).decode("utf-8", "replace")
    os.ftruncate(1, 0)
    return text


def _reset_peak() -> int:
    """The bytes that this process has now, from where its peak is counted on."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS") or _peak()


def _peak() -> int:
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status(name: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
