"""Child processes of the engine: how one is run, and how it ends when its parent does.

Work that nobody waits for any more must not go on.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

LOOK_SECONDS = 0.5


def run_child(module: str, job: str) -> subprocess.CompletedProcess[str]:
    """Run a module as a process of its own, with the job on stdin, to its end."""
    # -P: a file of the user's folder that happens to be called onnx.py must not be imported.
    command = [sys.executable, "-P", "-m", module]
    return subprocess.run(command, input=job, capture_output=True, text=True, check=False)


def last_words(done: subprocess.CompletedProcess[str]) -> str:
    """The last line that a process said on stderr, or its exit code."""
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def end_with_parent() -> None:
    """Watch the parent from now on, in a thread of this process; does nothing where a parent can't be watched."""
    if os.name == "posix":
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os._exit(1)
